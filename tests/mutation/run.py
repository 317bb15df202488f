"""Mutation testing of the norms: is every change of their code noticed by a test?

Cosmic Ray's operators make the mutants: an arithmetic operator, a number, a comparison, a
condition or a decorator changed. Each is tested in a process that has run the same tests before,
because JAX would compile everything anew in a fresh one: seconds for a mutant instead of a minute.
Type checks at run time are off, so that values must notice.

    python tests/mutation/run.py                     # all of them
    python tests/mutation/run.py --part 0/2          # every second one
    python tests/mutation/run.py --only fpnlab/ops/moments.py:97 --verbose
    python tests/mutation/run.py --again outcomes.csv  # those that survived it

The survivors are printed, and written with all others to the file that --out names.
"""

import argparse
import ast
import contextlib
import csv
import difflib
import io
import os
import pathlib
import re
import shutil
import signal
import sys
import tempfile
import time

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = pathlib.Path(__file__).parents[2]
TESTS = {
    "fpnlab/ops/moments.py": ("tests/ops/test_moments.py", "tests/ops/test_norm.py"),
    "fpnlab/ops/norm.py": (
        "tests/nn/test_norm_errors.py",
        "tests/ops/test_norm.py",
        "tests/ops/test_norm_structure.py",
    ),
    "fpnlab/ops/kernel.py": ("tests/ops/test_kernel.py",),
    "fpnlab/nn/norm_specs.py": ("tests/nn/test_norm_errors.py", "tests/nn/test_norm_layer.py"),
    "fpnlab/nn/norm_layer.py": (
        "tests/nn/test_norm_layer.py",
        "tests/nn/test_norm_errors.py",
        "tests/ops/test_norm.py",
        "tests/ops/test_norm_structure.py",
    ),
    "fpnlab/nn/norm_edit.py": (
        "tests/nn/test_norm_layer.py",
        "tests/nn/test_norm_errors.py",
        "tests/nn/test_norm_positions.py",
    ),
}
"""The modules that are mutated, and the tests that must notice, likely ones first."""
OPERATORS = re.compile(
    "core/("
    "NumberReplacer|AddNot|RemoveDecorator|ReplaceTrueWithFalse|ReplaceFalseWithTrue"
    "|ReplaceAndWithOr|ReplaceOrWithAnd|ReplaceUnaryOperator_Delete_.*|ZeroIterationForLoop"
    "|ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Mul|Pow_Mul)"
    "|ReplaceComparisonOperator_(Eq_NotEq|NotEq_Eq|Is_IsNot|IsNot_Is"
    "|Lt_(LtE|GtE)|LtE_(Lt|Gt)|Gt_(GtE|LtE)|GtE_(Gt|Lt))"
    ")"
)
SECONDS = 1200


def mutants():
    """Yields (module, line, operator, mutated text); what does not compile is left out."""
    for module in TESTS:
        text = (ROOT / module).read_text()
        for name in sorted(filter(OPERATORS.fullmatch, operator_names())):
            operator = get_operator(name)()
            places = [
                p for node in ast_nodes(get_ast(text)) for p in operator.mutation_positions(node)
            ]
            for occurrence, ((line, _), _) in enumerate(places):
                mutated = mutate_code(text, operator, occurrence)
                signature = text.splitlines()[line - 1].strip() == "*,"  # taken for a product
                if mutated and not signature and compiles(mutated):
                    yield module, line, name.removeprefix("core/"), change(text, mutated), mutated


def change(text, mutated):
    """Returns the lines that differ, the old and the new."""
    lines = difflib.ndiff(text.splitlines(), mutated.splitlines())
    return " -> ".join(" ".join(line[1:].split()) for line in lines if line[0] in "+-")


def compiles(text):
    try:
        ast.parse(text)
    except SyntaxError:
        return False
    return True


def passes(tests, verbose):
    """Returns whether the tests pass on the package as it is on disk now."""
    import jax.export
    import pytest

    # JAX registers the names of pytrees once in a process, and would reject the second import of
    # the package, so that every mutant would seem to be killed.
    jax.export.register_pytree_node_serialization = lambda node, **_: node
    ours = ("fpnlab", "tests", "conftest", "test_")
    for name in [name for name in sys.modules if name.startswith(ours)]:
        del sys.modules[name]
    options = ["-x", "-q", "-p", "no:cacheprovider", "-o", "addopts=--import-mode=importlib"]
    with contextlib.redirect_stdout(sys.stdout if verbose else io.StringIO()):
        return pytest.main([*options, *tests]) == 0


def expired(*_):
    raise TimeoutError(f"no outcome after {SECONDS} s")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", default="0/1", help="K/N: the mutants whose number is K modulo N")
    parser.add_argument("--only", default="", help="MODULE or MODULE:LINE")
    parser.add_argument("--again", type=pathlib.Path, help="CSV of a run: those that survived it")
    parser.add_argument("--out", type=pathlib.Path, default=None, help="CSV of all outcomes")
    parser.add_argument("--verbose", action="store_true", help="show what the tests print")
    options = parser.parse_args()
    part, parts = map(int, options.part.split("/"))
    module, _, line = options.only.partition(":")
    todo = [m for i, m in enumerate(mutants()) if i % parts == part]
    todo = [m for m in todo if m[0].startswith(module) and line in ("", str(m[1]))]
    if options.again:
        rows = list(csv.reader(options.again.open()))[1:]
        survivors = {(row[0], row[2], row[4]) for row in rows if row[3] != "killed"}
        todo = [m for m in todo if (m[0], m[2], m[3]) in survivors]
    with tempfile.TemporaryDirectory() as scratch:
        for name in ("fpnlab", "tests", "pyproject.toml"):
            copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
            copy(ROOT / name, pathlib.Path(scratch) / name)
        os.chdir(scratch)
        sys.path.insert(0, scratch)
        sys.dont_write_bytecode = True
        tests = sorted({test for module, *_ in todo for test in TESTS[module]})
        # Twice, because mutants are tested in a process that has run the tests before.
        if not (passes(tests, True) and passes(tests, options.verbose)):
            sys.exit("the tests fail without any mutation")
        rows = list(outcomes(todo, options))
    if options.out:
        with options.out.open("w", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerows([("module", "line", "operator", "outcome", "change"), *rows])
    killed = sum(row[3] == "killed" for row in rows)
    print(f"{killed} of {len(rows)} killed ({100 * killed / max(len(rows), 1):.1f} %)")


def outcomes(todo, options):
    """Yields a row for each mutant, and prints the survivors."""
    signal.signal(signal.SIGALRM, expired)
    for number, (module, line, operator, changed, mutated) in enumerate(todo, 1):
        path = pathlib.Path(module)
        text = path.read_text()
        path.write_text(mutated)
        begun = time.monotonic()
        signal.alarm(SECONDS)
        try:
            outcome = "survived" if passes(TESTS[module], options.verbose) else "killed"
        except TimeoutError:
            outcome = "too slow"
        signal.alarm(0)
        path.write_text(text)
        took = time.monotonic() - begun
        if outcome != "killed" or number % 25 == 0:
            print(
                f"{number}/{len(todo)} {took:.1f} s {outcome} {module}:{line} {changed}", flush=True
            )
        yield module, line, operator, outcome, changed


if __name__ == "__main__":
    main()
