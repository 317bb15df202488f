"""Each norm forward, and forward with backward, against Flax, PyTorch and a copy of the bytes.

The maps are those of a ResNet-50 on 224-pixel images: C2 to C5. "flax" is Flax's default, the
variance ``E[x^2] - E[x]^2``; "flax two-pass" is with ``use_fast_variance=False``. A copy reads the
map and writes it once; "bytes" are copies as many as the norm must read and write its maps where no
cache holds one. The temporary memory of each program, in maps, goes to a table of its own. On a
GPU, PyTorch computes there as well.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch
from flax import linen
from torch.nn import functional as F

from fpnlab import types
from fpnlab.nn import norm_specs as specs

MAPS = {"C2": (56, 256), "C3": (28, 512), "C4": (14, 1024), "C5": (7, 2048)}
EPS = 1e-5
PASSES = ("forward", "with backward")
WHOLE, INSIDE = (3, 8), (2, 5)
"""Maps read or written, forward and with the backward pass.

With statistics over the map: read for the statistics, read and written to be normalized;
backward, map and cotangents read for the sums, and read again to write the gradient. Without, or
with a pixel's alone: read and written; backward, map and cotangents read, the gradient written.
"""


@dataclasses.dataclass(frozen=True)
class Case:
    """A norm, the maps that it must move, and its counterparts."""

    spec: Any
    moves: tuple[int, int]
    in_flax: Callable[..., linen.Module] | None = None
    in_torch: Callable[..., torch.Tensor] | None = None
    fast: bool = True  # whether Flax has a variance in one pass for it


def pixels(run):
    """Returns ``run``, which normalizes over the last axis, for channels-first maps."""
    return lambda x, s, b: run(x.permute(0, 2, 3, 1), s, b).permute(0, 3, 1, 2)


CASES = {
    "batch norm": Case(
        specs.BatchNorm(),
        WHOLE,
        functools.partial(linen.BatchNorm, use_running_average=False),
        lambda x, s, b: F.batch_norm(x, None, None, s, b, training=True, eps=EPS),
    ),
    "batch norm, groups of 2": Case(specs.BatchNorm(norm_batch=2), WHOLE),
    "batch renorm": Case(specs.BatchNorm(renorm=specs.Renorm()), WHOLE),
    "frozen batch norm": Case(
        specs.FrozenBatchNorm(affine=True),
        INSIDE,
        functools.partial(linen.BatchNorm, use_running_average=True),
        lambda x, s, b: F.batch_norm(x, torch.zeros_like(s), torch.ones_like(s), s, b, eps=EPS),
        fast=False,
    ),
    "layer norm hwc": Case(
        specs.LayerNorm(axes="hwc"),
        WHOLE,
        functools.partial(linen.GroupNorm, num_groups=1),
        lambda x, s, b: F.group_norm(x, 1, s, b, eps=EPS),
    ),
    "layer norm c": Case(
        specs.LayerNorm(axes="c"),
        INSIDE,
        linen.LayerNorm,
        pixels(lambda x, s, b: F.layer_norm(x, s.shape, s, b, eps=EPS)),
    ),
    "group norm 32": Case(
        specs.GroupNorm(groups=32),
        WHOLE,
        functools.partial(linen.GroupNorm, num_groups=32),
        lambda x, s, b: F.group_norm(x, 32, s, b, eps=EPS),
    ),
    "instance norm": Case(
        specs.InstanceNorm(),
        WHOLE,
        linen.InstanceNorm,
        lambda x, s, b: F.instance_norm(x, weight=s, bias=b, eps=EPS),
    ),
    "rms norm hwc": Case(
        specs.RmsNorm(axes="hwc"),
        WHOLE,
        functools.partial(linen.RMSNorm, reduction_axes=(1, 2, 3), feature_axes=-1),
        fast=False,
    ),
    "rms norm c": Case(
        specs.RmsNorm(axes="c"),
        INSIDE,
        linen.RMSNorm,
        pixels(lambda x, s, b: F.rms_norm(x, s.shape, s, eps=EPS)),
        fast=False,
    ),
    "filter response norm": Case(specs.FilterResponseNorm(), WHOLE),
    "dynamic tanh": Case(specs.DynamicTanh(), INSIDE),
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Temporary memory of the compiled programs of one case, in sizes of the map."""

    case: str
    fpnlab: float
    flax: float | None
    flax_two_pass: float | None


@dataclasses.dataclass(frozen=True)
class Summary:
    """Ratios of fpnlab's median times: the geometric mean over the maps, and the range."""

    norm: str
    dtype: str
    run: str
    flax: str
    flax_two_pass: str
    torch: str
    bytes: str


def our_norm(case, channels):
    """Returns the norm as a function of the map and its parameters, and these."""
    if isinstance(case.spec, specs.FrozenBatchNorm):
        params, state = specs.init_norm(specs.BatchNorm(), channels)
    else:
        params, state = specs.init_norm(case.spec, channels)
    run = lambda x, params: specs.apply_norm(case.spec, params, state, x, types.Mode.TRAIN)[0]
    return run, params


def flax_norm(case, channels, dtype, **options):
    module = case.in_flax(epsilon=EPS, dtype=dtype, **options)
    scale, bias = jnp.ones(channels), jnp.zeros(channels)
    stats = {"mean": bias, "var": scale}
    params = {"scale": scale} | ({} if isinstance(module, linen.RMSNorm) else {"bias": bias})

    def run(x, params):
        variables = {"params": params, "batch_stats": stats}
        return module.apply(variables, x, mutable=["batch_stats"])[0]

    return run, params


def jax_ways(run, params, x, ct):
    """Returns calls of the forward pass, and of it with the backward pass; and their memory."""

    @jax.jit
    def both(x, params):
        y, pull = jax.vjp(run, x, params)
        return y, pull(ct)

    programs = [f.lower(x, params).compile() for f in (jax.jit(run), both)]
    call = lambda f: lambda: jax.block_until_ready(f(x, params))
    temporary = [round(f.memory_analysis().temp_size_in_bytes / x.nbytes, 2) for f in programs]
    return [call(f) for f in programs], temporary


@jax.jit
def plus_one(x):
    return x + 1


def torch_ways(run, host, dtype):
    device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    options = {"dtype": getattr(torch, dtype), "device": device}
    # Moved as a view of the same order, the maps stay channels-last.
    x, ct = (torch.tensor(a).to(**options).permute(0, 3, 1, 2) for a in host)
    scale = torch.ones(x.shape[1], **options).requires_grad_()
    bias = torch.zeros(x.shape[1], **options).requires_grad_()
    leaf = x.clone().requires_grad_()

    def forward():
        with torch.no_grad():
            return run(x, scale, bias)

    def both():
        y = run(leaf, scale, bias)
        return torch.autograd.grad(y, (leaf, scale, bias), ct, allow_unused=True)

    def waited(call):
        call()
        if device == "cuda":
            torch.cuda.synchronize()

    return [functools.partial(waited, call) for call in (forward, both)]


def measured(name, level, batch, dtype, seconds):
    """Returns the timings, by pass, and the memory of one norm on one map."""
    case, (side, channels) = CASES[name], MAPS[level]
    draw = np.random.default_rng(0)
    host = draw.normal(size=(2, batch, side, side, channels)).astype(np.float32)
    x, ct = jnp.asarray(host, dtype)
    ways, held = {}, {}
    ways["fpnlab"], held["fpnlab"] = jax_ways(*our_norm(case, channels), x, ct)
    if case.in_flax:
        ways["flax"], held["flax"] = jax_ways(*flax_norm(case, channels, x.dtype), x, ct)
    if case.in_flax and case.fast:
        exact = flax_norm(case, channels, x.dtype, use_fast_variance=False)
        ways["flax two-pass"], held["flax two-pass"] = jax_ways(*exact, x, ct)
    if case.in_torch:
        ways["torch"] = torch_ways(case.in_torch, host, dtype)
    ways["copy"] = [lambda: plus_one(x).block_until_ready()] * 2
    times, memory = [], []
    for i, title in enumerate(PASSES):
        label = f"{level} batch {batch} {dtype} {name} {title}"
        calls = {way: both[i] for way, both in ways.items()}
        times.append(timing.compare(label, calls, seconds=seconds))
        row = [held[way][i] if way in held else None for way in ("fpnlab", "flax", "flax two-pass")]
        memory.append(Memory(label, *row))
    return times, memory


def summary(name, dtype, passes):
    """Yields a row for each pass, from the timings of all maps: ``passes[map][pass]``."""
    for i, title in enumerate(PASSES):
        medians = [{t.name: t.median_ms for t in both[i]} for both in passes]
        copies = CASES[name].moves[i] / 2
        against = lambda way, times=1, m=medians: [
            one["fpnlab"] / (times * one[way]) for one in m if one.get(way)
        ]
        ratios = [against("flax"), against("flax two-pass"), against("torch")]
        yield Summary(name, dtype, title, *map(spread, ratios), spread(against("copy", copies)))


def spread(ratios):
    if not ratios:
        return "-"
    mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
    return f"{mean:.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--maps", nargs="+", default=list(MAPS), choices=list(MAPS))
    parser.add_argument("--norms", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--dtype", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    options = parser.parse_args()
    timing.prepare(options)
    torch.set_num_threads(options.threads)
    rows, memory, short = [], [], []
    for name, dtype in itertools.product(options.norms, options.dtype):
        passes = []
        for level, batch in itertools.product(options.maps, options.batch):
            times, held = measured(name, level, batch, dtype, options.seconds)
            passes.append(times)
            rows += itertools.chain(*times)
            memory += held
        short += summary(name, dtype, passes)
        print(*short[-2:], sep="\n", flush=True)
    timing.report("speed_norms", rows, options)
    timing.report("memory_norms", memory, options)
    timing.report("speed_norms_summary", short, options)


if __name__ == "__main__":
    main()
