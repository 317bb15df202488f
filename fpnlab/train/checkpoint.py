"""Checkpoints that resume training bit for bit and detect any corruption.

Orbax writes the arrays. It does not detect flipped bits, casts silently, and does not store the
config. So a checkpoint also has a manifest, with the config's hash and the shape, dtype and SHA-256
of every leaf; and ``SHA256SUMS`` over all its files, in the format of ``sha256sum``, so that a bit
flipped in any file is detected before Orbax reads it. A checkpoint is written under a temporary
name and renamed when it is complete: a killed save leaves the previous one intact.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore
from jaxtyping import Array, PyTree

from fpnlab.errors import CheckpointError, DamagedCheckpointError
from fpnlab.train.orbax_messages import silence_repeated_errors

Tree = TypeVar("Tree")
ARRAYS, MANIFEST, SUMS = "leaves", "manifest.json", "SHA256SUMS"
KEPT = 2
RENAMED_LEAVES = {"refused": "skipped"}
"""Leaves of `TrainState` that older versions stored under another name: the old name to the new."""


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in one folder; the newest two are kept.

    Args:
      folder: Folder of the checkpoints.
      config_hash: Hash of the run's config; restoring a checkpoint with another hash is an error.
    """

    folder: pathlib.Path
    config_hash: str

    def steps(self) -> list[int]:
        """Returns the step numbers of the complete checkpoints, oldest first."""
        return complete_steps(self.folder)

    def save(self, step: int, tree: Tree) -> None:
        """Writes ``tree`` as checkpoint ``step``; on return it is complete.

        Existing checkpoints of this and of later steps are removed: training resumes from an
        earlier one only if they were damaged.

        Raises:
          CheckpointError: It could not be written (full disk, missing write permission); the
            previous checkpoints are intact.
        """
        scratch = self.folder / f".{step}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.tmp"):
                shutil.rmtree(left)
            # With several processes, one of them saves; Orbax would wait for the others if the
            # arrays were still sharded over their devices.
            local = jax.device_get(tree) if jax.process_count() > 1 else tree
            _write(scratch, self.config_hash, _leaves(local))
            for later in [number for number in self.steps() if number >= step]:
                self._remove(later)
            scratch.rename(self.folder / str(step))  # Atomic: it exists completely or not at all.
            for old in self.steps()[:-KEPT]:
                self._remove(old)
        except (OSError, ValueError, RuntimeError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            kept = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"{self.folder}: checkpoint {step} could not be written ({_reason(error)}); "
                f"free space or choose another folder, then run the same command again: it "
                f"resumes from the last complete checkpoint (complete: {kept})"
            ) from error

    def restore(self, like: Tree, newest: int | None = None) -> tuple[int, Tree] | None:
        """Returns the step number and tree of the newest intact checkpoint; None if there is none.

        A damaged checkpoint is skipped with a warning that names the leaf, and the previous one is
        tried. Leaves under the names of older versions are read, see `RENAMED_LEAVES`.

        Args:
          like: A tree of the same structure, shapes and dtypes: arrays, or from ``eval_shape``.
          newest: Largest step number to consider; None for no limit.

        Raises:
          CheckpointError: The newest is of another config, or all are damaged.
        """
        problems = []
        for step in reversed([n for n in self.steps() if newest is None or n <= newest]):
            try:
                return step, self._restore(step, like)
            except DamagedCheckpointError as damage:
                problems.append(f"{self.folder / str(step)}: {damage}")
                logging.getLogger(__name__).warning("%s; trying the previous one", problems[-1])
        if problems:
            raise CheckpointError(
                f"{'; '.join(problems)}; no intact checkpoint is left: remove {self.folder} to "
                "start this run again from its beginning"
            )
        return None

    def _restore(self, step: int, like: Tree) -> Tree:
        config_hash, leaves = read_checkpoint(self.folder / str(step))
        if config_hash != self.config_hash:
            raise CheckpointError(
                f"{self.folder / str(step)}: it belongs to another config (hash "
                f"{config_hash[:12]}, this run has {self.config_hash[:12]}); "
                "use another output folder, or the config that the run was started with"
            )
        expected = _leaves(like)
        leaves = _with_new_names(leaves, set(expected))
        if unpaired := set(expected) ^ set(leaves):
            raise DamagedCheckpointError(
                [f"leaf {min(unpaired)} is in only one of checkpoint and model"]
            )
        kind = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
        for name, leaf in leaves.items():
            if kind(leaf) != kind(expected[name]):
                raise DamagedCheckpointError(
                    [f"leaf {name} is {kind(leaf)}, in the model {kind(expected[name])}"]
                )
        # Copies, because a training step donates its state, and may not reuse NumPy's memory.
        return jax.tree.unflatten(
            jax.tree.structure(like), [jnp.array(leaves[name]) for name in expected]
        )

    def _remove(self, step: int) -> None:
        """Removes a checkpoint by an atomic rename first, so that none is ever seen in part."""
        gone = self.folder / f".{step}.gone.tmp"
        (self.folder / str(step)).rename(gone)
        shutil.rmtree(gone)


def complete_steps(folder: pathlib.Path) -> list[int]:
    """Returns the step numbers of the complete checkpoints in a folder, oldest first."""
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(path.name) for path in found if re.fullmatch("[0-9]{1,18}", path.name))


def check_checkpoint(folder: pathlib.Path) -> tuple[str, int]:
    """Returns the config's hash and the number of leaves of a checkpoint whose files are intact.

    Compares all files with ``SHA256SUMS`` without reading arrays, which is many times as fast as
    `read_checkpoint`.

    Raises:
      DamagedCheckpointError: A file differs from what was written.
    """
    _check_files(folder)
    config_hash, seals = _read_seals(folder)
    return config_hash, len(seals)


def read_checkpoint(folder: pathlib.Path) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the config's hash and the leaves of one checkpoint, by their stored names.

    Raises:
      DamagedCheckpointError: A file differs from what was written, or cannot be read.
    """
    _check_files(folder)
    config_hash, seals = _read_seals(folder)
    try:
        host = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in seals}
        with _orbax() as orbax:
            leaves = orbax.restore(
                (folder / ARRAYS).absolute(), args=ocp.args.PyTreeRestore(restore_args=host)
            )
    except Exception as error:
        raise DamagedCheckpointError([f"it cannot be read ({_reason(error)})"]) from error
    changed = [name for name in seals if name not in leaves or _seal(leaves[name]) != seals[name]]
    if changed:
        raise DamagedCheckpointError([f"leaf {name} is not what was saved" for name in changed])
    return config_hash, leaves


def _read_seals(folder: pathlib.Path) -> tuple[str, dict[str, object]]:
    """Returns the config's hash and shape, dtype and SHA-256 of each leaf of a checkpoint."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        return str(manifest["config_hash"]), dict(manifest["leaves"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedCheckpointError([f"it cannot be read ({_reason(error)})"]) from error


def _write(folder: pathlib.Path, config_hash: str, leaves: dict[str, PyTree]) -> None:
    _reserve(folder, sum(leaf.nbytes for leaf in leaves.values()))
    with _orbax() as orbax:
        orbax.save((folder / ARRAYS).absolute(), args=ocp.args.PyTreeSave(leaves))
    seals = {name: _seal(leaf) for name, leaf in leaves.items()}
    manifest = {"config_hash": config_hash, "leaves": seals}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    files = sorted(path for path in (folder / ARRAYS).rglob("*") if path.is_file())
    # The manifest comes last, so that a truncated list is recognized: it lacks this line.
    lines = [f"{_sha256(p)}  {p.relative_to(folder).as_posix()}" for p in files]
    lines.append(f"{_sha256(folder / MANIFEST)}  {MANIFEST}")
    (folder / SUMS).write_text("\n".join(lines) + "\n")


def _orbax() -> ocp.Checkpointer:
    silence_repeated_errors()
    # Of several processes only one uses the folder; without these options Orbax would wait for
    # the others at a barrier.
    alone = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=alone, active_processes={alone})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _reserve(folder: pathlib.Path, size: int) -> None:
    """Makes ``folder`` and checks that ``size`` bytes fit the disk, quota and process limits.

    Without this check each array that Orbax cannot write, all at the same time, prints a traceback.

    Raises:
      OSError: They do not fit.
    """
    folder.mkdir()
    with (folder / "reserved").open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(file.fileno(), 0, size)
    (folder / "reserved").unlink()


def _check_files(folder: pathlib.Path) -> None:
    """Raises DamagedCheckpointError if a file of a checkpoint differs from what was written."""
    entries = list(folder.rglob("*"))
    special = [path for path in entries if not (path.is_file() or path.is_dir())]
    if special:  # Links to nothing, and pipes, whose reading would never end.
        names = [path.relative_to(folder).as_posix() for path in special]
        raise DamagedCheckpointError([f"{name} is not a regular file" for name in names])
    try:
        *lines, end = (folder / SUMS).read_bytes().decode(errors="replace").split("\n")
    except OSError as error:
        raise DamagedCheckpointError([f"{SUMS} cannot be read ({_reason(error)})"]) from error
    found = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    sums = [(match[2], match[1]) for match in found if match]
    if end or None in found or not sums or sums[-1][0] != MANIFEST:
        raise DamagedCheckpointError([f"{SUMS} is not what was saved"])
    there = {path.relative_to(folder).as_posix() for path in entries if path.is_file()}
    missing = [name for name, _ in sums if name not in there]
    changed = [name for name, sum in sums if name in there and _sha256(folder / name) != sum]
    if missing or changed:
        problems = [f"file {name} is missing ({SUMS} has it)" for name in missing]
        problems += [f"file {name} is not what was saved (by {SUMS})" for name in changed]
        raise DamagedCheckpointError(_changed_leaves(folder) + problems)


def _changed_leaves(folder: pathlib.Path) -> list[str]:
    """Returns a message for each leaf of a damaged checkpoint that differs from what was saved.

    Leaves are read one by one with TensorStore, because Orbax reads all of them or none.
    """
    try:
        _, seals = _read_seals(folder)
    except DamagedCheckpointError:
        return []
    files = {"driver": "file", "path": f"{(folder / ARRAYS).absolute()}/"}
    problems = []
    for name, seal in seals.items():
        store = {"driver": "ocdbt", "base": files, "path": f"{name}/"}
        try:
            leaf = tensorstore.open({"driver": "zarr", "kvstore": store}).result().read().result()
            intact = _seal(leaf) == seal
        except Exception:  # A damaged file raises errors of many types.
            intact = False
        if not intact:
            problems.append(f"leaf {name} is not what was saved")
    return problems


def _with_new_names(leaves: dict[str, np.ndarray], expected: set[str]) -> dict[str, np.ndarray]:
    """Returns the leaves with old names replaced where only the new one is expected."""
    replaced = {
        old: new for old, new in RENAMED_LEAVES.items() if new in expected and old not in expected
    }
    return {replaced.get(name, name): leaf for name, leaf in leaves.items()}


def _leaves(tree: PyTree) -> dict[str, PyTree]:
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _seal(leaf: Array | np.ndarray) -> dict[str, object]:
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest}


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else 'no message'}"
