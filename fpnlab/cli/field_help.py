"""Help on the fields of an experiment, section by section."""

import textwrap

import click

from fpnlab.config.help import Field, Kind, sections

WIDTH = 100
"""Columns of the text."""


def write_sections(formatter: click.HelpFormatter) -> None:
    """Writes the fields of an experiment, with one line for each section of them."""
    _, (experiment,) = sections()
    with formatter.section("Fields of the experiment, e.g. --train.batch_size 8"):
        formatter.write_dl([_row(field) for field in experiment.fields])
    formatter.write_paragraph()
    formatter.write_text(
        "--help FIELD describes a field or section: --help train, --help model.backbone"
    )


def describe_field(path: str) -> str:
    """Returns the help on a field: its meaning, and the fields of its section by kind.

    Args:
      path: Dotted path, e.g. ``train.batch_size`` or ``model.backbone.norm``.

    Raises:
      ConfigError: The field is unknown.
    """
    field, kinds = sections(path)
    assert field is not None
    formatter = click.HelpFormatter(max_width=WIDTH)
    formatter.write_dl([(f"--{field.path} {field.type}", f"[{field.default}]")])
    formatter.write(f"{textwrap.indent(field.meaning, '    ')}\n")
    for kind in kinds:
        formatter.write("\n")
        _write_kind(formatter, field, kind)
    return formatter.getvalue().rstrip()


def _write_kind(formatter: click.HelpFormatter, field: Field, kind: Kind) -> None:
    if kind.name:
        formatter.write(f"--{field.path}.kind {kind.name}\n")
    formatter.write(f"{textwrap.indent(kind.meaning, '    ')}\n")
    if kind.fields:
        formatter.indent()
        formatter.write_dl([_row(inner) for inner in kind.fields])
        formatter.dedent()


def _row(field: Field) -> tuple[str, str]:
    first = field.meaning.split("\n\n")[0]
    more = f" (section: --help {field.path})" if field.specs else ""
    return f"--{field.path} {field.type}", f"{first}{more}  [{field.default}]"
