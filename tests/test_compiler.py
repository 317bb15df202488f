"""XLA flags that a jaxlib needs, and the checks of a backend for wrong numbers."""

import math
import os
import shlex
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from click.testing import CliRunner

import fpnlab
from fpnlab import compiler
from fpnlab.cli.main import main
from fpnlab.compiler import NEEDED_FLAGS, NO_YNN_REDUCTIONS, Check, doubt, missing_flags
from fpnlab.nn.classifier import Classifier
from fpnlab.nn.norm_specs import BatchNorm
from fpnlab.nn.resnet import ResNet
from fpnlab.tasks.kinds import task_of
from fpnlab.train.objective import CrossEntropy
from fpnlab.train.step import Train, init_train

WRONG = Check("a product", 1.0, 2.0)
MAP = jax.ShapeDtypeStruct((2, 3), jnp.float32)


def test_this_backend_computes_the_known_cases_correctly():
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
def test_missing_flags_are_those_needed_by_the_version_and_not_set_by_the_user(
    version, given, missing
):
    assert missing_flags(version, given) == missing


@pytest.mark.parametrize(
    ("version", "given", "right"),
    [
        ("0.10.1", "", True),
        ("0.10.2", "", False),
        ("0.12.0.1", NO_YNN_REDUCTIONS, True),
        ("0.12.0.1", f"--xla_cpu_enable_fast_math=false {NO_YNN_REDUCTIONS}", True),
        ("0.12.0.1", "--xla_cpu_experimental_ynn_fusion_type=+reduce", False),
        ("0.12.0.1", f"{NO_YNN_REDUCTIONS} {NO_YNN_REDUCTIONS[:-6]}+reduce", False),
        ("0.99.0", NO_YNN_REDUCTIONS, False),
        ("", "", False),
    ],
)
def test_only_tested_versions_with_their_flags_are_known_to_be_right(version, given, right):
    assert compiler.known_to_be_right(version, given) == right


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


def test_flags_are_not_changed_after_the_backend_has_started():
    program = f"{PRETEND}import os, jax; jax.devices(); import fpnlab; print(dict(os.environ))"
    done = run(program)
    assert "XLA_FLAGS" not in done.stdout


def test_flags_set_after_the_import_are_extended_on_first_use():
    setting = "import os, fpnlab; os.environ['XLA_FLAGS'] = '--xla_cpu_enable_fast_math=false'"
    program = f"{PRETEND}{setting}; fpnlab.BatchNorm; print(os.environ['XLA_FLAGS'])"
    assert run(program).stdout.split() == ["--xla_cpu_enable_fast_math=false", NO_YNN_REDUCTIONS]


@pytest.mark.parametrize("command", ["-m fpnlab --help", "-c 'import fpnlab.study.worker'"])
def test_every_entry_point_of_the_package_sets_the_flags(command, tmp_path):
    # Run by the interpreter at its start, to pretend that the installed jaxlib needs flags.
    shown = "import atexit, os; atexit.register(lambda: print(os.environ.get('XLA_FLAGS')))"
    (tmp_path / "sitecustomize.py").write_text(PRETEND + shown)
    paths = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    inherited = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    done = subprocess.run(
        [sys.executable, *shlex.split(command)],
        env=inherited | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == NO_YNN_REDUCTIONS


@pytest.fixture
def wrong_backend(monkeypatch):
    """A backend that was started without its flags, and computes a known case wrong."""
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    monkeypatch.setattr(compiler, "jaxlib_version", lambda: "0.10.2")
    monkeypatch.setattr(compiler, "backend_started", lambda: True)
    monkeypatch.setattr(compiler, "checks", lambda: (WRONG,))
    compiler._warn_if_wrong.cache_clear()
    yield monkeypatch
    compiler._warn_if_wrong.cache_clear()


def test_set_flags_warns_once_of_a_started_wrong_backend_with_the_remedy(wrong_backend):
    with pytest.warns(compiler.WrongResultWarning, match="start Python with XLA_FLAGS='--xla_cpu"):
        compiler.set_flags()
    assert "XLA_FLAGS" not in os.environ
    compiler.set_flags()


def test_set_flags_does_not_warn_of_a_started_right_backend(wrong_backend):
    wrong_backend.setattr(compiler, "checks", lambda: (Check("a product", 2.0, 2.0),))
    compiler.set_flags()


@pytest.mark.parametrize("use", [lambda: fpnlab.BatchNorm, lambda: start_training()])
def test_first_use_of_a_wrong_backend_warns(use, wrong_backend):
    # Public names are cached in the module once another test has loaded them.
    wrong_backend.delitem(vars(fpnlab), "BatchNorm", raising=False)
    with pytest.warns(compiler.WrongResultWarning, match="wrong numbers on this backend"):
        use()


def start_training():
    model = Classifier(classes=2, backbone=ResNet(depths=(1,), widths=(2,), norm=BatchNorm()))
    recipe = Train(examples=2, batch_size=2, learning_rate=0.1)
    jax.eval_shape(lambda: init_train(jax.random.key(0), task_of(model, CrossEntropy()), recipe))


def test_an_untested_version_is_checked_before_training(wrong_backend):
    wrong_backend.setattr(compiler, "jaxlib_version", lambda: "0.99.0")
    with pytest.warns(compiler.WrongResultWarning, match=r"Install .* tested with: 0\.10\.1"):
        start_training()


@pytest.mark.skipif(
    compiler.jaxlib_version() not in NEEDED_FLAGS, reason="this jaxlib is right without flags"
)
def test_a_backend_started_before_the_import_causes_a_warning():
    assert "WrongResultWarning" in run("import jax; jax.devices(); import fpnlab").stderr


SETTINGS = [
    {"jax_debug_nans": True},
    {"jax_disable_jit": True},
    {"jax_enable_x64": True},
    {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"},
    {"jax_transfer_guard": "disallow"},
    {"jax_default_matmul_precision": "bfloat16"},
]


def test_the_checks_are_right_under_any_jax_setting():
    program = f"""
import fpnlab, jax
for settings in {SETTINGS}:
    before = {{name: jax.config.values[name] for name in settings}}
    for name, value in settings.items():
        jax.config.update(name, value)
    fpnlab.compiler.checks.cache_clear()
    print(fpnlab.compiler.summary())
    for name, value in before.items():
        jax.config.update(name, value)
"""
    assert run(program).stdout == len(SETTINGS) * "right: 2 known cases\n"


def test_the_checks_are_right_while_a_caller_is_traced():
    compiler.checks.cache_clear()
    jax.eval_shape(jax.vmap(lambda x: x + all(check.right for check in compiler.checks())), MAP)
    assert compiler.summary().startswith("right")


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
        (
            {
                "versions": {"jaxlib": "0.12.0.1"},
                "platform": "cpu",
                "flags": {"XLA_FLAGS": NO_YNN_REDUCTIONS.replace("-reduce", "+reduce")},
            },
            "jaxlib 0.12.0.1",
        ),
        ({"versions": {"jaxlib": "0.10.2"}, "platform": "gpu", "flags": {}}, None),
        ({"versions": {"jaxlib": "0.10.1"}, "platform": "cpu", "flags": {}}, None),
        ({}, None),
    ],
)
def test_doubt_reports_environments_with_a_wrong_backend(environment, words):
    found = doubt(environment)
    assert found is None if words is None else words in found


def test_the_doctor_command_reports_the_environment_and_the_checks():
    done = CliRunner().invoke(main, ["doctor"], terminal_width=200)
    assert done.exit_code == 0, done.output
    for word in ("jaxlib", "devices", "flags", "allocator", "cache", "free disk", "all right"):
        assert word in done.output


def test_the_doctor_command_fails_if_a_known_case_is_wrong(monkeypatch):
    monkeypatch.setattr(compiler, "checks", lambda: (WRONG,))
    done = CliRunner().invoke(main, ["doctor"])
    assert done.exit_code == 5
    assert "WRONG" in done.output
    assert "Do not trust" in done.output


def test_every_version_known_to_be_wrong_gets_the_flag():
    assert {"0.10.2", "0.12.0.1"} <= NEEDED_FLAGS.keys()


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_the_exact_gelu_and_its_gradient_equal_their_closed_form(compiled):
    gelu = lambda x: jax.nn.gelu(x, approximate=False)
    run = jax.jit if compiled else lambda f: f
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    half = [0.5 * math.erfc(-z / math.sqrt(2)) for z in x.astype(np.float64)]
    density = np.exp(-(x.astype(np.float64) ** 2) / 2) / math.sqrt(2 * math.pi)
    np.testing.assert_allclose(run(gelu)(x), x * half, rtol=1e-6, atol=1e-6)
    slope = run(jax.vmap(jax.grad(gelu)))(x)
    np.testing.assert_allclose(slope, half + x * density, rtol=1e-6, atol=1e-6)


def test_the_exact_gelu_and_its_gradient_equal_pytorch():
    torch = pytest.importorskip("torch", reason="PyTorch is the oracle")
    x = np.linspace(-12, 12, 4001, dtype=np.float32)
    tx = torch.tensor(x, requires_grad=True)
    ty = torch.nn.functional.gelu(tx)
    ty.sum().backward()
    y, pull = jax.vjp(lambda x: jax.nn.gelu(x, approximate=False), jnp.asarray(x))
    np.testing.assert_allclose(y, ty.detach(), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones_like(y))[0], tx.grad, rtol=1e-6, atol=1e-6)
