"""A pack of runs: each is what it would be alone, whatever becomes of the others."""

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
    """Experiments of three seeds, of which the second has another learning rate."""
    first, second, third = (dataclasses.replace(experiment, seed=seed) for seed in SEEDS)
    return [first, at_rate(second, 1.5 * experiment.train.learning_rate), third]


def start(experiments, dataset, folder, stop_after=None):
    """Runs a pack; returns its results, and (seed, step) of the records in their order."""
    stop, seen = Stop(), []

    def report(seed):
        def tell(record):
            seen.append((seed, record.step))
            stop.requested |= record.step == stop_after

        return tell

    runs = [
        Run(Trial(f"{e.seed}", "run", 4, e.seed, e), folder / str(e.seed), report(e.seed))
        for e in experiments
    ]
    return run_trials(runs, dataset, stop=stop), seen


@pytest.fixture(scope="module")
def pack(seeds, dataset, tmp_path_factory):
    """The folder of a finished pack, its results and what it reported; only to be read."""
    folder = tmp_path_factory.mktemp("pack")
    return folder, *start(seeds, dataset, folder)


def timeless(table):
    return {name: value for name, value in table.items() if name not in TIMES}


def untimed(result):
    return dataclasses.replace(result, seconds=0.0)


def left(folder, experiments):
    """The last state, the records and the results of each run, but times."""
    found = {}
    for e in experiments:
        path = folder / str(e.seed)
        lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        state = jax.tree.map(lambda leaf: np.asarray(leaf).tobytes(), restored_run(path)[1])
        result = json.loads((path / "result.json").read_text())
        found[e.seed] = state, [timeless(line) for line in lines], timeless(result)
    return found


def test_each_seed_of_a_pack_is_what_it_is_alone(pack, seeds, dataset, unbroken, run, tmp_path):
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


def test_seeds_and_rates_share_a_program_and_nothing_else_does(experiment, seeds):
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


def test_a_run_in_microbatches_is_the_run(experiment, dataset):
    ends = []
    for micro_batch in (None, 2):
        one = at_rate(experiment, 0.02, norm_batch=2, micro_batch=micro_batch)
        training = training_of([one], dataset, [initial_state(one)], 0)
        state = training.state
        for _, batch in zip(range(3), training.batches):
            state, logs = training.step(state, batch)
        ends.append((state.params, logs))
    chex.assert_trees_all_close(*ends, rtol=1e-3, atol=1e-5)


def test_what_shares_no_program_is_never_packed(experiment, dataset, monkeypatch):
    monkeypatch.setattr(packing, "stepper", lambda *_: pytest.fail("it was measured"))
    assert not packing_pays([experiment, at_rate(experiment, 0.1, weight_decay=0.5)], dataset)


def path_records(path):
    return [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]


def test_the_seconds_of_a_pack_are_shared_by_its_seeds(pack):
    folder, results, seen = pack
    assert seen == [(seed, step) for step in (2, 4, 6, 8, 10, 12) for seed in SEEDS]
    assert [result.pack for result in results] == [3] * 3
    for seed, result in zip(SEEDS, results):
        last = path_records(folder / f"{seed}")[-1]
        assert result.seconds >= last["seconds"] > 0
        # A seed's speed is that of its share, as if the others had not been there.
        speeds = [record["examples_per_second"] for record in path_records(folder / f"{seed}")]
        assert sum(8 / speed for speed in speeds) == pytest.approx(last["seconds"], rel=0.1)


def test_an_interrupted_pack_ends_like_an_unbroken_one(pack, seeds, dataset, tmp_path):
    with pytest.raises(Interrupted, match="stopped after step 4 of 12, saved"):
        start(seeds, dataset, tmp_path, stop_after=4)
    _, seen = start(seeds, dataset, tmp_path)
    assert seen[0] == (0, 6)
    assert left(tmp_path, seeds) == left(pack[0], seeds)


def test_a_pack_goes_on_from_where_its_last_run_is(pack, seeds, dataset, tmp_path):
    for stop_after in (4, 8):
        with pytest.raises(Interrupted):
            start(seeds, dataset, tmp_path, stop_after=stop_after)
    # Killed between two saves.
    shutil.rmtree(tmp_path / "1" / "checkpoints" / "8")
    _, seen = start(seeds, dataset, tmp_path)
    assert seen[:3] == [(0, 6), (1, 6), (2, 6)]
    assert left(tmp_path, seeds) == left(pack[0], seeds)
    # A run that had nothing yet takes the others back to the beginning.
    with pytest.raises(Interrupted):
        start(seeds, dataset, tmp_path / "new", stop_after=4)
    shutil.rmtree(tmp_path / "new" / "2" / "checkpoints")
    _, seen = start(seeds, dataset, tmp_path / "new")
    assert seen[0] == (0, 2)
    assert left(tmp_path / "new", seeds) == left(pack[0], seeds)


def test_a_seed_that_diverges_ends_and_the_others_go_on(pack, seeds, dataset, tmp_path):
    # Each image is seen once in 8 of the 12 steps; the first four steps of seed 0 meet this one.
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
    # Killed before the results were written, the pack trains nothing again.
    for seed in SEEDS:
        (tmp_path / str(seed) / "result.json").unlink()
    again, seen = start(seeds, bad, tmp_path)
    assert seen == []
    assert list(map(untimed, again)) == list(map(untimed, results))


@pytest.mark.parametrize(
    ("alone", "together", "steps", "pays"),
    [
        (1.0, 2.6, 1000, True),
        (1.0, 2.8, 1000, False),  # a gain that noise could make
        (1.0, 0.1, 39, False),  # two minutes are not worth a program
        (1.0, "RESOURCE_EXHAUSTED: out of memory", 1000, False),
    ],
)
def test_a_pack_pays_where_it_is_clearly_faster_and_much_is_to_do(
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


def test_both_ways_are_measured_on_the_real_steps(seeds, dataset, monkeypatch):
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
