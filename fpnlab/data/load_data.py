"""Loading of the data set that a spec describes."""

from fpnlab.data.dataset import Dataset
from fpnlab.data.sources.cifar import CifarBinary, load_cifar
from fpnlab.data.sources.digits import Digits, load_digits
from fpnlab.data.sources.idx import Idx, load_idx
from fpnlab.data.sources.image_folder import ImageFolder, load_image_folder
from fpnlab.data.sources.scenes import Scenes, load_scenes
from fpnlab.data.sources.voc import Voc, load_voc

BoxData = Scenes | Voc
"""Images with boxes (``Batch``)."""
LabelData = ImageFolder | CifarBinary | Idx | Digits
"""Images with a label each (``LabeledBatch``)."""
Data = BoxData | LabelData
"""All data sets."""


def load(spec: Data) -> Dataset:
    """Returns the data set that ``spec`` describes, generated or read from files.

    Args:
      spec: The data set.

    Raises:
      FileNotFoundError: Files of the data set are missing.
      ValueError: Files of the data set are invalid.
    """
    match spec:
        case Scenes():
            return load_scenes(spec)
        case Voc():
            return load_voc(spec)
        case ImageFolder():
            return load_image_folder(spec)
        case CifarBinary():
            return load_cifar(spec)
        case Idx():
            return load_idx(spec)
        case Digits():
            return load_digits(spec)
