"""Checkpoints: exact, of one config only, and protected against corruption."""

import collections
import contextlib
import errno
import gc
import hashlib
import logging
import os
import pathlib
import shutil
import subprocess
import time

import chex
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from fpnlab.errors import CheckpointError, DamagedCheckpointError
from fpnlab.nn.norm_layer import NormState
from fpnlab.train.checkpoint import Checkpoints, read_checkpoint
from fpnlab.train.step import TrainState


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


def test_restore_returns_the_saved_tree_bit_for_bit(checkpoints, tree):
    assert checkpoints.restore(tree) is None
    checkpoints.save(7, tree)
    step, restored = checkpoints.restore(jax.eval_shape(lambda: tree))
    assert step == 7
    chex.assert_trees_all_equal(restored, tree)
    chex.assert_trees_all_equal_dtypes(restored, tree)
    assert jax.tree.structure(restored) == jax.tree.structure(tree)


def test_save_keeps_the_newest_two_checkpoints(checkpoints, tree):
    for step in (1, 2, 3):
        checkpoints.save(step, jax.tree.map(lambda x: x + x.dtype.type(step), tree))
    assert checkpoints.steps() == [2, 3]
    np.testing.assert_array_equal(checkpoints.restore(tree)[1]["kernel"], tree["kernel"] + 3)


def test_a_checkpoint_with_an_old_leaf_name_is_restored_under_the_new_one(checkpoints):
    """`TrainState.skipped` was called ``refused`` in version 0.1."""
    state = TrainState(
        params={"kernel": jnp.ones(3)},
        state=None,
        optimizer=None,
        average=None,
        step=jnp.int32(7),
        seed=jnp.zeros(2, jnp.uint32),
        skipped=jnp.int32(2),
    )
    stored = {name: getattr(state, name) for name in ("params", "step", "seed")}
    checkpoints.save(7, stored | {"refused": state.skipped})
    assert "refused" in read_checkpoint(checkpoints.folder / "7")[1]
    step, restored = checkpoints.restore(jax.eval_shape(lambda: state))
    assert step == 7
    chex.assert_trees_all_equal(restored, state)


def test_an_old_leaf_name_that_the_tree_still_has_is_not_replaced(checkpoints):
    tree = {"refused": jnp.int32(1), "skipped": jnp.int32(2)}
    checkpoints.save(1, tree)
    chex.assert_trees_all_equal(checkpoints.restore(tree), (1, tree))
    with pytest.raises(CheckpointError, match="in only one of checkpoint and model"):
        checkpoints.restore({**tree, "kernel": jnp.ones(3)})


def test_restore_rejects_a_checkpoint_of_another_config(checkpoints, tree):
    checkpoints.save(1, tree)
    other = Checkpoints(checkpoints.folder, "b" * 64)
    with pytest.raises(
        CheckpointError, match=r"belongs to another config.*aaaa.*bbbb.*another output"
    ):
        other.restore(tree)


def files(folder):
    """The files of one checkpoint, and the first position of each among all their bytes."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return paths, np.cumsum([0] + [path.stat().st_size for path in paths])


@contextlib.contextmanager
def flipped(folder, bit):
    """Flips one bit among all those of a checkpoint's files; yields the file's name."""
    paths, begins = files(folder)
    position = int(np.searchsorted(begins, bit // 8, side="right")) - 1
    sound = paths[position].read_bytes()
    damaged = bytearray(sound)
    damaged[bit // 8 - begins[position]] ^= 1 << bit % 8
    paths[position].write_bytes(damaged)
    yield paths[position].relative_to(folder).as_posix()
    paths[position].write_bytes(sound)


def bits(folder, count):
    """Random bits of a checkpoint's files: half of them anywhere, half evenly over the files."""
    draw = np.random.default_rng(0)
    _, begins = files(folder)
    yield from map(int, draw.integers(8 * begins[-1], size=count // 2))
    for _ in range(count // 2):
        i = draw.integers(len(begins) - 1)
        yield int(draw.integers(8 * begins[i], 8 * begins[i + 1]))


def test_read_checkpoint_detects_each_of_1200_flipped_bits(checkpoints, tree):
    checkpoints.save(1, tree)
    folder = checkpoints.folder / "1"
    hit, detected = collections.Counter(), 0
    for bit in bits(folder, 1200):
        with flipped(folder, bit) as name, pytest.raises(DamagedCheckpointError) as caught:
            read_checkpoint(folder)
        hit[name] += 1
        detected += 1
        # A damaged line of the checksums names no file; then the error names the list itself.
        assert name in str(caught.value) or name == "SHA256SUMS", str(caught.value)
        assert "SHA256SUMS" in str(caught.value)
    assert detected == 1200
    assert set(hit) == {path.relative_to(folder).as_posix() for path in files(folder)[0]}
    read_checkpoint(folder)


def test_restore_rejects_checkpoints_with_a_flipped_bit(checkpoints, tree):
    checkpoints.save(1, tree)
    for bit in bits(checkpoints.folder / "1", 60):
        with flipped(checkpoints.folder / "1", bit) as name:
            with pytest.raises(CheckpointError, match="no intact checkpoint is left: remove"):
                checkpoints.restore(tree)
        assert name
    chex.assert_trees_all_equal(checkpoints.restore(tree), (1, tree))


def test_a_flipped_bit_is_reported_for_its_leaf_and_no_other(checkpoints):
    draw = np.random.default_rng(0)
    # Noise cannot be compressed: its bytes are stored in the file unchanged.
    noise = lambda: draw.integers(256, size=50_000, dtype=np.uint8)
    tree = {"a": {"kernel": noise(), "bias": noise()}, "b": noise(), "c": np.zeros(9)}
    checkpoints.save(1, tree)
    folder = checkpoints.folder / "1"
    paths, begins = files(folder)
    for name, leaf in {"a/kernel": tree["a"]["kernel"], "b": tree["b"]}.items():
        for at in map(int, draw.integers(len(leaf) - 100, size=20)):
            part = leaf[at : at + 100].tobytes()
            [byte] = [
                begin + path.read_bytes().index(part)
                for path, begin in zip(paths, begins)
                if part in path.read_bytes()
            ]
            with (
                flipped(folder, int(8 * byte + draw.integers(800))),
                pytest.raises(DamagedCheckpointError) as e,
            ):
                read_checkpoint(folder)
            assert [problem for problem in e.value.problems if problem.startswith("leaf")] == [
                f"leaf {name} is not what was saved"
            ]


@pytest.mark.parametrize("name", ["manifest.json", "SHA256SUMS", "leaves/manifest.ocdbt"])
def test_a_missing_file_of_a_checkpoint_is_named(name, checkpoints, tree):
    checkpoints.save(1, tree)
    (checkpoints.folder / "1" / name).unlink()
    with pytest.raises(CheckpointError, match=f"{name} (is missing|cannot be read)"):
        checkpoints.restore(tree)


def test_restore_rejects_a_truncated_list_of_checksums(checkpoints, tree):
    checkpoints.save(1, tree)
    sums = checkpoints.folder / "1" / "SHA256SUMS"
    lines = sums.read_text().splitlines(keepends=True)
    for kept in range(len(lines)):
        sums.write_text("".join(lines[:kept]))
        with pytest.raises(CheckpointError, match="SHA256SUMS is not what was saved"):
            checkpoints.restore(tree)


def test_a_leaf_that_orbax_casts_silently_is_named(checkpoints, tree, monkeypatch):
    checkpoints.save(1, tree)
    right = ocp.Checkpointer.restore

    def wrong(*args, **kwargs):
        leaves = right(*args, **kwargs)
        return {**leaves, "kernel": leaves["kernel"].astype(np.float16)}

    monkeypatch.setattr(ocp.Checkpointer, "restore", wrong)
    with pytest.raises(CheckpointError, match="leaf kernel is not what was saved"):
        checkpoints.restore(tree)


def test_restore_falls_back_to_the_checkpoint_before_a_damaged_one(checkpoints, tree, caplog):
    checkpoints.save(1, tree)
    checkpoints.save(5, tree)
    (checkpoints.folder / "5" / "manifest.json").write_text("{}")
    with caplog.at_level(logging.WARNING):
        assert checkpoints.restore(tree)[0] == 1
    assert "5: file manifest.json is not what was saved" in caplog.text
    assert "trying the previous one" in caplog.text
    later = jax.tree.map(lambda x: x + x.dtype.type(1), tree)
    checkpoints.save(3, later)
    assert checkpoints.steps() == [1, 3]
    chex.assert_trees_all_equal(checkpoints.restore(tree), (3, later))


def test_files_of_a_killed_save_are_ignored_and_removed(checkpoints, tree):
    checkpoints.save(1, tree)
    left = checkpoints.folder / ".2.tmp" / "leaves"
    left.mkdir(parents=True)
    assert checkpoints.restore(tree)[0] == 1
    checkpoints.save(2, tree)
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["1", "2"]


def test_restore_rejects_another_shape_dtype_or_structure(checkpoints, tree):
    checkpoints.save(1, tree)
    with pytest.raises(CheckpointError, match="levels/3"):
        checkpoints.restore({**tree, "levels": {**tree["levels"], 3: jnp.arange(5.0)}})
    with pytest.raises(CheckpointError, match="leaf extra is in only one"):
        checkpoints.restore({**tree, "extra": jnp.zeros(1)})


def test_save_on_a_full_disk_names_the_remedy_and_keeps_the_previous_checkpoint(
    checkpoints, tree, monkeypatch
):
    checkpoints.save(1, tree)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(ocp.Checkpointer, "save", full)
    with pytest.raises(
        CheckpointError, match=r"checkpoint 2.*No space left.*free space.*complete: 1"
    ):
        checkpoints.save(2, tree)
    monkeypatch.undo()
    assert checkpoints.restore(tree)[0] == 1


def test_save_reports_an_error_without_a_message_by_its_type(checkpoints, tree, monkeypatch):
    def mute(*_, **__):
        raise RuntimeError

    monkeypatch.setattr(ocp.Checkpointer, "save", mute)
    with pytest.raises(CheckpointError, match=r"checkpoint 1 could not be written .*RuntimeError"):
        checkpoints.save(1, tree)
    assert checkpoints.steps() == []


def renew_sums(folder):
    """Writes the list of checksums anew, so that Orbax reads the damaged files."""
    paths = [path for path in files(folder)[0] if path.name not in ("manifest.json", "SHA256SUMS")]
    lines = [
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder).as_posix()}\n"
        for path in [*paths, folder / "manifest.json"]
    ]
    (folder / "SHA256SUMS").write_text("".join(lines))


def printed(capfd):
    """The standard error, with that of threads that end later and of garbage."""
    time.sleep(0.05)
    gc.collect()
    return capfd.readouterr().err


@pytest.mark.parametrize("damage", ["empty", "half", "missing", "changed"])
def test_a_damaged_checkpoint_prints_nothing_beside_its_error(damage, checkpoints, capfd):
    tree = {f"w{i}": jax.device_put(np.full((4, 5), i, np.float32)) for i in range(30)}
    checkpoints.save(1, tree)
    sound, folder = checkpoints.folder / "1", checkpoints.folder / "2"
    failed = 0
    for path in files(sound / "leaves")[0]:
        shutil.copytree(sound, folder)
        damaged = folder / path.relative_to(sound)
        content = path.read_bytes()
        match damage:
            case "empty":
                damaged.write_bytes(b"")
            case "half":
                damaged.write_bytes(content[: len(content) // 2])
            case "missing":
                damaged.unlink()
            case "changed":
                damaged.write_bytes(bytes(byte ^ 90 for byte in content))
        renew_sums(folder)
        try:
            read_checkpoint(folder)
        except DamagedCheckpointError as error:
            assert "\n" not in str(error)  # noqa: PT017
            failed += 1
        shutil.rmtree(folder)
    assert failed >= 2
    assert printed(capfd) == ""


@contextlib.contextmanager
def disk_of(place, options):
    """Mounts a small file system for the time of the context."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root, or this system does not allow it")
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.parametrize(
    "options",
    [*(f"size={k}k" for k in range(196, 244, 8)), *(f"nr_inodes={n}" for n in range(12, 20, 4))],
)
def test_a_full_disk_prints_nothing_beside_its_error(options, tmp_path, capfd):
    noise = np.random.default_rng(0).normal(size=(40, 30, 40)).astype(np.float32)
    tree = {f"w{i}": jax.device_put(array) for i, array in enumerate(noise)}
    with disk_of(tmp_path / "disk", options) as disk:
        with pytest.raises(CheckpointError, match="checkpoint 1 could not be written") as caught:
            Checkpoints(disk / "checkpoints", "a" * 64).save(1, tree)
        assert "\n" not in str(caught.value)
        del caught
        assert printed(capfd) == ""


@pytest.mark.slow
def test_save_on_a_file_system_that_is_full_keeps_the_previous_checkpoint(tmp_path):
    with disk_of(tmp_path / "disk", "size=2m") as disk:
        checkpoints = Checkpoints(pathlib.Path(disk) / "checkpoints", "a" * 64)
        noise = {"w": jax.random.normal(jax.random.key(0), (400, 1000))}
        checkpoints.save(1, noise)
        with pytest.raises(CheckpointError, match=r"checkpoint 2 could not be written"):
            checkpoints.save(2, noise)
        chex.assert_trees_all_equal(checkpoints.restore(noise), (1, noise))
