"""What `verify` finds: everything that was changed in a folder, and nothing in a sound one."""

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
from fpnlab.records.run_records import read_records, write_records
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
    """The folder of a finished study of two trials; only to be read."""
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
    return [str(fault).removeprefix(f"{folder}/") for fault in verify(folder).problems]


def change(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def test_a_sound_study_and_a_sound_run_have_no_faults(study):
    found = verify(study)
    assert found.problems == []
    assert str(found).endswith(f": sound (runs 2, checkpoints 4, leaves {found.leaves})")
    assert found.leaves > 4 * 20
    assert str(verify(study / RUN)).startswith(f"{study / RUN}: sound (runs 1, checkpoints 2")


def test_a_run_that_is_not_finished_is_sound(small, dataset, run, tmp_path):
    with pytest.raises(Interrupted):
        run(small, dataset, tmp_path, stop_after=2)
    assert lines(tmp_path) == []


def flip(path, draw):
    content = bytearray(path.read_bytes())
    content[draw.integers(len(content))] ^= 1 << draw.integers(8)
    path.write_bytes(content)


def test_a_flipped_bit_in_any_file_of_a_checkpoint_is_found_and_the_file_named(study):
    draw = np.random.default_rng(0)
    folder = study / RUN / "checkpoints" / "4"
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        sound = path.read_bytes()
        flip(path, draw)
        found = lines(study)
        path.write_bytes(sound)
        assert any(path.name in line for line in found), path
        assert all("checkpoints/4: " in line for line in found[:-1]), found
        assert "of which there is no sound checkpoint" in found[-1]
    assert lines(study) == []


def test_every_fault_is_found_at_once_with_file_and_remedy(study):
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
    for start, says in [
        (f"{RUN}/env.json: cannot be read", "the numbers are not"),
        (f"{RUN}/config.json: its hash is not that of its experiment", "remove the folder"),
        (f"{RUN}/result.json: it is done after step 3, and the config has 4", "remove the folder"),
        (f"{RUN}/result.json: 3 steps are not 16 examples", "remove the folder"),
        (f"{RUN}/result.json: it is of step 3, and the last record", "remove the folder"),
        (f"{RUN}/metrics.jsonl: line 5 is no whole record", "it drops the line"),
        (f"{RUN}/gallery.npz: is not what was saved", "it is measured anew"),
        ("trials/unknown: the ledger does not know it", "move it"),
        ("trials/bn-batch_size-4-seed-1/result.json: is missing, and the ledger says done", "same"),
    ]:
        assert [line for line in found if line.startswith(start) and says in line], (start, found)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("config.json", "[]", "config.json: expected a table; found list"),
        ("config.json", '{"experiment": {"seeed": 1}}', "config.json: not the config of a run"),
        ("metrics.jsonl", f"{RECORD}{RECORD}", "step 2 comes after step 2"),
        ("metrics.jsonl", f"{RECORD}3\n{RECORD}", "line 2 is no whole record"),
        ("metrics.jsonl", RECORD, "it is of step 4, and the last record of"),
        ("result.json", "{}", "result.json: not the result of a run (trial: Field required)"),
        ("result.json", "{", "result.json: cannot be read"),
        ("gallery.npz", "", "gallery.npz: is not what was saved"),
        ("items.npz", "", "items.npz: is not what was saved"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(name, content, says, study):
    (study / RUN / name).write_text(content)
    for folder in (study, study / RUN):
        assert any(says in line for line in lines(folder)), lines(folder)


def test_a_changed_number_of_a_result_is_found(study):
    result = json.loads((study / RUN / "result.json").read_text())
    change(study / RUN / "result.json", final_loss=0.5)
    [line] = lines(study)
    assert "its final_loss is not that of the last record of metrics.jsonl" in line
    result["metrics"]["precise"]["AP50"] += 0.01
    change(study / RUN / "result.json", **result)
    [line] = lines(study)
    assert f"{RUN}/result.json: the ledger has another AP50" in line


def test_files_of_another_run_are_found(small, dataset, run, tmp_path, study):
    other = tmp_path / "other"
    run(dataclasses.replace(small, seed=7), dataset, other)
    assert lines(other) == []
    for name in ("result.json", "metrics.jsonl"):
        shutil.copy(other / name, study / RUN / name)
    shutil.rmtree(study / RUN / "checkpoints" / "3")
    shutil.copytree(other / "checkpoints" / "3", study / RUN / "checkpoints" / "3")
    found = lines(study / RUN)
    assert any("checkpoints/3: it belongs to another config" in line for line in found)
    assert any("result.json: it is of another config" in line for line in found)
    # A whole run in another's place is sound by itself; the study knows better.
    shutil.rmtree(study / RUN)
    shutil.copytree(other, study / RUN)
    assert lines(study / RUN) == []
    assert any("another config than the study gives" in line for line in lines(study))


def test_a_ledger_that_differs_from_the_study_or_is_damaged_is_named(study):
    ledger = study / "ledger.sqlite"
    with sqlite3.connect(ledger) as database:
        database.execute("update trials set hash = 'x' where name like '%seed-0'")
        database.execute(
            "insert into trials (name, hash, cell, split, path) values ('n', 'h', '', '', 'n')"
        )
    database.close()
    found = lines(study)
    assert "study.json: bn-batch_size-4-seed-0 has another config in the ledger" in " ".join(found)
    assert any("n is not in study.json" in line for line in found)
    for file in study.glob("ledger.sqlite-*"):
        file.unlink()
    ledger.write_bytes(b"x" * 5000)
    assert any(line.startswith("ledger.sqlite: cannot be read") for line in lines(study))
    ledger.unlink()
    assert lines(study)[0].startswith("ledger.sqlite: is missing")
    (study / "study.json").unlink()
    with pytest.raises(RunFolderError, match="neither a run nor a study; give a folder"):
        verify(study)


def test_a_folder_in_use_is_not_judged(study):
    for folder in (study, study / RUN):
        with locked(folder), pytest.raises(FolderLockedError, match="wait until it has ended"):
            verify(study)


def test_the_command_prints_each_fault_and_a_summary_and_exits_with_5(study):
    done = CliRunner().invoke(main, ["verify", str(study)])
    assert (done.exit_code, done.stdout) == (0, f"{verify(study)}\n")
    log = study / RUN / "metrics.jsonl"
    write_records(log, read_records(log)[:-1])
    done = CliRunner().invoke(main, ["verify", str(study)])
    assert done.exit_code == 5
    fault, summary = done.stdout.splitlines()
    assert fault.startswith(f"{study / RUN / 'result.json'}: it is of step 4, and the last record")
    assert summary.startswith(f"{study}: problems: 1 (runs 2, checkpoints 4")
