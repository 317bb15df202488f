"""Printing: closed pipes cost no report, and no text steers the terminal."""

import ast
import contextlib
import os
import pathlib
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner
from rich.console import Console

import fpnlab.cli
from fpnlab.cli.command_line import Laboratory, say
from fpnlab.cli.main import main
from fpnlab.cli.progress import ProgressDisplay, TerminalConsole
from fpnlab.errors import RunFolderError

from ..small_config import RUN

STUDY = """
[study]
seeds = [0]
axes = [{ field = "train.batch_size", values = [4] }]
arms = { "$x_[bold]" = {} }
"""


@contextlib.contextmanager
def closed_pipe():
    """A stream to a pipe that nobody reads."""
    read, write = os.pipe()
    os.close(read)
    with open(write, "w") as stream:
        yield stream


@pytest.mark.parametrize(
    ("command", "both"),
    [
        ("study", True),
        pytest.param("study", False, marks=pytest.mark.slow),
        pytest.param("train", True, marks=pytest.mark.slow),
        pytest.param("train", False, marks=pytest.mark.slow),
    ],
)
def test_output_that_nobody_reads_costs_no_report(command, both, tmp_path):
    (tmp_path / "tiny.toml").write_text(RUN + (STUDY if command == "study" else ""))
    words = [sys.executable, "-m", "fpnlab", command, "tiny.toml", "--out", "out"]
    with closed_pipe() as pipe, (tmp_path / "errors").open("w") as errors:
        streams = {"stdout": pipe, "stderr": pipe if both else errors}
        done = subprocess.run(words, cwd=tmp_path, check=False, timeout=300, **streams)
    assert done.returncode == 0
    assert (tmp_path / "out" / "report.html").is_file()
    assert "Traceback" not in (tmp_path / "errors").read_text()
    assert "BrokenPipe" not in (tmp_path / "errors").read_text()


def test_say_goes_on_silently_once_nobody_reads(monkeypatch):
    with closed_pipe() as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        say("lost")
        say("lost, too")


def test_a_console_is_silent_once_nobody_reads():
    with closed_pipe() as pipe:
        console = TerminalConsole(file=pipe)
        console.print("lost")
        console.print("lost, too")


def test_say_escapes_what_steers_a_terminal(capsys):
    say("arm \x1b[2J\u202e\udcff\n\tdone")
    assert capsys.readouterr().out == "arm \\x1b[2J\\u202e\\xff\n\tdone\n"


@pytest.mark.parametrize("error", [RunFolderError, click.UsageError, click.ClickException])
def test_messages_of_errors_do_not_steer_the_terminal(error):
    @click.group(cls=Laboratory)
    def group():
        pass

    @group.command()
    def fail():
        raise error("runs/\x1b[2J: \x9bno\u202e")

    result = CliRunner().invoke(group, ["fail"])
    assert result.exit_code > 0
    assert "runs/\\x1b[2J: \\x9bno\\u202e" in result.stderr


def test_names_of_trials_are_no_markup_in_the_progress(tmp_path):
    with (tmp_path / "out").open("w+") as file:
        console = Console(file=file, force_terminal=True, width=100)
        with ProgressDisplay(console) as display:
            display.bar.update(display.task, description="a[/b] [red]c", numbers="[/x]")
            display.bar.refresh()
        file.seek(0)
        assert "a[/b] [red]c" in file.read()


def test_all_output_goes_through_say():
    calls = [
        f"{path.name}:{node.lineno}"
        for path in pathlib.Path(fpnlab.cli.__file__).parent.glob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef) and function.name != "say"
        for node in ast.walk(function)
        if isinstance(node, ast.Call) and ast.unparse(node.func) in ("click.echo", "print")
    ]
    assert calls == []


def test_a_damaged_study_file_is_one_line_and_exit_code_5(tmp_path):
    (tmp_path / "study.json").write_text("[" * 100_000)
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 5
    assert result.stderr.startswith(f"fpnlab report: {tmp_path / 'study.json'}: cannot be read")
    assert result.stderr.count("\n") == 1


def test_a_folder_that_cannot_be_written_is_one_line_and_exit_code_5(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "examples": 8, "loss": 1.0}\n')

    def read_only(path, *args, **settings):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(pathlib.Path, "mkdir", read_only)
    monkeypatch.setattr("fpnlab.records.json_files.os.fsync", read_only)
    result = CliRunner().invoke(main, ["report", str(tmp_path)])
    assert result.exit_code == 5
    assert "Read-only file system" in result.stderr
    assert result.stderr.count("\n") == 1
