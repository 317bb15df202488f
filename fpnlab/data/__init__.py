"""Files and generators to batches: whole splits in memory, an order, and random views."""

from fpnlab.data.augmentation.classifier_augment import AugmentImages, augment_images
from fpnlab.data.augmentation.detector_augment import Augment, augment
from fpnlab.data.dataset import Dataset, Problem, stream_order, take
from fpnlab.data.letterbox import letterbox, letterbox_boxes
from fpnlab.data.load_data import BoxData, Data, LabelData, load
from fpnlab.data.sources.cifar import CifarBinary, load_cifar
from fpnlab.data.sources.digits import Digits, load_digits
from fpnlab.data.sources.idx import Idx, load_idx
from fpnlab.data.sources.image_folder import ImageFolder, load_image_folder
from fpnlab.data.sources.scenes import Scenes, load_scenes, scene
from fpnlab.data.sources.voc import Voc, load_voc
from fpnlab.data.split import Split

__all__ = [
    "Augment",
    "AugmentImages",
    "BoxData",
    "CifarBinary",
    "Data",
    "Dataset",
    "Digits",
    "Idx",
    "ImageFolder",
    "LabelData",
    "Problem",
    "Scenes",
    "Split",
    "Voc",
    "augment",
    "augment_images",
    "letterbox",
    "letterbox_boxes",
    "load",
    "load_cifar",
    "load_digits",
    "load_idx",
    "load_image_folder",
    "load_scenes",
    "load_voc",
    "scene",
    "stream_order",
    "take",
]
