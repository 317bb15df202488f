"""What every test needs: a key, the data folder, and a compilation cache that survives runs."""

import os
import pathlib

import jax
import pytest

CACHE = os.environ.get("FPNLAB_CACHE") or pathlib.Path.home() / ".cache" / "fpnlab"
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(CACHE) / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def data_root():
    """The folder with the real data sets; tests that need it skip where it is absent."""
    default = pathlib.Path(__file__).parents[2] / "shared" / "data"
    root = pathlib.Path(os.environ.get("FPNLAB_DATA", default))
    if not root.is_dir():
        pytest.skip(f"real data not found at {root}; set FPNLAB_DATA to its folder")
    return root
