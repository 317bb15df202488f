"""Checkpoints that resume exactly, and are never restored changed.

Orbax writes the arrays (atomically: a killed save leaves the one before). It does not notice a
flipped bit, casts silently, and knows no configs; so a manifest with the shape, dtype and
SHA-256 of every leaf, and with the config's hash, is written inside each checkpoint and checked
when it is restored.
"""

import dataclasses
import hashlib
import logging
import pathlib
from typing import TypeVar

import jax
import numpy as np
import orbax.checkpoint as ocp

Tree = TypeVar("Tree")


class CheckpointError(Exception):
    """A checkpoint that could not be written, or must not be used."""

    exit_code = 5


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

        Raises:
          CheckpointError: it could not be written (a full disk, a folder without write
            permission); the checkpoints before it are intact.
        """
        # Of several processes, Orbax saves arrays of the host or of all of them.
        leaves = _leaves(jax.device_get(tree) if jax.process_count() > 1 else tree)
        manifest = {
            "config_hash": self.config_hash,
            "leaves": {k: _seal(v) for k, v in leaves.items()},
        }
        try:
            with self._manager() as manager:
                manager.save(
                    step,
                    args=ocp.args.Composite(
                        leaves=ocp.args.StandardSave(leaves), manifest=ocp.args.JsonSave(manifest)
                    ),
                )
        except (OSError, ValueError, RuntimeError) as error:
            kept = ", ".join(map(str, self.steps())) or "none"
            raise CheckpointError(
                f"{self.folder}: checkpoint {step} could not be written ({_reason(error)}); "
                f"free space or choose another folder, then run the same command again: it goes "
                f"on from the last complete checkpoint (complete: {kept})"
            ) from error

    def restore(self, like: Tree) -> tuple[int, Tree] | None:
        """Returns the newest sound checkpoint and its number; None if there is none at all.

        A damaged checkpoint is passed over for the one before it, with a warning that names
        the leaf.

        Args:
          like: a tree of the same structure, shapes and dtypes, arrays or ``eval_shape``'s.

        Raises:
          CheckpointError: the newest is of another config, or all are damaged.
        """
        faults = []
        for step in reversed(self.steps()):
            try:
                return step, self._read(step, like)
            except _Damaged as damage:
                faults.append(f"{self.folder / str(step)}: {damage}")
                logging.getLogger(__name__).warning("%s; trying the one before", faults[-1])
        if faults:
            raise CheckpointError(
                f"{'; '.join(faults)}; no sound checkpoint is left: remove {self.folder} to start "
                "this run again from its beginning"
            )
        return None

    def _read(self, step, like):
        try:
            with self._manager() as manager:
                manifest = manager.restore(
                    step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore())
                ).manifest
        except Exception as error:
            raise _Damaged(f"its manifest cannot be read ({_reason(error)})") from error
        if manifest.get("config_hash") != self.config_hash:
            raise CheckpointError(
                f"{self.folder / str(step)}: it belongs to another config (hash "
                f"{str(manifest.get('config_hash'))[:12]}, this run has {self.config_hash[:12]}); "
                "use another output folder, or the config that the run began with"
            )
        wanted = _leaves(like)
        if unknown := set(wanted) ^ set(manifest["leaves"]):
            raise _Damaged(f"leaf {min(unknown)} is in only one of checkpoint and model")
        host = {k: jax.ShapeDtypeStruct(v.shape, v.dtype) for k, v in wanted.items()}
        try:
            with self._manager() as manager:
                leaves = manager.restore(
                    step, args=ocp.args.Composite(leaves=ocp.args.StandardRestore(host))
                ).leaves
        except Exception as error:
            raise _Damaged(f"its arrays cannot be read ({_reason(error)})") from error
        for name, leaf in leaves.items():
            if _seal(leaf) != manifest["leaves"][name]:
                raise _Damaged(f"leaf {name} is not what was saved (its SHA-256 differs)")
        structure = jax.tree.structure(like)
        return jax.tree.unflatten(structure, [leaves[name] for name in wanted])

    def _manager(self):
        self.folder.mkdir(parents=True, exist_ok=True)
        # Of several processes, one has the folder, and waits for no other.
        alone = jax.process_index()
        return ocp.CheckpointManager(
            self.folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=2,
                create=False,
                enable_async_checkpointing=False,
                cleanup_tmp_directories=True,
                multiprocessing_options=ocp.options.MultiprocessingOptions(
                    primary_host=alone, active_processes={alone}
                ),
            ),
        )


class _Damaged(Exception):
    """Why one checkpoint cannot be used."""


def _leaves(tree):
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _seal(leaf):
    array = np.ascontiguousarray(leaf)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    return {"shape": list(array.shape), "dtype": str(array.dtype), "sha256": digest}


def _reason(error):
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else 'no message'}"
