"""Evaluation: COCO metrics, accuracy, and three sources of batch-norm statistics."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
