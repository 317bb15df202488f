"""Checkpoints that resume exactly, and are never restored changed.

Orbax writes the arrays. It does not notice a flipped bit, casts silently, and knows no configs. So
a checkpoint also has a manifest, with the config's hash and the shape, dtype and SHA-256 of every
leaf; and ``SHA256SUMS`` over all its files, in the format of ``sha256sum``, by which a bit that is
flipped anywhere is found before Orbax is asked. It is written under another name, and renamed when
it is whole: a killed save leaves the one before.
"""

import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import tensorstore

from fpnlab.errors import CheckpointError, DamagedCheckpointError

Tree = TypeVar("Tree")
ARRAYS, MANIFEST, SUMS = "leaves", "manifest.json", "SHA256SUMS"
KEPT = 2


@dataclasses.dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one run, in one folder; the newest two are kept.

    Args:
      folder: where they are.
      config_hash: of the run's config; a checkpoint of another one is refused.
    """

    folder: pathlib.Path
    config_hash: str

    def steps(self) -> list[int]:
        """Returns the numbers of the finished checkpoints, oldest first."""
        found = self.folder.iterdir() if self.folder.is_dir() else ()
        return sorted(int(path.name) for path in found if path.name.isdigit())

    def save(self, step: int, tree: Tree) -> None:
        """Writes ``tree`` as checkpoint ``step``; on return it is complete.

        Checkpoints of this and of later steps are removed: training goes on from an earlier one
        only where these were damaged.

        Raises:
          CheckpointError: it could not be written (a full disk, a folder without write
            permission); the checkpoints before it are intact.
        """
        scratch = self.folder / f".{step}.tmp"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for left in self.folder.glob(".*.tmp"):
                shutil.rmtree(left)
            # Of several processes, one saves, from the host.
            whole = jax.device_get(tree) if jax.process_count() > 1 else tree
            _write(scratch, self.config_hash, _leaves(whole))
            for later in [number for number in self.steps() if number >= step]:
                self._remove(later)
            scratch.rename(self.folder / str(step))
            for old in self.steps()[:-KEPT]:
                self._remove(old)
        except (OSError, ValueError, RuntimeError) as error:
            shutil.rmtree(scratch, ignore_errors=True)
            kept = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"{self.folder}: checkpoint {step} could not be written ({_reason(error)}); "
                f"free space or choose another folder, then run the same command again: it goes "
                f"on from the last complete checkpoint (complete: {kept})"
            ) from error

    def restore(self, like: Tree, newest: int | None = None) -> tuple[int, Tree] | None:
        """Returns the newest sound checkpoint and its number; None if there is none at all.

        A damaged checkpoint is passed over for the one before it, with a warning that names
        the leaf.

        Args:
          like: a tree of the same structure, shapes and dtypes, arrays or ``eval_shape``'s.
          newest: number above which none is looked at; None: all are.

        Raises:
          CheckpointError: the newest is of another config, or all are damaged.
        """
        faults = []
        for step in reversed([n for n in self.steps() if newest is None or n <= newest]):
            try:
                return step, self._restore(step, like)
            except DamagedCheckpointError as damage:
                faults.append(f"{self.folder / str(step)}: {damage}")
                logging.getLogger(__name__).warning("%s; trying the one before", faults[-1])
        if faults:
            raise CheckpointError(
                f"{'; '.join(faults)}; no sound checkpoint is left: remove {self.folder} to start "
                "this run again from its beginning"
            )
        return None

    def _restore(self, step, like):
        config_hash, leaves = read_checkpoint(self.folder / str(step))
        if config_hash != self.config_hash:
            raise CheckpointError(
                f"{self.folder / str(step)}: it belongs to another config (hash "
                f"{config_hash[:12]}, this run has {self.config_hash[:12]}); "
                "use another output folder, or the config that the run began with"
            )
        wanted = _leaves(like)
        if unknown := set(wanted) ^ set(leaves):
            raise DamagedCheckpointError(
                [f"leaf {min(unknown)} is in only one of checkpoint and model"]
            )
        kind = lambda leaf: f"{leaf.dtype}{list(leaf.shape)}"
        for name, leaf in leaves.items():
            if kind(leaf) != kind(wanted[name]):
                raise DamagedCheckpointError(
                    [f"leaf {name} is {kind(leaf)}, in the model {kind(wanted[name])}"]
                )
        # Copies: the memory of what a step is given is reused.
        return jax.tree.unflatten(
            jax.tree.structure(like), [jnp.array(leaves[name]) for name in wanted]
        )

    def _remove(self, step):
        """Takes a checkpoint away in one move, so that no part of it is ever found."""
        gone = self.folder / f".{step}.gone.tmp"
        (self.folder / str(step)).rename(gone)
        shutil.rmtree(gone)


def read_checkpoint(folder: pathlib.Path) -> tuple[str, dict[str, np.ndarray]]:
    """Returns the config's hash and the leaves of one checkpoint; no model is needed.

    Raises:
      DamagedCheckpointError: any of its files is not as it was written, or cannot be read.
    """
    _check_files(folder)
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        seals = manifest["leaves"]
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
    return manifest["config_hash"], leaves


def _write(folder: pathlib.Path, config_hash: str, leaves: dict[str, Any]) -> None:
    _reserve(folder, sum(leaf.nbytes for leaf in leaves.values()))
    with _orbax() as orbax:
        orbax.save((folder / ARRAYS).absolute(), args=ocp.args.PyTreeSave(leaves))
    seals = {name: _seal(leaf) for name, leaf in leaves.items()}
    manifest = {"config_hash": config_hash, "leaves": seals}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    files = sorted(path for path in (folder / ARRAYS).rglob("*") if path.is_file())
    # The manifest comes last: a list that was cut off lacks it.
    lines = [f"{_sha256(p)}  {p.relative_to(folder).as_posix()}" for p in files]
    lines.append(f"{_sha256(folder / MANIFEST)}  {MANIFEST}")
    (folder / SUMS).write_text("\n".join(lines) + "\n")


def _orbax():
    # Of several processes, one has the folder, and waits for no other.
    alone = jax.process_index()
    options = ocp.options.MultiprocessingOptions(primary_host=alone, active_processes={alone})
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=options)
    return ocp.Checkpointer(handler, multiprocessing_options=options)


def _reserve(folder, size):
    """Refuses at once what the disk, a quota or a limit of the process will not hold.

    Orbax writes all arrays at the same time, and each that it cannot write prints a traceback.
    """
    folder.mkdir()
    with (folder / "reserved").open("wb") as file:
        if hasattr(os, "posix_fallocate"):  # macOS has none
            os.posix_fallocate(file.fileno(), 0, size)
    (folder / "reserved").unlink()


def _check_files(folder: pathlib.Path) -> None:
    """Refuses a checkpoint of which a file is not as it was written."""
    try:
        *lines, end = (folder / SUMS).read_bytes().decode(errors="replace").split("\n")
    except OSError as error:
        raise DamagedCheckpointError([f"{SUMS} cannot be read ({_reason(error)})"]) from error
    found = [re.fullmatch(r"([0-9a-f]{64})  (.+)", line) for line in lines]
    sums = [(match[2], match[1]) for match in found if match]
    if end or None in found or not sums or sums[-1][0] != MANIFEST:
        raise DamagedCheckpointError([f"{SUMS} is not what was saved"])
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    missing = [name for name, _ in sums if name not in there]
    changed = [name for name, sum in sums if name in there and _sha256(folder / name) != sum]
    if missing or changed:
        faults = [f"file {name} is missing ({SUMS} has it)" for name in missing]
        faults += [f"file {name} is not what was saved (by {SUMS})" for name in changed]
        raise DamagedCheckpointError(_changed_leaves(folder) + faults)


def _changed_leaves(folder: pathlib.Path) -> list[str]:
    """Returns a fault for each leaf of a damaged checkpoint that is not what was saved.

    Each is read by itself: Orbax reads all of them or none.
    """
    try:
        seals = json.loads((folder / MANIFEST).read_bytes())["leaves"].items()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    files = {"driver": "file", "path": f"{(folder / ARRAYS).absolute()}/"}
    faults = []
    for name, seal in seals:
        store = {"driver": "ocdbt", "base": files, "path": f"{name}/"}
        try:
            leaf = tensorstore.open({"driver": "zarr", "kvstore": store}).result().read().result()
            sound = _seal(leaf) == seal
        except Exception:  # A damaged file raises errors of many kinds.
            sound = False
        if not sound:
            faults.append(f"leaf {name} is not what was saved")
    return faults


def _leaves(tree):
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _seal(leaf):
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest}


def _sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error):
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else 'no message'}"
