"""Files and generators to batches: whole splits in memory, an order, and augmentation."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
