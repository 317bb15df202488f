"""Contents and inputs of the diagnostics of a finished run."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fpnlab.diagnostics.drift import statistics_drift
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.records.run_records import read_result
from fpnlab.run.batches import training_view
from fpnlab.run.diagnosis import diagnose, median_rate, rounded_rates
from fpnlab.run.measure import restored_run
from fpnlab.run.programs import compiled_step, initial_state


@pytest.fixture(scope="module")
def diagnosed(experiment, unbroken, dataset):
    """Function that diagnoses the uninterrupted run with some inputs replaced."""
    trained = restored_run(unbroken)[1]
    views = training_view(experiment, dataset, 8)

    def run(state=trained.state, population=None, model=None, change=lambda leaf: leaf, **settings):
        evaluate = dataclasses.replace(experiment.evaluate, **settings)
        return diagnose(
            dataclasses.replace(experiment, evaluate=evaluate, model=model or experiment.model),
            trained.average,
            state,
            population=state if population is None else population,
            views=jax.tree.map(change, views),
            records=[],
        )

    return run


def test_drift_is_zero_where_running_statistics_equal_the_population(diagnosed):
    rows = diagnosed().drift
    assert len(rows) > 10
    assert {(row.mean_shift, row.log_variance_ratio) for row in rows} == {(0.0, 0.0)}


def test_drift_rows_name_the_layer_and_the_pyramid_level(diagnosed, experiment, unbroken):
    state = restored_run(unbroken)[1].state
    off = jax.tree.map(lambda leaf: leaf + 0.5, state)
    rows = diagnosed(population=off).drift
    for row, drift in zip(rows, statistics_drift(state, off), strict=True):
        assert row.name == drift.name
        np.testing.assert_allclose(row.mean_shift, drift.mean_shift, rtol=1e-5)
    heads = [row.level for row in rows if row.name == "head/class_tower/0"]
    assert heads == [3, 4]
    assert {row.level for row in rows if not row.name.startswith("head")} == {None}


def test_signals_are_normalized_with_batch_statistics_as_in_training(
    diagnosed, experiment, unbroken
):
    state = restored_run(unbroken)[1].state
    off = jax.tree.map(lambda leaf: leaf + 0.5, state)
    assert diagnosed(state=off).signals == diagnosed().signals
    assert min(row.variance for row in diagnosed().signals) > 0


def test_drift_in_a_result_is_measured_from_the_population_statistics(unbroken):
    rows = read_result(unbroken / "result.json").diagnostics.drift
    # After twelve steps, running averages still contain a part of the initial statistics.
    assert min(row.log_variance_ratio for row in rows) > 0


def test_halfway_effective_rates_belong_to_the_step_before_the_record(
    experiment, dataset, unbroken
):
    from fpnlab.run.batches import augment_key, positions

    step, state = compiled_step(experiment), initial_state(experiment)
    split, key = jax.device_put(dataset.train), augment_key(experiment)
    rate = np.float32(experiment.train.peak_rate)
    before = state.params
    for _, batch in zip(range(6), positions(experiment, len(dataset.train.images), 0)):
        before = jax.tree.map(jnp.copy, state.params)
        state, _ = step(state, split, *batch, key, rate)
    found = read_result(unbroken / "result.json").diagnostics.effective_rates
    turned = np.asarray(state.params.backbone.stem.kernel) - before.backbone.stem.kernel
    expected = np.linalg.norm(turned) / np.linalg.norm(before.backbone.stem.kernel)
    np.testing.assert_allclose(found.rates["backbone/stem"], expected, rtol=1e-4)
    rates = np.array(list(found.rates.values()))
    assert rates.min() > 0
    logged = median_rate(rounded_rates(before, state.params))
    np.testing.assert_allclose(logged, np.median(rates), rtol=1e-4)


def test_gradient_noise_is_measured_for_powers_of_two_below_the_number_of_images(diagnosed):
    found = diagnosed(gradient_draws=3).gradient_noise
    assert (found.images, found.draws) == (8, 3)
    assert [row.norm_batch for row in found.rows] == [2, 4]
    assert min(row.noise for row in found.rows) > 1e-2


def test_gradient_noise_of_identical_images_is_zero(diagnosed):
    alike = lambda leaf: np.repeat(leaf[:1], len(leaf), axis=0)
    found = diagnosed(change=alike, gradient_draws=3).gradient_noise
    assert max(row.noise for row in found.rows) < 1e-6


def test_gradient_noise_overrides_the_norm_batch_of_each_norm(diagnosed, make_detector):
    own = make_detector(BatchNorm(norm_batch=4), classes=4)
    assert (
        diagnosed(model=own, gradient_draws=3).gradient_noise
        == diagnosed(gradient_draws=3).gradient_noise
    )


def test_gradient_noise_needs_draws_and_a_batch_norm(diagnosed, layer_norm_experiment, dataset):
    assert diagnosed().gradient_noise is None
    evaluate = dataclasses.replace(layer_norm_experiment.evaluate, gradient_draws=3)
    experiment = dataclasses.replace(layer_norm_experiment, evaluate=evaluate)
    state = initial_state(experiment)
    found = diagnose(
        experiment,
        state.params,
        state.state,
        population=state.state,
        views=training_view(experiment, dataset, 8),
        records=[],
    )
    assert (found.gradient_noise, found.drift, found.effective_rates) == (None, [], None)
    assert len(found.signals) == 3
