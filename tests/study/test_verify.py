"""`verify` reports every change to a folder, and nothing for a sound one."""

import dataclasses
import json
import shutil
import sqlite3

import numpy as np
import pytest
from click.testing import CliRunner

from fpnlab.cli.main import main
from fpnlab.config.study import Axis, Study
from fpnlab.errors import FolderLockedError, Interrupted, RunFolderError
from fpnlab.records.manifest import MANIFEST
from fpnlab.records.run_records import read_records, write_records
from fpnlab.run.enter_folder import enter_folder
from fpnlab.run.folder import locked
from fpnlab.run.interrupts import Stop
from fpnlab.study.context import StudyListener
from fpnlab.study.runner import run_study
from fpnlab.study.verify import verify

RUN = "trials/bn-batch_size-4-seed-0"
RECORD = '{"step": 2, "examples": 8, "loss": 1.0}\n'


@pytest.fixture(scope="module")
def small(experiment):
    """Four steps of the shared experiment."""
    train = dataclasses.replace(experiment.train, examples=16)
    return dataclasses.replace(experiment, train=train, log_examples=4, checkpoint_seconds=0.0)


@pytest.fixture(scope="module")
def finished(small, dataset, tmp_path_factory):
    """The folder of a finished study of two trials; read-only."""
    study = Study(
        axes=(Axis(field="train.batch_size", values=(4,)),),
        seeds=(0, 1),
        arms={"BN": {}},
        metric="AP50",
    )
    folder = tmp_path_factory.mktemp("study")
    studied = dataclasses.replace(small, study=study)
    run_study(studied, dataset, folder, command="", stop=Stop(), listener=StudyListener())
    return folder


@pytest.fixture
def study(finished, tmp_path):
    """A copy of the finished study, to be damaged."""
    return shutil.copytree(finished, tmp_path / "study")


def lines(folder):
    return [str(problem).removeprefix(f"{folder}/") for problem in verify(folder).problems]


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_sound_study_and_a_sound_run_have_no_problems(study):
    found = verify(study)
    assert found.problems == []
    assert str(found).endswith(f": sound (runs 2, checkpoints 4, leaves {found.leaves})")
    assert found.leaves > 4 * 20
    assert str(verify(study / RUN)).startswith(f"{study / RUN}: sound (runs 1, checkpoints 2")


def test_an_unfinished_run_is_sound(small, dataset, run, tmp_path):
    with pytest.raises(Interrupted):
        run(small, dataset, tmp_path, stop_after=2)
    assert lines(tmp_path) == []


def flip(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    path.write_bytes(content)


def test_verify_names_the_checkpoint_file_with_a_flipped_bit(study):
    draw = np.random.default_rng(0)
    folder = study / RUN / "checkpoints" / "4"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sound = path.read_bytes()
        flip(path, draw)
        found = lines(study)
        path.write_bytes(sound)
        assert any(path.name in line for line in found), path
        assert all("checkpoints/4" in line for line in found[:-1]), found
        assert "which has no sound checkpoint" in found[-1]
        assert all("result.json" in line.partition("; ")[2] for line in found), found
    assert lines(study) == []


def test_verify_reports_all_problems_at_once_with_file_and_remedy(study):
    run = study / RUN
    (run / "env.json").write_text("{")
    change(run / "config.json", hash="0" * 64)
    change(run / "result.json", steps=3, final_loss=0.5)
    with (run / "metrics.jsonl").open("a") as log:
        log.write('{"step": 9, "lo')
    (run / "gallery.npz").write_bytes((run / "gallery.npz").read_bytes()[:-40])
    (study / "trials/unknown").mkdir()
    (study / "trials/bn-batch_size-4-seed-1/result.json").unlink()
    found = lines(study)
    for start, message in [
        (f"{RUN}/env.json: is not what was written", "remove the folder"),
        (f"{RUN}/env.json: cannot be read", "remove the folder"),
        (f"{RUN}/config.json: the hash does not match", "remove the folder"),
        (f"{RUN}/result.json: is not what was written", "remove the folder"),
        (f"{RUN}/result.json: done after step 3, but the config has 4", "remove the folder"),
        (f"{RUN}/result.json: 3 steps do not make 16 examples", "remove the folder"),
        (f"{RUN}/result.json: result of step 3, but the last record", "remove the folder"),
        (f"{RUN}/metrics.jsonl: line 5 is not a complete record", "remove the folder"),
        (f"{RUN}/gallery.npz: is not what was written", "remove the folder"),
        ("trials/unknown: belongs to no trial", "move it"),
        (
            "trials/bn-batch_size-4-seed-1/result.json: is missing",
            "but the status in the ledger is done; run the same command again",
        ),
    ]:
        matching = [line for line in found if line.startswith(start)]
        assert any(message in line for line in matching), (start, found)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", "[]", "config.json: expected a table; found list"),
        ("config.json", '{"experiment": {"seeed": 1}}', "config.json: not the config of a run"),
        ("metrics.jsonl", f"{RECORD}{RECORD}", "step 2 follows step 2"),
        ("metrics.jsonl", f"{RECORD}3\n{RECORD}", "line 2 is not a complete record"),
        ("metrics.jsonl", RECORD, "result of step 4, but the last record of"),
        ("result.json", "{}", "result.json: not the result of a run (trial: Field required)"),
        ("result.json", "{", "result.json: cannot be read"),
        ("gallery.npz", "", "gallery.npz: is not what was written"),
        ("items.npz", "", "items.npz: was added after the run had ended"),
    ],
)
def test_verify_names_a_damaged_file_of_a_run(name, content, message, study):
    (study / RUN / name).write_text(content)
    for folder in (study, study / RUN):
        assert any(message in line for line in lines(folder)), lines(folder)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gallery.npz", "", "gallery.npz: does not match its checksums"),
        ("items.npz", "", "items.npz: does not match its checksums"),
    ],
)
def test_verify_tests_archives_of_an_unsealed_run(name, content, message, study):
    (study / RUN / MANIFEST).unlink()
    (study / RUN / name).write_text(content)
    assert any(message in line for line in lines(study / RUN)), lines(study / RUN)


def unseal_all(study):
    """Removes all manifests, as if an older version had written the study."""
    for path in [study / MANIFEST, *study.glob(f"trials/*/{MANIFEST}")]:
        path.unlink()


def test_verify_reports_a_changed_number_in_an_unsealed_result(study):
    unseal_all(study)
    assert lines(study) == []
    path = study / RUN / "result.json"
    result = json.loads(path.read_text())
    change(path, final_loss=0.5)
    [line] = lines(study)
    assert "final_loss differs from the last record of metrics.jsonl" in line
    metrics = result["metrics"] | {"precise": result["metrics"]["precise"] | {"AP50": 0.91}}
    change(path, **result | {"metrics": metrics})
    found = " ".join(lines(study))
    assert f"{RUN}/result.json: the ledger has another AP50" in found
    assert "summary.json: " in found
    change(path, **result | {"metrics": metrics | {"running": {"AP50": 91.0}}})
    assert "metrics.running.AP50: 91; expected a number from 0 to 1" in " ".join(lines(study))
    emptied = {"drift": [], "signals": [], "effective_rates": None, "gradient_noise": None}
    change(path, **result | {"diagnostics": emptied})
    found = " ".join(lines(study))
    assert "diagnostics have 0 signals; expected 3" in found
    assert "diagnostics lack the drift" in found
    assert "effective rates differ" in found


def forge(path):
    """Changes a number, the best arm and a sentence of a summary."""
    summary = json.loads(path.read_text())
    summary["rows"][0]["mean"] = 91.0
    summary["best"]["arm"] = "LN"
    summary["findings"][0] = "BN wins."
    path.write_text(json.dumps(summary))


def test_verify_computes_the_numbers_and_sentences_of_a_summary_again(study):
    forge(study / "summary.json")
    found = [line for line in lines(study) if "but the results give" not in line]
    assert found == [
        "summary.json: is not what was written (by manifest.json); "
        "remove it and run the same command again"
    ]
    unseal_all(study)
    found = lines(study)
    assert len(found) == 3
    assert any('findings.0 is "BN wins.", but the results give ' in line for line in found)
    assert any('best.arm is "LN", but the results give "BN"' in line for line in found)
    assert any("rows.0.mean is 91.0, but the results give " in line for line in found)


def test_another_version_may_word_a_summary_differently(study):
    unseal_all(study)
    change(study / "study.json", env={"versions": {"fpnlab": "0.0.1"}})
    forge(study / "summary.json")
    found = verify(study)
    assert len(found.problems) == 2
    assert not any("findings" in str(problem) for problem in found.problems)
    assert any("the wording in" in what for what in found.unchecked)


def test_a_run_that_was_stopped_before_its_new_evaluation_has_no_problems(
    small, dataset, run, tmp_path
):
    run(small, dataset, tmp_path)
    other = dataclasses.replace(small, evaluate=dataclasses.replace(small.evaluate, batch_size=4))
    enter_folder(tmp_path, other, dataset)
    found = verify(tmp_path)
    assert found.problems == []
    assert any("result.json, which the next start replaces" in what for what in found.unchecked)


def test_verify_lists_what_it_cannot_check(study):
    assert any("whether the weights have these metrics" in w for w in verify(study).unchecked)
    assert not any("older version" in what for what in verify(study).unchecked)
    unseal_all(study)
    lines = [what for what in verify(study).unchecked if "older version" in what]
    assert len(lines) == 2
    assert any("study.json" in line for line in lines)
    assert any(RUN in line for line in lines)


def test_an_interrupted_study_has_no_problems(small, dataset, tmp_path):
    """Neither after a stop, nor after a kill that left a summary without the last trial."""
    stop = Stop()

    class Listener(StudyListener):
        def begin(self, trial):
            stop.requested = trial.seed == 1

    study = Study(
        axes=(Axis(field="train.batch_size", values=(4,)),),
        seeds=(0, 1),
        arms={"BN": {}},
        metric="AP50",
    )
    studied = dataclasses.replace(small, study=study)
    with pytest.raises(Interrupted):
        run_study(studied, dataset, tmp_path, command="", stop=stop, listener=Listener())
    assert not (tmp_path / MANIFEST).exists()
    assert lines(tmp_path) == []
    with (tmp_path / "trials/bn-batch_size-4-seed-1/metrics.jsonl").open("a") as log:
        log.write('{"step": 9, "lo')
    with locked(tmp_path), locked(tmp_path / "trials/bn-batch_size-4-seed-1"):
        found = verify(tmp_path)
    assert (found.problems, found.runs) == ([], 1)
    assert any("trials that are running" in what for what in found.unchecked)
    assert lines(tmp_path) == []
    change(
        tmp_path / "summary.json",
        counts={"planned": 2, "missing": 2, "done": 0},
        rows=[],
    )
    found = verify(tmp_path)
    assert found.problems == []
    assert any("which 1 trials that have ended are not in" in what for what in found.unchecked)


def test_verify_reports_files_of_another_run(small, dataset, run, tmp_path, study):
    other = tmp_path / "other"
    run(dataclasses.replace(small, seed=7), dataset, other)
    assert lines(other) == []
    for name in ("result.json", "metrics.jsonl"):
        shutil.copy(other / name, study / RUN / name)
    shutil.rmtree(study / RUN / "checkpoints" / "3")
    shutil.copytree(other / "checkpoints" / "3", study / RUN / "checkpoints" / "3")
    found = lines(study / RUN)
    assert any("checkpoints/3: belongs to another config" in line for line in found)
    assert any("result.json: belongs to another config" in line for line in found)
    # A complete run in another trial's folder is sound by itself, but not as a part of the study.
    shutil.rmtree(study / RUN)
    shutil.copytree(other, study / RUN)
    assert lines(study / RUN) == []
    assert any("another config than the study has" in line for line in lines(study))


def test_verify_reports_a_ledger_that_is_damaged_or_differs_from_the_study(study):
    ledger = study / "ledger.sqlite"
    with sqlite3.connect(ledger) as database:
        database.execute("update trials set hash = 'x' where name like '%seed-0'")
        database.execute(
            "insert into trials (name, hash, cell, split, path) values ('n', 'h', '', '', 'n')"
        )
    database.close()
    found = lines(study)
    expected = "ledger.sqlite: bn-batch_size-4-seed-0 has another config in study.json"
    assert expected in " ".join(found)
    assert any("n is not in study.json" in line for line in found)
    for file in study.glob("ledger.sqlite-*"):
        file.unlink()
    ledger.write_bytes(b"x" * 5000)
    assert any(line.startswith("ledger.sqlite: cannot be read") for line in lines(study))
    ledger.unlink()
    [line] = lines(study)
    assert line.startswith("ledger.sqlite: is missing; run the same command again")
    (study / "study.json").unlink()
    (study / MANIFEST).unlink()
    with pytest.raises(RunFolderError, match="neither a run nor a study; give a folder"):
        verify(study)


def test_verify_rejects_a_locked_run(study):
    run = study / RUN
    with locked(run), pytest.raises(FolderLockedError, match="wait until it has ended"):
        verify(run)


def test_the_command_prints_each_problem_and_a_summary_and_exits_with_5(study):
    done = CliRunner().invoke(main, ["verify", str(study)])
    found = verify(study)
    assert done.exit_code == 0
    unchecked = [f"not checked: {what}" for what in found.unchecked]
    assert done.stdout.splitlines() == [str(found), *unchecked]
    log = study / RUN / "metrics.jsonl"
    write_records(log, read_records(log)[:-1])
    done = CliRunner().invoke(main, ["verify", str(study)])
    assert done.exit_code == 5
    changed, problem, summary, *_ = done.stdout.splitlines()
    assert changed.startswith(f"{log}: is not what was written")
    assert problem.startswith(
        f"{study / RUN / 'result.json'}: result of step 4, but the last record"
    )
    assert summary.startswith(f"{study}: problems: 2 (runs 2, checkpoints 4")
