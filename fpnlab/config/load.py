"""TOML and overrides to one validated `Experiment`."""

import pathlib
import tomllib
from collections.abc import Iterable

from fpnlab.config.experiment import Experiment
from fpnlab.config.hints import field_hint, spec_members
from fpnlab.config.study import applied
from fpnlab.config.trials import trials
from fpnlab.config.validate import validate
from fpnlab.errors import ConfigError


def load_config(path: str | pathlib.Path, overrides: Iterable[tuple[str, str]] = ()) -> Experiment:
    """Returns the experiment in a TOML file, with dotted fields overridden.

    Args:
      path: the file.
      overrides: pairs like ``("train.batch_size", "8")``; a value is read as TOML, or as text
        where it is none.

    Raises:
      ConfigError: the file is missing or not TOML, or its experiment is refused; all faults at
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
        dotted = _with_underscores(dotted)
        table = applied(table, {dotted: _value(text, dotted, table)})
    try:
        experiment = validate(table)
        if experiment.study:
            trials(experiment)
    except ConfigError as error:
        raise ConfigError(f"{path}:\n{error}") from None
    return experiment


def _with_underscores(dotted):
    """Returns a path whose fields may be written with hyphens; the names of arms keep theirs."""
    names = dotted.split(".")
    fields = [name.replace("-", "_") for name in names]
    if fields[:2] == ["study", "arms"]:
        return ".".join([*fields[:2], *names[2:3], *fields[3:]])
    return ".".join(fields)


def _text(path):
    """Returns the text of a TOML file, which may begin with a byte order mark."""
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError("it is encoded as UTF-16; save it as UTF-8")
    return content.decode("utf-8-sig")


def _value(text, dotted, table):
    """Returns an override's value as TOML, or as text where it is none or its field wants text."""
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        value = text
    hint = field_hint(Experiment, dotted.split("."), table)
    if hint is str and not isinstance(value, str):
        return text
    # The name of a kind stands for a table of that kind with its defaults.
    kinds = [member.kind for member in spec_members(hint) if hasattr(member, "kind")]
    return {"kind": value} if isinstance(value, str) and value in kinds else value
