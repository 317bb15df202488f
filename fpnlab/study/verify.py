"""What is wrong with the folder of a run or a study, by its own checksums: every fault at once."""

import dataclasses
import itertools
import json
import pathlib
import zipfile
from typing import Any

from fpnlab import compiler
from fpnlab.config.experiment import (
    ConfigError,
    Experiment,
    config_hash,
    points,
    training_hash,
    trial,
    validate,
)
from fpnlab.run.folder import FolderLocked, RunFolderError, in_use
from fpnlab.study.ledger import Entry, Ledger
from fpnlab.train.checkpoint import Damaged, read_checkpoint

GO_ON = "run the same command again"
MEASURE = f"remove result.json and {GO_ON}: it is measured anew"
BEGIN = f"remove the folder of this run and {GO_ON}"
RESULT = ("done", "diverged")
"""Status of a trial that has a result."""


@dataclasses.dataclass(frozen=True)
class Fault:
    """One thing that is wrong."""

    path: pathlib.Path
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}"


@dataclasses.dataclass
class Verification:
    """What was looked at, and what was found."""

    folder: pathlib.Path
    faults: list[Fault] = dataclasses.field(default_factory=list)
    runs: int = 0
    checkpoints: int = 0
    leaves: int = 0

    def note(self, path: pathlib.Path, what: str, remedy: str) -> None:
        """Adds a fault."""
        self.faults.append(Fault(path, what, remedy))

    def __str__(self) -> str:
        verdict = f"faults: {len(self.faults)}" if self.faults else "sound"
        looked = f"runs {self.runs}, checkpoints {self.checkpoints}, leaves {self.leaves}"
        return f"{self.folder}: {verdict} ({looked})"


def verify(folder: pathlib.Path) -> Verification:
    """Returns all that is wrong with a run folder, or with a study's ledger and all its runs.

    No data and no model are needed, and nothing is changed.

    Raises:
      RunFolderError: there is neither a run nor a study in it.
      FolderLocked: a process works in it.
    """
    found = Verification(folder)
    if (folder / "study.json").exists() or (folder / "ledger.sqlite").exists():
        _check_study(folder, found)
    elif (folder / "config.json").exists():
        _check_run(folder, found)
    else:
        raise RunFolderError(
            f"{folder}: neither a run nor a study; give a folder that `fpnlab train` or `fpnlab "
            "study` has written to"
        )
    return found


def _check_run(folder, found):
    if in_use(folder):
        raise FolderLocked(f"{folder}: a process works in it; wait until it has ended")
    found.runs += 1
    experiment = _check_config(folder / "config.json", found)
    path = folder / "env.json"
    environment = _table(path, "what it was run with is lost, its numbers are not", found)
    if doubt := compiler.doubt(environment or {}):
        found.note(
            path, doubt, "run it again in another folder where `fpnlab doctor` finds all right"
        )
    steps = _check_log(folder / "metrics.jsonl", found)
    sound = _check_checkpoints(folder / "checkpoints", experiment, found)
    path = folder / "result.json"
    if not path.exists():
        return
    _check_archive(folder / "gallery.npz", found)
    if (folder / "items.npz").exists():  # Detectors have none.
        _check_archive(folder / "items.npz", found)
    result = _table(path, MEASURE, found)
    if result is not None:
        for what in _inconsistencies(result, experiment, steps, sound):
            found.note(path, what, BEGIN)


def _check_config(path, found) -> Experiment | None:
    """Returns the experiment in a run's config; None if there is none."""
    stored = _table(path, BEGIN, found)
    if stored is None:
        return None
    try:
        experiment = validate(stored["experiment"])
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        found.note(path, f"not the config of a run ({error})", BEGIN)
        return None
    if stored.get("hash") != config_hash(experiment):
        found.note(path, "its hash is not that of its experiment", BEGIN)
    return experiment


def _check_log(path, found) -> list[int]:
    """Returns the steps of a log's whole records."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    steps = []
    for number, line in enumerate(lines, 1):
        try:
            steps.append(int(json.loads(line)["step"]))
        except (ValueError, KeyError, TypeError):
            torn = number == len(lines) and not line.endswith(b"\n")
            remedy = f"{GO_ON}: it drops the line" if torn else BEGIN
            found.note(path, f"line {number} is no whole record", remedy)
    for before, after in itertools.pairwise(steps):
        if after <= before:
            found.note(path, f"step {after} comes after step {before}", BEGIN)
    return steps


def _check_checkpoints(folder, experiment, found) -> list[int]:
    """Returns the numbers of the sound checkpoints."""
    paths = {int(path.name): path for path in folder.glob("*") if path.name.isdigit()}
    sound = []
    for number, path in sorted(paths.items()):
        found.checkpoints += 1
        try:
            digest, leaves = read_checkpoint(path)
        except Damaged as damage:
            for what in damage.faults:
                found.note(path, what, f"remove this checkpoint and {GO_ON}")
            continue
        found.leaves += len(leaves)
        sound.append(number)
        if experiment is not None and digest != training_hash(experiment):
            found.note(path, "it belongs to another config", f"remove it and {GO_ON}")
    return sound


def _check_archive(path, found):
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # A damaged archive raises errors of many kinds.
        broken = str(error)
    if broken:
        found.note(path, f"is not what was saved ({broken})", MEASURE)


def _inconsistencies(result, experiment, steps, sound):
    """Yields where a result does not follow from the other files of its folder."""
    status, step = result.get("status"), result.get("steps")
    if status not in RESULT:
        yield f"its status is {status!r}, neither done nor diverged"
    if experiment is not None:
        train = experiment.train
        if result.get("config_hash") != config_hash(experiment):
            yield "it is of another config"
        if status == "done" and step != train.steps:
            yield f"it is done after step {step}, and the config has {train.steps}"
        if result.get("examples") != train.batch_size * (step or 0):
            yield f"{step} steps are not {result.get('examples')} examples"
    if steps[-1:] != [step]:
        yield f"it is of step {step}, and the last record of metrics.jsonl is not"
    if step not in sound:
        yield f"it is of step {step}, of which there is no sound checkpoint"


def _check_study(folder, found):
    if in_use(folder):
        raise FolderLocked(f"{folder}: a process runs the study; wait until it has ended")
    if (folder / "summary.json").exists():
        _table(folder / "summary.json", GO_ON, found)
    path = folder / "ledger.sqlite"
    remedy = f"remove it and {GO_ON}: what is finished is not run again"
    entries: dict[str, Entry] = {}
    results: dict[str, dict[str, Any]] = {}
    rows = {}
    if path.exists():
        try:
            ledger = Ledger(path)
            entries, rows, results = ledger.entries(), ledger.rows(), ledger.results()
        except (RunFolderError, ValueError) as error:
            found.note(path, f"cannot be read ({error})", remedy)
    else:
        found.note(path, "is missing", remedy)
    configs = _check_plan(folder / "study.json", entries, results, found)
    homes = {
        folder / ("tuning" if entry.split == "validation" else "trials") / name: name
        for name, entry in entries.items()
    }
    for run, name in homes.items():
        if (run / "config.json").exists():
            _check_run(run, found)
        if rows[name].status in RESULT:
            entered = results.get(name, {})
            _check_row(run, rows[name].status, entered, found)
            if entered.get("config_hash") != configs.get(name, entered.get("config_hash")):
                found.note(run, "it was run with another config than the study gives it", BEGIN)
    for run in sorted([*folder.glob("trials/*"), *folder.glob("tuning/*")]):
        if run not in homes:
            found.note(run, "the ledger does not know it", "move it elsewhere")
            if (run / "config.json").exists():
                _check_run(run, found)


def _check_plan(path, entries, results, found) -> dict[str, str]:
    """Returns the hash of the config, by trial, that each has with what was tuned for it."""
    stored = _table(path, GO_ON, found)
    if stored is None:
        return {}
    try:
        study = validate(stored["config"])
        planned = {point.name: point for point in points(study)}
    except (KeyError, TypeError, AttributeError, ConfigError) as error:
        found.note(path, f"not the description of a study ({error})", GO_ON)
        return {}
    remedy = f"{GO_ON}; if it is refused, two studies were put into one folder"
    for name in sorted(planned.keys() ^ entries.keys()) if entries else ():
        other = "the ledger" if name in planned else "study.json"
        found.note(path, f"{name} is not in {other}", remedy)
    digest = lambda name, tuned: config_hash(trial(study, planned[name], tuned).experiment)
    both = [name for name in entries if name in planned]
    for name in both:
        if digest(name, None) != entries[name].hash:
            found.note(path, f"{name} has another config in the ledger", remedy)
    return {name: digest(name, results.get(name, {}).get("tuned")) for name in both}


def _check_row(run, status, entered, found):
    """Holds the ledger's result of a trial against that in its folder."""
    path = run / "result.json"
    if not path.exists():
        found.note(path, f"is missing, and the ledger says {status}", GO_ON)
        return
    try:
        result = json.loads(path.read_bytes())
    except ValueError:
        return  # Noted with the run.
    nothing = object()
    names = (result.keys() | entered.keys()) - {"diagnostics"}
    differ = [n for n in names if result.get(n, nothing) != entered.get(n, nothing)]
    if differ or status != entered.get("status"):
        what = ", ".join(sorted(differ)) or "status"
        found.note(path, f"the ledger has another {what}", BEGIN)


def _table(path: pathlib.Path, remedy: str, found: Verification) -> dict[str, Any] | None:
    """Returns the table in a JSON file; None, and a fault, if there is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        found.note(path, f"cannot be read ({error})", remedy)
        return None
    if not isinstance(value, dict):
        found.note(path, "holds no table", remedy)
        return None
    return value
