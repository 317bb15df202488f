"""The house keeps its rooms apart: who imports whom, what loads what, and that all is described."""

import ast
import pathlib
import pkgutil
import subprocess
import sys

import pytest

import fpnlab
from fpnlab import fields

PACKAGE = pathlib.Path(fpnlab.__file__).parent
LOWER = {"types", "ops", "model", "data", "train", "evaluate"}
MAY_IMPORT = {
    "spec": set(),
    "schema": set(),
    "compiler": set(),
    "types": {"spec"},
    "ops": {"types"},
    "model": {"types", "ops"},
    "data": {"types", "ops"},
    "train": {"types", "ops", "model", "compiler"},
    "evaluate": {"types", "ops", "model"},
    "probe": {"types", "ops", "model", "evaluate"},
    "adapters": {"types", "ops", "model"},
    "faults": LOWER | {"schema", "study.plan", "study.rules"},
    "config": LOWER | {"faults", "schema", "study.plan", "study.rules"},
    "study": LOWER | {"probe", "config", "report", "compiler"},
    "report": {"types", "compiler"},
}
"""Rooms by what they may import of fpnlab, besides themselves."""
EDGE = {"__init__", "__main__", "allocator", "cli", "doctor", "fields", "progress"}
"""Files outside the rooms, which may import anything and which no room imports."""
OUTSIDE_OPS = {"jax", "jaxtyping", "numpy"}


def imports(path):
    """The dotted names that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            dots = "." * node.level
            yield from (f"{dots}{node.module or ''}.{alias.name}" for alias in node.names)


def violations(package):
    """A sentence for each import that the table does not allow, and each file in no room."""
    for path in sorted(package.rglob("*.py")):
        here = path.relative_to(package)
        room = here.parts[0].removesuffix(".py")
        if len(here.parts) == 1 and room in EDGE:
            continue
        if room not in MAY_IMPORT:
            yield f"{here} stands in no declared room"
            continue
        homes = tuple(f"fpnlab.{home}." for home in {room, *MAY_IMPORT[room], "spec"})
        for name in imports(path):
            top = name.partition(".")[0]
            if top in ("fpnlab", ""):
                allowed = f"{name}.".startswith(homes)
            else:
                allowed = room != "ops" or top in OUTSIDE_OPS | sys.stdlib_module_names
            if not allowed:
                yield f"{here} imports {name}"


def test_every_import_is_in_the_table():
    assert list(violations(PACKAGE)) == []


@pytest.mark.parametrize(
    ("file", "line", "offence"),
    [
        ("ops/iou.py", "from fpnlab.model.norm import Norm", "imports fpnlab.model.norm.Norm"),
        ("ops/iou.py", "import scipy.special", "imports scipy.special"),
        ("ops/iou.py", "from . import boxes", "imports ..boxes"),
        ("types.py", "def f():\n    import fpnlab.ops.norm", "imports fpnlab.ops.norm"),
        ("train/loop.py", "from fpnlab import data", "imports fpnlab.data"),
        ("report/live.py", "import fpnlab", "imports fpnlab"),
        (
            "config.py",
            "from fpnlab.study.run import run_study",
            "imports fpnlab.study.run.run_study",
        ),
        ("model/tpu.py", "import fpnlab.cli", "imports fpnlab.cli"),
        ("helpers.py", "", "stands in no declared room"),
        ("utils/misc.py", "", "stands in no declared room"),
    ],
)
def test_a_planted_violation_is_found_and_named(file, line, offence, tmp_path):
    planted = tmp_path / file
    planted.parent.mkdir(parents=True, exist_ok=True)
    planted.write_text(f"{line}\n")
    assert list(violations(tmp_path)) == [f"{file} {offence}"]


def loaded_by(*modules):
    """The top-level modules that a fresh interpreter has after importing ``modules``."""
    lines = [f"import {name}" for name in modules]
    program = "\n".join([*lines, "import sys", "print(*sys.modules)"])
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


def test_import_fpnlab_loads_no_other_package():
    new = loaded_by("fpnlab") - loaded_by("sys")
    assert {name for name in new if name.partition(".")[0] not in sys.stdlib_module_names} == {
        "fpnlab",
        "fpnlab.compiler",
    }


def test_ops_load_nothing_but_jax_and_flax():
    ops = [f"fpnlab.ops.{module.name}" for module in pkgutil.iter_modules([PACKAGE / "ops"])]
    assert len(ops) > 5
    # What jax, jaxtyping and flax.struct (which types needs) load by themselves is theirs.
    before = {name.partition(".")[0] for name in loaded_by("jax.numpy", "jaxtyping", "flax.struct")}
    after = loaded_by(*ops)
    assert {name.partition(".")[0] for name in after} - sys.stdlib_module_names == (
        before | {"fpnlab"}
    ) - sys.stdlib_module_names
    assert {name for name in after if name.startswith("fpnlab.")} == {
        "fpnlab.compiler",
        "fpnlab.spec",
        "fpnlab.types",
        "fpnlab.ops",
        *ops,
    }


def test_every_public_name_resolves_to_what_its_module_defines():
    assert len(set(fpnlab.__all__)) == len(fpnlab.__all__) > 40
    assert set(fpnlab.__all__) <= set(dir(fpnlab))
    for name in fpnlab.__all__:
        value = getattr(fpnlab, name)
        module = getattr(value, "__module__", "fpnlab")
        assert module.partition(".")[0] in ("fpnlab", "builtins", "jaxtyping"), name
        assert getattr(value, "__name__", name) in (name, "dict"), name
    with pytest.raises(AttributeError, match="module 'fpnlab' has no attribute 'batchnorm'"):
        fpnlab.batchnorm  # noqa: B018


def public_definitions():
    """All functions, classes and methods with a public name, as (where, syntax node)."""
    for path in sorted(PACKAGE.rglob("*.py")):
        scopes = [(str(path.relative_to(PACKAGE)), ast.parse(path.read_text()))]
        yield scopes[0]
        while scopes:
            where, scope = scopes.pop()
            for node in scope.body:
                if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name[0] != "_":
                    yield f"{where}: {node.name}", node
                    if isinstance(node, ast.ClassDef):
                        scopes.append((f"{where}: {node.name}", node))


def test_every_public_definition_says_what_it_is():
    found = list(public_definitions())
    assert len(found) > 150
    assert [where for where, node in found if not ast.get_docstring(node)] == []


def test_every_spec_field_says_what_it_means():
    rows = fields.fields()
    assert len(rows) > 80
    assert [path for path, _, _, meaning in rows if not meaning.endswith(".")] == []
