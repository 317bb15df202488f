"""Files and generators to batches: whole splits in memory, an order, and random views."""

from fpnlab.data.augment import Augment, augment
from fpnlab.data.dataset import Dataset, Problem, stream_order, take
from fpnlab.data.letterbox import letterbox, letterbox_boxes
from fpnlab.data.load import Data, load
from fpnlab.data.scenes import Scenes, load_scenes, scene
from fpnlab.data.voc import Voc, load_voc

__all__ = [
    "Augment",
    "Data",
    "Dataset",
    "Problem",
    "Scenes",
    "Voc",
    "augment",
    "letterbox",
    "letterbox_boxes",
    "load",
    "load_scenes",
    "load_voc",
    "scene",
    "stream_order",
    "take",
]
