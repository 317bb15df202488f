"""Damaged files of a finished study are found by `verify` or harmless, and never a traceback."""

import dataclasses
import json
import pathlib
import shutil
import traceback

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from fpnlab.cli.main import main

CONFIG = """
[data]
kind = "image_folder"
root = "{root}"
image_size = [16, 16]
class_names = ["dark", "light"]

[model]
classes = 2
backbone = {{ depths = [1, 1], widths = [4, 8], stem = {{ size = 3 }}, norm = {{ kind = "batch_norm" }} }}

[train]
examples = 16
batch_size = 4
learning_rate = 0.1

[evaluate]
batch_size = 8
population_examples = 8
"""
STUDY = """
[study]
seeds = [0, 1]

[[study.axes]]
field = "train.batch_size"
values = [2, 4]

[study.arms.BN]

[study.arms.LN]
"model.backbone.norm" = { kind = "layer_norm", axes = "hwc" }

[[study.claims]]
statement = "LN is better at a batch of two."
rules = [{ kind = "difference", arm = "LN", baseline = "BN", axis_values = [2], side = "above" }]
"""
TRIAL, OTHER = "trials/bn-batch_size-2-seed-0", "trials/ln-batch_size-4-seed-1"
OVERRIDES = ["--log_examples", "4", "--checkpoint_seconds", "0"]


def call(*words):
    """Runs a command; returns its exit code and output, after checking that it did not crash."""
    done = CliRunner().invoke(main, [*map(str, words)])
    error = done.exception
    if error is not None and not isinstance(error, SystemExit):
        raise AssertionError("".join(traceback.format_exception(error))) from error
    assert done.exit_code == 0 or done.output.strip(), words
    return done.exit_code, done.output


@dataclasses.dataclass(frozen=True)
class Sound:
    """A finished study with the commands that it came from."""

    folder: pathlib.Path
    config: pathlib.Path
    single: pathlib.Path

    def study(self, folder):
        return call("study", self.config, "--out", folder, *OVERRIDES)

    def train(self, folder):
        words = ("--train.batch_size", "2", "--seed", "0", *OVERRIDES)
        return call("train", self.single, "--out", folder / TRIAL, *words)


@pytest.fixture(scope="module")
def no_reports():
    """Leaves out the pages of `study` and `train`, which `report` writes again."""
    with pytest.MonkeyPatch.context() as patch:
        import fpnlab.report

        patch.setattr(fpnlab.report, "write_report", lambda folder: "left out")
        patch.setattr(fpnlab.report, "write_run_report", lambda folder: "left out")
        yield


@pytest.fixture(scope="module")
def sound(tmp_path_factory, no_reports):
    home = tmp_path_factory.mktemp("corruption")
    draw = np.random.default_rng(0)
    for split, count in (("train", 8), ("test", 6)):
        for name, low in (("dark", 0), ("light", 90)):
            (home / "data" / split / name).mkdir(parents=True)
            for i in range(count):
                pixels = draw.integers(low, low + 160, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(home / "data" / split / name / f"{i}.png")
    single, config = home / "single.toml", home / "config.toml"
    single.write_text(CONFIG.format(root=home / "data"))
    config.write_text(single.read_text() + STUDY)
    found = Sound(home / "study", config, single)
    code, output = found.study(found.folder)
    assert code == 0, output
    return found


@pytest.fixture
def copy(sound, tmp_path):
    return shutil.copytree(sound.folder, tmp_path / "study")


def test_a_sound_study_is_sound(sound, copy):
    code, output = call("verify", copy)
    assert code == 0, output
    assert "sound (runs 8" in output
