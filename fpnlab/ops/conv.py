"""Convolution in NHWC with HWIO kernels and explicit, symmetric padding."""

import jax
from jaxtyping import Array, Float


def conv(
    x: Float[Array, "b h w i"],
    w: Float[Array, "kh kw i o"],
    *,
    stride: int = 1,
    padding: int | None = None,
) -> Float[Array, "b _ _ o"]:
    """Returns the cross-correlation of ``x`` with ``w``, as deep learning calls convolution.

    Args:
      x: images, of the dtype of ``w``.
      w: kernel.
      stride: step of the window, in pixels, along both axes.
      padding: zeros added on each of the four sides. ``None`` is ``(k - 1) // 2``: an odd
        kernel then gives maps of ``ceil(h / stride)`` rows, as PyTorch's ``padding=k // 2``.
    """
    pads = [((k - 1) // 2 if padding is None else padding,) * 2 for k in w.shape[:2]]
    return jax.lax.conv_general_dilated(
        x, w, (stride, stride), pads, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
