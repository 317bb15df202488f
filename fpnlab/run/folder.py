"""The files of a run folder, its stored config, and its lock."""

import contextlib
import dataclasses
import fcntl
import logging
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple

from fpnlab.config.experiment import Experiment
from fpnlab.config.trials import Trial
from fpnlab.config.validate import (
    differences,
    hash_of,
    resolved,
    same_training,
    training_hash_of,
    validate_stored,
)
from fpnlab.errors import ConfigError, FolderLockedError, RunFolderError
from fpnlab.records.json_files import JsonObject, read_json, write_json, writing
from fpnlab.records.manifest import MANIFEST, unseal
from fpnlab.records.run_records import MetricRecord, RunResult, read_result
from fpnlab.run.environment import environment
from fpnlab.train.checkpoint import SUMS, Checkpoints, complete_steps

SEALED = (
    "config.json",
    "env.json",
    "data.json",
    "metrics.jsonl",
    "gallery.npz",
    "items.npz",
    "result.json",
)
"""Files of a run that its manifest seals where they exist; reports can be written anew."""


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """The files of one training run.

    ``config.json`` (resolved) and ``env.json`` are written before the first step. Training writes
    ``metrics.jsonl``, one record per line, and ``checkpoints/``. At the end come ``gallery.npz``,
    for a classifier ``items.npz``, and ``result.json``; last ``manifest.json``, which seals them.
    """

    path: pathlib.Path

    @property
    def config(self) -> pathlib.Path:
        """The resolved config, with its hash and the hash of its training fields."""
        return self.path / "config.json"

    @property
    def environment(self) -> pathlib.Path:
        """Versions, device and flags of the run."""
        return self.path / "env.json"

    @property
    def metrics(self) -> pathlib.Path:
        """The training metrics, one record per line."""
        return self.path / "metrics.jsonl"

    @property
    def result(self) -> pathlib.Path:
        """The result; its presence means that the run has ended."""
        return self.path / "result.json"

    @property
    def manifest(self) -> pathlib.Path:
        """Size and SHA-256 of each file that counts; absent until the run has ended."""
        return self.path / MANIFEST

    def sealed_names(self) -> list[str]:
        """Returns the relative paths of the files that a manifest must have.

        Of a checkpoint it is ``SHA256SUMS``, which has the checksums of the others.
        """
        steps = complete_steps(self.path / "checkpoints")
        sums = [f"checkpoints/{step}/{SUMS}" for step in steps]
        return [name for name in SEALED if (self.path / name).exists()] + sums

    def stored(self) -> "StoredConfig":
        """Returns the config that the run started with.

        Raises:
          ConfigError: ``config.json`` is missing or invalid.
        """
        try:
            table = read_json(self.config)
            tables, digest = table["experiment"], table["hash"]
            if not isinstance(tables, dict) or not isinstance(digest, str):
                raise TypeError("experiment or hash has the wrong type")
            training = table.get("training_hash") or training_hash_of(tables)
            return StoredConfig(validate_stored(tables), digest, str(training), tables)
        except (RunFolderError, KeyError, TypeError, ConfigError) as error:
            raise ConfigError(f"{self.config}: not the config of a run ({error})") from None

    def checkpoints(self) -> Checkpoints:
        """Returns the checkpoints of the run; raises as ``stored``."""
        return Checkpoints(self.path / "checkpoints", self.stored().training_hash)

    def finished(self) -> RunResult | None:
        """Returns the result if it belongs to the current config; otherwise None."""
        if not self.result.exists():
            return None
        result = read_result(self.result)
        return result if result.config_hash == self.stored().hash else None


class StoredConfig(NamedTuple):
    """The content of a ``config.json``."""

    experiment: Experiment
    hash: str
    """SHA-256 of the resolved experiment, as stored."""
    training_hash: str
    """SHA-256 of the fields that determine the weights, as first stored."""
    table: JsonObject
    """The resolved experiment, as stored."""


class Run(NamedTuple):
    """A trial with its run folder."""

    trial: Trial
    folder: pathlib.Path
    report: Callable[[MetricRecord], None] = lambda record: None
    """Called with each record of metrics."""

    @property
    def files(self) -> RunFolder:
        """The files of the folder."""
        return RunFolder(self.folder)


def claim_folder(path: pathlib.Path, experiment: Experiment) -> None:
    """Writes the config into a new run folder, or checks it against the stored config.

    A config that differs only in evaluation fields replaces the stored one: the weights are kept,
    and the run is evaluated again.

    Raises:
      RunFolderError: The folder cannot be written, or holds a study or a run with another config.
    """
    files = RunFolder(path)
    here = resolved(experiment)
    if not files.config.exists():
        if (path / "study.json").exists():
            raise RunFolderError(f"{path}: this folder holds a study; choose another with --out")
        write_json(files.environment, environment())
        _write_config(files, here, training_hash_of(here))
        return
    try:
        stored = files.stored()
    except ConfigError as error:
        raise RunFolderError(
            f"{error}; choose another folder with --out, or remove this one"
        ) from None
    if stored.experiment == experiment:
        return
    there = resolved(stored.experiment)
    changed = ", ".join(differences(there, here))
    if not same_training(there, here):
        raise RunFolderError(
            f"{path}: this folder holds a run with another config; the fields that differ: "
            f"{changed}; choose another folder with --out, or remove this one"
        )
    logging.getLogger(__name__).warning(
        "%s: the config has changed in %s, which does not affect the weights; keeping them and "
        "evaluating again",
        path,
        changed,
    )
    _write_config(files, here, stored.training_hash)


def _write_config(files: RunFolder, table: JsonObject, training: str) -> None:
    unseal(files.path)
    content = {"hash": hash_of(table), "training_hash": training, "experiment": table}
    write_json(files.config, content)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive lock on ``folder``, which the system releases if the process dies.

    Raises:
      FolderLockedError: Another process holds the lock.
    """
    with writing(folder):
        file = (folder / ".lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FolderLockedError(
                f"{folder}: locked by another process; wait until it has ended, or choose another "
                "folder with --out"
            ) from None
        yield


def in_use(folder: pathlib.Path) -> bool:
    """Returns whether a process holds the lock on ``folder``, without writing to the folder."""
    try:
        file = (folder / ".lock").open()
    except OSError:
        return False
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False
