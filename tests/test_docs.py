"""What the pages say can be run, runs."""

import pathlib
import re

import pytest

from fpnlab.config import load

ROOT = pathlib.Path(__file__).parents[1]
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])


def blocks(page, language):
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)


def test_there_are_snippets_to_run():
    assert blocks(ROOT / "README.md", "python")


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
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
    experiment = load(path)
    assert [len(claim.rules) for claim in experiment.study.claims] == [2, 1]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_and_pictures_of_a_page_exist(page):
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_commands_of_a_page_name_configs_that_exist(page):
    for name in re.findall(r"configs/\w+\.toml", page.read_text()):
        assert (ROOT / name).exists(), f"{page.name}: {name}"
