"""Integrity of a run folder: its files against their manifest, their checksums and each other."""

import dataclasses
import itertools
import math
import pathlib
import zipfile
from collections.abc import Iterator

import numpy as np

from fpnlab import compiler
from fpnlab.config.validate import hash_of
from fpnlab.errors import ConfigError, DamagedCheckpointError, RunFolderError
from fpnlab.evaluate.bn_statistics import has_batch_norm
from fpnlab.records.json_files import read_json
from fpnlab.records.manifest import MANIFEST, Manifest, broken_seals, read_manifest
from fpnlab.records.run_records import (
    Diagnostics,
    MetricRecord,
    RunResult,
    read_result,
    scan_records,
)
from fpnlab.run.diagnosis import halfway_rates
from fpnlab.run.folder import RunFolder, StoredConfig
from fpnlab.train.checkpoint import (
    SUMS,
    check_checkpoint,
    complete_steps,
    read_checkpoint,
)

RERUN = "run the same command again"
EVALUATE = f"remove result.json and {RERUN} to evaluate it again"
ALSO = f"remove it and result.json, and {RERUN} to evaluate the run again"
RESTART = f"remove the folder of this run and {RERUN}"
ENDED = ("done", "diverged")
"""Statuses of a trial that has a result."""


@dataclasses.dataclass(frozen=True)
class FileProblem:
    """A problem of a file or folder."""

    path: pathlib.Path
    """The file or folder."""
    what: str
    """Description of the problem."""
    remedy: str
    """The remedy."""

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}"


@dataclasses.dataclass
class Verification:
    """Problems of a folder, with the numbers of checked runs, checkpoints and arrays."""

    folder: pathlib.Path
    """The folder of a run or a study."""
    problems: list[FileProblem] = dataclasses.field(default_factory=list)
    """All problems."""
    runs: int = 0
    """Number of checked runs."""
    checkpoints: int = 0
    """Number of checked checkpoints."""
    leaves: int = 0
    """Number of checked arrays in sound checkpoints."""
    unsealed: list[pathlib.Path] = dataclasses.field(default_factory=list)
    """Ended runs without a manifest."""
    unchecked: list[str] = dataclasses.field(default_factory=list)
    """Facts that no file of the folder can prove, as phrases after "not checked:"."""

    def note(self, path: pathlib.Path, what: str, remedy: str) -> None:
        """Adds a problem."""
        self.problems.append(FileProblem(path, what, remedy))

    def __str__(self) -> str:
        verdict = f"problems: {len(self.problems)}" if self.problems else "sound"
        looked = f"runs {self.runs}, checkpoints {self.checkpoints}, leaves {self.leaves}"
        return f"{self.folder}: {verdict} ({looked})"


def is_run(folder: pathlib.Path) -> bool:
    """Returns whether a folder holds files of a run, even if its config is missing."""
    names = ("config.json", "result.json", MANIFEST, "metrics.jsonl")
    return any((folder / name).exists() for name in names)


def check_run(folder: pathlib.Path, found: Verification) -> None:
    """Adds the problems of a run folder that no process uses.

    Remedies are alternatives, so that a run whose training must be repeated has that one alone.
    """
    found.runs += 1
    before = len(found.problems)
    _RunCheck(RunFolder(folder), found).check()
    own = found.problems[before:]
    if any(problem.remedy == RESTART for problem in own):
        found.problems[before:] = [dataclasses.replace(p, remedy=RESTART) for p in own]


class _RunCheck:
    """The checks of one run folder."""

    def __init__(self, files: RunFolder, found: Verification) -> None:
        self.files, self.found = files, found
        self.ended = files.result.exists()
        self.manifest: Manifest | None = None

    def check(self) -> None:
        """Adds all problems."""
        files, found = self.files, self.found
        self._check_manifest()
        stored = self._stored()
        self._check_environment()
        records = self._records()
        sound = self._sound_checkpoints(stored)
        if not self.ended:
            return
        if self.manifest is None:
            for name in ("gallery.npz", "items.npz"):
                self._check_archive(name)
        try:
            result = read_result(files.result)
        except RunFolderError as error:
            found.note(files.result, reason(error, files.result), EVALUATE)
            return
        if stored is not None and result.config_hash != stored.hash:
            if files.manifest.exists():
                found.note(files.result, "belongs to another config", RESTART)
            else:  # The evaluation changed, and the run was stopped before it was repeated.
                found.unchecked.append(f"{files.result}, which the next start replaces")
        for what in _contradictions(result, stored, records):
            found.note(files.result, what, RESTART)
        if result.steps not in sound:
            what = f"result of step {result.steps}, which has no sound checkpoint"
            found.note(files.result, what, EVALUATE)
        for what in _wrong_items(files.path / "items.npz", result):
            found.note(files.path / "items.npz", what, ALSO)

    def _check_manifest(self) -> None:
        """Compares all files with the manifest, which an ended run has."""
        files, found = self.files, self.found
        if not files.manifest.exists():
            if self.ended:
                found.unsealed.append(files.path)
            return
        try:
            self.manifest = read_manifest(files.path)
        except RunFolderError as error:
            found.note(files.manifest, reason(error, files.manifest), ALSO)
            return
        for name, what in broken_seals(files.path, self.manifest).items():
            found.note(files.path / name, what, self._remedy(name))
        if "result.json" not in self.manifest.files:
            found.note(files.manifest, "does not have result.json", ALSO)
        for name in files.sealed_names():
            if name not in self.manifest.files:
                path = files.path / name
                path = path.parent if path.name == SUMS else path  # The whole checkpoint.
                what = f"was added after the run had ended ({MANIFEST} does not have it)"
                found.note(path, what, "remove it")

    def _remedy(self, name: str) -> str:
        """Returns the remedy for a sealed file that has changed or is missing."""
        if name.startswith("checkpoints/"):
            return f"remove this checkpoint and result.json, and {RERUN}"
        if name == "result.json":
            return EVALUATE if self.ended else RERUN
        if name in ("gallery.npz", "items.npz"):
            return ALSO if (self.files.path / name).exists() else EVALUATE
        return RESTART

    def _stored(self) -> StoredConfig | None:
        """Returns the config of a run; None if it cannot be read."""
        files, found = self.files, self.found
        try:
            stored = files.stored()
        except ConfigError as error:
            found.note(files.config, reason(error, files.config), RESTART)
            return None
        if stored.hash != hash_of(stored.table):
            found.note(files.config, "the hash does not match the experiment", RESTART)
        return stored

    def _check_environment(self) -> None:
        path = self.files.environment
        try:
            doubt = compiler.doubt(read_json(path))
        except RunFolderError as error:
            self.found.note(path, reason(error, path), RESTART)
            return
        if doubt:
            remedy = "run it again in another folder on a backend that passes `fpnlab doctor`"
            self.found.note(path, doubt, remedy)

    def _records(self) -> list[MetricRecord]:
        """Returns the complete records of the log."""
        path, found = self.files.metrics, self.found
        try:
            records, problems = scan_records(path)
        except RunFolderError as error:
            found.note(path, reason(error, path), RESTART)
            return []
        for problem in problems:
            # The next start of an interrupted run drops a torn line.
            if self.ended or not problem.torn:
                found.note(path, f"line {problem.number} is not a complete record", RESTART)
        for record in records:
            if "loss" not in record.logs:
                found.note(path, f"the record of step {record.step} has no loss", RESTART)
        for before, after in itertools.pairwise(record.step for record in records):
            if after <= before:
                found.note(path, f"step {after} follows step {before}", RESTART)
        return records

    def _sound_checkpoints(self, stored: StoredConfig | None) -> list[int]:
        """Returns the steps of the sound checkpoints."""
        folder, found = self.files.path / "checkpoints", self.found
        remedy = f"remove this checkpoint and {RERUN}"
        if self.ended:
            remedy = f"remove this checkpoint and result.json, and {RERUN}"
        sound = []
        for step in complete_steps(folder):
            path = folder / str(step)
            found.checkpoints += 1
            # With a sealed list of checksums nothing but the files is left to be compared.
            sealed = self.manifest.files if self.manifest is not None else {}
            try:
                if f"checkpoints/{step}/{SUMS}" in sealed:
                    digest, leaves = check_checkpoint(path)
                else:
                    digest, arrays = read_checkpoint(path)
                    leaves = len(arrays)
            except DamagedCheckpointError as damage:
                for what in damage.problems:
                    found.note(path, what, remedy)
                continue
            found.leaves += leaves
            sound.append(step)
            if stored is not None and digest != stored.training_hash:
                found.note(path, "belongs to another config", remedy)
        return sound

    def _check_archive(self, name: str) -> None:
        path = self.files.path / name
        if name == "items.npz" and not path.exists():  # Detectors have none.
            return
        try:
            if path.exists() and not path.is_file():  # Reading a pipe would never end.
                raise ValueError("not a regular file")
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
        except Exception as error:  # A damaged archive raises errors of many kinds.
            broken = str(error)
        if broken:
            self.found.note(path, f"does not match its checksums ({broken})", ALSO)


def reason(error: Exception, path: pathlib.Path) -> str:
    """Returns the message of an error without the leading path."""
    return str(error).removeprefix(f"{path}: ")


def _contradictions(
    result: RunResult,
    stored: StoredConfig | None,
    records: list[MetricRecord],
) -> Iterator[str]:
    """Yields contradictions between a result and the other files of its folder."""
    step = result.steps
    if result.status not in ENDED:
        yield f"status {result.status!r}; expected done or diverged"
    if stored is not None:
        train = stored.experiment.train
        if result.seed != stored.experiment.seed:
            yield f"has seed {result.seed}, but the config has seed {stored.experiment.seed}"
        if result.status == "done" and step != train.steps:
            yield f"done after step {step}, but the config has {train.steps} steps"
        if result.examples != train.batch_size * step:
            yield f"{step} steps do not make {result.examples} examples"
    if not records or records[-1].step != step:
        yield f"result of step {step}, but the last record of metrics.jsonl has another step"
    elif result.final_loss != records[-1].logs.get("loss"):
        yield "final_loss differs from the last record of metrics.jsonl"
    elif result.pack != records[-1].pack:
        yield "pack differs from the last record of metrics.jsonl"
    if stored is not None and result.diagnostics is not None:
        yield from _wrong_diagnostics(result.diagnostics, stored, records)


def _wrong_diagnostics(
    found: Diagnostics, stored: StoredConfig, records: list[MetricRecord]
) -> Iterator[str]:
    """Yields contradictions between diagnostics, the model and the log."""
    experiment = stored.experiment
    blocks = 1 + sum(experiment.model.backbone.depths)
    if len(found.signals) != blocks:
        yield f"diagnostics have {len(found.signals)} signals; expected {blocks}"
    if bool(found.drift) != has_batch_norm(experiment.model):
        yield "diagnostics lack the drift of batch norms, or have one without them"
    if found.effective_rates != halfway_rates(records):
        yield "effective rates differ from those in metrics.jsonl"


def _wrong_items(path: pathlib.Path, result: RunResult) -> Iterator[str]:
    """Yields a phrase for each metric that is not the mean of its items."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file, np.load(file) as archive:
            means = {name: float(archive[name].mean()) for name in archive.files}
    except Exception as error:  # A damaged archive raises errors of many kinds.
        yield f"cannot be read ({error})"
        return
    stored = {
        f"{metric}_{source}": value
        for source, numbers in result.metrics.items()
        for metric, value in numbers.items()
    }
    for name, mean in means.items():
        value = stored.get(name)
        if value is None or not math.isclose(mean, value, abs_tol=1e-9):
            yield f"the mean of {name} is {mean:g}, but result.json has {value}"
