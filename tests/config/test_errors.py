"""Messages for invalid configs: a file of inputs with their messages, regenerated and compared."""

import os
import pathlib
import tomllib

import pytest

from fpnlab.config.field_error import FieldError
from fpnlab.config.load import load_config
from fpnlab.config.study import Axis, applied
from fpnlab.config.trials import trials
from fpnlab.config.validate import validate
from fpnlab.errors import ConfigError

from ..small_config import RUN, STUDY

SNAPSHOT = pathlib.Path(__file__).parent / "data" / "errors.txt"

ONE_SEED = STUDY.replace("seeds = [0, 1]", "seeds = [0]")
CONFIGS = {"run": RUN, "study": RUN + ONE_SEED}


def message(config, lines):
    """Returns the message for a config in which the fields of ``lines`` are set."""
    table = tomllib.loads(CONFIGS[config])
    for line in lines:
        path, _, value = line.partition(" = ")
        if path == "study.axes.1":  # A second axis.
            table["study"]["axes"].append(None)
        table = applied(table, {path: tomllib.loads(f"value = {value}")["value"]})
    with pytest.raises(ConfigError) as caught:
        check(table)
    return str(caught.value)


def check(table):
    experiment = validate(table)
    if experiment.study:
        trials(experiment)


def cases(text):
    """Yields each block of the snapshot with its config: None for comments and headings."""
    config = None
    for block in text.rstrip().split("\n\n"):
        if block.startswith("=="):
            config = block.removeprefix("== ").partition(":")[0]
        given = [line for line in block.splitlines() if not line.startswith((" ", "#", "=="))]
        yield block, config if given else None, given


def regenerated(text):
    blocks = []
    for block, config, given in cases(text):
        if config is not None:
            answer = message(config, given).splitlines()
            block = "\n".join([*given, *(f"    {line}" for line in answer)])
        blocks.append(block)
    return "\n\n".join(blocks) + "\n"


def test_messages_for_invalid_configs_are_those_of_the_snapshot():
    text = SNAPSHOT.read_text()
    if os.environ.get("FPNLAB_UPDATE"):
        SNAPSHOT.write_text(regenerated(text))
    assert regenerated(text) == SNAPSHOT.read_text()


def test_every_message_begins_with_the_path_of_a_field_and_says_what_would_work():
    for block, config, _ in cases(SNAPSHOT.read_text()):
        for line in block.splitlines() if config else ():
            if line.startswith(" "):
                path, _, problem = line.strip().partition(": ")
                assert " " not in path
                assert problem
                assert not problem.endswith((".", ";"))


@pytest.mark.parametrize(("values", "twice"), [((2, 2), 2), ((1, 1.0), 1.0), ((1, True), True)])
def test_a_spec_made_in_python_names_the_field_like_a_config(values, twice):
    with pytest.raises(FieldError) as caught:
        Axis(field="train.batch_size", values=values)
    assert str(caught.value) == f"values: has {twice} twice; it must have each value once"
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (os.mkfifo, "is a named pipe; expected a regular file"),
        (os.mkdir, "is a folder; expected a regular file"),
        (lambda path: path.symlink_to("/dev/zero"), "is a device; expected a regular file"),
        (lambda path: path.write_bytes(bytes(10**6 + 1)), "has 1,000,001 bytes; at most 1,000,000"),
    ],
    ids=["pipe", "folder", "device", "large"],
)
def test_what_is_no_config_is_an_error_at_once(make, says, tmp_path):
    path = tmp_path / "config.toml"
    make(path)
    with pytest.raises(ConfigError, match=f"config.toml: not a readable TOML file: {says}"):
        load_config(path)
