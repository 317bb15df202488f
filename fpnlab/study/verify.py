"""Verification of studies: files against manifests, results against plan, ledger and summary."""

import dataclasses
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Mapping

from fpnlab.analysis.tuning import best_value, score
from fpnlab.config.experiment import Experiment
from fpnlab.config.study import Point, applied, study_file
from fpnlab.config.trials import points, unstudied
from fpnlab.config.validate import config_hash, resolved, same_result, validate_stored
from fpnlab.errors import ConfigError, FolderLockedError, RunFolderError, TuningError
from fpnlab.records.data_files import read_fingerprint
from fpnlab.records.json_files import AxisValue, JsonObject
from fpnlab.records.manifest import MANIFEST, Manifest, broken_seals, read_manifest
from fpnlab.records.run_records import RunResult
from fpnlab.records.study_records import StudyFile, read_study_file
from fpnlab.run.data_check import check_data
from fpnlab.run.folder import RunFolder, in_use
from fpnlab.run.integrity import (
    ALSO,
    ENDED,
    EVALUATE,
    RERUN,
    RESTART,
    Verification,
    check_run,
    is_run,
    reason,
)
from fpnlab.study.context import failed_result, point_result, run_path
from fpnlab.study.ledger import OPEN, Ledger, LedgerRow, copy_ledger
from fpnlab.study.summary_check import check_summary

ANEW = f"remove it and {RERUN}"
NEW_LEDGER = f"{ANEW}; finished trials are not run again"
STATUSES = (*OPEN, *ENDED, "failed")
ALWAYS_UNCHECKED = (
    "whether the weights have these metrics (fpnlab evaluate measures a checkpoint again)",
)


def verify(folder: pathlib.Path, root: pathlib.Path | None = None) -> Verification:
    """Returns all problems of a run folder, or of a study and all its runs.

    Needs no model, and changes nothing. The data are compared where they are found. Of a study that
    is running or was interrupted, the trials that have ended are checked.

    Args:
      folder: The folder.
      root: The folder of the data, if they were moved; None: as in the config.

    Raises:
      RunFolderError: The folder holds neither a run nor a study.
      FolderLockedError: A process has locked the run folder.
    """
    found = Verification(folder)
    if (folder / "study.json").exists() or (folder / "ledger.sqlite").exists():
        _StudyCheck(folder, found, root).check()
    elif is_run(folder):
        if in_use(folder):
            raise FolderLockedError(f"{folder}: locked by a process; wait until it has ended")
        check_run(folder, found)
        _check_data_of_run(folder, found, root)
    else:
        raise RunFolderError(
            f"{folder}: neither a run nor a study; give a folder written by `fpnlab train` or "
            "`fpnlab study`"
        )
    found.problems = list(dict.fromkeys(found.problems))  # A run and its study may find the same.
    found.unchecked += [*_unsealed(found), *ALWAYS_UNCHECKED]
    if (manifest := folder / MANIFEST).is_file():
        found.unchecked.append(
            f"whether files and {manifest} were changed together (keep its SHA-256 elsewhere)"
        )
    return found


def _check_data_of_run(
    folder: pathlib.Path, found: Verification, root: pathlib.Path | None
) -> None:
    try:
        stored = RunFolder(folder).stored()
    except ConfigError:
        return  # Noted by `check_run`.
    check_data(RunFolder(folder).data, stored.table, found, root, remedy=RESTART)


def _unsealed(found: Verification) -> list[str]:
    """Returns a phrase on the ended runs without a manifest."""
    if not found.unsealed:
        return []
    some = ", ".join(str(path) for path in found.unsealed[:3])
    more = f" and {rest} more" if (rest := len(found.unsealed) - 3) > 0 else ""
    return [
        f"whether files were changed without a contradiction in {some}{more}: no {MANIFEST} "
        "(written by an older version, or killed at the end)"
    ]


@dataclasses.dataclass(frozen=True)
class _Plan:
    """The plan of a study, as its file and as its trials."""

    description: StudyFile
    experiment: Experiment
    points: dict[str, Point]
    base: JsonObject
    """The resolved experiment that the trials vary."""


class _StudyCheck:
    """The checks of one study folder."""

    def __init__(
        self, folder: pathlib.Path, found: Verification, root: pathlib.Path | None
    ) -> None:
        self.folder, self.found, self.root = folder, found, root
        self.running = in_use(folder)
        self.manifest: Manifest | None = None
        self.busy: set[pathlib.Path] = set()
        """Run folders that a process uses."""
        self.damaged = False
        """True if a result cannot be read."""

    def check(self) -> None:
        """Adds all problems."""
        folder, found = self.folder, self.found
        self._check_manifest()
        plan = self._plan()
        rows = self._rows()
        if plan is not None and rows is not None:
            self._check_rows(plan, rows)
        folders = {*folder.glob("trials/*"), *folder.glob("tuning/*")}
        planned = {folder / run_path(point) for point in plan.points.values()} if plan else folders
        self._check_runs(planned)
        for run in sorted(folders - planned):
            found.note(run, "belongs to no trial of the study", "move it elsewhere")
        if rows is None:
            found.unchecked.append("status and score of the trials against the ledger")
        if plan is None:
            found.unchecked.append("the trials and summary.json against the plan in study.json")
            return
        results = self._results(plan, rows)
        self._check_experiments(plan, results)
        self._check_data(plan)
        if self.running:
            found.unchecked.append("summary.json, which the running study writes")
        elif self.damaged:
            found.unchecked.append("summary.json against the results, because some are damaged")
        else:
            check_summary(folder, plan.description, plan.points, results, found)

    def _check_runs(self, paths: set[pathlib.Path]) -> None:
        """Checks the run folders that no process uses."""
        self.busy = {path for path in paths if in_use(path)}
        for path in sorted(paths - self.busy):
            before = len(self.found.problems)
            if is_run(path):
                check_run(path, self.found)
            if in_use(path):  # A worker has started it meanwhile, and changes its files.
                del self.found.problems[before:]
                self.busy.add(path)
        if self.busy:
            self.found.unchecked.append(f"{len(self.busy)} trials that are running")

    def _check_manifest(self) -> None:
        folder, found = self.folder, self.found
        path = folder / MANIFEST
        if not path.exists():
            found.unchecked.append(
                f"whether study.json was changed without a contradiction: no {MANIFEST} (the study "
                "has not ended, or an older version ran it)"
            )
            return
        try:
            self.manifest = read_manifest(folder)
        except RunFolderError as error:
            found.note(path, reason(error, path), ANEW)
            return
        for name, what in broken_seals(folder, self.manifest).items():
            exists = (folder / name).exists()
            if name in ("study.json", "summary.json", "data.json"):
                remedy = ANEW if exists else RERUN
            else:  # Of a trial.
                remedy = ALSO if exists else EVALUATE
            found.note(folder / name, what, remedy)

    def _plan(self) -> _Plan | None:
        """Returns the plan; None if it cannot be read."""
        path, found = self.folder / "study.json", self.found
        try:
            description = read_study_file(path)
            experiment = validate_stored(description.config)
            planned = {point.name: point for point in points(experiment)}
        except (RunFolderError, ConfigError) as error:
            what = f"not the description of a study ({reason(error, path)})"
            found.note(path, what, ANEW if path.exists() else RERUN)
            return None
        assert experiment.study is not None
        # The config decides; the other fields repeat parts of it for the reader.
        whole = study_file(
            experiment.study,
            **{name: getattr(description, name) for name in ("name", "question", "command")},
            trials=sum(point.split == "test" for point in planned.values()),
            examples=experiment.train.examples,
            updates=experiment.train.updates,
            dataset=description.dataset,
            additions=description.additions,
            env=description.env,
            config=description.config,
        )
        # Older versions stored other fields of the config, and of the claims.
        if description.config == resolved(experiment):
            for field in dataclasses.fields(StudyFile):
                if getattr(whole, field.name) != getattr(description, field.name):
                    found.note(path, f"{field.name} differs from the config", ANEW)
        return _Plan(whole, experiment, planned, resolved(unstudied(experiment)))

    def _rows(self) -> dict[str, LedgerRow] | None:
        """Returns the trials of the ledger; None if it cannot be read."""
        path, found = self.folder / "ledger.sqlite", self.found
        if not path.exists():
            found.note(path, "is missing", f"{RERUN}; finished trials are not run again")
            return None
        # Check a copy, because opening a ledger of an older version migrates it.
        with tempfile.TemporaryDirectory() as scratch:
            copy = pathlib.Path(scratch) / path.name
            try:
                _copy(path, copy)
                ledger = Ledger(copy)
                ledger.check()
                rows = ledger.rows()
            except (RunFolderError, OSError) as error:
                why = reason(error, copy).removeprefix(f"{path}: ")
                found.note(path, f"cannot be read ({why})", NEW_LEDGER)
                return None
        for row in rows.values():
            texts = (row.name, row.hash, row.cell, row.split, row.path, row.status)
            if not all(isinstance(text, str) for text in texts):
                found.note(path, f"cannot be read ({row.name!r} is not text)", NEW_LEDGER)
                return None
        return rows

    def _check_rows(self, plan: _Plan, rows: Mapping[str, LedgerRow]) -> None:
        """Compares the fixed fields of the ledger with the plan."""
        path = self.folder / "ledger.sqlite"
        for name in sorted(plan.points.keys() ^ rows.keys()):
            other = "the ledger" if name in plan.points else "study.json"
            self.found.note(path, f"{name} is not in {other}", NEW_LEDGER)
        # Older versions hashed other fields.
        comparable = plan.description.config == resolved(plan.experiment)
        for name in plan.points.keys() & rows.keys():
            row, point = rows[name], plan.points[name]
            cell = json.dumps([point.arm, point.axis_value])
            if (row.cell, row.split, row.path) != (cell, point.split, run_path(point)):
                self.found.note(path, f"{name} has another place in study.json", NEW_LEDGER)
            if row.status not in STATUSES:
                self.found.note(path, f"{name} has the status {row.status!r}", NEW_LEDGER)
            if comparable and row.hash != config_hash(self._experiment(plan, point, {})):
                self.found.note(path, f"{name} has another config in study.json", NEW_LEDGER)

    def _results(self, plan: _Plan, rows: Mapping[str, LedgerRow] | None) -> dict[str, RunResult]:
        """Returns the results of the trials that have ended and can be read."""
        results = {}
        for name, point in plan.points.items():
            run = self.folder / run_path(point)
            path = run / "result.json"
            row = rows.get(name) if rows is not None else None
            if row is not None and row.status == "failed":
                results[name] = failed_result(point, row.error)
                continue
            ended = path.exists() if rows is None else row is not None and row.status in ENDED
            if not ended or run in self.busy:
                continue
            try:
                results[name] = point_result(self.folder, point)
            except RunFolderError as error:
                self.damaged = True
                self._note_unreadable(path, error, row)
                continue
            if row is not None:
                self._check_row(path, row, results[name], plan.description.metric)
            if self.manifest is not None and not self._is_chained(run):
                what = f"was sealed after the study ({MANIFEST} of the study does not have it)"
                self.found.note(run / MANIFEST, what, RERUN)
        return results

    def _is_chained(self, run: pathlib.Path) -> bool:
        """Returns whether the study's manifest has that of a run, if the run has one."""
        assert self.manifest is not None
        name = (run / MANIFEST).relative_to(self.folder).as_posix()
        return name in self.manifest.files or not (run / MANIFEST).exists()

    def _note_unreadable(
        self, path: pathlib.Path, error: RunFolderError, row: LedgerRow | None
    ) -> None:
        if not path.exists() and row is not None:
            what = f"is missing, but the status in the ledger is {row.status}"
            self.found.note(path, what, RERUN)
        else:
            self.found.note(path, reason(error, path), EVALUATE)

    def _check_row(
        self, path: pathlib.Path, row: LedgerRow, result: RunResult, metric: str
    ) -> None:
        """Compares the ledger's status and score of a trial with its result."""
        if (row.status, row.error) != (result.status, result.error):
            self.found.note(path, "the ledger has another status", EVALUATE)
        elif row.score not in (None, score(metric, result)):
            self.found.note(path, f"the ledger has another {metric}", EVALUATE)

    def _check_data(self, plan: _Plan) -> None:
        """Compares the data with the study's fingerprint, and this with those of its trials."""
        path, config = self.folder / "data.json", plan.description.config
        data = check_data(path, config, self.found, self.root, remedy=ANEW)
        for point in plan.points.values():
            path = self.folder / run_path(point) / "data.json"
            if data is None or point.split != "test" or not path.exists():
                continue  # Tuning trials read other files of the same data.
            try:
                own = read_fingerprint(path)
            except RunFolderError as error:
                self.found.note(path, reason(error, path), RESTART)
                continue
            if own.digest != data.digest:
                self.found.note(path, "was trained on other data than the study has", RESTART)

    def _check_experiments(self, plan: _Plan, results: Mapping[str, RunResult]) -> None:
        """Compares the configs of runs with those that the study has for them."""
        assert plan.experiment.study is not None
        tunes = plan.experiment.study.tune is not None
        cells = _tuning_cells(plan, results)
        for name, point in plan.points.items():
            run = self.folder / run_path(point)
            if run in self.busy or not (run / "config.json").exists():
                continue
            if self.damaged and tunes and point.split == "test":
                continue  # A tuning trial may be among the damaged ones.
            tuned = None
            try:
                if tunes and point.split == "test":
                    tuned = best_value(
                        plan.description.metric, cells.get((point.arm, point.axis_value), [])
                    )
                stored = RunFolder(run).stored()
                expected = self._experiment(plan, point, tuned or {})
            except (ConfigError, TuningError):
                continue  # Noted by `check_run`, or the trial has failed for lack of a value.
            if not same_result(resolved(stored.experiment), resolved(expected)):
                what = "was run with another config than the study has for it"
                self.found.note(run, what, RESTART)
            elif tuned and name in results and results[name].tuned != tuned:
                what = f"tuned is {results[name].tuned}, but the tuning trials give {tuned}"
                self.found.note(run / "result.json", what, EVALUATE)

    def _experiment(self, plan: _Plan, point: Point, tuned: Mapping[str, float]) -> Experiment:
        """Returns the experiment of a trial."""
        return validate_stored(applied(plan.base, {**point.settings, **tuned}))


def _tuning_cells(
    plan: _Plan, results: Mapping[str, RunResult]
) -> dict[tuple[str, AxisValue], list[RunResult]]:
    """Returns the results of the tuning trials by arm and axis value."""
    cells: dict[tuple[str, AxisValue], list[RunResult]] = {}
    for name, result in results.items():
        if plan.points[name].split == "validation":
            cells.setdefault((result.arm, result.axis_value), []).append(result)
    return cells


def _copy(path: pathlib.Path, copy: pathlib.Path) -> None:
    """Copies a ledger, also one on a file system that is mounted read-only.

    SQLite needs to write beside a database whose write-ahead log it reads. On a copy of both files
    it can.
    """
    if os.access(path.parent, os.W_OK):
        copy_ledger(path, copy)
        return
    for suffix in ("", "-wal"):
        if (source := path.with_name(path.name + suffix)).exists():
            shutil.copyfile(source, copy.with_name(copy.name + suffix))
