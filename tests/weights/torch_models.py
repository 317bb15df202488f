"""torchvision and timm beside a PyTorch of any build."""

import importlib

import pytest


def models_of(package):
    """Returns torchvision.models or timm; skips where the package or PyTorch is not installed.

    The wheels of torchvision on PyPI are compiled for CUDA: with another PyTorch their operators
    are missing, and the import fails where it describes these. Declared, they are just not usable.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    pytest.importorskip("PIL")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is the oracle; install it with --no-deps")
    if importlib.util.find_spec(package.partition(".")[0]) is None:
        pytest.skip(f"{package} is the oracle; install it with --no-deps")
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}",
                "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
            )
    return importlib.import_module(package)
