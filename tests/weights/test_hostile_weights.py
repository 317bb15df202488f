"""Files of weights run nothing, and whatever is wrong with them is one error at once."""

import contextlib
import json
import pathlib
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from fpnlab.errors import WeightsError
from fpnlab.weights import read_weights, write_safetensors
from tests.weights.hostile import archive, code, lying, old, storage, tensor

SECONDS = 1.0
MOST_BYTES = 200 * 10**6
MARKER = pathlib.Path("marker-of-code-that-ran")
MALICIOUS = code(MARKER)
DAMAGED = lying()


def check_message(message, path):
    assert message.startswith(f"{path}: ")
    assert len(message) < 1000
    assert message.isprintable()
    assert any(f"; {word}" in message for word in ("save ", "the file is ", "expected ", "pack "))


def error_of(path, content):
    """The message of the only error."""
    path.write_bytes(content)
    return error_in(path)


def error_in(path):
    """The message of the only error of a file that is there."""
    with pytest.raises(WeightsError) as caught:
        read_weights(path)
    check_message(str(caught.value), path)
    return str(caught.value)


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path / "weights.pth"


def test_the_files_are_valid_before_they_are_made_hostile(path):
    for content in (archive(tensor()), old(tensor(storage(view=b"N")))):
        path.write_bytes(content)
        assert read_weights(path)["w"].tolist() == [0.0] * 4


@pytest.mark.parametrize("packed", [archive, old])
@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_file_runs_nothing(name, packed, path):
    error_of(path, packed(MALICIOUS[name]))
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize("name", MALICIOUS)
def test_a_malicious_pickle_alone_runs_nothing(name, path):
    error_of(path, MALICIOUS[name])
    assert [*path.parent.iterdir()] == [path]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("os.system", "data.pkl, byte 2: it refers to 'os.system'"),
        ("eval", "'builtins.eval'"),
        ("a chain of getattr", "'builtins.getattr'"),
        ("a dotted name", "'torch.os.system'"),
        ("a subprocess", "'subprocess.call'"),
        ("a class with __setstate__", "hostile.Stateful'"),
        ("INST", "the instruction INST of 'os system'"),
        ("EXT1", "the instruction EXT1"),
        ("NEWOBJ", "'subprocess.Popen'"),
        ("BUILD on a tensor", "'os.system'"),
    ],
)
def test_an_error_of_a_malicious_file_names_what_it_asks_for(name, says, path):
    message = error_of(path, archive(MALICIOUS[name]))
    assert says in message
    assert "torch.save(model.state_dict(), path)" in message


READING = """
import json, pathlib, sys, time, tracemalloc
from fpnlab.errors import WeightsError
from fpnlab.weights import read_weights

def read(path):
    try:
        read_weights(path)
    except WeightsError as error:
        return str(error)

for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):
    start = time.process_time()
    read(path)
    seconds = time.process_time() - start
    tracemalloc.start()
    message = read(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(json.dumps([int(path.name), seconds, peak, message]))
"""
"""Reads all files of a folder, and prints what each took; without the type checks of the tests,
which take ten times as long."""


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Path, seconds, largest memory and message of each damaged file."""
    folder, scratch = tmp_path_factory.mktemp("files"), tmp_path_factory.mktemp("scratch")
    files = [*DAMAGED.values(), *map(archive, MALICIOUS.values()), *map(old, MALICIOUS.values())]
    for number, content in enumerate(files):
        (folder / str(number)).write_bytes(content)
    command = [sys.executable, "-c", READING, folder]
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, check=True)
    rows = sorted(map(json.loads, done.stdout.splitlines()))
    assert len(rows) == len(files)
    assert [*scratch.iterdir()] == []
    return [(folder / str(number), *row) for number, *row in rows]


@pytest.mark.parametrize("number", range(len(DAMAGED)), ids=DAMAGED)
def test_a_damaged_file_is_one_error(number, outcomes):
    path, _, _, message = outcomes[number]
    check_message(message, path)


def test_no_hostile_file_takes_a_second_or_much_memory(outcomes):
    assert max(seconds for _, seconds, _, _ in outcomes) < SECONDS
    assert max(peak for _, _, peak, _ in outcomes) < MOST_BYTES


def whole_files():
    """A valid file of each format, by name."""
    arrays = {f"layer{i}.weight": np.full((3, 4), i, np.float32) for i in range(8)}
    scratch = pathlib.Path("whole.safetensors")
    write_safetensors(scratch, arrays)
    found = {"safetensors": scratch.read_bytes()}
    scratch.unlink()
    found["zip"] = archive(tensor())
    found["old"] = old(tensor(storage(view=b"N")))
    found["zip, later protocol"] = archive(b"\x80\x04" + tensor()[2:])
    return found


def test_a_file_truncated_at_any_place_is_one_error(path):
    for name, content in whole_files().items():
        path.write_bytes(content)
        assert read_weights(path), name
        for i in range(50):
            error_of(path, content[: i * len(content) // 50])


def test_a_flipped_byte_gives_the_arrays_or_one_error(path):
    draw = np.random.default_rng(0)
    for content in whole_files().values():
        for place in draw.integers(len(content), size=200):
            damaged = bytearray(content)
            damaged[place] ^= int(draw.integers(1, 256))
            path.write_bytes(damaged)
            with contextlib.suppress(WeightsError):
                read_weights(path)


def test_a_file_that_is_none_is_one_error(path):
    with pytest.raises(WeightsError, match=r"cannot be read \(No such file"):
        read_weights(path)
    with pytest.raises(WeightsError, match="is a folder; expected a regular file"):
        read_weights(path.parent)
    with path.open("xb") as file:
        file.truncate(2**42)
    with pytest.raises(WeightsError, match="has 4,398,046,511,104 bytes; at most"):
        read_weights(path)


def test_a_sparse_file_takes_no_memory_before_its_head_is_valid(path):
    with path.open("xb") as file:
        file.write(b"\x80\x02}.")
        file.truncate(2**33)
    tracemalloc.start()
    error_in(path)
    assert tracemalloc.get_traced_memory()[1] < MOST_BYTES
    tracemalloc.stop()
