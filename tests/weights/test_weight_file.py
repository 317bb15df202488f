"""Arrays from files of weights, against PyTorch and safetensors."""

import argparse
import collections
import pathlib

import ml_dtypes
import numpy as np
import pytest

from fpnlab.errors import RunFolderError, WeightsError
from fpnlab.weights import read_weights, write_safetensors
from fpnlab.weights.torch_objects import DTYPES

torch = pytest.importorskip("torch", reason="PyTorch is the oracle")

NAMES = [name for name in DTYPES if hasattr(torch, name)]
FORMATS = {"zip": {}, "old": {"_use_new_zipfile_serialization": False}}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


def values(name):
    """A tensor of 24 values of a dtype, none of them special."""
    bits = torch.arange(1, 25)
    if name == "bool":
        return bits % 3 == 0
    if name.startswith("complex"):
        return (bits + 1j * bits.flip(0)).to(getattr(torch, name))
    return bits.to(torch.float32).to(getattr(torch, name))


def as_numpy(tensor):
    """A tensor of any dtype as an array, by its bytes."""
    name = str(tensor.dtype).removeprefix("torch.")
    plain = tensor.resolve_conj().resolve_neg().contiguous()
    flat = plain.reshape(-1).view(torch.uint8).numpy() if plain.numel() else np.zeros(0, np.uint8)
    return flat.view(DTYPES[name]).reshape(tuple(tensor.shape))


def check(found, tensors):
    assert list(found) == list(tensors)
    for name, tensor in tensors.items():
        expected = as_numpy(tensor)
        assert found[name].dtype == expected.dtype, name
        assert found[name].shape == expected.shape, name
        assert found[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("name", NAMES)
def test_every_dtype_is_read_as_pytorch_wrote_it(name, protocol, options, path):
    tensors = {"w": values(name).reshape(2, 3, 4), "scalar": values(name)[0], "x": values(name)[:0]}
    torch.save(tensors, path, pickle_protocol=protocol, **options)
    check(read_weights(path), tensors)


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
def test_every_layout_is_read_as_pytorch_wrote_it(options, path):
    base = torch.arange(24.0).reshape(2, 3, 4)
    tensors = collections.OrderedDict(
        whole=base,
        transposed=base.permute(2, 0, 1),
        part=base[1:, ::2, 1:3],
        row=base[1, 2],
        channels_last=torch.arange(120.0)
        .reshape(1, 2, 6, 10)
        .to(memory_format=torch.channels_last),
        expanded=torch.arange(3.0).reshape(3, 1).expand(3, 1000),
        windows=torch.arange(10.0).unfold(0, 4, 1),
        empty=base[:, :0],
        empty_part=base[2:],
        scalar=base[1, 1, 1],
        conjugate=torch.tensor([1 + 2j, 3 - 4j]).conj(),
        negative=torch.tensor([1 + 2j, 3 - 4j]).conj().imag,
        parameter=torch.nn.Parameter(base.clone()),
    )
    torch.save(tensors, path, **options)
    found = read_weights(path)
    check(found, tensors)
    assert np.shares_memory(found["whole"], found["transposed"])
    assert not any(array.flags.writeable for array in found.values() if array.base is not None)


def test_a_big_endian_file_is_read_as_pytorch_reads_it(path):
    tensors = {name: values(name) for name in NAMES if not name.startswith(("float8", "uint"))}
    sys_byteorder = torch.serialization.sys.byteorder
    swapped = {}
    for name, tensor in tensors.items():
        array = as_numpy(tensor)
        part = array.itemsize // (2 if name.startswith("complex") else 1)
        flat = array.view(f"u{part}").byteswap()
        swapped[name] = torch.frombuffer(bytearray(flat.tobytes()), dtype=tensor.dtype)
    assert sys_byteorder == "little"
    torch.save(swapped, path)
    content = path.read_bytes()
    # The record of the byte order is the word alone; its checksum is left out of the directory.
    path.write_bytes(_relabeled(content))
    check(read_weights(path), tensors)
    theirs = torch.load(path, weights_only=True)
    for name, tensor in tensors.items():
        assert torch.equal(theirs[name], tensor), name


def _relabeled(content):
    """A zip archive of little-endian numbers, labeled big-endian."""
    import io
    import zipfile

    out = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(out, "w") as new:
        for name in old.namelist():
            big = name.endswith("byteorder")
            new.writestr(name, b"big" if big else old.read(name))
    return out.getvalue()


@pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("key", [None, "state_dict", "model_state_dict", "model", "net"])
def test_a_state_dict_is_found_among_other_things(key, options, path):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    optimizer = torch.optim.Adam(model.parameters())
    model(torch.ones(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 2, 5])
    state = model.state_dict()
    assert state._metadata
    others = {
        "epoch": 3,
        "best": np.float64(0.5),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "args": argparse.Namespace(lr=0.1, layers=[1, 2]),
        "device": torch.device("cpu"),
        "shape": torch.Size([1, 2]),
        "seen": {1, 2},
        "fixed": frozenset("ab"),
        "bytes": b"abc",
        "by_class": collections.defaultdict(list, {1: [2]}),
        "number": 2 + 1j,
        "large": 2**100,
    }
    torch.save(state if key is None else {**others, key: state}, path, **options)
    check(read_weights(path), state)


def test_prefixes_of_wrappers_are_left_out_where_all_names_have_them(path):
    state = torch.nn.Linear(2, 3).state_dict()
    for prefix in ("module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."):
        torch.save({f"{prefix}{name}": value for name, value in state.items()}, path)
        check(read_weights(path), state)
    partly = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(partly, path)
    check(read_weights(path), partly)


def test_a_whole_model_is_an_error_that_says_what_to_save(path):
    torch.save(torch.nn.Linear(2, 3), path)
    with pytest.raises(WeightsError, match=r"'torch\.nn\.modules\.linear\.Linear'.*state_dict\(\)"):
        read_weights(path)


def test_a_torchscript_model_is_an_error_that_says_what_to_save(path):
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 3)), path)
    with pytest.raises(WeightsError, match=r"TorchScript.*torch\.jit\.load"):
        read_weights(path)


def test_a_file_without_checksums_is_read(path):
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    torch.save({"w": torch.ones(5)}, path)
    torch.serialization.set_crc32_options(before)
    assert read_weights(path)["w"].tolist() == [1.0] * 5


def test_a_changed_value_differs_from_its_checksum(path):
    torch.save({"w": torch.full((5,), 1.2345)}, path)
    content = path.read_bytes()
    value = np.float32(1.2345).tobytes()
    path.write_bytes(content.replace(value * 5, value * 4 + bytes(4)))
    with pytest.raises(WeightsError, match="storage '0' differs from its checksum"):
        read_weights(path)


@pytest.mark.parametrize("network", [20, 32, 44, 56])
def test_the_trained_cifar_networks_are_read_as_pytorch_reads_them(network, data_root):
    (found,) = (data_root / "cifar_resnets").glob(f"resnet{network}-*.th")
    theirs = torch.load(found, map_location="cpu", weights_only=True)["state_dict"]
    check(read_weights(found), {k.removeprefix("module."): v for k, v in theirs.items()})


ARRAYS = {
    "a": np.arange(6, dtype=np.float32).reshape(2, 3),
    "b.bfloat16": np.arange(5).astype(ml_dtypes.bfloat16),
    "c": np.zeros((0, 3), np.int64),
    "d": np.array(True),
    "e": np.arange(3, dtype=np.float16)[::-1],
    "é": np.arange(4, dtype=">f8"),
    "f": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
}


def test_written_arrays_are_read_back_exactly(path):
    write_safetensors(path, ARRAYS)
    found = read_weights(path)
    assert sorted(found) == sorted(ARRAYS)
    for name, array in ARRAYS.items():
        assert found[name].dtype == array.dtype.newbyteorder("=")
        np.testing.assert_array_equal(found[name], array)


def test_the_library_of_safetensors_reads_what_is_written_and_the_other_way(path):
    library = pytest.importorskip("safetensors.torch", reason="safetensors is the oracle")
    write_safetensors(path, ARRAYS)
    theirs = library.load_file(path)
    for name, array in ARRAYS.items():
        native = np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)
        assert as_numpy(theirs[name]).tobytes() == native.tobytes()
    tensors = {name: values(name).reshape(4, 6) for name in NAMES if name != "complex128"}
    library.save_file(tensors, path, metadata={"format": "pt"})
    found = read_weights(path)
    check({name: found[name] for name in tensors}, tensors)


def test_a_file_that_cannot_be_written_stays_as_it_was(path, monkeypatch):
    write_safetensors(path, {"a": np.ones(2)})
    before = path.read_bytes()
    fail = lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(RunFolderError, match="No space left"):
        write_safetensors(path, {"a": np.zeros(2)})
    assert path.read_bytes() == before
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("wrong", [{"a": np.ones(2, complex)}, {"a": np.array("x")}])
def test_what_the_format_does_not_have_is_named(wrong, path):
    with pytest.raises(TypeError, match=r"a' of dtype .*; expected names of text .*float32"):
        write_safetensors(path, wrong)
    assert not path.exists()
