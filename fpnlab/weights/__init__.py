"""Weights of trained networks: files of PyTorch and safetensors, and their names here."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
