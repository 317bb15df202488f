"""Files and generators to batches: whole splits in memory, an order, and random views."""

from fpnlab.data.augment import Augment, augment
from fpnlab.data.augment_images import AugmentImages, augment_images
from fpnlab.data.cifar import CifarBinary, load_cifar
from fpnlab.data.dataset import Dataset, Problem, stream_order, take
from fpnlab.data.digits import Digits, load_digits
from fpnlab.data.idx import Idx, load_idx
from fpnlab.data.image_folder import ImageFolder, load_image_folder
from fpnlab.data.letterbox import letterbox, letterbox_boxes
from fpnlab.data.load import BoxData, Data, LabelData, load
from fpnlab.data.scenes import Scenes, load_scenes, scene
from fpnlab.data.split import Split
from fpnlab.data.voc import Voc, load_voc

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
