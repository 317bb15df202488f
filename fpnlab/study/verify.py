"""Integrity checks of run and study folders by their checksums; reports all problems at once."""

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
from fpnlab.study.ledger import Ledger, LedgerRow, copy_ledger
from fpnlab.train.checkpoint import read_checkpoint

RERUN = "run the same command again"
EVALUATE = f"remove result.json and {RERUN} to evaluate it again"
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

    def note(self, path: pathlib.Path, what: str, remedy: str) -> None:
        """Adds a problem."""
        self.problems.append(FileProblem(path, what, remedy))

    def __str__(self) -> str:
        verdict = f"problems: {len(self.problems)}" if self.problems else "sound"
        looked = f"runs {self.runs}, checkpoints {self.checkpoints}, leaves {self.leaves}"
        return f"{self.folder}: {verdict} ({looked})"


def verify(folder: pathlib.Path) -> Verification:
    """Returns all problems of a run folder, or of a study's ledger and all its runs.

    Needs neither data nor model, and changes nothing.

    Raises:
      RunFolderError: The folder holds neither a run nor a study.
      FolderLockedError: A process has locked the folder.
    """
    found = Verification(folder)
    if (folder / "study.json").exists() or (folder / "ledger.sqlite").exists():
        _check_study(folder, found)
    elif (folder / "config.json").exists():
        _check_run(folder, found)
    else:
        raise RunFolderError(
            f"{folder}: neither a run nor a study; give a folder written by `fpnlab train` or "
            "`fpnlab study`"
        )
    return found


def _check_run(folder: pathlib.Path, found: Verification) -> None:
    if in_use(folder):
        raise FolderLockedError(f"{folder}: locked by a process; wait until it has ended")
    found.runs += 1
    files = RunFolder(folder)
    stored = _check_config(files, found)
    environment = _table(
        files.environment, "only the versions are lost; the results are not affected", found
    )
    if doubt := compiler.doubt(environment or {}):
        remedy = "run it again in another folder on a backend that passes `fpnlab doctor`"
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
        found.note(files.result, _reason(error, files.result), EVALUATE)
        return
    for what in _inconsistencies(result, stored, records, sound):
        found.note(files.result, what, RESTART)


def _check_config(files: RunFolder, found: Verification) -> StoredConfig | None:
    """Returns the config of a run; None if it cannot be read."""
    if _table(files.config, RESTART, found) is None:
        return None
    try:
        stored = files.stored()
    except ConfigError as error:
        found.note(files.config, _reason(error, files.config), RESTART)
        return None
    if stored.hash != hash_of(stored.table):
        found.note(files.config, "the hash does not match the experiment", RESTART)
    return stored


def _reason(error: Exception, path: pathlib.Path) -> str:
    """Returns the message of an error without the leading path."""
    return str(error).removeprefix(f"{path}: ")


def _check_log(path: pathlib.Path, found: Verification) -> list[MetricRecord]:
    """Returns the complete records of a log."""
    records, problems = scan_records(path)
    for problem in problems:
        remedy = f"{RERUN} to drop the line" if problem.torn else RESTART
        found.note(path, f"line {problem.number} is not a complete record", remedy)
    steps = [record.step for record in records]
    for before, after in itertools.pairwise(steps):
        if after <= before:
            found.note(path, f"step {after} follows step {before}", RESTART)
    return records


def _check_checkpoints(
    folder: pathlib.Path, stored: StoredConfig | None, found: Verification
) -> list[int]:
    """Returns the steps of the sound checkpoints."""
    paths = {int(path.name): path for path in folder.glob("*") if path.name.isdigit()}
    sound = []
    for number, path in sorted(paths.items()):
        found.checkpoints += 1
        try:
            digest, leaves = read_checkpoint(path)
        except DamagedCheckpointError as damage:
            for what in damage.problems:
                found.note(path, what, f"remove this checkpoint and {RERUN}")
            continue
        found.leaves += len(leaves)
        sound.append(number)
        if stored is not None and digest != stored.training_hash:
            found.note(path, "belongs to another config", f"remove it and {RERUN}")
    return sound


def _check_archive(path: pathlib.Path, found: Verification) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            broken = archive.testzip()
    except Exception as error:  # A damaged archive raises errors of many kinds.
        broken = str(error)
    if broken:
        found.note(path, f"does not match its checksums ({broken})", EVALUATE)


def _inconsistencies(
    result: RunResult,
    stored: StoredConfig | None,
    records: list[MetricRecord],
    sound: list[int],
) -> Iterator[str]:
    """Yields contradictions between a result and the other files of its folder."""
    step = result.steps
    if result.status not in ENDED:
        yield f"status {result.status!r}; expected done or diverged"
    if stored is not None:
        train = stored.experiment.train
        if result.config_hash != stored.hash:
            yield "belongs to another config"
        if result.status == "done" and step != train.steps:
            yield f"done after step {step}, but the config has {train.steps} steps"
        if result.examples != train.batch_size * step:
            yield f"{step} steps do not make {result.examples} examples"
    if not records or records[-1].step != step:
        yield f"result of step {step}, but the last record of metrics.jsonl has another step"
    elif result.final_loss != records[-1].logs.get("loss"):
        yield "final_loss differs from the last record of metrics.jsonl"
    if step not in sound:
        yield f"result of step {step}, which has no sound checkpoint"


def _check_study(folder: pathlib.Path, found: Verification) -> None:
    if in_use(folder):
        raise FolderLockedError(f"{folder}: locked by a process; wait until it has ended")
    if (folder / "summary.json").exists():
        _table(folder / "summary.json", RERUN, found)
    rows = _check_ledger(folder / "ledger.sqlite", found)
    results = {
        name: _result(folder / row.path, row.status)
        for name, row in rows.items()
        if row.status in ENDED
    }
    metric, experiments = _check_plan(folder / "study.json", rows, results, found)
    known = {folder / row.path for row in rows.values()}
    for name, row in rows.items():
        run = folder / row.path
        if (run / "config.json").exists():
            _check_run(run, found)
        if name in results:
            _check_row(run, row, results[name], metric, found)
            _check_trial(run, experiments.get(name), found)
    for run in sorted([*folder.glob("trials/*"), *folder.glob("tuning/*")]):
        if run not in known:
            found.note(run, "not in the ledger", "move it elsewhere")
            if (run / "config.json").exists():
                _check_run(run, found)


def _check_ledger(path: pathlib.Path, found: Verification) -> dict[str, LedgerRow]:
    """Returns the trials of a ledger."""
    remedy = f"remove it and {RERUN}; finished trials are not run again"
    if not path.exists():
        found.note(path, "is missing", remedy)
        return {}
    # Check a copy, because opening a ledger of an older version migrates it.
    with tempfile.TemporaryDirectory() as scratch:
        copy = pathlib.Path(scratch) / path.name
        try:
            copy_ledger(path, copy)
            ledger = Ledger(copy)
            ledger.check()
            return ledger.rows()
        except RunFolderError as error:
            reason = _reason(error, copy)
            found.note(path, f"cannot be read ({reason})", remedy)
            return {}


def _check_plan(
    path: pathlib.Path,
    rows: dict[str, LedgerRow],
    results: dict[str, RunResult | None],
    found: Verification,
) -> tuple[str | None, dict[str, Experiment]]:
    """Returns the metric of a study, and the experiment of each trial by name."""
    if _table(path, RERUN, found) is None:
        return None, {}
    try:
        plan = read_study_file(path)
        study = validate(plan.config)
        planned = {point.name: point for point in points(study)}
    except (RunFolderError, ConfigError) as error:
        found.note(path, f"not the description of a study ({_reason(error, path)})", RERUN)
        return None, {}
    remedy = f"{RERUN}; if that fails, the folder mixes files of two studies"
    for name in sorted(planned.keys() ^ rows.keys()) if rows else ():
        other = "the ledger" if name in planned else "study.json"
        found.note(path, f"{name} is not in {other}", remedy)
    both = [name for name in rows if name in planned]
    if plan.config == resolved(study):  # Older versions hashed other fields.
        for name in both:
            if rows[name].hash != config_hash(trial(study, planned[name]).experiment):
                found.note(path, f"{name} has another config in the ledger", remedy)
    tuned = {name: result.tuned for name, result in results.items() if result is not None}
    experiments = {n: trial(study, planned[n], tuned.get(n)).experiment for n in both}
    return plan.metric, experiments


def _check_trial(run: pathlib.Path, experiment: Experiment | None, found: Verification) -> None:
    """Compares the config of a run with its trial's config in the study."""
    try:
        stored = RunFolder(run).stored()
    except ConfigError:
        return  # `_check_run` has noted the problem.
    if experiment is not None and stored.experiment != experiment:
        found.note(run, "was run with another config than the study has for it", RESTART)


def _result(run: pathlib.Path, status: str) -> RunResult | None:
    """Returns the result of a trial that has ended; None if it cannot be read."""
    try:
        return read_result(run / "result.json")
    except RunFolderError:
        return None


def _check_row(
    run: pathlib.Path,
    row: LedgerRow,
    result: RunResult | None,
    metric: str | None,
    found: Verification,
) -> None:
    """Compares the ledger's status and score of a trial with the result in its folder."""
    path = run / "result.json"
    if not path.exists():
        found.note(path, f"is missing, but the status in the ledger is {row.status}", RERUN)
    elif result is not None and (row.status, row.error) != (result.status, result.error):
        found.note(path, "the ledger has another status", RESTART)
    elif (
        result is not None and metric is not None and row.score not in (None, score(metric, result))
    ):
        found.note(path, f"the ledger has another {metric}", RESTART)


def _table(path: pathlib.Path, remedy: str, found: Verification) -> JsonObject | None:
    """Returns the object in a JSON file; notes a problem and returns None if it is unreadable."""
    try:
        return read_json(path)
    except RunFolderError as error:
        found.note(path, _reason(error, path), remedy)
        return None
