"""From what a config names to data in memory."""

from fpnlab.data.dataset import Dataset
from fpnlab.data.scenes import Scenes, load_scenes
from fpnlab.data.voc import Voc, load_voc

Data = Scenes | Voc


def load(spec: Data) -> Dataset:
    """Returns the data set of ``spec``, drawn or read."""
    match spec:
        case Scenes():
            return load_scenes(spec)
        case Voc():
            return load_voc(spec)
