"""Entry into a run folder: a new one is set up, a used one must hold the same run.

A run stays the same if its data is moved, or if fields change that affect neither weights nor
metrics. If evaluation fields change, its weights are kept and evaluated again. If it is to train
longer, it continues, provided that a run of the new length would have had the same learning rates
so far. Anything else is another run, which needs another folder.
"""

import dataclasses
import logging
import pathlib

from fpnlab.config.experiment import Experiment
from fpnlab.config.validate import (
    differences,
    hash_of,
    resolved,
    same_result,
    same_training,
    training_hash_of,
)
from fpnlab.data.dataset import Dataset
from fpnlab.errors import ConfigError, RunFolderError
from fpnlab.records.data_files import (
    DataFingerprint,
    changed_files,
    named,
    read_fingerprint,
    write_fingerprint,
)
from fpnlab.records.json_files import JsonObject, write_json, writing
from fpnlab.records.manifest import unseal
from fpnlab.records.run_records import read_result, write_result
from fpnlab.run.environment import environment
from fpnlab.run.folder import RunFolder, StoredConfig
from fpnlab.train.schedule import first_other_rate


def enter_folder(
    path: pathlib.Path, experiment: Experiment, dataset: Dataset, *, list_files: bool = True
) -> None:
    """Writes config and data fingerprint into a new run folder, or checks those that it holds.

    A folder whose run failed before its first record counts as new.

    Args:
      path: The run folder.
      experiment: The experiment.
      dataset: The data of the experiment.
      list_files: If true, the fingerprint in the folder lists the files of the data.

    Raises:
      RunFolderError: The folder cannot be written, holds a study or another run, or its run was
        begun on other data.
    """
    files = RunFolder(path)
    if (path / "study.json").exists():
        raise RunFolderError(f"{path}: this folder holds a study; choose another with --out")
    if not files.config.exists():
        _set_up(files, experiment, dataset, list_files)
        return
    try:
        stored = files.stored()
    except ConfigError as error:
        raise RunFolderError(
            f"{error}; choose another folder with --out, or remove this one"
        ) from None
    changed = data_changes(path, dataset)
    if (changed or stored.experiment != experiment) and _is_untrained(files):
        _set_up(files, experiment, dataset, list_files)
    elif changed:
        raise data_error(path, changed, "run")
    elif stored.experiment != experiment:
        _change_config(files, stored, experiment)


def _set_up(files: RunFolder, experiment: Experiment, dataset: Dataset, list_files: bool) -> None:
    """Writes the files of a new run."""
    write_json(files.environment, environment())
    if (data := dataset.fingerprint) is not None:
        kept = data if list_files else dataclasses.replace(data, files=[])
        write_fingerprint(files.data, kept)
    table = resolved(experiment)
    _write_config(files, table, training_hash_of(table))


def _is_untrained(files: RunFolder) -> bool:
    """Returns whether the run of a folder ended before its first record."""
    log = files.metrics
    empty = not log.exists() or log.stat().st_size == 0
    return empty and not (files.path / "checkpoints").exists() and not files.result.exists()


def data_changes(path: pathlib.Path, dataset: Dataset) -> list[str]:
    """Returns a phrase for each file that has changed since a run or study folder was begun.

    Data of a folder without a fingerprint, as written by version 0.1, are unknown: no change is
    found.

    Raises:
      RunFolderError: The fingerprint cannot be read.
    """
    file = RunFolder(path).data
    if not file.exists():
        return []
    old, new = read_fingerprint(file), dataset.fingerprint
    if new is not None and old.digest == new.digest:
        return []
    new = new or DataFingerprint(digest="", count=0, size=0)
    listing = path.parents[1] / file.name if len(path.parents) > 1 else file
    if not old.files and listing.exists():  # A trial's list of files is that of its study.
        old = dataclasses.replace(old, files=read_fingerprint(listing).files)
    amount = lambda found: f"{found.count} files of {found.size:,} bytes"
    unnamed = [f"{amount(old)} with SHA-256 {old.digest[:12]} then, {amount(new)} now"]
    return (changed_files(old, new) if old.files else []) or unnamed


def data_error(path: pathlib.Path, changes: list[str], what: str) -> RunFolderError:
    """Returns the error of a run or study that would continue on data that have changed."""
    return RunFolderError(
        f"{path}: the data have changed since this {what} began: {named(changes)}; restore them, "
        "or choose another folder with --out"
    )


def _change_config(files: RunFolder, stored: StoredConfig, experiment: Experiment) -> None:
    """Replaces the config of a run that stays the same run.

    Raises:
      RunFolderError: It would be another run.
    """
    path = files.path
    there, here = resolved(stored.experiment), resolved(experiment)
    changed = ", ".join(differences(there, here))
    longer = _with_length(stored.experiment, experiment)
    if not same_training(there, here) and same_training(resolved(longer), here):
        _check_longer(files, stored.experiment, experiment)
        _set_result_aside(files)
        note = "continuing its training"
    elif not same_training(there, here):
        raise RunFolderError(
            f"{path}: this folder holds a run with another config; the fields that differ: "
            f"{changed}; choose another folder with --out, or remove this one"
        )
    elif same_result(there, here):
        note = "which affects neither weights nor metrics; keeping both"
    else:
        note = "which does not affect the weights; keeping them and evaluating again"
    logging.getLogger(__name__).warning("%s: the config has changed in %s, %s", path, changed, note)
    _write_config(files, here, stored.training_hash, stored.initial)
    if same_result(there, here) and files.result.exists():
        result = read_result(files.result)
        if result.config_hash == stored.hash:
            write_result(files.result, dataclasses.replace(result, config_hash=hash_of(here)))


def _with_length(old: Experiment, new: Experiment) -> Experiment:
    """Returns ``old`` with the length of ``new``; ``old`` where that is not possible."""
    length = {"examples": new.train.examples, "updates": new.train.updates}
    try:
        return dataclasses.replace(old, train=dataclasses.replace(old.train, **length))
    except ValueError:
        return old


def _check_longer(files: RunFolder, old: Experiment, new: Experiment) -> None:
    """Raises RunFolderError unless a run of the new length would have the weights of this one."""
    batch, done = old.train.batch_size, max(files.checkpoints().steps(), default=0)
    if new.train.steps <= done:
        raise RunFolderError(
            f"{files.path}: this run has trained on {done * batch} examples in {done} steps, and "
            f"the config has {new.train.steps} steps; give more than {done * batch} examples, or "
            "choose another folder with --out"
        )
    lengths = (old.train.total_examples, new.train.total_examples)
    step = first_other_rate(new.train.schedule, lengths, batch, done)
    if step is not None:
        raise RunFolderError(
            f"{files.path}: this run cannot be continued: the {new.train.schedule.kind} schedule "
            f"over {lengths[1]} examples has another learning rate from step {step + 1} on than "
            f"over {lengths[0]}, and {done} steps are done; choose another folder with --out to "
            f"train anew, or to train from these weights with --initial_run {files.path}"
        )


def _set_result_aside(files: RunFolder) -> None:
    """Renames the result of a run that will train longer, whose weights will be gone."""
    if files.result.exists():
        steps = read_result(files.result).steps
        with writing(files.path):
            files.result.rename(files.path / f"result-step-{steps}.json")


def _write_config(
    files: RunFolder, table: JsonObject, training: str, initial: JsonObject | None = None
) -> None:
    unseal(files.path)
    content: JsonObject = {"hash": hash_of(table), "training_hash": training}
    if initial is not None:
        content["initial"] = initial
    write_json(files.config, content | {"experiment": table})


def write_initial(files: RunFolder, initial: JsonObject) -> None:
    """Adds the origin of the initial weights to the config of a run."""
    stored = files.stored()
    _write_config(files, stored.table, stored.training_hash, initial)
