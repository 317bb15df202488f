"""Damaged files of a finished study are found by `verify` or harmless, and never a traceback."""

import dataclasses
import json
import math
import os
import pathlib
import re
import shutil
import sqlite3
import subprocess
import traceback

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

import fpnlab.report
from fpnlab.cli.main import main
from fpnlab.records.manifest import MANIFEST, read_manifest
from fpnlab.records.run_records import read_result
from fpnlab.records.study_records import read_summary
from fpnlab.run.integrity import RERUN
from fpnlab.study.verify import verify
from fpnlab.train.checkpoint import SUMS

from ..small_config import STUDY

CONFIG = """
[data]
kind = "image_folder"
root = "{root}"
image_size = [16, 16]
class_names = ["dark", "light"]

[model]
classes = 2

[model.backbone]
depths = [1, 1]
widths = [4, 8]
stem = {{ size = 3 }}
norm = {{ kind = "batch_norm" }}

[train]
examples = 16
batch_size = 4
learning_rate = 0.1

[evaluate]
batch_size = 8
population_examples = 8
"""
CLAIM = """
[[study.claims]]
statement = "LN is better at a batch of two."
rules = [{ kind = "difference", arm = "LN", baseline = "BN", axis_values = [2], side = "above" }]
"""
TRIAL, OTHER = "trials/bn-batch_size-2-seed-0", "trials/ln-batch_size-4-seed-1"
OVERRIDES = ["--log_examples", "4", "--checkpoint_seconds", "0"]


def call(*words):
    """Runs a command; returns its exit code and output, after checking that it did not crash."""
    done = CliRunner().invoke(main, [*map(str, words)])
    error = done.exception
    if error is not None and not isinstance(error, SystemExit):
        raise AssertionError("".join(traceback.format_exception(error))) from error
    assert done.exit_code == 0 or done.output.strip(), words
    return done.exit_code, done.output


@dataclasses.dataclass(frozen=True)
class Sound:
    """A finished study with the commands that it came from."""

    folder: pathlib.Path
    config: pathlib.Path
    single: pathlib.Path

    def study(self, folder):
        return call("study", self.config, "--out", folder, *OVERRIDES)

    def train(self, folder):
        words = ("--train.batch_size", "2", "--seed", "0", *OVERRIDES)
        return call("train", self.single, "--out", folder / TRIAL, *words)


@pytest.fixture(scope="module")
def no_reports():
    """Leaves out the pages of `study` and `train`, which `report` writes again."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fpnlab.report, "write_report", lambda folder: "left out")
        patch.setattr(fpnlab.report, "write_run_report", lambda folder: "left out")
        yield


@pytest.fixture(scope="module")
def sound(tmp_path_factory, no_reports):
    home = tmp_path_factory.mktemp("corruption")
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 6)):
        for name, low in (("dark", 0), ("light", 90)):
            (home / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(low, low + 160, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(home / "data" / split / name / f"{i}.png")
    single, config = home / "single.toml", home / "config.toml"
    single.write_text(CONFIG.format(root=home / "data"))
    config.write_text(single.read_text() + STUDY + CLAIM)
    found = Sound(home / "study", config, single)
    code, output = found.study(found.folder)
    assert code == 0, output
    return found


def copied(source, target):
    """A copy of a study, which shares the files of checkpoints, as no command writes into these."""
    share = lambda path, new: (os.link if "/checkpoints/" in path else shutil.copy2)(path, new)
    return shutil.copytree(source, target, symlinks=True, copy_function=share)


@pytest.fixture
def copy(sound, tmp_path):
    return copied(sound.folder, tmp_path / "study")


def rewrite(path, content):
    """Writes a new file in place of one that copies may share."""
    path.unlink()
    path.write_bytes(content)


def kinds(folder):
    """The files of a study by kind, those of one trial for its kinds; reports are left out."""
    checkpoints = sorted((folder / TRIAL / "checkpoints" / "8").rglob("*"))
    names = ("study.json", "summary.json", "ledger.sqlite", MANIFEST)
    groups = [[folder / name] for name in names]
    groups += [[path] for path in sorted((folder / TRIAL).iterdir()) if path.suffix]
    groups.append([path for path in checkpoints if path.is_file() and path.suffix == ".json"])
    groups.append([path for path in checkpoints if path.is_file() and path.suffix != ".json"])
    groups.append([folder / "data.json"])
    return groups


def change_byte(folder, number):
    """Replaces one byte of one file, all kinds of files in turn; returns the file."""
    draw = np.random.default_rng(number)
    groups = kinds(folder)
    path = draw.choice(groups[number % len(groups)])
    content = bytearray(path.read_bytes())
    content[draw.integers(len(content))] ^= draw.integers(1, 256)
    rewrite(path, content)
    return path


def edit(change):
    """A corruption that changes the value in a JSON file."""
    return lambda path: rewrite(path, json.dumps(change(json.loads(path.read_text()))).encode())


def edit_lines(change):
    """A corruption that changes the list of lines of a file."""
    return lambda path: rewrite(path, b"".join(change(path.read_bytes().splitlines(True))))


def replace_by(make):
    """A corruption that makes something else in place of the file."""

    def corrupt(path):
        path.unlink()
        make(path)

    return corrupt


def emptied(value):
    """A JSON value with all of its lists emptied."""
    match value:
        case dict():
            return {name: emptied(field) for name, field in value.items()}
        case list():
            return []
    return value


def with_numbers(value, number):
    """A JSON value with another value in place of each of its numbers."""
    match value:
        case dict():
            return {name: with_numbers(field, number) for name, field in value.items()}
        case list():
            return [with_numbers(field, number) for field in value]
        case bool() | None | str():
            return value
    return number


ANY_FILE = {
    "missing": lambda path: path.unlink(),
    "empty": lambda path: rewrite(path, b""),
    "half": lambda path: rewrite(path, path.read_bytes()[: path.stat().st_size // 2]),
    "directory": replace_by(lambda path: path.mkdir()),
    "dangling link": replace_by(lambda path: path.symlink_to("nowhere")),
    "pipe": replace_by(lambda path: os.mkfifo(path)),
}
JSON_FILE = {
    "list": edit(lambda value: [value]),
    "null": edit(lambda value: None),
    "emptied object": edit(lambda value: {}),
    "emptied lists": edit(emptied),
    "renamed fields": edit(lambda value: {f"{name}_": field for name, field in value.items()}),
    "null fields": edit(lambda value: dict.fromkeys(value)),
    "numbers as text": edit(lambda value: with_numbers(value, "1")),
    "NaN": edit(lambda value: with_numbers(value, math.nan)),
    "huge numbers": lambda path: rewrite(
        path, re.sub(rb": [0-9.]+", b": 1e999", path.read_bytes())
    ),
    "huge integers": edit(lambda value: with_numbers(value, 10**400)),
    "deep nesting": lambda path: rewrite(path, b"[" * 100_000 + b"]" * 100_000),
    "not UTF-8": lambda path: rewrite(path, path.read_bytes().replace(b'"', b"\xff", 1)),
}
LINES = {
    "record missing": edit_lines(lambda lines: lines[1:]),
    "last record missing": edit_lines(lambda lines: lines[:-1]),
    "renamed loss": lambda path: path.write_text(path.read_text().replace("loss", "lossy")),
    "text": lambda path: path.write_text('"text"\n3\n[]\n'),
    "null fields": lambda path: path.write_text('{"step": null, "examples": null}\n'),
    "deep nesting": JSON_FILE["deep nesting"],
}


def swap(name):
    """A corruption that exchanges a file of two trials."""

    def corrupt(folder):
        one, other, scratch = folder / TRIAL / name, folder / OTHER / name, folder / "scratch"
        one.rename(scratch)
        other.rename(one)
        scratch.rename(other)

    return corrupt


def at(name, corrupt):
    """A corruption of a study's file."""
    return lambda folder: corrupt(folder / name)


STRUCTURAL = {
    f"{name}: {what}": at(name, corrupt)
    for names, corruptions in [
        (("study.json", "data.json", "summary.json", MANIFEST), ANY_FILE | JSON_FILE),
        (("ledger.sqlite",), ANY_FILE),
        (
            [f"{TRIAL}/{name}.json" for name in ("config", "env", "data", "result", "manifest")],
            ANY_FILE | JSON_FILE,
        ),
        ((f"{TRIAL}/metrics.jsonl",), ANY_FILE | LINES),
        ([f"{TRIAL}/{name}" for name in ("gallery.npz", "items.npz")], ANY_FILE),
        ((f"{TRIAL}/checkpoints/8/SHA256SUMS",), ANY_FILE),
        ((f"{TRIAL}/checkpoints/8/{MANIFEST}",), ANY_FILE | JSON_FILE),
    ]
    for name in names
    for what, corrupt in corruptions.items()
} | {
    f"{name}: swapped": swap(name)
    for name in ("config.json", "result.json", "metrics.jsonl", "items.npz", "checkpoints", "")
}


def numbers(folder):
    """The numbers and decisions of a study's summary, without times."""
    summary = read_summary(folder / "summary.json")
    return dataclasses.replace(summary, speed=[])


def metrics(folder):
    return read_result(folder / TRIAL / "result.json").metrics


def check(sound, scratch, corrupt):
    """Checks one corruption: all commands end with a message, and it is found or harmless."""
    for_verify, for_train, for_study = (
        copied(sound.folder, scratch / name) for name in ("verify", "train", "study")
    )
    for folder in (for_verify, for_train, for_study):
        corrupt(folder)
    found, output = call("verify", for_verify)
    trained, _ = sound.train(for_train)
    studied, _ = sound.study(for_study)
    assert found in (0, 5), output
    if found == 0:
        assert trained == studied == 0
        assert metrics(for_train) == metrics(sound.folder)
        assert numbers(for_study) == numbers(sound.folder)


def test_a_sound_study_is_sound(copy):
    code, output = call("verify", copy)
    assert code == 0, output
    assert "sound (runs 8" in output


SOME_BYTES = (0, 2, 6, 9, 12)
"""Bytes of study.json, the ledger, items.npz, result.json and a checkpoint."""
SOME_STRUCTURAL = (
    "study.json: deep nesting",
    "ledger.sqlite: half",
    f"{TRIAL}/result.json: emptied lists",
    f"{TRIAL}/metrics.jsonl: renamed loss",
    f"{TRIAL}/items.npz: pipe",
    "items.npz: swapped",
)


WRITE_REPORT = fpnlab.report.write_report
REPORTED = int(os.environ.get("FPNLAB_REPORTS", "20"))
"""Every so many corruptions are tried on `report`, which takes seconds; 1 for all of them."""


def partly_slow(cases, fast):
    return [pytest.param(c, marks=[] if c in fast else pytest.mark.slow) for c in cases]


@pytest.mark.parametrize("number", partly_slow(range(210), SOME_BYTES))
def test_a_changed_byte_is_found_or_harmless(number, sound, tmp_path):
    check(sound, tmp_path, lambda folder: change_byte(folder, number))


@pytest.mark.parametrize("name", partly_slow(STRUCTURAL, SOME_STRUCTURAL))
def test_a_damaged_file_is_found_or_harmless(name, sound, tmp_path):
    check(sound, tmp_path, STRUCTURAL[name])


@pytest.mark.slow
@pytest.mark.parametrize("case", [*STRUCTURAL, *range(210)][::REPORTED])
def test_a_damaged_study_has_a_report_or_an_error_of_one_line(case, sound, copy, monkeypatch):
    monkeypatch.setattr(fpnlab.report, "write_report", WRITE_REPORT)
    (STRUCTURAL.get(case) or (lambda folder: change_byte(folder, case)))(copy)
    code, output = call("report", copy)
    page = copy / "report.html"
    assert (code, page.is_file()) == (0, True) or (code == 5 and output.count("\n") == 1), output
    if code == 5:
        assert "study.json" in output


def remove(path):
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def run_of(path):
    """The run folder of a file in it."""
    return next(p for p in [path, *path.parents] if p.parent.name in ("trials", "tuning"))


def follow(problem):
    """Does what the remedy of a problem says, up to running the command again."""
    path, remedy = problem.path, problem.remedy
    steps, again, _ = remedy.partition(RERUN)
    if "remove the folder of this run" in steps:
        remove(run_of(path))
    if "this checkpoint" in steps:
        remove(next(p for p in [path, *path.parents] if p.parent.name == "checkpoints"))
    if "remove it" in steps:
        remove(path)
    if "result.json" in steps:
        remove(run_of(path) / "result.json")
    if steps == "move it elsewhere":
        path.rename(path.parents[2] / path.name)
    assert again or steps in ("remove it", "move it elsewhere"), remedy


ADVISED = {
    name: corrupt
    for name, corrupt in STRUCTURAL.items()
    if name.rpartition(": ")[2] in ("missing", "half", "directory", "emptied lists", "swapped")
} | {
    "a foreign folder": lambda folder: (folder / "trials/other").mkdir(),
    "an added file": lambda folder: (folder / TRIAL / "result-step-4.json").write_text("{}"),
    "an added checkpoint": lambda folder: shutil.copytree(
        folder / TRIAL / "checkpoints/8", folder / TRIAL / "checkpoints/9"
    ),
    "all checkpoints missing": lambda folder: shutil.rmtree(folder / TRIAL / "checkpoints"),
}


@pytest.mark.parametrize(
    "name",
    partly_slow(
        ADVISED,
        ("study.json: half", f"{TRIAL}/gallery.npz: directory", "a foreign folder"),
    ),
)
def test_following_all_advice_makes_the_study_sound(name, sound, copy):
    ADVISED[name](copy)
    for problem in verify(copy).problems:
        follow(problem)
    code, output = sound.study(copy)
    assert code == 0, output
    assert [str(problem) for problem in verify(copy).problems] == []
    assert numbers(copy) == numbers(sound.folder)


def test_verify_does_not_change_a_study(copy):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    assert verify(copy).problems == []
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before


@pytest.mark.skipif(shutil.which("mount") is None, reason="needs the program mount")
def test_a_sound_study_on_a_read_only_mount_has_no_problems(sound, tmp_path):
    def mount(*words):
        return subprocess.run(["mount", *words], capture_output=True, check=False).returncode == 0

    target = tmp_path / "mounted"
    target.mkdir()
    if not mount("--bind", sound.folder, target):
        pytest.skip("mounting is not permitted")
    try:
        assert mount("-o", "remount,ro,bind", target)
        with pytest.raises(OSError, match="Read-only"):
            (target / "new").touch()
        assert verify(target).problems == []
    finally:
        subprocess.run(["umount", target], check=True)


def test_the_last_changes_of_a_ledger_are_read_from_a_folder_without_write_permission(
    copy, monkeypatch
):
    """They may be in SQLite's write-ahead log, as after a kill."""
    database = sqlite3.connect(copy / "ledger.sqlite", isolation_level=None)
    database.execute("update trials set status = 'waiting' where rowid = 1")
    assert (copy / "ledger.sqlite-wal").exists()
    monkeypatch.setattr(os, "access", lambda *words: False)
    found = " ".join(map(str, verify(copy).problems))
    database.close()
    assert "summary.json" in found


def test_a_study_without_its_ledger_keeps_its_trials(sound, copy):
    (copy / "ledger.sqlite").unlink()
    [problem] = verify(copy).problems
    assert str(problem).endswith(
        f"ledger.sqlite: is missing; {RERUN}; finished trials are not run again"
    )


def test_the_manifest_of_a_run_has_every_file_that_counts(sound):
    names = {path.relative_to(sound.folder / TRIAL) for path in sound.folder.glob(f"{TRIAL}/**/*")}
    files = {str(name) for name in names if (sound.folder / TRIAL / name).is_file()}
    sealed = read_manifest(sound.folder / TRIAL).files
    through_sums = {n for n in files if n.startswith("checkpoints/") and not n.endswith(SUMS)}
    assert files - through_sums - set(sealed) == {".lock", MANIFEST}


def test_the_manifest_of_a_study_chains_those_of_its_trials(sound):
    trials = {f"trials/{path.name}/{MANIFEST}" for path in sound.folder.glob("trials/*")}
    own = {"study.json", "data.json", "summary.json"}
    assert set(read_manifest(sound.folder).files) == own | trials


def test_a_run_that_was_killed_before_its_manifest_is_sealed_on_the_next_start(sound, copy):
    sealed = read_manifest(copy / TRIAL)
    (copy / TRIAL / MANIFEST).unlink()
    code, output = sound.train(copy)
    assert code == 0, output
    assert read_manifest(copy / TRIAL) == sealed


def test_a_run_that_is_evaluated_again_is_sealed_again(sound, copy):
    sealed = read_manifest(copy / TRIAL).files
    words = ("--train.batch_size", "2", "--seed", "0", *OVERRIDES, "--evaluate.batch_size", "4")
    code, output = call("train", sound.single, "--out", copy / TRIAL, *words)
    assert code == 0, output
    new = read_manifest(copy / TRIAL).files
    changed = {name for name in sealed | new if sealed.get(name) != new.get(name)}
    assert {"config.json", "result.json"} <= changed
    assert "metrics.jsonl" not in changed
    assert verify(copy / TRIAL).problems == []
    found = " ".join(map(str, verify(copy).problems))
    assert f"{TRIAL}/{MANIFEST}: is not what was written (by {MANIFEST})" in found


def test_items_of_another_trial_are_found_without_manifests(copy):
    for path in [copy / MANIFEST, *copy.glob(f"trials/*/{MANIFEST}")]:
        path.unlink()
    assert verify(copy).problems == []
    with np.load(copy / TRIAL / "items.npz") as archive:
        items = {name: ~archive[name].astype(bool) for name in archive.files}
        means = {name: archive[name].mean() for name in archive.files}
    np.savez_compressed(copy / TRIAL / "items.npz", **items)
    found = [problem.what for problem in verify(copy).problems]
    differing = {name for name, mean in means.items() if mean != 0.5}
    assert differing
    for name in differing:
        assert any(what.startswith(f"the mean of {name} is ") for what in found)
