"""TOML and overrides to one validated `Experiment`, and back."""
