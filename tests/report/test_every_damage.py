"""Every kind of damage in every file of a study, one at a time: the page comes, or one error."""

import json
import pathlib
import shutil

import pytest

from fpnlab.errors import RunFolderError
from fpnlab.report import write_report, write_run_report

from .conftest import make_study, write_summary

pytestmark = pytest.mark.slow
RUN = "trials/BN-2-0"
FILES = ("result.json", "metrics.jsonl", "gallery.npz", "config.json", "env.json")


def written(content):
    return lambda path: path.write_bytes(content)


def flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(bytes(content))


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def folder(path):
    path.unlink()
    path.mkdir()


def link(path):
    path.unlink()
    path.symlink_to(path)


def changed(**fields):
    def change(path):
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return change


STRUCTURE = {
    "absent": pathlib.Path.unlink,
    "cut": cut,
    "flipped": flipped,
    "folder": folder,
    "link": link,
    "empty": written(b""),
    "list": written(b"[]"),
    "null": written(b"null"),
    "table": written(b"{}"),
    "text": written(b'"x"'),
    "number": written(b"3"),
    "deep": written(b"[" * 100_000 + b"]" * 100_000),
    "nested": written(b'{"experiment":' + b"[" * 900 + b"]" * 900 + b"}"),
    "no UTF-8": written(b"\xff\xfe{}"),
}
DRIFT = {"name": "a", "level": None, "mean_shift": float("nan"), "log_variance_ratio": float("inf")}
ODD_DIAGNOSTICS = {
    "drift": [DRIFT | {"count": 1.0}],
    "signals": [{"name": "s", "squared_mean": -1.0, "variance": float("inf")}],
    "effective_rates": {"step": 1, "examples": 1, "learning_rate": 0.0, "rates": {"a": 0.0}},
    "gradient_noise": {"images": 1, "draws": 1, "rows": [{"norm_batch": 0, "noise": 1.0}]},
}
RESULTS = [
    {"arm": "another"},
    {"axis_value": 7},
    {"axis_value": "2"},
    {"examples": 10**400},
    {"seed": -(10**30)},
    {"seconds": 0.0},
    {"seconds": 1e-320},
    {"seconds": float("inf")},
    {"final_loss": float("nan")},
    {"metrics": {}},
    {"metrics": {"x": {"y": 1.0}}},
    {"metrics": {"running": {"AP": float("nan")}}},
    {"error": "\ud800", "status": "failed"},
    {"class_names": []},
    {"status": "odd"},
    {"diagnostics": ODD_DIAGNOSTICS},
]
SUMMARIES = [
    {"metric": "/absolute/path"},
    {"arms": []},
    {"arms": ["BN"]},
    {"arms": ["A", "B"]},
    {"axis_values": []},
    {"axis_values": [1, 1.0, True]},
    {"rows": []},
    {"counts": {}},
    {"best": None},
    {"holm_over": "nothing"},
]
PLANS = [
    {"arms": []},
    {"axis_values": []},
    {"axis_values": [2, 2.0, 8]},
    {"question": "$x$ \ud800 \x1b[31m\u202e <b>"},
    {"trials": -5},
    {"axis": ""},
    {"metric": "a/../../b"},
]
LINES = [
    '{"step": 1, "examples": 8, "loss": "x"}\n',
    '{"step": null, "examples": 8}\n',
    "[1]\n",
    f'{{"step": 1, "examples": 8, "loss": 1{"0" * 400}}}\n',
    '{"step": 1, "exa\n{"step": 2, "examples": 16, "loss": 1.0}\n',
    '{"step": 1, "examples": 8, "loss": 0.0}\n' * 5,
    '{"step": 1, "examples": 8, "loss": NaN}\n' * 5,
    '{"step": 1, "examples": 8, "loss": 1.7e308}\n' * 5,
    '{"step": 1, "examples": -8, "loss": -1.0}\n' * 5,
    '{"step": 1, "examples": 8, "effective_rates": [1]}\n',
    f'{{"step": 1, "examples": 8, "loss": {"[" * 5000}{"]" * 5000}}}\n',
]
CASES = {
    **{f"{RUN}/{f}, {name}": (f"{RUN}/{f}", d) for f in FILES for name, d in STRUCTURE.items()},
    **{f"summary.json, {name}": ("summary.json", d) for name, d in STRUCTURE.items()},
    **{f"study.json, {name}": ("study.json", d) for name, d in STRUCTURE.items()},
    **{f"result {i}": (f"{RUN}/result.json", changed(**c)) for i, c in enumerate(RESULTS)},
    **{f"summary {i}": ("summary.json", changed(**c)) for i, c in enumerate(SUMMARIES)},
    **{f"plan {i}": ("study.json", changed(**c)) for i, c in enumerate(PLANS)},
    **{
        f"line {i}": (f"{RUN}/metrics.jsonl", written(line.encode()))
        for i, line in enumerate(LINES)
    },
}
"""Damaged file and function that damages it, by name: 142 of them."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sound") / "study"
    return write_summary(make_study(folder, (2, 8), records=6, side=32))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.filterwarnings("default")
def test_the_page_comes(sound, tmp_path, case):
    study = pathlib.Path(shutil.copytree(sound, tmp_path / "study"))
    file, damage = CASES[case]
    damage(study / file)
    message = ""
    try:
        assert "How to reproduce" in write_report(study).read_text(encoding="utf-8")
    except (RunFolderError, FileNotFoundError) as error:
        message = str(error)
    assert not message or file == "study.json"
    assert "\n" not in message
    if file.startswith(RUN):
        assert "How to reproduce" in write_run_report(study / RUN).read_text(encoding="utf-8")
    written = {path.name for path in study.iterdir()}
    assert written <= {p.name for p in sound.iterdir()} | {"report.html", "table.csv", "figures"}
