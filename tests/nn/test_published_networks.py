"""Published networks: their numbers of parameters, twins, and use in classifiers and detectors."""

import functools

import jax
import jax.numpy as jnp
import pytest

from fpnlab.nn.classifier import Classifier, apply_classifier, init_classifier
from fpnlab.nn.detector import Detector, apply_detector, init_detector
from fpnlab.nn.fpn import Fpn
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.published_networks import (
    CONVNEXT_NORM,
    PRESETS,
    cifar_resnet,
    preactivation_resnet,
    resnet,
)
from fpnlab.nn.retina_head import RetinaHead
from fpnlab.types import Mode

EXACT = {
    # torchvision 0.28, `_meta["num_params"]` of the weights for ImageNet (1,000 classes).
    "resnet18": 11_689_512,
    "resnet34": 21_797_672,
    "resnet50": 25_557_032,
    "resnet101": 44_549_160,
    "resnet152": 60_192_808,
    "resnext50_32x4d": 25_028_904,
    "wide_resnet50_2": 68_883_240,
    "convnext_tiny": 28_589_128,
    "convnext_small": 50_223_688,
}
ROUNDED = {
    # In millions: arXiv:1812.01187, table 5 (ResNet-50-D); arXiv:1512.03385, table 6 (CIFAR);
    # arXiv:1605.07146, table 5 (pre-activation).
    "resnet50_d": 25.6,
    "cifar_resnet20": 0.27,
    "cifar_resnet32": 0.46,
    "cifar_resnet44": 0.66,
    "cifar_resnet56": 0.85,
    "cifar_resnet110": 1.7,
    "cifar_resnet1202": 19.4,
    "preactivation_resnet110": 1.7,
    "preactivation_resnet164": 1.7,
    "preactivation_resnet1001": 10.2,
}


def parameters(name):
    small = name.startswith(("cifar", "preactivation"))
    norm = CONVNEXT_NORM if name.startswith("convnext") else None
    model = Classifier(classes=10 if small else 1000, backbone=PRESETS[name](), pooled_norm=norm)
    make = functools.partial(init_classifier, classifier=model)
    params, _ = jax.eval_shape(make, jax.random.key(0))
    return sum(leaf.size for leaf in jax.tree.leaves(params))


@pytest.mark.parametrize("name", EXACT)
def test_networks_have_the_number_of_parameters_of_pytorch(name):
    assert parameters(name) == EXACT[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_networks_have_the_published_millions_of_parameters(name):
    # The 10.2 of the widest pre-activation network is 10.33, so that 2 % are allowed.
    assert parameters(name) / 1e6 == pytest.approx(ROUNDED[name], rel=0.02)


def test_every_preset_has_a_published_number_of_parameters():
    assert {*PRESETS} - {*EXACT} - {*ROUNDED} == {"cifar_resnet8", "cifar_resnet14"}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_the_backbone_of_a_detector(name):
    backbone = PRESETS[name]()
    top = max(backbone.channels)
    model = Detector(
        classes=2,
        backbone=backbone,
        neck=Fpn(channels=8, min_level=top - 1, max_level=top + 1),
        head=RetinaHead(depth=1),
    )

    def run(key, images):
        return apply_detector(model, *init_detector(key, model), images, Mode.TRAIN)

    images = jax.ShapeDtypeStruct((2, 64, 64, 3), jnp.float32)
    if "1202" in name or "1001" in name:
        pytest.skip("traced by the tests of depth")
    output, _ = jax.eval_shape(run, jax.random.key(0), images)
    cells = sum((64 >> level) ** 2 for level in range(top - 1, top + 2))
    assert output.logits.shape == (2, 9 * cells, 2)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: resnet(35, BatchNorm()), "no standard ResNet has 35 layers; these do: .18, 34"),
        (lambda: cifar_resnet(57, norm=BatchNorm()), "the nearest: 56 and 62"),
        (lambda: cifar_resnet(2, norm=BatchNorm()), "the nearest: 8"),
        (
            lambda: preactivation_resnet(165, norm=BatchNorm(), bottleneck=True),
            "they have 9n [+] 2; the nearest: 164 and 173",
        ),
    ],
)
def test_an_unknown_depth_is_an_error_with_the_nearest_ones(make, says):
    with pytest.raises(ValueError, match=says):
        make()


def test_logits_of_a_pooled_norm_do_not_depend_on_the_scale_of_the_features(key):
    backbone = cifar_resnet(8, norm=BatchNorm(), width=4)
    model = Classifier(classes=3, backbone=backbone, pooled_norm=CONVNEXT_NORM)
    params, state = init_classifier(key, model)
    images = jax.random.uniform(key, (2, 8, 8, 3)) * 255
    run = lambda images: apply_classifier(model, params, state, images, Mode.EVAL)[0]
    first = run(images)
    assert jnp.abs(first).max() > 0
    doubled = run((images - 127.5) * 2 + 127.5)
    assert jnp.allclose(first, doubled, rtol=1e-3, atol=1e-3)
