"""Layers and models: a spec, its parameters and state, and pure functions of them."""
