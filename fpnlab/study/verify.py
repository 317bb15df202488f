"""Integrity of the folder of a run or a study, by its own checksums: every problem at once."""

import dataclasses
import itertools
import pathlib
import tempfile
import zipfile
from collections.abc import Iterator

from fpnlab import compiler
from fpnlab.analysis.tuning import score
from fpnlab.config.experiment import Experiment
from fpnlab.config.trials import points, trial
from fpnlab.config.validate import config_hash, hash_of, resolved, validate
from fpnlab.errors import ConfigError, DamagedCheckpointError, FolderLockedError, RunFolderError
from fpnlab.records.json_files import JsonObject, read_json
from fpnlab.records.run_records import MetricRecord, RunResult, read_result, scan_records
from fpnlab.records.study_records import read_study_file
from fpnlab.run.folder import RunFolder, StoredConfig, in_use
from fpnlab.study.ledger import Entry, Ledger, Row, copy_ledger
from fpnlab.train.checkpoint import read_checkpoint

GO_ON = "run the same command again"
MEASURE = f"remove result.json and {GO_ON}: it is measured anew"
BEGIN = f"remove the folder of this run and {GO_ON}"
ENDED = ("done", "diverged")
"""Status of a trial that has a result."""


@dataclasses.dataclass(frozen=True)
class Problem:
    """One thing that is wrong."""

    path: pathlib.Path
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}; {self.remedy}"


@dataclasses.dataclass
class Verification:
    """Problems of a folder, and counts of what was checked."""

    folder: pathlib.Path
    problems: list[Problem] = dataclasses.field(default_factory=list)
    runs: int = 0
    checkpoints: int = 0
    leaves: int = 0

    def note(self, path: pathlib.Path, what: str, remedy: str) -> None:
        """Adds a fault."""
        self.problems.append(Problem(path, what, remedy))

    def __str__(self) -> str:
        verdict = f"problems: {len(self.problems)}" if self.problems else "sound"
        looked = f"runs {self.runs}, checkpoints {self.checkpoints}, leaves {self.leaves}"
        return f"{self.folder}: {verdict} ({looked})"


def verify(folder: pathlib.Path) -> Verification:
    """Returns all problems of a run folder, or of a study's ledger and all its runs.

    No data and no model are needed, and nothing is changed.

    Raises:
      RunFolderError: There is neither a run nor a study in it.
      FolderLockedError: A process works in it.
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


def _check_run(folder: pathlib.Path, found: Verification) -> None:
    if in_use(folder):
        raise FolderLockedError(f"{folder}: a process works in it; wait until it has ended")
    found.runs += 1
    files = RunFolder(folder)
    stored = _check_config(files, found)
    environment = _table(files.environment, "the versions are lost, the numbers are not", found)
    if doubt := compiler.doubt(environment or {}):
        remedy = "run it again in another folder where `fpnlab doctor` finds all right"
        found.note(files.environment, doubt, remedy)
    records = _check_log(files.metrics, found)
    sound = _check_checkpoints(folder / "checkpoints", stored, found)
    if not files.result.exists():
        return
    _check_archive(folder / "gallery.npz", found)
    if (folder / "items.npz").exists():  # Detectors have none.
        _check_archive(folder / "items.npz", found)
    try:
        result = read_result(files.result)
    except RunFolderError as error:
        found.note(files.result, _reason(error, files.result), MEASURE)
        return
    for what in _inconsistencies(result, stored, records, sound):
        found.note(files.result, what, BEGIN)


def _check_config(files: RunFolder, found: Verification) -> StoredConfig | None:
    """Returns the config of a run; None if there is none."""
    if _table(files.config, BEGIN, found) is None:
        return None
    try:
        stored = files.stored()
    except ConfigError as error:
        found.note(files.config, _reason(error, files.config), BEGIN)
        return None
    if stored.hash != hash_of(stored.table):
        found.note(files.config, "its hash is not that of its experiment", BEGIN)
    return stored


def _reason(error: Exception, path: pathlib.Path) -> str:
    """Returns the message of an error without the path that it begins with."""
    return str(error).removeprefix(f"{path}: ")


def _check_log(path: pathlib.Path, found: Verification) -> list[MetricRecord]:
    """Returns the whole records of a log."""
    records, problems = scan_records(path)
    for problem in problems:
        remedy = f"{GO_ON}: it drops the line" if problem.torn else BEGIN
        found.note(path, f"line {problem.number} is no whole record", remedy)
    steps = [record.step for record in records]
    for before, after in itertools.pairwise(steps):
        if after <= before:
            found.note(path, f"step {after} comes after step {before}", BEGIN)
    return records


def _check_checkpoints(
    folder: pathlib.Path, stored: StoredConfig | None, found: Verification
) -> list[int]:
    """Returns the numbers of the sound checkpoints."""
    paths = {int(path.name): path for path in folder.glob("*") if path.name.isdigit()}
    sound = []
    for number, path in sorted(paths.items()):
        found.checkpoints += 1
        try:
            digest, leaves = read_checkpoint(path)
        except DamagedCheckpointError as damage:
            for what in damage.problems:
                found.note(path, what, f"remove this checkpoint and {GO_ON}")
            continue
        found.leaves += len(leaves)
        sound.append(number)
        if stored is not None and digest != stored.training_hash:
            found.note(path, "it belongs to another config", f"remove it and {GO_ON}")
    return sound


def _check_archive(path: pathlib.Path, found: Verification) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # A damaged archive raises errors of many kinds.
        broken = str(error)
    if broken:
        found.note(path, f"is not what was saved ({broken})", MEASURE)


def _inconsistencies(
    result: RunResult,
    stored: StoredConfig | None,
    records: list[MetricRecord],
    sound: list[int],
) -> Iterator[str]:
    """Yields contradictions of a result to the other files of its folder."""
    step = result.steps
    if result.status not in ENDED:
        yield f"its status is {result.status!r}, neither done nor diverged"
    if stored is not None:
        train = stored.experiment.train
        if result.config_hash != stored.hash:
            yield "it is of another config"
        if result.status == "done" and step != train.steps:
            yield f"it is done after step {step}, and the config has {train.steps}"
        if result.examples != train.batch_size * step:
            yield f"{step} steps are not {result.examples} examples"
    if not records or records[-1].step != step:
        yield f"it is of step {step}, and the last record of metrics.jsonl is not"
    elif result.final_loss != records[-1].logs.get("loss"):
        yield "its final_loss is not that of the last record of metrics.jsonl"
    if step not in sound:
        yield f"it is of step {step}, of which there is no sound checkpoint"


def _check_study(folder: pathlib.Path, found: Verification) -> None:
    if in_use(folder):
        raise FolderLockedError(f"{folder}: a process runs the study; wait until it has ended")
    if (folder / "summary.json").exists():
        _table(folder / "summary.json", GO_ON, found)
    entries, rows = _check_ledger(folder / "ledger.sqlite", found)
    results = {
        name: _result(folder / entry.path, rows[name].status)
        for name, entry in entries.items()
        if rows[name].status in ENDED
    }
    metric, experiments = _check_plan(folder / "study.json", entries, results, found)
    known = {folder / entry.path for entry in entries.values()}
    for name, entry in entries.items():
        run = folder / entry.path
        if (run / "config.json").exists():
            _check_run(run, found)
        if name in results:
            _check_row(run, rows[name], results[name], metric, found)
            _check_trial(run, experiments.get(name), found)
    for run in sorted([*folder.glob("trials/*"), *folder.glob("tuning/*")]):
        if run not in known:
            found.note(run, "the ledger does not know it", "move it elsewhere")
            if (run / "config.json").exists():
                _check_run(run, found)


def _check_ledger(
    path: pathlib.Path, found: Verification
) -> tuple[dict[str, Entry], dict[str, Row]]:
    """Returns the trials of a ledger and their state."""
    remedy = f"remove it and {GO_ON}: what is finished is not run again"
    if not path.exists():
        found.note(path, "is missing", remedy)
        return {}, {}
    # A copy: to open a ledger of an older version changes it.
    with tempfile.TemporaryDirectory() as scratch:
        copy = pathlib.Path(scratch) / path.name
        try:
            copy_ledger(path, copy)
            ledger = Ledger(copy)
            return ledger.entries(), ledger.rows()
        except RunFolderError as error:
            reason = _reason(error, copy)
            found.note(path, f"cannot be read ({reason})", remedy)
            return {}, {}


def _check_plan(
    path: pathlib.Path,
    entries: dict[str, Entry],
    results: dict[str, RunResult | None],
    found: Verification,
) -> tuple[str | None, dict[str, Experiment]]:
    """Returns the metric of a study, and the experiment of each trial with its tuned value."""
    if _table(path, GO_ON, found) is None:
        return None, {}
    try:
        plan = read_study_file(path)
        study = validate(plan.config)
        planned = {point.name: point for point in points(study)}
    except (RunFolderError, ConfigError) as error:
        found.note(path, f"not the description of a study ({_reason(error, path)})", GO_ON)
        return None, {}
    remedy = f"{GO_ON}; if that fails, two studies were put into one folder"
    for name in sorted(planned.keys() ^ entries.keys()) if entries else ():
        other = "the ledger" if name in planned else "study.json"
        found.note(path, f"{name} is not in {other}", remedy)
    both = [name for name in entries if name in planned]
    if plan.config == resolved(study):  # Hashes of older versions are of other fields.
        for name in both:
            if entries[name].hash != config_hash(trial(study, planned[name]).experiment):
                found.note(path, f"{name} has another config in the ledger", remedy)
    tuned = {name: result.tuned for name, result in results.items() if result is not None}
    experiments = {n: trial(study, planned[n], tuned.get(n)).experiment for n in both}
    return plan.metric, experiments


def _check_trial(run: pathlib.Path, experiment: Experiment | None, found: Verification) -> None:
    """Compares the config of a run with that which the study gives its trial."""
    try:
        stored = RunFolder(run).stored()
    except ConfigError:
        return  # Noted with the run.
    if experiment is not None and stored.experiment != experiment:
        found.note(run, "it was run with another config than the study gives it", BEGIN)


def _result(run: pathlib.Path, status: str) -> RunResult | None:
    """Returns the result of a trial that has ended; None if it cannot be read."""
    try:
        return read_result(run / "result.json")
    except RunFolderError:
        return None


def _check_row(
    run: pathlib.Path,
    row: Row,
    result: RunResult | None,
    metric: str | None,
    found: Verification,
) -> None:
    """Compares the ledger's status and score of a trial with the result in its folder."""
    path = run / "result.json"
    if not path.exists():
        found.note(path, f"is missing, and the ledger says {row.status}", GO_ON)
    elif result is not None and (row.status, row.error) != (result.status, result.error):
        found.note(path, "the ledger has another status", BEGIN)
    elif (
        result is not None and metric is not None and row.score not in (None, score(metric, result))
    ):
        found.note(path, f"the ledger has another {metric}", BEGIN)


def _table(path: pathlib.Path, remedy: str, found: Verification) -> JsonObject | None:
    """Returns the table in a JSON file; None, and a problem, if there is none."""
    try:
        return read_json(path)
    except RunFolderError as error:
        found.note(path, _reason(error, path), remedy)
        return None
