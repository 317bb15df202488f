"""The house keeps its rooms apart: who imports whom, what loads what, and that all is described."""

import ast
import collections
import importlib
import importlib.metadata
import inspect
import pathlib
import pkgutil
import runpy
import subprocess
import sys
import types

import pytest

import fpnlab
from fpnlab.config import help
from fpnlab.config.experiment import Experiment
from fpnlab.config.hints import field_paths

reference = runpy.run_path(str(pathlib.Path(__file__).with_name("reference.py")))
reference = types.SimpleNamespace(**reference)

PACKAGE = pathlib.Path(fpnlab.__file__).parent
BASE = {"types", "records", "errors", "compiler"}
NUMERICS = BASE | {"ops", "nn", "data", "weights", "train", "evaluate", "diagnostics"}
PROBLEM = NUMERICS | {"tasks", "stats", "config"}
MAY_IMPORT = {
    "spec": set(),
    "compiler": set(),
    "errors": set(),
    "types": {"spec"},
    "records": {"spec", "errors"},
    "ops": {"types"},
    "nn": {"types", "ops"},
    "data": {"types", "ops", "records"},
    "weights": {"types", "ops", "nn", "errors", "records"},
    "train": {"types", "ops", "nn", "compiler", "errors"},
    "evaluate": {"types", "ops", "nn"},
    "diagnostics": {"types", "ops", "nn", "evaluate"},
    "tasks": NUMERICS,
    "stats": set(),
    "config": NUMERICS | {"tasks"},
    "analysis": {"stats", "config", "records", "errors"},
    "run": PROBLEM,
    "study": PROBLEM | {"run", "analysis"},
    "report": {"compiler", "records", "errors", "analysis"},
    "adapters": {"types", "ops", "nn"},
    "api": PROBLEM | {"run", "study", "analysis", "report"},
    "cli": PROBLEM | {"run", "study", "analysis", "report"},
}
"""Rooms by what they may import of fpnlab, besides themselves and `spec`, in the order of the
data: none imports a room to its right."""
EDGE = {"__init__", "__main__"}
"""Files outside the rooms."""
OUTSIDE_OPS = {"jax", "jaxtyping", "numpy", "lazy_loader"}


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


def test_the_table_has_no_upward_import():
    rooms = list(MAY_IMPORT)
    for i, (room, allowed) in enumerate(MAY_IMPORT.items()):
        assert allowed <= {*rooms[:i]}, room


def test_no_two_modules_have_one_name():
    names = [path.stem for path in PACKAGE.rglob("*.py") if path.stem != "__init__"]
    assert sorted(name for name in set(names) if names.count(name) > 1) == []


def test_no_two_classes_have_one_name():
    names = collections.Counter(
        node.name
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    )
    # One Layer for each library of modules, which a program imports by its room.
    assert [name for name, count in names.items() if count > 1] == ["Layer"]


def test_tests_mirror_the_package():
    tests = pathlib.Path(__file__).parent
    rooms = {path.relative_to(tests).parts[0] for path in tests.rglob("test_*.py")}
    rooms = {room for room in rooms if not room.endswith(".py")}
    assert rooms <= {*MAY_IMPORT}


@pytest.mark.parametrize(
    ("file", "line", "offence"),
    [
        (
            "ops/iou.py",
            "from fpnlab.nn.norm_layer import Norm",
            "imports fpnlab.nn.norm_layer.Norm",
        ),
        ("ops/iou.py", "import scipy.special", "imports scipy.special"),
        ("ops/iou.py", "from . import boxes", "imports ..boxes"),
        ("types.py", "def f():\n    import fpnlab.ops.norm", "imports fpnlab.ops.norm"),
        ("train/loop.py", "from fpnlab import data", "imports fpnlab.data"),
        ("report/live.py", "import fpnlab", "imports fpnlab"),
        (
            "config/load.py",
            "from fpnlab.study.runner import run_study",
            "imports fpnlab.study.runner.run_study",
        ),
        ("nn/tpu.py", "import fpnlab.cli.main", "imports fpnlab.cli.main"),
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
        "lazy_loader",  # Which resolves the names; of the standard library alone.
    }


def test_ops_load_nothing_but_jax_and_flax():
    ops = [f"fpnlab.ops.{module.name}" for module in pkgutil.iter_modules([PACKAGE / "ops"])]
    assert len(ops) > 5
    # What jax, jaxtyping and flax.struct (which types needs) load by themselves is theirs.
    before = {name.partition(".")[0] for name in loaded_by("jax.numpy", "jaxtyping", "flax.struct")}
    after = loaded_by(*ops)
    assert {name.partition(".")[0] for name in after} - sys.stdlib_module_names == (
        before | {"fpnlab", "lazy_loader"}
    ) - sys.stdlib_module_names
    assert {name for name in after if name.startswith("fpnlab.")} == {
        "fpnlab.compiler",
        "fpnlab.spec",
        "fpnlab.types",
        "fpnlab.ops",
        *ops,
    }


@pytest.mark.parametrize("namespace", reference.NAMESPACES)
def test_every_public_name_resolves_to_what_its_module_defines(namespace):
    module = importlib.import_module(f"fpnlab.{namespace}".rstrip("."))
    names = reference.public_names(namespace)
    assert set(names) == set(module.__all__) == set(dir(module)) - {"__version__"}
    home = PACKAGE / namespace
    for name, source in names.items():
        value = getattr(module, name)
        if source is None:
            assert inspect.ismodule(value), name
            continue
        # A module of the same name would take the name's place once it is imported.
        assert not (home / f"{name}.py").exists(), name
        assert not (home / name).is_dir(), name
        if inspect.isclass(value) or inspect.isfunction(value):
            assert value.__module__.startswith("fpnlab."), name


def test_top_of_the_package_holds_about_thirty_names_and_its_version():
    assert 25 <= len(fpnlab.__all__) - len(reference.NAMESPACES[1:]) <= 40
    assert fpnlab.__version__ == importlib.metadata.version("fpnlab")
    with pytest.raises(AttributeError, match="No fpnlab attribute batchnorm"):
        fpnlab.batchnorm  # noqa: B018


def test_page_of_the_reference_lists_every_public_name():
    written = (PACKAGE.parent / "docs" / "reference.md").read_text()
    assert written == reference.page(), "python tests/reference.py > docs/reference.md"


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
    paths = [*field_paths(Experiment)]
    assert len(paths) > 80
    fields = [help.sections(path)[0] for path in paths if not path.endswith("kind")]
    assert [field.path for field in fields if not field.meaning.rstrip().endswith(".")] == []
