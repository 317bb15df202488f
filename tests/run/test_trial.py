"""Runs resume after interruptions with identical results, and no saved work is lost."""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import pathlib
import re
import resource
import shutil
import subprocess
import sys
import tempfile

import chex
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fpnlab import compiler
from fpnlab.config.validate import config_hash, resolved, training_hash
from fpnlab.data.dataset import Dataset, stream_order
from fpnlab.errors import CheckpointError, ConfigError, Interrupted, RunFolderError
from fpnlab.evaluate.average_precision import Evaluation
from fpnlab.nn.norm_specs import NoNorm
from fpnlab.records.run_records import read_result
from fpnlab.run import measure, programs
from fpnlab.run.batches import batch_at, training_view
from fpnlab.run.enter_folder import enter_folder
from fpnlab.run.measure import evaluate_run, first_of_step, restored_run
from fpnlab.run.programs import initial_state
from fpnlab.study.verify import verify
from fpnlab.train.checkpoint import Checkpoints
from fpnlab.train.step import step_loss
from fpnlab.types import Batch, Detections

STEPS_LOGGED = [2, 4, 6, 8, 10, 12]
CLOCKS = ("seconds", "examples_per_second")


@pytest.fixture
def no_data():
    """Data without images: any training or evaluation on them raises."""
    empty = Batch(images=None, boxes=None, classes=None, valid=None, extent=None, index=None)
    return Dataset(name="none", class_names=(), train=empty, test=empty)


def records(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def timeless(record):
    return {name: value for name, value in record.items() if name not in CLOCKS}


def fingerprint(folder, experiment):
    """SHA-256 of every leaf of the last checkpoint."""
    state = restored_run(folder)[1]
    return {
        jax.tree_util.keystr(path): hashlib.sha256(np.asarray(leaf).tobytes()).hexdigest()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    }


def outcome(folder, experiment):
    """The state, metrics, result and gallery of a run, without clock times."""
    with np.load(folder / "gallery.npz") as gallery:
        pictures = {name: gallery[name].tobytes() for name in gallery.files}
    result = timeless(json.loads((folder / "result.json").read_text()))
    return {
        "state": fingerprint(folder, experiment),
        "metrics": [timeless(record) for record in records(folder)],
        "result": result,
        "gallery": pictures,
    }


def test_a_finished_run_has_all_files_and_a_complete_result(unbroken, experiment, dataset):
    names = {path.name for path in unbroken.iterdir() if not path.name.startswith(".")}
    assert names == {
        "manifest.json",
        "config.json",
        "env.json",
        "metrics.jsonl",
        "checkpoints",
        "gallery.npz",
        "result.json",
    }
    config = json.loads((unbroken / "config.json").read_text())
    assert config == {
        "hash": config_hash(experiment),
        "training_hash": training_hash(experiment),
        "experiment": resolved(experiment),
    }
    assert "jax" in json.loads((unbroken / "env.json").read_text())["versions"]
    result = read_result(unbroken / "result.json")
    assert (result.status, result.error) == ("done", None)
    assert (result.steps, result.examples) == (12, 48)
    assert set(result.norm_batch.values()) == {4}
    assert list(result.norm_batch) == [
        *("stem", "branch", "last", "shortcut", "lateral", "output", "head")
    ]
    assert result.smallest_count == 4 * 2 * 2
    assert list(result.metrics) == ["running", "precise", "batch"]
    assert result.final_loss == records(unbroken)[-1]["loss"]
    state = initial_state(experiment)
    assert result.parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    for record, step in zip(records(unbroken), STEPS_LOGGED):
        assert (record["step"], record["examples"]) == (step, 4 * step)
        assert record["loss"] > 0
        assert ("effective_rates" in record) == (step == 6)
    found = result.diagnostics
    assert {row.name for row in found.drift} >= {"backbone/stem", "neck/output/3"}
    assert [row.name for row in found.signals] == [
        "stem",
        "stage 0 block 0",
        "stage 1 block 0",
    ]
    assert (found.effective_rates.step, found.effective_rates.examples) == (6, 24)
    assert found.effective_rates.rates == records(unbroken)[2]["effective_rates"]
    assert found.gradient_noise is None


def test_the_speed_of_a_record_excludes_compilation(
    experiment, dataset, run, tmp_path, monkeypatch
):
    """Simulates steps of a second, of which the first takes a minute more."""
    now = [0.0]
    monkeypatch.setattr("fpnlab.run.hooks.time.monotonic", lambda: now[0])

    def training(*args):
        found = programs.training_of(*args)
        count = iter(range(100))

        def slow(state, batch):
            now[0] += 1.0 if next(count) else 61.0
            return found.step(state, batch)

        return found._replace(step=slow)

    monkeypatch.setattr("fpnlab.run.run.training_of", training)
    run(experiment, dataset, tmp_path)
    speeds = [record["examples_per_second"] for record in records(tmp_path)]
    assert speeds == [4.0] * 6
    every = dataclasses.replace(experiment, log_examples=4)
    run(every, dataset, tmp_path / "every")
    speeds = [record["examples_per_second"] for record in records(tmp_path / "every")]
    assert speeds == [0.0] + [4.0] * 11


def test_result_metrics_equal_an_evaluation_of_the_last_checkpoint(unbroken, experiment, dataset):
    """open-mmlab/mmaction2#524: statistics re-estimated after the checkpoint was written."""
    result = read_result(unbroken / "result.json")
    again = evaluate_run(unbroken, dataset)
    assert set(again) == {"running", "precise", "batch"}
    for source, metrics in result.metrics.items():
        assert {n: v if np.isfinite(v) else None for n, v in again[source].items()} == metrics


def test_an_interrupted_run_ends_bit_identical_to_an_uninterrupted_one(
    unbroken, experiment, dataset, run, tmp_path
):
    for stop_after in (4, 10):
        with pytest.raises(Interrupted, match=f"stopped after step {stop_after} of 12, saved"):
            run(experiment, dataset, tmp_path, stop_after=stop_after)
    assert not (tmp_path / "result.json").exists()
    result, steps = run(experiment, dataset, tmp_path)
    assert steps == [12]
    assert result.status == "done"
    assert outcome(tmp_path, experiment) == outcome(unbroken, experiment)


@pytest.mark.slow
def test_an_interrupted_run_with_adamw_and_layer_norm_ends_bit_identical(
    layer_norm_experiment, dataset, run, tmp_path
):
    run(layer_norm_experiment, dataset, tmp_path / "unbroken")
    with pytest.raises(Interrupted):
        run(layer_norm_experiment, dataset, tmp_path / "broken", stop_after=6)
    run(layer_norm_experiment, dataset, tmp_path / "broken")
    assert outcome(tmp_path / "broken", layer_norm_experiment) == outcome(
        tmp_path / "unbroken", layer_norm_experiment
    )


def test_a_run_stopped_at_its_last_step_is_only_evaluated_on_resuming(
    unbroken, experiment, dataset, run, tmp_path
):
    with pytest.raises(Interrupted):
        run(experiment, dataset, tmp_path, stop_after=12)
    _, steps = run(experiment, dataset, tmp_path)
    assert steps == []
    assert outcome(tmp_path, experiment) == outcome(unbroken, experiment)


def test_verify_reports_a_run_resumed_on_a_backend_with_wrong_results(
    unbroken, experiment, dataset, run, tmp_path, monkeypatch
):
    folder = shutil.copytree(unbroken, tmp_path / "run")
    (folder / "result.json").unlink()
    monkeypatch.setattr(compiler, "jaxlib_version", lambda: "0.99.0")
    monkeypatch.setattr(compiler, "checks", lambda: (compiler.Check("a product", 1.0, 2.0),))
    compiler._warn_if_wrong.cache_clear()
    with pytest.warns(compiler.WrongResultWarning, match="jaxlib 0.99.0 computes wrong numbers"):
        run(experiment, dataset, folder)
    compiler._warn_if_wrong.cache_clear()
    (problem,) = verify(folder).problems
    assert "its backend failed the known cases (wrong: a product)" in problem.what
    assert verify(unbroken).problems == []


def test_a_resumed_run_logs_each_step_once_and_drops_a_torn_line(
    unbroken, experiment, dataset, run, tmp_path
):
    with pytest.raises(Interrupted):
        run(experiment, dataset, tmp_path, stop_after=4)
    # The state of a process that was killed while writing the record of step 8.
    with (tmp_path / "metrics.jsonl").open("a") as log:
        log.write(
            json.dumps(records(tmp_path)[-1] | {"step": 6, "loss": -1.0}) + '\n{"step": 8, "lo'
        )
    _, steps = run(experiment, dataset, tmp_path)
    assert steps == [6, 8, 10, 12]
    assert [timeless(r) for r in records(tmp_path)] == [timeless(r) for r in records(unbroken)]
    seconds = [record["seconds"] for record in records(tmp_path)]
    assert seconds == sorted(seconds)


def test_a_finished_run_is_not_run_again(unbroken, experiment, no_data, run):
    result, steps = run(experiment, no_data, unbroken)
    assert steps == []
    assert result == read_result(unbroken / "result.json")


def test_run_rejects_a_folder_with_another_config_and_names_the_fields(
    unbroken, experiment, no_data, run
):
    other = dataclasses.replace(
        experiment, seed=1, train=dataclasses.replace(experiment.train, weight_decay=0.5)
    )
    with pytest.raises(RunFolderError) as caught:
        run(other, no_data, unbroken)
    assert "seed (0 there, 1 here), train.weight_decay (0.0001 there, 0.5 here)" in str(
        caught.value
    )
    assert "choose another folder with --out, or remove this one" in str(caught.value)


@pytest.mark.parametrize("content", ["{", "[]", '{"hash": "0"}'])
def test_run_rejects_a_folder_with_an_unreadable_config(
    content, experiment, no_data, run, tmp_path
):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunFolderError, match=r"not the config of a run.*choose another folder"):
        run(experiment, no_data, tmp_path)


def test_run_rejects_the_folder_of_a_study(experiment, no_data, run, tmp_path):
    (tmp_path / "study.json").write_text("{}")
    with pytest.raises(RunFolderError, match="this folder holds a study; choose another"):
        run(experiment, no_data, tmp_path)


HOLD = (
    "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.flock(f, fcntl.LOCK_EX); print(); input()"
)


def test_run_rejects_a_folder_locked_by_another_process(unbroken, experiment, no_data, run):
    with subprocess.Popen(
        [sys.executable, "-c", HOLD, str(unbroken / ".lock")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as other:
        other.stdout.readline()
        with pytest.raises(RunFolderError, match="locked by another process; wait until"):
            run(experiment, no_data, unbroken)
        other.kill()
    assert run(experiment, no_data, unbroken)[1] == []


@pytest.mark.parametrize("inside", ["", "deep/inside"])
def test_run_rejects_a_path_below_a_file(inside, experiment, no_data, run, tmp_path):
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / inside
    with pytest.raises(RunFolderError, match=r"cannot be written.*use another folder"):
        run(experiment, no_data, folder)


def test_a_full_disk_keeps_the_last_checkpoint_and_the_run_resumes_from_it(
    unbroken, experiment, dataset, run, tmp_path, monkeypatch
):
    with pytest.raises(Interrupted):
        run(experiment, dataset, tmp_path, stop_after=4)
    saved = fingerprint(tmp_path, experiment)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    with pytest.raises(CheckpointError, match=r"checkpoint 12 .*No space left.*free space"):
        run(experiment, dataset, tmp_path)
    monkeypatch.undo()
    assert fingerprint(tmp_path, experiment) == saved
    run(experiment, dataset, tmp_path)
    assert outcome(tmp_path, experiment) == outcome(unbroken, experiment)


@contextlib.contextmanager
def file_size_limit(size):
    """Writes beyond ``size`` bytes of a file fail, as on a full disk or at a quota."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_run_resumes_after_a_failed_write_of_any_file(
    unbroken, experiment, dataset, run, tmp_path, capfd
):
    paths = [path for path in unbroken.rglob("*") if path.is_file()]
    # Each file in turn is too large, from the smallest to the largest. The limit is half its size,
    # because the number of digits of clock times varies.
    sizes = sorted({path.stat().st_size for path in paths if path.parent.name != "leaves"} - {0})
    failed = set()
    for size in sizes:
        with file_size_limit(size // 2):
            with pytest.raises((RunFolderError, CheckpointError), match="free space") as e:
                run(experiment, dataset, tmp_path)
        failed.add(re.search(r"checkpoint \d+|File too large", str(e.value))[0])
    assert failed == {"checkpoint 12", "File too large"}
    # Orbax prints a traceback for each array that it cannot write; the package must suppress them.
    assert "Traceback" not in capfd.readouterr().err
    run(experiment, dataset, tmp_path)
    assert outcome(tmp_path, experiment) == outcome(unbroken, experiment)


@contextlib.contextmanager
def unprivileged():
    """Drops root's privileges, under which every folder is writable."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def test_run_rejects_a_read_only_folder_and_leaves_it_unchanged(
    unbroken, experiment, dataset, no_data, run
):
    with tempfile.TemporaryDirectory() as parent:
        folder = pathlib.Path(parent) / "run"
        with pytest.raises(Interrupted):
            run(experiment, dataset, folder, stop_after=4)
        there = lambda: {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*"))}
        before = there()
        pathlib.Path(parent).chmod(0o755)
        for path in [folder, *before]:
            path.chmod(0o555 if path.is_dir() else 0o444)
        with unprivileged():
            with pytest.raises(RunFolderError, match=r"Permission denied.*use another folder"):
                run(experiment, no_data, folder)
            assert verify(folder).problems == []
        assert there() == before
        for path in [folder, *before]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        run(experiment, dataset, folder)
        assert outcome(folder, experiment) == outcome(unbroken, experiment)


def test_a_checkpoint_is_saved_at_each_interval(experiment, dataset, run, tmp_path):
    often = dataclasses.replace(experiment, checkpoint_seconds=0.0)
    run(often, dataset, tmp_path)
    assert Checkpoints(tmp_path / "checkpoints", config_hash(often)).steps() == [11, 12]


@pytest.fixture(scope="module")
def diverging(experiment, make_detector):
    """No norm, and a learning rate so large that the loss overflows after a few steps."""
    return dataclasses.replace(
        experiment,
        augment=None,
        model=make_detector(NoNorm(), classes=4),
        train=dataclasses.replace(experiment.train, learning_rate=1e20, ema_examples=None),
    )


def test_a_diverged_run_keeps_its_last_finite_parameters_and_is_evaluated(
    diverging, dataset, run, tmp_path
):
    result, steps = run(diverging, dataset, tmp_path)
    assert result.status == "diverged"
    assert result.steps == steps[-1] < 12
    first = int(re.match(r"loss or gradient not finite at step (\d+); first", result.error)[1])
    assert steps[-1] - 2 < first <= steps[-1]
    assert result.final_loss is None
    assert (set(result.norm_batch.values()), result.smallest_count) == ({None}, None)
    assert set(result.metrics) == {"running", "precise", "batch"}
    state = restored_run(tmp_path)[1]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((state.params, state.state)))
    # A run killed before it wrote its result is evaluated again without further training.
    whole = outcome(tmp_path, diverging)
    (tmp_path / "result.json").unlink()
    assert run(diverging, dataset, tmp_path)[1] == []
    assert outcome(tmp_path, diverging) == whole


def test_updates_are_skipped_from_the_first_non_finite_batch_whose_step_is_reported(
    experiment, dataset, run, tmp_path
):
    """An image of step 5 is NaN; step 6, the next logged one, is finite."""
    image = stream_order(experiment.seed, 32, 4 * 4, 1)
    images = dataset.train.images.astype(np.float32)
    sound = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=images))
    images = images.copy()
    images[image] = np.nan
    bad = dataclasses.replace(dataset, train=dataclasses.replace(dataset.train, images=images))
    result, steps = run(experiment, bad, tmp_path / "bad")
    assert (result.status, steps) == ("diverged", [2, 4, 6])
    assert result.error == (
        "loss or gradient not finite at step 5; first not finite: batch/images (input)"
    )
    with pytest.raises(Interrupted):
        run(experiment, sound, tmp_path / "sound", stop_after=4)
    kept, good = (restored_run(tmp_path / name)[1] for name in ("bad", "sound"))
    assert (int(kept.step), int(kept.skipped)) == (6, 2)
    chex.assert_trees_all_equal(
        dataclasses.replace(kept, step=good.step, skipped=good.skipped), good
    )


def test_evaluate_rejects_a_folder_without_a_run_or_checkpoint(experiment, dataset, tmp_path):
    with pytest.raises(ConfigError, match="not the config of a run"):
        evaluate_run(tmp_path, dataset)
    enter_folder(tmp_path, experiment, dataset)
    with pytest.raises(RunFolderError, match="no checkpoint found; give a folder"):
        evaluate_run(tmp_path, dataset)


def test_evaluate_uses_averaged_parameters(unbroken, experiment, dataset, monkeypatch):
    measured = []
    nothing = Detections(boxes=None, scores=None, classes=None, valid=None)
    keep = lambda *args, **_: measured.append(args[2]) or Evaluation({}, nothing, None)
    monkeypatch.setattr("fpnlab.tasks.detection.evaluate_detector", keep)
    evaluate_run(unbroken, dataset)
    state = restored_run(unbroken)[1]
    chex.assert_trees_all_equal(measured, [state.average])
    with pytest.raises(AssertionError):
        chex.assert_trees_all_close(state.average, state.params, rtol=1e-3)


def test_training_views_are_independent_of_their_number(experiment, dataset):
    few, many = (training_view(experiment, dataset, n) for n in (3, 70))
    assert many.images.shape == (70, 32, 32, 3)
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b[:3]), few, many)
    # The second epoch has every image again, augmented differently.
    assert sorted(many.index[:32]) == sorted(many.index[32:64]) == list(range(32))
    first = {i: image for i, image in zip(many.index[:32], many.images[:32])}
    same = [np.array_equal(first[i], v) for i, v in zip(many.index[32:64], many.images[32:64])]
    assert not all(same)


def test_a_moved_run_folder_is_recognized_as_finished(unbroken, experiment, no_data, run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(unbroken, moved)
    assert run(experiment, no_data, moved)[1] == []
    assert fingerprint(moved, experiment) == fingerprint(unbroken, experiment)


def test_divergence_is_replayed_in_the_microbatches_of_training(experiment, dataset, monkeypatch):
    split = dataclasses.replace(experiment.train, micro_batch=2, batch_size=4, norm_batch=2)
    split = dataclasses.replace(experiment, train=split)
    replayed = []

    def spy(task, train, state, batch, number):
        replayed.append((len(batch.images), int(number)))
        return step_loss(task, train, state, batch, number)

    monkeypatch.setattr(measure, "step_loss", spy)
    state = initial_state(split)
    assert first_of_step(split, state, batch_at(split, dataset, 0)) is None
    assert set(replayed) == {(2, 0), (2, 1)}
    assert len(replayed) == 2


def test_changed_evaluation_fields_keep_the_weights_and_evaluate_again(
    experiment, dataset, run, tmp_path, caplog
):
    result, steps = run(experiment, dataset, tmp_path)
    assert steps
    evaluate = dataclasses.replace(experiment.evaluate, area_bounds=(2.0, 4.0))
    other = dataclasses.replace(experiment, evaluate=evaluate, question="another")
    again, steps = run(other, dataset, tmp_path)
    assert steps == []
    assert "the config has changed in evaluate.area_bounds.0 (" in caplog.text
    assert again.config_hash == config_hash(other) != result.config_hash
    assert again.final_loss == result.final_loss
    assert verify(tmp_path).problems == []
    other_seed = dataclasses.replace(other, seed=other.seed + 1)
    with pytest.raises(
        RunFolderError, match="a run with another config; the fields that differ: seed"
    ):
        run(other_seed, dataset, tmp_path)
