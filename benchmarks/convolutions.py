"""Depthwise, grouped and patch convolutions with their gradients, against XLA and PyTorch.

The layers are those of ConvNeXt (arXiv:2201.03545) and of ResNeXt-50 32x4d (arXiv:1611.05431) on
small images. "fpnlab" is `fpnlab.ops.conv`, "xla" is `jax.lax.conv_general_dilated` with its own
derivatives. Times to compile go to a table of their own.
"""

import dataclasses
import functools
import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch

from fpnlab.ops.convolution import conv


@dataclasses.dataclass(frozen=True)
class Layer:
    """A convolution of square maps."""

    side: int
    channels: int
    outputs: int
    size: int
    groups: int = 1
    stride: int = 1
    padding: int = 0

    def __str__(self):
        groups = f" groups {self.groups}" if self.groups > 1 else ""
        kernel = f"{self.size}x{self.size}/{self.stride}"
        return f"{self.side}px {self.channels}-{self.outputs} {kernel}{groups}"


def depthwise(side, channels):
    return Layer(side, channels, channels, 7, groups=channels, padding=3)


def grouped(side, channels, stride=1):
    return Layer(side, channels, channels, 3, groups=32, stride=stride, padding=1)


LAYERS = {
    "depthwise": [depthwise(16, 96), depthwise(8, 192), depthwise(4, 384), depthwise(2, 768)],
    "grouped": [
        grouped(16, 128),
        grouped(16, 256, stride=2),
        grouped(8, 256),
        grouped(4, 512),
        grouped(4, 1024),
    ],
    "patches": [Layer(64, 3, 96, 4, stride=4), Layer(16, 96, 192, 2, stride=2)],
}
PASSES = ("forward", "input gradient", "kernel gradient")


@dataclasses.dataclass(frozen=True)
class Compilation:
    """Seconds to trace and compile one pass."""

    case: str
    fpnlab: float
    xla: float


def jax_ways(layer, run, x, w, dy):
    """Returns calls of the three passes, and the seconds that each took to compile."""
    passes = (
        lambda x, w, dy: run(x, w),
        lambda x, w, dy: jax.vjp(lambda x: run(x, w), x)[1](dy)[0],
        lambda x, w, dy: jax.vjp(lambda w: run(x, w), w)[1](dy)[0],
    )
    calls, seconds = [], []
    for one in passes:
        start = time.perf_counter()
        program = jax.jit(one).lower(x, w, dy).compile()
        seconds.append(round(time.perf_counter() - start, 2))
        calls.append(lambda program=program: jax.block_until_ready(program(x, w, dy)))
    return calls, seconds


def torch_ways(layer, x, w, dy):
    """Returns calls of the three passes, of operands in the memory order of channels-last."""
    x, dy = (torch.tensor(np.asarray(a)).permute(0, 3, 1, 2) for a in (x, dy))
    w = torch.tensor(np.asarray(w)).permute(3, 2, 0, 1)
    w = w.contiguous(memory_format=torch.channels_last)
    options = {"stride": layer.stride, "padding": layer.padding, "groups": layer.groups}

    def backward(mask):
        pair = lambda n: [n, n]
        torch.ops.aten.convolution_backward(
            dy, x, w, None, pair(layer.stride), pair(layer.padding), pair(1), False, pair(0),
            layer.groups, mask,
        )  # fmt: skip

    return [
        lambda: torch.nn.functional.conv2d(x, w, **options),
        lambda: backward([True, False, False]),
        lambda: backward([False, True, False]),
    ]


def xla(layer):
    pads = [(layer.padding, layer.padding)] * 2
    return lambda x, w: jax.lax.conv_general_dilated(
        x,
        w,
        (layer.stride, layer.stride),
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=layer.groups,
    )


def measured(layer, batch, seconds):
    """Yields the timings and the time to compile of each pass."""
    draw = np.random.default_rng(0)
    sizes = (batch, layer.side, layer.side, layer.channels)
    x = jnp.asarray(draw.normal(size=sizes), jnp.float32)
    kernel = (layer.size, layer.size, layer.channels // layer.groups, layer.outputs)
    w = jnp.asarray(draw.normal(size=kernel), jnp.float32)
    ours = functools.partial(conv, stride=layer.stride, padding=layer.padding, groups=layer.groups)
    dy = jnp.asarray(draw.normal(size=jax.eval_shape(ours, x, w).shape), jnp.float32)
    mine, mine_seconds = jax_ways(layer, ours, x, w, dy)
    theirs, their_seconds = jax_ways(layer, xla(layer), x, w, dy)
    in_torch = torch_ways(layer, x, w, dy)
    for i, title in enumerate(PASSES):
        case = f"{layer} batch {batch} {title}"
        ways = {"fpnlab": mine[i], "xla": theirs[i], "torch": in_torch[i]}
        yield (
            timing.compare(case, ways, seconds=seconds),
            Compilation(case, mine_seconds[i], their_seconds[i]),
        )


def line(timings):
    return f"{timings[0].case}: " + ", ".join(f"{t.name} {t.median_ms} ms" for t in timings)


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--kinds", nargs="+", default=list(LAYERS), choices=list(LAYERS))
    options = parser.parse_args()
    timing.prepare(options)
    torch.set_num_threads(options.threads)
    rows, compiled = [], []
    for kind, batch in itertools.product(options.kinds, options.batch):
        for layer in LAYERS[kind]:
            for timings, seconds in measured(layer, batch, options.seconds):
                rows += timings
                compiled.append(seconds)
                print(line(timings), flush=True)
    timing.report("speed_convolutions", rows, options)
    timing.report("compilation_convolutions", compiled, options)


if __name__ == "__main__":
    main()
