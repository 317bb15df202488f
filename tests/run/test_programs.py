"""Trials of a pack have the same results as trials that are trained alone."""

import dataclasses
import json
import shutil

import chex
import jax
import numpy as np
import pytest

from fpnlab.config.trials import Trial
from fpnlab.data.dataset import stream_order
from fpnlab.errors import Interrupted
from fpnlab.run.folder import Run
from fpnlab.run.interrupts import Stop
from fpnlab.run.measure import restored_run
from fpnlab.run.programs import compiled_step, initial_state, training_of
from fpnlab.run.run import run_trials
from fpnlab.study import packing
from fpnlab.study.packing import packing_pays

SEEDS = (0, 1, 2)
TIMES = ("seconds", "examples_per_second")


def at_rate(experiment, rate, **fields):
    return dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, learning_rate=rate, **fields)
    )


@pytest.fixture(scope="module")
def seeds(experiment):
    """Experiments with three seeds; the second has another learning rate."""
    first, second, third = (dataclasses.replace(experiment, seed=seed) for seed in SEEDS)
    return [first, at_rate(second, 1.5 * experiment.train.learning_rate), third]


def start(experiments, dataset, folder, stop_after=None):
    """Runs a pack; returns its results and (seed, step) of each record in order."""
    stop, seen = Stop(), []

    def report(seed):
        def note(record):
            seen.append((seed, record.step))
            stop.requested |= record.step == stop_after

        return note

    runs = [
        Run(Trial(f"{e.seed}", "run", 4, e.seed, e), folder / str(e.seed), report(e.seed))
        for e in experiments
    ]
    return run_trials(runs, dataset, stop=stop), seen


@pytest.fixture(scope="module")
def pack(seeds, dataset, tmp_path_factory):
    """Folder, results and reported records of a finished pack; read-only."""
    folder = tmp_path_factory.mktemp("pack")
    return folder, *start(seeds, dataset, folder)


def timeless(table):
    return {name: value for name, value in table.items() if name not in TIMES}


def untimed(result):
    return dataclasses.replace(result, seconds=0.0)


def left(folder, experiments):
    """Last state, records and result of each run, without clock times."""
    found = {}
    for e in experiments:
        path = folder / str(e.seed)
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        state = jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), restored_run(path)[1])
        result = json.loads((path / "result.json").read_text())
        found[e.seed] = state, [timeless(line) for line in lines], timeless(result)
    return found


def test_each_trial_of_a_pack_matches_the_trial_run_alone(
    pack, seeds, dataset, unbroken, run, tmp_path
):
    folder, results, _ = pack
    run(seeds[1], dataset, tmp_path)
    for seed, alone in ((0, unbroken), (1, tmp_path)):
        mine, own = (restored_run(path)[1] for path in (folder / f"{seed}", alone))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), mine, own)
        result = json.loads((alone / "result.json").read_text())
        assert results[seed].final_loss == pytest.approx(result["final_loss"], rel=1e-4)
        assert results[seed].config_hash == result["config_hash"]
        for packed, single in zip(*(path_records(path) for path in (folder / f"{seed}", alone))):
            assert packed.keys() == single.keys()
            assert packed["loss"] == pytest.approx(single["loss"], rel=1e-4)
            assert packed["learning_rate"] == pytest.approx(single["learning_rate"], rel=1e-5)
            assert packed["effective_rate"] == pytest.approx(single["effective_rate"], rel=1e-2)
    assert len({result.final_loss for result in results}) == 3


def test_experiments_share_a_program_only_if_they_differ_in_seed_or_learning_rate(
    experiment, seeds
):
    one = dataclasses.replace(experiment, augment=None)
    alike = [
        dataclasses.replace(one, seed=7, question="why?"),
        at_rate(one, 0.9),
        at_rate(one, 0.9, rule="sqrt", reference_batch=8),
    ]
    assert {compiled_step(other) for other in alike} == {compiled_step(one)}
    others = [
        experiment,
        at_rate(one, 0.9, weight_decay=0.5),
        dataclasses.replace(one, train=dataclasses.replace(one.train, batch_size=2)),
    ]
    assert len({compiled_step(other) for other in [one, *others]}) == 4


@pytest.mark.slow
def test_training_in_microbatches_equals_training_on_the_full_batch(experiment, dataset):
    ends = []
    for micro_batch in (None, 2):
        one = at_rate(experiment, 0.02, norm_batch=2, micro_batch=micro_batch)
        training = training_of([one], dataset, [initial_state(one)], 0)
        state = training.state
        for _, batch in zip(range(3), training.batches):
            state, logs = training.step(state, batch)
        ends.append((state.params, logs))
    chex.assert_trees_all_close(*ends, rtol=1e-3, atol=1e-5)


def test_experiments_with_different_programs_are_never_packed(experiment, dataset, monkeypatch):
    monkeypatch.setattr(packing, "stepper", lambda *_: pytest.fail("it was measured"))
    assert not packing_pays([experiment, at_rate(experiment, 0.1, weight_decay=0.5)], dataset)


def path_records(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_trials_of_a_pack_share_its_training_time(pack):
    folder, results, seen = pack
    assert seen == [(seed, step) for step in (2, 4, 6, 8, 10, 12) for seed in SEEDS]
    assert [result.pack for result in results] == [3] * 3
    for seed, result in zip(SEEDS, results):
        first, *others = path_records(folder / f"{seed}")
        took = others[-1]["seconds"] - first["seconds"]
        assert result.seconds >= others[-1]["seconds"] > took > 0
        # The logged speed is based on the trial's share of the time.
        speeds = [record["examples_per_second"] for record in others]
        assert sum(8 / speed for speed in speeds) == pytest.approx(took, rel=0.1, abs=0.02)


def test_an_interrupted_pack_ends_bit_identical_to_an_uninterrupted_one(
    pack, seeds, dataset, tmp_path
):
    with pytest.raises(Interrupted, match="stopped after step 4 of 12, saved"):
        start(seeds, dataset, tmp_path, stop_after=4)
    _, seen = start(seeds, dataset, tmp_path)
    assert seen[0] == (0, 6)
    assert left(tmp_path, seeds) == left(pack[0], seeds)


def test_a_pack_resumes_from_the_oldest_of_its_checkpoints(pack, seeds, dataset, tmp_path):
    for stop_after in (4, 8):
        with pytest.raises(Interrupted):
            start(seeds, dataset, tmp_path, stop_after=stop_after)
    # Killed between two saves.
    shutil.rmtree(tmp_path / "1" / "checkpoints" / "8")
    _, seen = start(seeds, dataset, tmp_path)
    assert seen[:3] == [(0, 6), (1, 6), (2, 6)]
    assert left(tmp_path, seeds) == left(pack[0], seeds)
    # If one run has no checkpoint, all start from the beginning.
    with pytest.raises(Interrupted):
        start(seeds, dataset, tmp_path / "new", stop_after=4)
    shutil.rmtree(tmp_path / "new" / "2" / "checkpoints")
    _, seen = start(seeds, dataset, tmp_path / "new")
    assert seen[0] == (0, 2)
    assert left(tmp_path / "new", seeds) == left(pack[0], seeds)


def test_a_diverged_trial_ends_while_the_rest_of_its_pack_continues(pack, seeds, dataset, tmp_path):
    # An epoch takes 8 of the 12 steps; this image is in the first batch of seed 0.
    image = stream_order(0, 32, 0, 1)
    images = dataset.train.images.astype(np.float32)
    images[image] = np.nan
    bad = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=images))
    results, seen = start(seeds, bad, tmp_path)
    ends = {seed: max(step for other, step in seen if other == seed) for seed in SEEDS}
    assert ends[0] == 2
    for seed, result in zip(SEEDS, results):
        met = [i for i in range(12) if image in stream_order(seed, 32, 4 * i, 4)]
        assert result.status == "diverged"
        assert f"at step {met[0] + 1};" in result.error
        assert result.steps == ends[seed] == met[0] + 1 + (met[0] + 1) % 2
    assert len(set(ends.values())) > 1
    # A pack killed before it wrote its results is evaluated again without further training.
    for seed in SEEDS:
        (tmp_path / str(seed) / "result.json").unlink()
    again, seen = start(seeds, bad, tmp_path)
    assert seen == []
    assert list(map(untimed, again)) == list(map(untimed, results))


@pytest.mark.parametrize(
    ("alone", "together", "steps", "pays"),
    [
        (1.0, 2.6, 1000, True),
        (1.0, 2.8, 1000, False),  # a gain within the noise
        (1.0, 0.1, 39, False),  # less than two minutes in all
        (1.0, "RESOURCE_EXHAUSTED: out of memory", 1000, False),
    ],
)
def test_packing_pays_only_if_clearly_faster_and_long_enough(
    alone, together, steps, pays, experiment, dataset, monkeypatch
):
    def stepper(experiments, dataset):
        if len(experiments) == 1:
            return lambda: alone
        if isinstance(together, str):
            raise jax.errors.JaxRuntimeError(together)
        return lambda: together

    monkeypatch.setattr(packing, "stepper", stepper)
    long = dataclasses.replace(experiment.train, examples=4 * steps)
    assert packing_pays([dataclasses.replace(experiment, train=long)] * 3, dataset) == pays


def test_packing_pays_times_real_steps_alone_and_together(seeds, dataset, monkeypatch):
    seen = {}
    stepper = packing.stepper

    def noted(experiments, dataset):
        step = stepper(experiments, dataset)
        return lambda: seen.setdefault(len(experiments), step())

    monkeypatch.setattr(packing, "stepper", noted)
    monkeypatch.setattr(packing, "WORTH_SECONDS", 0.0)
    assert packing_pays(seeds, dataset) in (True, False)
    assert sorted(seen) == [1, 3]
    assert min(seen.values()) > 0
