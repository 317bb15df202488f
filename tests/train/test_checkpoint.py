"""Checkpoints: exact, of one config only, and never restored changed."""

import errno
import json
import logging
import os
import pathlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fpnlab.model.norm import NormState
from fpnlab.train.checkpoint import CheckpointError, Checkpoints

# When one array cannot be read, Orbax abandons its other reads, which then complain as they end.
damaging = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture
def tree(key):
    return {
        "kernel": jax.random.normal(key, (3, 4)),
        "norms": (
            NormState(mean=jnp.ones(4), var=jnp.ones(4), count=jnp.zeros(()), seen=jnp.zeros(())),
            None,
        ),
        "levels": {3: jnp.arange(5, dtype=jnp.int32), 4: jnp.zeros((2,), jnp.bfloat16)},
    }


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", "a" * 64)


def test_what_was_saved_comes_back_bit_for_bit(checkpoints, tree):
    assert checkpoints.restore(tree) is None
    checkpoints.save(7, tree)
    step, restored = checkpoints.restore(jax.eval_shape(lambda: tree))
    assert step == 7
    chex.assert_trees_all_equal(restored, tree)
    chex.assert_trees_all_equal_dtypes(restored, tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)


def test_the_newest_two_are_kept(checkpoints, tree):
    for step in (1, 2, 3):
        checkpoints.save(step, jax.tree.map(lambda x: x + x.dtype.type(step), tree))
    assert checkpoints.steps() == [2, 3]
    np.testing.assert_array_equal(checkpoints.restore(tree)[1]["kernel"], tree["kernel"] + 3)


def test_a_checkpoint_of_another_config_is_refused(checkpoints, tree):
    checkpoints.save(1, tree)
    other = Checkpoints(checkpoints.folder, "b" * 64)
    with pytest.raises(
        CheckpointError, match=r"belongs to another config.*aaaa.*bbbb.*another output"
    ):
        other.restore(tree)


def arrays(folder):
    """Files of array data of one checkpoint."""
    return [p for p in folder.rglob("*") if p.is_file() and "/d/" in str(p)]


@damaging
def test_no_flipped_bit_is_ever_restored(checkpoints, tree):
    checkpoints.save(1, tree)
    draw = np.random.default_rng(0)
    refused = 0
    for _ in range(12):
        files = arrays(checkpoints.folder / "1")
        path = files[draw.integers(len(files))]
        sound = path.read_bytes()
        damaged = bytearray(sound)
        damaged[draw.integers(len(damaged))] ^= 1 << draw.integers(8)
        path.write_bytes(bytes(damaged))
        try:
            _, restored = checkpoints.restore(tree)
            # A bit that no array uses may flip; one that changes a value may not.
            chex.assert_trees_all_equal(restored, tree)
        except CheckpointError as error:
            refused += 1
            assert "no sound checkpoint is left" in str(error)  # noqa: PT017
        path.write_bytes(sound)
    assert refused > 0
    chex.assert_trees_all_equal(checkpoints.restore(tree)[1], tree)


def test_a_changed_leaf_is_named_and_the_checkpoint_before_it_is_used(checkpoints, tree, caplog):
    checkpoints.save(1, tree)
    checkpoints.save(2, tree)
    manifest = checkpoints.folder / "2" / "manifest" / "metadata"
    content = json.loads(manifest.read_text())
    content["leaves"]["norms/0/mean"]["sha256"] = "0" * 64
    manifest.write_text(json.dumps(content))
    with caplog.at_level(logging.WARNING):
        step, restored = checkpoints.restore(tree)
    assert step == 1
    chex.assert_trees_all_equal(restored, tree)
    assert "leaf norms/0/mean is not what was saved" in caplog.text


@damaging
def test_a_truncated_checkpoint_is_refused_with_a_remedy(checkpoints, tree):
    checkpoints.save(1, tree)
    for path in arrays(checkpoints.folder / "1"):
        path.write_bytes(path.read_bytes()[:5])
    with pytest.raises(CheckpointError, match="no sound checkpoint is left: remove"):
        checkpoints.restore(tree)


@damaging
def test_another_shape_or_dtype_is_refused(checkpoints, tree):
    checkpoints.save(1, tree)
    with pytest.raises(CheckpointError, match="levels/3"):
        checkpoints.restore({**tree, "levels": {**tree["levels"], 3: jnp.arange(5.0)}})
    with pytest.raises(CheckpointError, match="leaf extra is in only one"):
        checkpoints.restore({**tree, "extra": jnp.zeros(1)})


def test_a_full_disk_names_folder_and_remedy_and_leaves_the_checkpoint_before(
    checkpoints, tree, monkeypatch
):
    checkpoints.save(1, tree)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(
        CheckpointError, match=r"checkpoint 2.*No space left.*free space.*complete: 1"
    ):
        checkpoints.save(2, tree)
    monkeypatch.undo()
    assert checkpoints.restore(tree)[0] == 1


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_really_full_disk_leaves_the_checkpoint_before(tmp_path):
    import subprocess

    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], check=False
    )
    if mounted.returncode:
        pytest.skip("this system does not let a small file system be mounted")
    try:
        checkpoints = Checkpoints(pathlib.Path(disk) / "checkpoints", "a" * 64)
        noise = {"w": jax.random.normal(jax.random.key(0), (400, 1000))}
        checkpoints.save(1, noise)
        with pytest.raises(CheckpointError, match=r"checkpoint 2 could not be written"):
            checkpoints.save(2, noise)
        chex.assert_trees_all_equal(checkpoints.restore(noise), (1, noise))
    finally:
        subprocess.run(["umount", str(disk)], check=True)
