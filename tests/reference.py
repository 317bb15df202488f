"""Prints docs/reference.md: `python tests/reference.py > docs/reference.md`."""

import ast
import importlib
import inspect
import pathlib
import sys

ROOT = pathlib.Path(__file__).parents[1]
NAMESPACES = (
    "",
    "ops",
    "nn",
    "data",
    "train",
    "evaluate",
    "diagnostics",
    "stats",
    "adapters",
    "weights",
)
HEAD = """# Reference

Every public name, in one line; `help(fpnlab.BatchNorm)` shows arguments, fields, shapes, errors and
the paper. Names on top are for experiments and models; the namespaces below them hold the functions
that these are made of.
"""


def public_names(namespace):
    """Returns the names that the stub of a namespace declares, with their modules, in its order."""
    stub = ROOT / "fpnlab" / namespace / "__init__.pyi"
    return {
        alias.asname: node.module
        for node in ast.parse(stub.read_text()).body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


def first_line(value):
    """Returns the first paragraph of a docstring, in one line."""
    return " ".join(inspect.getdoc(value).split("\n\n")[0].split())


def page():
    """Returns the text of docs/reference.md."""
    parts = [HEAD]
    for namespace in NAMESPACES:
        title = f"fpnlab.{namespace}".rstrip(".")
        module = importlib.import_module(title)
        rows = [f"## {title}", "", "| name | |", "|---|---|"]
        for name in public_names(namespace):
            text = first_line(getattr(module, name)).replace("|", "\\|")
            rows.append(f"| `{name}` | {text} |")
        parts.append("\n".join(rows) + "\n")
    return "\n".join(parts)


if __name__ == "__main__":
    sys.stdout.write(page())
