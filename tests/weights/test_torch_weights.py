"""Networks of torchvision and timm compute the same here, and their weights go both ways."""

import dataclasses
import functools
import math
import tarfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from fpnlab.errors import WeightsError
from fpnlab.nn.backbone import apply_backbone
from fpnlab.nn.classifier import Classifier, apply_classifier, init_classifier
from fpnlab.nn.convnext import ConvNeXt
from fpnlab.nn.mlp import Mlp
from fpnlab.nn.norm_edit import freeze
from fpnlab.nn.norm_specs import BatchNorm, FilterResponseNorm, GroupNorm
from fpnlab.nn.published_networks import CONVNEXT_NORM, PRESETS, cifar_resnet
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.types import Mode
from fpnlab.weights import export_weights, import_weights, read_weights
from tests.weights.torch_models import models_of

torch = pytest.importorskip("torch", reason="PyTorch is the oracle")

slow = functools.partial(pytest.param, marks=pytest.mark.slow)
NETWORKS = [
    "resnet18",
    *map(slow, "resnet34 resnet50 resnet101 resnet152 resnext50_32x4d wide_resnet50_2".split()),
    slow("convnext_tiny"),
]
BATCH = 2
NORM = BatchNorm(unbiased=True, decay=0.9, reference_batch=BATCH)


def classifier(backbone, classes=1000):
    """A classifier whose images are in the units of PyTorch's."""
    return Classifier(
        classes=classes,
        backbone=backbone,
        pooled_norm=CONVNEXT_NORM if isinstance(backbone, ConvNeXt) else None,
        pixel_mean=0.0,
        pixel_deviation=1.0,
    )


def spec_of(name):
    backbone = PRESETS[name]()
    return classifier(
        backbone if isinstance(backbone, ConvNeXt) else dataclasses.replace(backbone, norm=NORM)
    )


def randomize(model):
    """Draws all that a fresh network has as zeros and ones: statistics, scales, biases."""
    draw = torch.Generator().manual_seed(1)
    for name, value in model.state_dict().items():
        if name.endswith("num_batches_tracked"):
            value.fill_(7)
        elif value.ndim == 1 or name.endswith("layer_scale"):
            value.copy_(torch.rand(value.shape, generator=draw) * 0.5 + 0.5)
    return model.eval()


def images(count=BATCH, height=65, width=97):
    return np.random.default_rng(0).normal(size=(count, height, width, 3)).astype(np.float32)


def of_torch(model, x):
    with torch.no_grad():
        return model(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()


def arrays_of(model):
    return {name: value.numpy() for name, value in model.state_dict().items()}


def check_logits(spec, arrays, model, *, size=(65, 97), relative=1e-4):
    params, state = import_weights(spec, arrays)
    x = images(1, *size)
    logits, _ = jax.jit(functools.partial(apply_classifier, spec, mode=Mode.EVAL))(
        params, state, images=x
    )
    expected = of_torch(model, x)
    assert expected.std() > 0
    assert abs(np.asarray(logits) - expected).max() <= relative * abs(expected).max()


def check_round_trip(spec, arrays, model, names="torchvision"):
    exported = export_weights(spec, *import_weights(spec, arrays), names=names)
    theirs = arrays_of(model)
    assert sorted(exported) == sorted(theirs)
    for name, array in theirs.items():
        assert exported[name].dtype == array.dtype, name
        np.testing.assert_array_equal(exported[name], array, err_msg=name)
    model.load_state_dict({n: torch.tensor(a) for n, a in exported.items()}, strict=True)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_of_torchvision_gives_its_logits_and_goes_back_exactly(name):
    torch.manual_seed(0)
    model = randomize(getattr(models_of("torchvision.models"), name)(weights=None))
    spec, arrays = spec_of(name), arrays_of(model)
    check_round_trip(spec, arrays, model)
    check_logits(spec, arrays, model)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "resnet50d", "convnext_tiny"])
def test_a_network_of_timm_gives_its_logits_and_goes_back_exactly(name):
    torch.manual_seed(0)
    model = randomize(models_of("timm").create_model(name))
    spec, arrays = spec_of(name.replace("50d", "50_d")), arrays_of(model)
    check_round_trip(spec, arrays, model, names="timm")
    check_logits(spec, arrays, model)


@pytest.mark.parametrize("name", ["resnet18", slow("resnet50")])
def test_running_statistics_after_five_training_batches_are_those_of_torchvision(name):
    torch.manual_seed(0)
    model = randomize(getattr(models_of("torchvision.models"), name)(weights=None)).train()
    spec = spec_of(name)
    params, state = import_weights(spec, arrays_of(model))
    step = jax.jit(functools.partial(apply_classifier, spec, mode=Mode.TRAIN))
    draw = np.random.default_rng(0)
    for _ in range(5):
        x = draw.normal(size=(BATCH, 65, 97, 3)).astype(np.float32)
        of_torch(model, x)
        _, state = step(params, state, images=x)
    exported, theirs = export_weights(spec, params, state), arrays_of(model)
    assert theirs["bn1.num_batches_tracked"] == exported["bn1.num_batches_tracked"] == 12
    for entry in theirs:
        if "running" in entry:
            bound = 1e-4 * abs(theirs[entry]).max()
            assert abs(exported[entry] - theirs[entry]).max() <= bound, entry


def small_resnet(norm=NORM, **changes):
    backbone = ResNet(depths=(1, 1), widths=(4, 8), stem=Stem(size=3), norm=norm, **changes)
    return classifier(backbone, classes=3)


SMALL_CONVNEXT = classifier(ConvNeXt(depths=(1, 2), widths=(4, 8), norm=CONVNEXT_NORM), classes=3)


def drawn(spec):
    """Arrays of PyTorch's names for a spec, all different."""
    params, state = init_classifier(jax.random.key(0), spec)
    draw = np.random.default_rng(0)
    fill = lambda leaf: draw.normal(size=leaf.shape).astype(np.float32)
    return export_weights(spec, jax.tree.map(fill, params), state)


@pytest.mark.parametrize(
    "spec",
    [
        small_resnet(),
        small_resnet(GroupNorm(groups=2)),
        small_resnet(block="bottleneck", groups=2, width_per_group=32),
        small_resnet(shortcut="projection_all"),
        classifier(cifar_resnet(8, norm=NORM), classes=10),
        classifier(dataclasses.replace(PRESETS["resnet50_d"](), depths=(1, 1, 1, 1))),
        SMALL_CONVNEXT,
    ],
)
@pytest.mark.parametrize("names", ["torchvision", "timm", "cifar"])
def test_every_spec_of_these_families_goes_there_and_back_exactly(spec, names):
    params, state = import_weights(spec, drawn(spec))
    again = import_weights(spec, export_weights(spec, params, state, names=names))
    jax.tree.map(np.testing.assert_array_equal, (params, state), again)


def test_imported_statistics_count_as_collected():
    arrays = drawn(small_resnet())
    old = {name: a for name, a in arrays.items() if not name.endswith("num_batches_tracked")}
    for given in (arrays, old):
        _, state = import_weights(small_resnet(), given)
        assert state.backbone.stem.seen == BATCH
        freeze(small_resnet(), state)


def test_half_precision_is_imported_as_float32():
    arrays = {name: np.asarray(a, np.float16) for name, a in drawn(small_resnet()).items()}
    params, state = import_weights(small_resnet(), arrays)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {np.dtype(np.float32)}


def test_a_backbone_is_imported_without_the_layers_after_it():
    spec = small_resnet()
    whole, whole_state = import_weights(spec, drawn(spec))
    params, state = import_weights(spec.backbone, drawn(spec))
    jax.tree.map(
        np.testing.assert_array_equal, (params, state), (whole.backbone, whole_state.backbone)
    )
    features, _ = apply_backbone(spec.backbone, params, state, jnp.asarray(images()), Mode.EVAL)
    assert sorted(features) == [2, 3]
    params, _ = import_weights(SMALL_CONVNEXT.backbone, drawn(SMALL_CONVNEXT))
    assert params.outputs == {}


@pytest.mark.parametrize("spec", [small_resnet(), SMALL_CONVNEXT])
def test_a_new_head_takes_the_place_of_one_with_other_classes(spec, key):
    more = dataclasses.replace(spec, classes=7)
    with pytest.raises(WeightsError, match=r"has the shape \(3, 8\); expected \(7, 8\)"):
        import_weights(more, drawn(spec))
    params, _ = import_weights(more, drawn(spec), new_head=key)
    initial, _ = init_classifier(key, more)
    jax.tree.map(np.testing.assert_array_equal, params.dense, initial.dense)
    whole, _ = import_weights(spec, drawn(spec))
    jax.tree.map(np.testing.assert_array_equal, params.backbone, whole.backbone)
    jax.tree.map(np.testing.assert_array_equal, params.pooled_norm, whole.pooled_norm)


def test_all_names_and_shapes_that_do_not_fit_are_listed_at_once():
    arrays = drawn(small_resnet())
    arrays["layer1.0.conv1.wieght"] = arrays.pop("layer1.0.conv1.weight")
    arrays["conv1.weight"] = np.zeros((4, 3, 5, 5), np.float32)
    arrays["fc.weight"] = arrays["fc.weight"].T
    arrays["extra"] = np.zeros(2)
    del arrays["bn1.running_var"]
    with pytest.raises(WeightsError) as caught:
        import_weights(small_resnet(), arrays)
    assert str(caught.value).splitlines()[1:] == [
        "  conv1.weight: has the shape (4, 3, 5, 5); expected (4, 3, 3, 3)",
        "  fc.weight: has the shape (8, 3); expected (3, 8)",
        "  layer1.0.conv1.weight: missing; expected the shape (4, 4, 3, 3); did you mean its "
        "layer1.0.conv1.wieght (4, 4, 3, 3)?",
        "  bn1.running_var: missing; expected the shape (4,)",
        "  layer1.0.conv1.wieght: unexpected, of the shape (4, 4, 3, 3)",
        "  extra: unexpected, of the shape (2,)",
    ]


def test_weights_of_another_network_are_one_error_that_lists_them():
    with pytest.raises(WeightsError) as caught:
        import_weights(small_resnet(), drawn(SMALL_CONVNEXT))
    assert "features.0.0.weight: unexpected" in str(caught.value)
    assert "bn1.running_mean: missing" in str(caught.value)


@pytest.mark.parametrize(
    "backbone",
    [
        Mlp(inputs=12, depths=(1,), widths=(4,), norm=NORM),
        small_resnet(preactivation=True).backbone,
        small_resnet(branch_scale="skip_init").backbone,
        small_resnet(kernel="scaled").backbone,
        small_resnet(FilterResponseNorm()).backbone,
    ],
)
def test_a_network_that_pytorch_has_no_names_for_is_an_error(backbone):
    with pytest.raises(TypeError, match=r"torchvision .*; expected"):
        import_weights(classifier(backbone, classes=3), {})


MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Of the images on which the CIFAR networks were trained, from 0 to 1."""


@pytest.fixture(scope="module")
def cifar_test(data_root):
    """The 10,000 test images of CIFAR-10, normalized, and their classes."""
    names, pixels, labels = [], [], []
    with tarfile.open(data_root / "cifar10-images.tar.xz") as archive:
        for member in archive:
            if "/test/" in f"/{member.name}" and member.isfile():
                names.append(member.name)
                with Image.open(archive.extractfile(member)) as image:
                    pixels.append(np.asarray(image.convert("RGB")))
    folders = sorted({name.split("/")[-2] for name in names})
    labels = [folders.index(name.split("/")[-2]) for name in names]
    x = (np.stack(pixels) / np.float32(255) - np.float32(MEAN)) / np.float32(DEVIATION)
    return x, np.asarray(labels)


def accuracy(network, x, labels, data_root, *, batch=500):
    (path,) = (data_root / "cifar_resnets").glob(f"resnet{network}-*.th")
    spec = classifier(cifar_resnet(network, norm=BatchNorm()), classes=10)
    params, state = import_weights(spec, read_weights(path))
    logits = jax.jit(functools.partial(apply_classifier, spec, mode=Mode.EVAL))
    right = [
        np.argmax(logits(params, state, images=x[i : i + batch])[0], -1) == labels[i : i + batch]
        for i in range(0, len(x), batch)
    ]
    return np.concatenate(right).mean()


@pytest.mark.slow
@pytest.mark.parametrize(("network", "percent"), [(20, 81.03), (56, 83.20)])
def test_the_trained_cifar_networks_have_their_accuracy(network, percent, cifar_test, data_root):
    x, labels = cifar_test
    assert len(x) == 10_000
    assert math.isclose(100 * accuracy(network, x, labels, data_root), percent, abs_tol=0.05)


@pytest.mark.parametrize("network", [20, slow(32), slow(44), slow(56)])
def test_a_trained_cifar_network_classifies_images_it_never_saw(network, cifar_test, data_root):
    x, labels = cifar_test
    pick = np.random.default_rng(0).permutation(len(x))[:500]
    assert accuracy(network, x[pick], labels[pick], data_root) > 0.75
