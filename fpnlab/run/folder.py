"""The files of a run folder, its stored config, and its lock."""

import contextlib
import dataclasses
import fcntl
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from fpnlab.config.experiment import Experiment
from fpnlab.config.trials import Trial
from fpnlab.config.validate import training_hash_of, validate_stored
from fpnlab.errors import ConfigError, FolderLockedError, RunFolderError
from fpnlab.records.json_files import JsonObject, read_json, writing
from fpnlab.records.manifest import MANIFEST
from fpnlab.records.run_records import MetricRecord, RunResult, read_result
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

    ``config.json`` (resolved), ``env.json`` and, for data read from files, ``data.json`` with
    their fingerprint are written before the first step. Training writes
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
    def data(self) -> pathlib.Path:
        """The fingerprint of the data; absent for generated data."""
        return self.path / "data.json"

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
        shorter = sorted(path.name for path in self.path.glob("result-step-*.json"))
        return [*(name for name in SEALED if (self.path / name).exists()), *shorter, *sums]

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
            initial = table.get("initial")
            initial = initial if isinstance(initial, dict) else None
            return StoredConfig(validate_stored(tables), digest, str(training), tables, initial)
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
    initial: JsonObject | None = None
    """Origin of the initial weights: run, hash of its training fields and step, or file and what
    was taken from it; None: random ones."""


class Run(NamedTuple):
    """A trial with its run folder."""

    trial: Trial
    folder: pathlib.Path
    report: Callable[[MetricRecord], None] = lambda record: None
    """Called with each record of metrics."""
    phase: Callable[[str], None] = lambda phase: None
    """Called with the name of each phase without records, such as "evaluating"."""
    list_files: bool = True
    """If true, the folder's fingerprint of the data lists the files."""

    @property
    def files(self) -> RunFolder:
        """The files of the folder."""
        return RunFolder(self.folder)


@contextlib.contextmanager
def locked(folder: pathlib.Path) -> Iterator[None]:
    """Holds an exclusive lock on ``folder``, which the system releases if the process dies.

    Raises:
      FolderLockedError: Another process holds the lock.
    """
    with writing(folder):
        file = _open_lock(folder, os.O_RDWR | os.O_CREAT)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FolderLockedError(
                f"{folder}: locked by another process; wait until it has ended, or choose another "
                "folder with --out"
            ) from None
        yield


def _open_lock(folder: pathlib.Path, flags: int) -> IO[bytes]:
    """Returns the open file of the lock, without following a link or waiting for a pipe."""
    path = folder / ".lock"
    if path.is_symlink():
        raise RunFolderError(f"{path}: a link, which is not followed; remove it")
    return open(os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK, 0o666), "rb")


def in_use(folder: pathlib.Path) -> bool:
    """Returns whether a process holds the lock on ``folder``, without writing to the folder."""
    try:
        file = _open_lock(folder, os.O_RDONLY)
    except (OSError, RunFolderError):
        return False  # Nobody holds a lock that does not exist, or that is a link.
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        return False
