"""Each norm forward, and forward with backward, against Flax, PyTorch and a copy of the bytes.

The maps are those of a ResNet-50 on 224-pixel images: C2 to C5. "flax" is Flax's default, the
variance ``E[x^2] - E[x]^2``; "flax two-pass" is with ``use_fast_variance=False``. The temporary
memory of each program, in maps, goes to a table of its own.
"""

import dataclasses
import functools
import itertools

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import timing
import torch

from fpnlab.ops.norm import batch_norm_train, group_norm, layer_norm

MAPS = {"C2": (56, 256), "C3": (28, 512), "C4": (14, 1024), "C5": (7, 2048)}
EPS = 1e-5

OURS = {
    "batch_norm": lambda x, s, b: batch_norm_train(x, s, b, eps=EPS)[0],
    "layer_norm hwc": lambda x, s, b: layer_norm(x, s, b, axes="hwc", eps=EPS),
    "layer_norm c": lambda x, s, b: layer_norm(x, s, b, axes="c", eps=EPS),
    "group_norm 32": lambda x, s, b: group_norm(x, s, b, groups=32, eps=EPS),
}


@dataclasses.dataclass(frozen=True)
class Memory:
    """Temporary memory of the compiled programs of one case, in sizes of the map."""

    case: str
    fpnlab: float
    flax: float
    flax_two_pass: float


def flax_norm(name, **options):
    options["epsilon"] = EPS
    module = {
        "batch_norm": lambda: flax.linen.BatchNorm(use_running_average=False, **options),
        "layer_norm hwc": lambda: flax.linen.GroupNorm(num_groups=1, **options),
        "layer_norm c": lambda: flax.linen.LayerNorm(**options),
        "group_norm 32": lambda: flax.linen.GroupNorm(num_groups=32, **options),
    }[name]()

    def run(x, scale, bias):
        stats = {"mean": jnp.zeros_like(scale), "var": jnp.ones_like(scale)}
        variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": stats}
        return module.apply(variables, x, mutable=["batch_stats"])[0]

    return run


def torch_norm(name):
    functional = torch.nn.functional
    return {
        "batch_norm": lambda x, s, b: functional.batch_norm(
            x, None, None, s, b, training=True, eps=EPS
        ),
        "layer_norm hwc": lambda x, s, b: functional.group_norm(x, 1, s, b, eps=EPS),
        "layer_norm c": lambda x, s, b: functional.layer_norm(
            x.permute(0, 2, 3, 1), s.shape, s, b, eps=EPS
        ).permute(0, 3, 1, 2),
        "group_norm 32": lambda x, s, b: functional.group_norm(x, 32, s, b, eps=EPS),
    }[name]


def jax_ways(run, x, ct):
    """Returns calls of the forward pass, and of it with the backward pass; and their memory."""
    scale, bias = jnp.ones(x.shape[-1]), jnp.zeros(x.shape[-1])
    forward = jax.jit(run)

    @jax.jit
    def both(x, scale, bias):
        y, pull = jax.vjp(run, x, scale, bias)
        return y, pull(ct)

    programs = [f.lower(x, scale, bias).compile() for f in (forward, both)]
    call = lambda f: lambda: jax.block_until_ready(f(x, scale, bias))
    temporary = [round(f.memory_analysis().temp_size_in_bytes / x.nbytes, 2) for f in programs]
    return [call(f) for f in programs], temporary


@jax.jit
def plus_one(x):
    return x + 1


def copied(x):
    return plus_one(x).block_until_ready()


def torch_ways(run, x, ct):
    scale = torch.ones(x.shape[1], requires_grad=True)
    bias = torch.zeros(x.shape[1], requires_grad=True)
    leaf = x.clone().requires_grad_()

    def forward():
        with torch.no_grad():
            return run(x, scale, bias)

    return forward, lambda: torch.autograd.grad(run(leaf, scale, bias), (leaf, scale, bias), ct)


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 8, 32])
    parser.add_argument("--maps", nargs="+", default=list(MAPS), choices=list(MAPS))
    options = parser.parse_args()
    timing.prepare(options)
    torch.set_num_threads(options.threads)
    rows, memory = [], []
    for level, batch in itertools.product(options.maps, options.batch):
        side, channels = MAPS[level]
        draw = np.random.default_rng(0)
        host = draw.normal(size=(2, batch, side, side, channels)).astype(np.float32)
        x, ct = jnp.asarray(host)
        nchw = [torch.tensor(a).permute(0, 3, 1, 2) for a in host]  # channels_last
        for name, run in OURS.items():
            ours, held = jax_ways(run, x, ct)
            default, default_held = jax_ways(flax_norm(name), x, ct)
            exact, exact_held = jax_ways(flax_norm(name, use_fast_variance=False), x, ct)
            theirs = torch_ways(torch_norm(name), *nchw)
            for way, title in enumerate(("forward", "forward and backward")):
                case = f"{level} batch {batch} {name} {title}"
                ways = {
                    "fpnlab": ours[way],
                    "flax": default[way],
                    "flax two-pass": exact[way],
                    "copy": functools.partial(copied, x),
                    "torch": theirs[way],
                }
                rows += timing.compare(case, ways, seconds=options.seconds)
                memory.append(Memory(case, held[way], default_held[way], exact_held[way]))
    timing.report("speed_norms", rows, options)
    timing.report("memory_norms", memory, options)


if __name__ == "__main__":
    main()
