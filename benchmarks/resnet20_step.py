"""Training step of the ResNet-20 of CIFAR (arXiv:1512.03385, section 4.2): JAX and PyTorch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
import torch
from torch_networks import TorchClassifier, channels_last, prepared

from fpnlab.nn.backbone import apply_backbone, init_backbone
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.ops import convolution as conv_module
from fpnlab.ops.pooling import global_average_pool
from fpnlab.types import Mode

CLASSES = 10
RATE = 0.01


def network(width):
    return ResNet(
        depths=(3, 3, 3),
        widths=(width, 2 * width, 4 * width),
        stem=Stem(size=3, stride=1, pool=False),
        norm=BatchNorm(),
    )


def jax_step(spec, images, labels):
    """Returns a function that takes one step, and the number of parameters."""
    optimizer = optax.sgd(RATE, momentum=0.9, nesterov=True)
    params, state = init_backbone(jax.random.key(0), spec)
    channels = spec.channels[max(spec.layout.stages)]
    params = (params, jnp.zeros((channels, CLASSES)), jnp.zeros(CLASSES))
    images, labels = jnp.asarray(images), jnp.asarray(labels)

    def loss_of(params, state):
        backbone, kernel, bias = params
        features, state = apply_backbone(spec, backbone, state, images, Mode.TRAIN)
        logits = global_average_pool(features[max(features)]) @ kernel + bias
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), state

    @functools.partial(jax.jit, donate_argnums=(0, 1, 2))
    def step(params, state, velocity):
        (loss, state), gradient = jax.value_and_grad(loss_of, has_aux=True)(params, state)
        updates, velocity = optimizer.update(gradient, velocity)
        return optax.apply_updates(params, updates), state, velocity, loss

    carry = [params, state, optimizer.init(params)]

    def run():
        *carry[:], loss = step(*carry)
        return loss.block_until_ready()

    return run, sum(a.size for a in jax.tree.leaves(params))


def torch_step(spec, images, labels):
    """Returns the same of PyTorch."""
    model = prepared(TorchClassifier(spec, CLASSES))
    optimizer = torch.optim.SGD(model.parameters(), RATE, momentum=0.9, nesterov=True)
    images, labels = channels_last(images), torch.tensor(labels)

    def run():
        optimizer.zero_grad(set_to_none=True)
        loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run, sum(p.numel() for p in model.parameters())


def plain(step):
    """Returns ``step`` compiled with XLA's own derivative of convolution."""
    # Tracing happens at the first call, hence the call under the replaced function.
    xla = lambda x, w, *sizes: conv_module.plain(
        x, w, conv_module.Window(x.shape[1:3], w.shape, *sizes)
    )
    ours, conv_module._conv = conv_module._conv, xla
    try:
        step()
    finally:
        conv_module._conv = ours
    return step


def main():
    parser = timing.arguments(__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=[2, 8, 32, 128])
    parser.add_argument("--width", type=int, default=16, help="channels of the first stage")
    options = parser.parse_args()
    timing.prepare(options)
    torch.set_num_threads(options.threads)
    spec, rows = network(options.width), []
    for batch in options.batch:
        draw = np.random.default_rng(0)
        images = draw.normal(size=(batch, 32, 32, 3)).astype(np.float32)
        labels = draw.integers(CLASSES, size=batch)
        ours, size = jax_step(spec, images, labels)
        theirs, torch_size = torch_step(spec, images, labels)
        assert size == torch_size
        xla = plain(jax_step(spec, images, labels)[0])
        ways = {"jax": ours, "jax, XLA's gradient": xla, "torch": theirs}
        rows += timing.compare(f"batch {batch}", ways, seconds=options.seconds)
    timing.report(f"speed_resnet20_width{options.width}", rows, options)


if __name__ == "__main__":
    main()
