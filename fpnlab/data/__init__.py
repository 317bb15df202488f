"""Data sets: files and generators, splits in memory, the order of images, and augmentation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
