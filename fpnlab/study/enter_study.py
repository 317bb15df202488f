"""Entry into a study folder: a new one is set up, and a used one must hold the same study.

A study grows in place: its config may add seeds, arms, axis values and tuned values, whose trials
are run, and change the question, the metric, the evaluation and the place of the data. It must keep
every trial that the folder holds, with the fields that determine its weights, and the claims once a
trial has ended.
"""

import dataclasses
import datetime
import glob
import pathlib
from collections.abc import Iterable

from fpnlab.config.trials import Trial, trials, varied
from fpnlab.config.validate import (
    config_hash,
    differences,
    resolved,
    same_result,
    same_training,
    validate,
)
from fpnlab.data.dataset import Dataset
from fpnlab.errors import ConfigError, RunFolderError
from fpnlab.records.json_files import writing
from fpnlab.records.study_records import Addition, StudyFile, axis_label, read_study_file
from fpnlab.run.enter_folder import data_changes, data_error
from fpnlab.run.folder import Run, locked
from fpnlab.study.context import StudyContext, run_path
from fpnlab.study.ledger import OPEN, LedgerRow


def check_study_data(folder: pathlib.Path, dataset: Dataset) -> None:
    """Raises RunFolderError if the data have changed since the study was begun."""
    if changed := data_changes(folder, dataset):
        raise data_error(folder, changed, "study")


def enter_study(study: StudyContext, plan: list[Trial], description: StudyFile) -> StudyFile:
    """Returns the description with its additions, after adding missing trials to the ledger.

    Trials that differ from those in the folder only in evaluation fields are evaluated again, with
    their weights kept. Trials whose tuned value may be another one now are chosen anew.

    Args:
      study: The study with its ledger.
      plan: Its trials.
      description: Its description, without additions.

    Raises:
      RunFolderError: The folder holds another study, or trials that ended under other claims.
    """
    stored = _stored(study.folder)
    before = {trial.name: trial for trial in _trials_of(stored, study, plan)}
    _check_trials(study, before, plan)
    _check_claims(study, description)
    rows = [
        LedgerRow(
            t.name, config_hash(t.experiment), t.cell, t.split, run_path(study.points[t.name])
        )
        for t in plan
    ]
    if stored is None or not before:
        study.ledger.expect(rows)
        return description
    # A new version of the package may add fields, which changes hashes of equal experiments.
    study.ledger.set_hashes(rows)
    ended = sum((study.run_folder(name) / "result.json").exists() for name in before)
    study.ledger.reopen(_evaluated_again(before, plan))
    study.ledger.expect(rows)
    added = [trial for trial in plan if trial.name not in before]
    if stored.metric != description.metric:
        study.ledger.clear_scores()
    if description.tune:
        cells = {trial.cell for trial in added if trial.split == "validation"}
        all_cells = stored.metric != description.metric
        again = [t for t in plan if t.split == "test" and (all_cells or t.cell in cells)]
        study.ledger.reopen(trial.name for trial in again)
    additions = [*stored.additions, *_additions(stored, description, len(added), ended)]
    return dataclasses.replace(description, additions=additions)


def move_replaced(study: StudyContext, run: Run) -> None:
    """Moves the earlier run of a trial with another tuned value to ``replaced``.

    Raises:
      RunFolderError: The folder cannot be moved, or is locked by another process.
    """
    if run.trial.tuned is None or not run.files.config.exists():
        return
    try:
        old = run.files.stored().experiment
        retuned = resolved(varied(old, {**run.trial.tuned}))
    except ConfigError:
        return  # Entering the folder raises.
    here = resolved(run.trial.experiment)
    if same_training(resolved(old), here) or not same_training(retuned, here):
        return
    parent = study.folder / "replaced"
    with writing(parent), locked(run.folder):
        parent.mkdir(exist_ok=True)
        number = 1 + len(list(parent.glob(f"{glob.escape(run.trial.name)}-*")))
        run.folder.rename(parent / f"{run.trial.name}-{number}")


def _stored(folder: pathlib.Path) -> StudyFile | None:
    """Returns the description in the folder; None in a new one, or if it cannot be read."""
    try:
        return read_study_file(folder / "study.json")
    except RunFolderError:
        return None


def _trials_of(stored: StudyFile | None, study: StudyContext, plan: list[Trial]) -> list[Trial]:
    """Returns the trials of a stored study; none if they are no longer valid."""
    if stored is None:
        return []
    try:
        experiment = validate(stored.config)
        return plan if experiment == study.experiment else trials(experiment)
    except ConfigError:
        return []  # The check against the ledger decides.


def _check_trials(study: StudyContext, before: dict[str, Trial], plan: list[Trial]) -> None:
    """Raises RunFolderError if a trial is gone, or would have other weights."""
    after = {trial.name: trial for trial in plan}
    kept = [name for name in before if name in after and before[name] != after[name]]
    for name in kept:
        there, here = (resolved(found[name].experiment) for found in (before, after))
        if not same_training(there, here):
            changed = ", ".join(differences(there, here))
            raise RunFolderError(
                f"{study.folder}: this folder belongs to another study; trial {name} differs in "
                f"{changed}; choose another folder with --out, or remove this one"
            )
    if gone := [name for name in before if name not in after]:
        raise RunFolderError(
            f"{study.folder}: {len(gone)} trials of the study in this folder are not in this "
            f"config, e.g. {gone[0]}; a study can grow, but not lose trials: restore them, or "
            "choose another folder with --out"
        )


def _check_claims(study: StudyContext, description: StudyFile) -> None:
    """Raises RunFolderError if trials have ended under other claims (preregistration)."""
    path = study.folder / "study.json"
    ended = any(row.status not in OPEN for row in study.ledger.rows().values())
    ended = ended or any(study.folder.glob("trials/*/result.json"))
    if not (ended and path.exists()):
        return
    fixed = lambda plan: {"claims": plan.claims, "holm_over": plan.holm_over}
    if changed := differences(fixed(read_study_file(path)), fixed(description), "study"):
        raise RunFolderError(
            f"{study.folder}: trials have already ended under other claims, which differ in "
            f"{', '.join(changed)}; restore the claims, or choose another folder with --out"
        )


def _evaluated_again(before: dict[str, Trial], plan: list[Trial]) -> list[str]:
    """Returns the names of known trials whose metrics will be others."""
    tables = lambda trial: (resolved(before[trial.name].experiment), resolved(trial.experiment))
    known = [t for t in plan if t.name in before and before[t.name] != t]
    return [trial.name for trial in known if not same_result(*tables(trial))]


def _additions(old: StudyFile, new: StudyFile, trials: int, ended: int) -> list[Addition]:
    """Returns what a config adds to the study that the folder holds, as one entry or none."""
    seeds = [seed for seed in new.seeds if seed not in old.seeds]
    values = [value for value in new.axis_values if value not in old.axis_values]
    factors = set(_factors(new)) - set(_factors(old))
    parts = [
        _listed("seed", seeds),
        _listed("arm", [arm for arm in new.arms if arm not in old.arms]),
        _listed(axis_label(new.axis), values),
        _listed(f"factor of {new.tune}", sorted(factors)),
        f"metric {new.metric} instead of {old.metric}" if new.metric != old.metric else "",
        "another question" if new.question != old.question else "",
    ]
    what = "; ".join(filter(None, parts))
    if not what:
        return []
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return [Addition(date=now, what=what, trials=trials, ended=ended, seeds=seeds)]


def _factors(plan: StudyFile) -> tuple[float, ...]:
    study = validate(plan.config).study
    return study.tune.factors if study and study.tune else ()


def _listed(noun: str, entries: Iterable[object]) -> str:
    """Returns "seeds 1, 2" for a noun and entries; empty without any."""
    names = [str(entry) for entry in entries]
    return f"{noun}{'s' * (len(names) > 1)} {', '.join(names)}" if names else ""
