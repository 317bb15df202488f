"""Whole training steps, compiled in float32, against the same functions run eagerly in float64.

A compiler can miscompile a whole step although each function alone is right. The maps are large
enough (2 images of 128 x 128: 32,768 rows) to trigger the fusions that were miscompiled.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.diagnostics.activations import block_signals
from fpnlab.diagnostics.drift import statistics_drift
from fpnlab.diagnostics.gradients import effective_rates, gradient_noise
from fpnlab.evaluate.bn_statistics import population_state
from fpnlab.nn.classifier import Classifier
from fpnlab.nn.detector import Anchors, Detector, apply_detector
from fpnlab.nn.fpn import Fpn
from fpnlab.nn.norm_edit import replace_batch_norms
from fpnlab.nn.norm_specs import (
    BatchNorm,
    DynamicTanh,
    FilterResponseNorm,
    GroupNorm,
    InstanceNorm,
    LayerNorm,
    NoNorm,
    Renorm,
    RmsNorm,
)
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.nn.retina_head import RetinaHead
from fpnlab.tasks.kinds import task_of
from fpnlab.train.objective import CrossEntropy, Objective
from fpnlab.train.schedule import Steps
from fpnlab.train.step import Train, init_train, train_step
from fpnlab.types import Batch, LabeledBatch, Mode

NORMS = {
    "batch": BatchNorm(),
    "ghost": BatchNorm(norm_batch=1),
    "standardized": BatchNorm(),
    "layer_hwc": LayerNorm(axes="hwc"),
    "layer_c": LayerNorm(axes="c"),
    "group": GroupNorm(groups=2),
    "instance": InstanceNorm(),
    "rms_hwc": RmsNorm(axes="hwc"),
    "rms_c": RmsNorm(axes="c"),
    "filter_response": FilterResponseNorm(),
    "tanh": DynamicTanh(),
    "none": NoNorm(),
}
SIZE = 128
TRAIN = Train(
    examples=64, batch_size=2, learning_rate=0.05, rule="constant", schedule=Steps(warmup=0.0)
)


def resnet(norm, kernel="free"):
    stem = Stem(size=3, stride=1, pool=False)
    return ResNet(depths=(1, 1), widths=(4, 8), stem=stem, norm=norm, kernel=kernel)


def detector(norm, kernel="free"):
    return Detector(
        classes=2,
        backbone=resnet(norm, kernel),
        neck=Fpn(channels=4, min_level=1, max_level=3, norm=norm, kernel=kernel),
        head=RetinaHead(depth=1, norm=norm, kernel=kernel),
        anchors=Anchors(scale=3.0, octaves=1, ratios=(1.0,)),
    )


def images():
    return np.random.default_rng(0).integers(0, 256, (2, SIZE, SIZE, 3)).astype(np.uint8)


def problem(kind, norm, kernel="free"):
    """A model, its objective and a batch."""
    if kind == "classifier":
        batch = LabeledBatch(images=images(), labels=np.array([0, 1]), index=np.arange(2))
        return Classifier(classes=2, backbone=resnet(norm, kernel)), CrossEntropy(), batch
    batch = Batch(
        images=images(),
        boxes=np.tile(np.array([[4, 4, 40, 40], [50, 60, 120, 125.0]], np.float32), (2, 1, 1)),
        classes=np.array([[0, 1], [1, 0]]),
        valid=np.array([[True, True], [True, False]]),
        extent=np.full((2, 2), SIZE, np.float32),
        index=np.arange(2),
    )
    return detector(norm, kernel), Objective(), batch


def exactly(run, train, *trees):
    """Returns the result of a function of a recipe and trees, run eagerly in float64."""
    train = dataclasses.replace(train)
    object.__setattr__(train, "precision", "float64")  # Not a valid value for users.
    wide = lambda leaf: (
        jnp.asarray(leaf, jnp.float64) if np.asarray(leaf).dtype == np.float32 else leaf
    )
    with jax.enable_x64(True), jax.disable_jit():
        return jax.tree.map(np.asarray, run(train, *jax.tree.map(wide, trees)))


def check_close(found, exact, start, digits=2e-3):
    """Compares changes of a state with exact ones, relative to the largest change of each leaf."""
    change = lambda after: jax.tree.map(lambda a, b: np.asarray(a, np.float64) - b, after, start)
    found, exact = jax.tree.leaves(change(found)), jax.tree.leaves(change(exact))
    scale = max(np.abs(leaf).max() for leaf in exact if leaf.size)
    for a, b in zip(found, exact):
        np.testing.assert_allclose(a, b, rtol=0, atol=digits * max(np.abs(b).max(), 1e-2 * scale))


def step_of(model, objective):
    def step(train, state, batch):
        task = task_of(model, objective, norm_batch=train.statistics_group)
        return train_step(task, train, state, batch)

    return step


def compare_steps(kind, norm, train=TRAIN, before=0, kernel="free"):
    """Compares one step with the exact one, after ``before`` other steps."""
    model, objective, batch = problem(kind, norm, kernel)
    state = init_train(jax.random.key(0), task_of(model, objective), train)
    step = step_of(model, objective)
    compiled = jax.jit(step, static_argnums=0)
    for _ in range(before):
        state, _ = compiled(train, state, batch)
    after, logs = compiled(train, state, batch)
    exact, exact_logs = exactly(step, train, state, batch)
    np.testing.assert_allclose(logs["loss"], exact_logs["loss"], rtol=1e-4)
    np.testing.assert_allclose(logs["gradient_norm"], exact_logs["gradient_norm"], rtol=1e-3)
    check_close(after.params, exact.params, state.params)
    check_close(after.state, exact.state, state.state) if jax.tree.leaves(state.state) else None


STEPS = [(norm, kind) for norm in NORMS for kind in ("classifier", "detector")]
FEW = [("batch", "classifier")]


@pytest.mark.parametrize(
    ("norm", "kind"),
    [pytest.param(*step, marks=[] if step in FEW else pytest.mark.slow) for step in STEPS],
)
def test_a_compiled_step_equals_eager_float64_for_every_norm(norm, kind):
    compare_steps(kind, NORMS[norm], kernel="standardized" if norm == "standardized" else "free")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["classifier", "detector"])
def test_a_compiled_step_of_batch_renormalization_equals_eager_float64(kind):
    renorm = Renorm(start=0, r_full=1, d_full=1)  # The first step is plain batch norm.
    compare_steps(kind, BatchNorm(decay=0.5, reference_batch=2, renorm=renorm), before=1)


@pytest.mark.slow
def test_a_step_in_microbatches_equals_eager_float64():
    train = dataclasses.replace(TRAIN, micro_batch=1, norm_batch=1)
    compare_steps("detector", BatchNorm(), train)


@pytest.mark.slow
@pytest.mark.parametrize("norm", ["batch", "layer_hwc"])
def test_a_packed_step_equals_eager_float64_of_each_seed(norm):
    model, objective, batch = problem("detector", NORMS[norm])
    states = [
        init_train(jax.random.key(seed), task_of(model, objective), TRAIN) for seed in range(3)
    ]
    step = step_of(model, objective)
    packed = jax.jit(jax.vmap(functools.partial(step, TRAIN), in_axes=(0, None)))
    after, _ = packed(jax.tree.map(lambda *leaves: jnp.stack(leaves), *states), batch)
    for i, state in enumerate(states):
        exact, _ = exactly(step, TRAIN, state, batch)
        check_close(
            jax.tree.map(lambda leaf, i=i: leaf[i], after.params), exact.params, state.params
        )


@pytest.mark.slow
def test_precise_statistics_and_drift_equal_eager_float64():
    model, objective, batch = problem("detector", BatchNorm())
    state = init_train(jax.random.key(0), task_of(model, objective), TRAIN)

    def statistics(train, params, running, batch):
        collect = lambda state, pictures: apply_detector(
            model, params, state, jnp.asarray(pictures).astype(train.precision), Mode.MOMENTS
        )[1]
        return population_state(collect, [batch.images, batch.images[::-1] // 2], running)

    given = state.params, state.state, batch
    found = jax.jit(statistics, static_argnums=0)(TRAIN, *given)
    exact = exactly(statistics, TRAIN, *given)
    check_close(found, exact, state.state)
    drift = statistics_drift(state.state, found)
    again = statistics_drift(state.state, jax.tree.map(jnp.float32, exact))
    for one, other in zip(drift, again, strict=True):
        np.testing.assert_allclose(one.mean_shift, other.mean_shift, rtol=2e-3)
        np.testing.assert_allclose(one.log_variance_ratio, other.log_variance_ratio, rtol=2e-3)


@pytest.mark.slow
def test_block_signals_equal_eager_float64():
    model, objective, batch = problem("classifier", BatchNorm())
    state = init_train(jax.random.key(0), task_of(model, objective), TRAIN)
    mode = Mode(stats="batch", update="none", stochastic=False)

    def signals(train, params, running, images):
        pictures = (jnp.asarray(images).astype(train.precision) - 127.5) / 64
        found = block_signals(model.backbone, params.backbone, running.backbone, pictures, mode)
        return [(signal.squared_mean, signal.variance) for signal in found]

    given = state.params, state.state, batch.images
    found, exact = signals(TRAIN, *given), exactly(signals, TRAIN, *given)
    assert len(found) == 3
    np.testing.assert_allclose(found, exact, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
def test_effective_rates_equal_eager_float64():
    model, objective, batch = problem("detector", BatchNorm())
    state = init_train(jax.random.key(0), task_of(model, objective), TRAIN)
    step = step_of(model, objective)
    after, _ = jax.jit(step, static_argnums=0)(TRAIN, state, batch)
    exact, _ = exactly(step, TRAIN, state, batch)
    found = effective_rates(state.params, after.params)
    with jax.enable_x64(True):
        expected = effective_rates(state.params, exact.params)
    assert found == pytest.approx(expected, rel=2e-3)


@pytest.mark.slow
def test_gradient_noise_of_the_grouping_equals_eager_float64():
    model, objective, batch = problem("classifier", BatchNorm())
    double = lambda leaf: np.concatenate([leaf, leaf[:, ::-1] // 2 if leaf.ndim > 1 else leaf])
    batch = jax.tree.map(double, batch)
    state = init_train(jax.random.key(0), task_of(model, objective), TRAIN)
    mode = Mode(stats="batch", update="running", stochastic=False)

    def gradient(train, group, params, running, batch):
        spec = replace_batch_norms(model, lambda n: dataclasses.replace(n, norm_batch=group))
        loss = lambda params: task_of(spec, objective).loss(
            params,
            running,
            batch,
            mode,
            precision=train.precision,
            key=jax.random.key(0),
        )[0]
        return jax.grad(loss)(params)

    compiled = jax.jit(gradient, static_argnums=(0, 1))

    def noise(run):
        def of(order, group):
            dealt = jax.tree.map(lambda leaf: leaf[np.asarray(order)], batch)
            return run(group, state.params, state.state, dealt)

        return gradient_noise(of, jax.random.key(1), 4, [2], draws=3)

    found = noise(lambda group, *trees: compiled(TRAIN, group, *trees))
    expected = noise(
        lambda group, *trees: exactly(lambda train, *t: gradient(train, group, *t), TRAIN, *trees)
    )
    assert expected[2] > 0
    assert found == pytest.approx(expected, rel=5e-3)
