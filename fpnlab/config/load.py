"""Reading of TOML files and overrides into one validated `Experiment`."""

import pathlib
import tomllib
from collections.abc import Iterable

from fpnlab.config.experiment import Experiment
from fpnlab.config.hints import field_hint, kind_of, spec_members
from fpnlab.config.study import applied
from fpnlab.config.trials import trials
from fpnlab.config.validate import validate
from fpnlab.errors import ConfigError
from fpnlab.records.json_files import JsonObject
from fpnlab.records.regular_files import read_regular

MOST_CONFIG_BYTES = 10**6
"""Largest TOML file in bytes."""


def load_config(path: str | pathlib.Path, overrides: Iterable[tuple[str, str]] = ()) -> Experiment:
    """Returns the experiment in a TOML file, with dotted fields overridden.

    Args:
      path: The TOML file.
      overrides: Pairs like ``("train.batch_size", "8")``; a value that is not TOML is text.

    Raises:
      ConfigError: The file is missing or not TOML, or its experiment is invalid; all errors at
        once, each with its dotted path.
    """
    try:
        table = tomllib.loads(_text(pathlib.Path(path)))
    except FileNotFoundError:
        near = ", ".join(sorted(str(p) for p in pathlib.Path("configs").glob("*.toml")))
        remedy = f"these are here: {near}" if near else "give the path of a TOML file"
        raise ConfigError(f"{path}: no such file; {remedy}") from None
    except RecursionError:
        raise ConfigError(f"{path}: not a readable TOML file: it is nested too deeply") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable TOML file: {error}") from None
    for dotted, text in overrides:
        field = _with_underscores(dotted)
        table = applied(table, {field: _value(text, field, table)})
    try:
        experiment = validate(table)
        if experiment.study:
            trials(experiment)
    except ConfigError as error:
        raise ConfigError(f"{path}:\n{error}") from None
    return experiment


def _with_underscores(dotted: str) -> str:
    """Returns a path with underscores for hyphens, but for those in the names of arms."""
    names = dotted.split(".")
    fields = [name.replace("-", "_") for name in names]
    if fields[:2] == ["study", "arms"]:
        return ".".join([*fields[:2], *names[2:3], *fields[3:]])
    return ".".join(fields)


def _text(path: pathlib.Path) -> str:
    """Returns the text of a TOML file, without the byte order mark that some editors write."""
    content = read_regular(path, MOST_CONFIG_BYTES)
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("it is encoded as UTF-16; save it as UTF-8")
    return content.decode("utf-8-sig")


def _value(text: str, dotted: str, table: JsonObject) -> object:
    """Returns an override's value: text if it is not TOML or its field is text, else TOML."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    hint = field_hint(Experiment, dotted.split("."), table)
    if hint is str and not isinstance(value, str):
        return text
    # The name of a kind is a table of that kind with its defaults.
    kinds = [kind_of(member) for member in spec_members(hint)]
    return {"kind": value} if isinstance(value, str) and value in kinds else value
