"""Every layer and model as a Flax module: ``linen`` and ``nnx``. Import the one you use."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
