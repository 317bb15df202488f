"""What tests share: a key, the data folder, a small detector, and a compilation cache."""

import os
import pathlib

from fpnlab.compiler import silence_false_alarms

silence_false_alarms()

import jax
import pytest

from fpnlab.model.backbone import ResNet, Stem
from fpnlab.model.detector import Anchors, Detector
from fpnlab.model.head import RetinaHead
from fpnlab.model.neck import Fpn
from fpnlab.model.norm import BatchNorm

CACHE = os.environ.get("FPNLAB_CACHE") or pathlib.Path.home() / ".cache" / "fpnlab"
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(CACHE) / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


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


def small_detector(norm, classes=3):
    return Detector(
        classes=classes,
        backbone=ResNet(
            depths=(1, 1), widths=(4, 8), stem=Stem(size=3, stride=2, pool=True), norm=norm
        ),
        neck=Fpn(channels=8, min_level=3, max_level=4, norm=norm),
        head=RetinaHead(depth=1, norm=norm),
        anchors=Anchors(scale=2.0, octaves=2, ratios=(1.0,)),
    )


@pytest.fixture(scope="session")
def make_detector():
    return small_detector


@pytest.fixture(scope="session")
def detector():
    return small_detector(BatchNorm())
