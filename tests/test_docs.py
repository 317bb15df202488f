"""What the pages say can be run, runs."""

import dataclasses
import pathlib
import re
import shlex
import typing

import pytest

from fpnlab.cli.command_line import overrides
from fpnlab.cli.main import main
from fpnlab.config.experiment import Experiment
from fpnlab.config.hints import field_paths
from fpnlab.config.load import load_config
from fpnlab.data.load_data import Data
from fpnlab.errors import ConfigError

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
EXPERIMENTS = ROOT / "docs" / "experiments.md"
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
COMMAND = re.compile(r"^(?:\$ |# Command +|srun .*?)?fpnlab (.+?)(?:  +.*)?$", re.MULTILINE)
LINES = [
    (path, line)
    for path in [*PAGES, *sorted((ROOT / "configs").glob("*.toml"))]
    for text in ([path.read_text()] if path.suffix == ".toml" else [])
    + re.findall(r"^```\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)
    for line in COMMAND.findall(text)
    if "configs/demo.toml:" != line.split()[1]  # The first line of an error.
]
PLACES = {
    "CONFIG": "configs/demo.toml",
    "runs/NAME": "docs",
    "photos/": "docs",
    "ADDRESS": "local",
}


def parsed(line):
    """Returns the config and the overrides of a command, read as the command line reads them."""
    name, *words = shlex.split(line, comments=True)
    context = main.commands[name].make_context(name, [PLACES.get(w, w) for w in words])
    return context.params.get("config"), list(overrides(context.args))


def all_kinds(hint, seen=()):
    """Yields the kinds of all tables that an experiment may hold."""
    if dataclasses.is_dataclass(hint) and hint not in seen:
        if "kind" in (hints := typing.get_type_hints(hint)):
            yield from typing.get_args(hints["kind"])
        for inner in hints.values():
            yield from all_kinds(inner, (*seen, hint))
    for inner in typing.get_args(hint):
        yield from all_kinds(inner, seen)


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_there_are_snippets_to_run():
    assert blocks(ROOT / "README.md", "python")


@each_page
def test_python_snippets_of_a_page_run_in_order(page):
    names = {}
    for block in blocks(page, "python"):
        exec(compile(block, page.name, "exec"), names)


def test_tables_of_the_page_on_studies_are_a_study_of_the_demo(tmp_path):
    demo, study, _ = (ROOT / "configs" / "demo.toml").read_text().partition("[study]")
    assert study
    tables = blocks(ROOT / "docs" / "experiments.md", "toml")
    path = tmp_path / "study.toml"
    path.write_text("\n".join([demo, *tables]))
    experiment = load_config(path)
    assert [len(claim.rules) for claim in experiment.study.claims] == [2, 1]


@each_page
def test_links_and_pictures_of_a_page_exist(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@each_page
def test_commands_of_a_page_name_configs_that_exist(page):
    for name in re.findall(r"configs/\w+\.toml", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name}: {name}"


@pytest.mark.parametrize(("path", "line"), LINES, ids=[line for _, line in LINES])
def test_a_command_of_a_page_is_understood(path, line, monkeypatch):
    monkeypatch.chdir(ROOT)
    config, overrides = parsed(line)
    if config is not None and "--train.batchsize" not in line:
        load_config(config, overrides)


def test_the_pages_have_commands_of_every_kind():
    assert {"train", "study", "show", "config", "evaluate", "verify", "report"} <= {
        line.split()[0] for _, line in LINES
    }


def test_the_error_on_the_page_is_what_the_command_prints(monkeypatch):
    monkeypatch.chdir(ROOT)
    shown = next(
        b
        for b in re.findall(r"^```\n(.*?)^```", EXPERIMENTS.read_text(), re.M | re.S)
        if b.startswith("$")
    )
    command, _, *lines = shown.splitlines()
    config, overrides = parsed(COMMAND.match(command)[1])
    with pytest.raises(ConfigError) as caught:
        load_config(config, overrides)
    printed = str(caught.value).splitlines()[-len(lines) :]
    assert len(lines) == 2
    for line, whole in zip(lines, printed):
        start, cut, _ = line.partition("...")
        assert cut
        assert whole.startswith(start)


@each_page
def test_fields_that_a_page_names_exist(page):
    known = set(field_paths(Experiment))
    sections = {path for path in known if "." not in path}
    for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)`", page.read_text()):
        if name.endswith(".json"):
            continue
        if name.partition(".")[0] in sections - {"model"} and name.count(".") == 1:
            assert name in known, f"{page.name}: {name}"


@each_page
def test_kinds_that_a_page_names_exist(page):
    known = set(all_kinds(Experiment))
    assert {"batch_norm", "cifar", "equivalence", "cosine"} <= known
    for kind in re.findall(r"kind = \\?\"(\w+)\\?\"", page.read_text()):
        assert kind in known or kind == "layernorm", f"{page.name}: {kind}"


def test_the_page_lists_every_kind_of_data():
    table = EXPERIMENTS.read_text().partition("| `data.kind` |")[2].partition("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)`", table, re.MULTILINE)
    assert sorted(listed) == sorted(member.kind for member in typing.get_args(Data))
