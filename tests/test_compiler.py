"""The flags that a jaxlib needs, and what happens where it computes wrong numbers all the same."""

import os
import subprocess
import sys

import pytest
from click.testing import CliRunner

from fpnlab import compiler
from fpnlab.cli import main
from fpnlab.compiler import NEEDED_FLAGS, NO_YNN_REDUCTIONS, Check, doubt, missing_flags

WRONG = Check("a product", 1.0, 2.0)


def test_this_backend_computes_the_known_cases_right():
    assert [check.name for check in compiler.checks() if not check.right] == []


@pytest.mark.parametrize(
    ("version", "given", "missing"),
    [
        ("0.10.1", "", ()),
        ("0.10.2", "", (NO_YNN_REDUCTIONS,)),
        ("0.12.0.1", "--xla_force_host_platform_device_count=8", (NO_YNN_REDUCTIONS,)),
        ("0.12.0.1", NO_YNN_REDUCTIONS, ()),
        ("0.12.0.1", "--xla_cpu_experimental_ynn_fusion_type=", ()),
        ("0.99.0", "", ()),
        ("", "", ()),
    ],
)
def test_a_version_gets_the_flags_it_needs_and_knows_unless_the_user_set_them(
    version, given, missing
):
    assert missing_flags(version, given) == missing


def run(program, **environment):
    inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, "-c", program],
        env=inherited | environment,
        capture_output=True,
        text=True,
        check=True,
    )


PRETEND = """
import importlib.metadata as m
own = m.version
m.version = lambda name: "0.12.0.1" if name == "jaxlib" else own(name)
"""


def test_importing_the_package_appends_to_the_flags_of_the_user():
    program = f"{PRETEND}import os, fpnlab; print(os.environ['XLA_FLAGS'])"
    given = "--xla_force_host_platform_device_count=2"
    assert run(program, XLA_FLAGS=given).stdout.split() == [given, NO_YNN_REDUCTIONS]


def test_flags_are_left_alone_once_the_backend_has_read_them():
    program = f"{PRETEND}import os, jax; jax.devices(); import fpnlab; print(dict(os.environ))"
    done = run(program)
    assert "XLA_FLAGS" not in done.stdout


def test_a_started_backend_that_is_wrong_is_warned_of_with_the_remedy(monkeypatch):
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(compiler, "jaxlib_version", lambda: "0.10.2")
    monkeypatch.setattr(compiler, "backend_started", lambda: True)
    monkeypatch.setattr(compiler, "checks", lambda: (WRONG,))
    with pytest.warns(compiler.WrongResultWarning, match="set XLA_FLAGS='--xla_cpu_experimental"):
        compiler.set_flags()
    assert "XLA_FLAGS" not in os.environ


def test_a_started_backend_that_is_right_is_left_in_peace(monkeypatch):
    monkeypatch.setattr(compiler, "jaxlib_version", lambda: "0.10.2")
    monkeypatch.setattr(compiler, "backend_started", lambda: True)
    monkeypatch.setattr(compiler, "checks", lambda: (Check("a product", 2.0, 2.0),))
    compiler.set_flags()


def test_a_nan_is_wrong():
    assert not Check("a product", float("nan"), 2.0).right


def test_the_summary_names_the_wrong_cases(monkeypatch):
    monkeypatch.setattr(compiler, "checks", lambda: (WRONG, Check("a sum", 2.0, 2.0)))
    assert compiler.summary() == "wrong: a product"


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"known_cases": "right: 2 known cases"}, None),
        ({"known_cases": "wrong: a product"}, "failed the known cases (wrong: a product)"),
        ({"versions": {"jaxlib": "0.10.2"}, "platform": "cpu", "flags": {}}, "jaxlib 0.10.2"),
        (
            {
                "versions": {"jaxlib": "0.10.2"},
                "platform": "cpu",
                "flags": {"XLA_FLAGS": NO_YNN_REDUCTIONS},
            },
            None,
        ),
        ({"versions": {"jaxlib": "0.10.2"}, "platform": "gpu", "flags": {}}, None),
        ({"versions": {"jaxlib": "0.10.1"}, "platform": "cpu", "flags": {}}, None),
        ({}, None),
    ],
)
def test_results_of_a_wrong_backend_are_doubted(environment, words):
    found = doubt(environment)
    assert found is None if words is None else words in found


def test_the_doctor_says_what_is_there_and_that_it_is_right():
    done = CliRunner().invoke(main, ["doctor"], terminal_width=200)
    assert done.exit_code == 0, done.output
    for word in ("jaxlib", "devices", "flags", "allocator", "cache", "free disk", "all right"):
        assert word in done.output


def test_the_doctor_fails_where_a_known_case_is_wrong(monkeypatch):
    monkeypatch.setattr(compiler, "checks", lambda: (WRONG,))
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 5
    assert "WRONG" in done.output
    assert "Do not trust" in done.output


def test_every_version_known_to_be_wrong_gets_the_flag():
    assert {"0.10.2", "0.12.0.1"} <= NEEDED_FLAGS.keys()
