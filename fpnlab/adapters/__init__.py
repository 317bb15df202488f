"""Every layer and model as a Flax module: ``linen`` and ``nnx``. Import the one you use."""
