"""The command line: help, exit codes and messages, and runs that signals interrupt."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner
from PIL import Image

from fpnlab.cli.command_line import problem_lines
from fpnlab.cli.main import main
from fpnlab.config.help import sections
from fpnlab.config.load import load_config
from fpnlab.config.validate import validate
from fpnlab.data.dataset import Problem
from fpnlab.stats.intervals import paired_power
from fpnlab.study.ledger import Ledger

from ..small_config import MODEL

CONFIGURED = ("train", "study", "plan", "show", "config")
COMMANDS = (*CONFIGURED, "evaluate", "predict", "report", "verify", "doctor")

CONFIG = (
    """
question = "Does the command line work?"
log_examples = 4

"""
    + MODEL
    + """
[train]
examples = 1600
batch_size = 4
learning_rate = 0.05

[evaluate]
batch_size = 8
population_examples = 8

[study]
axes = [{ field = "train.batch_size", values = [4] }]
seeds = [0]
arms = { BN = {} }
"""
)


DIGITS = """
[data]
kind = "digits"

[model]
kind = "classifier"
classes = 10
backbone = { depths = [1], widths = [4], norm = { kind = "batch_norm" } }
"""


@pytest.fixture(scope="module")
def config_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.toml"
    path.write_text(CONFIG)
    return path


def call(*words):
    """The result of a command; what it raised, if it raised, fails the test."""
    result = CliRunner().invoke(main, [str(word) for word in words])
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture(scope="module")
def trained(config_file, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("trained")
    result = call("train", config_file, "--out", folder)
    assert result.exit_code == 0
    return folder


def test_the_group_lists_its_commands_and_exit_codes():
    result = call("--help")
    assert result.exit_code == 0
    for command in COMMANDS:
        assert f"\n  {command} " in result.output
    for code in (0, 2, 3, 4, 5, 75):
        assert re.search(rf"\b{code} ", result.output)


def squeezed(text):
    return "".join(text.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_help_lists_every_option_with_type_default_and_meaning(command):
    result = call(command, "--help")
    assert (result.exit_code, result.stderr) == (0, "")
    for option in main.commands[command].params:
        if option.param_type_name == "option":
            assert option.help
            assert squeezed(option.help) in squeezed(result.output)
            assert option.required or option.show_default or "[default:" in option.help
            assert f"{option.opts[0]} " in result.output
    if command in CONFIGURED:
        _, (experiment,) = sections()
        for field in experiment.fields:
            assert f"--{field.path} {field.type}" in result.output
            assert squeezed(field.meaning.split("\n\n")[0]) in squeezed(result.output)
        assert len(result.output.splitlines()) < 90


@pytest.mark.parametrize("path", ["train", "model.backbone.norm", "train.ema_examples", "study"])
def test_help_on_a_field_shows_its_section(path):
    result = call("train", "--help", path)
    assert result.exit_code == 0
    assert result.output == call("study", "--help", f"--{path}").output
    field, kinds = sections(path)
    assert squeezed(field.meaning) in squeezed(result.output)
    for kind in kinds:
        assert squeezed(kind.meaning) in squeezed(result.output)
        for inner in kind.fields:
            assert f"--{inner.path} {inner.type}" in result.output


def test_help_on_an_unknown_field_names_a_near_one():
    result = call("train", "--help", "train.batchsize")
    assert result.exit_code == 2
    assert "train.batchsize: unknown field; did you mean train.batch_size" in result.stderr


@pytest.mark.parametrize(
    ("words", "incomplete", "expected"),
    [
        ([], "eva", "evaluate"),
        (["study"], "--wor", "--workers"),
        (["train"], "--train.batch", "--train.batch_size"),
        (
            ["train", "configs/demo.toml"],
            "--model.backbone.norm.dec",
            "--model.backbone.norm.decay",
        ),
    ],
)
def test_the_shell_completes_commands_options_and_fields(words, incomplete, expected):
    completion = ShellComplete(main, {}, "fpnlab", "_FPNLAB_COMPLETE")
    found = [item.value for item in completion.get_completions(words, incomplete)]
    assert expected in found


def test_a_plan_prints_power_trials_and_time_by_seeds(config_file, tmp_path):
    words = ("--effect", 3, "--study.seeds", "[0, 1]", "--train.examples", 48)
    result = call("plan", config_file, *words, "--spread", 2)
    assert result.exit_code == 0
    assert "6 seeds decide a true difference of 3 points of AP with a probability" in result.stdout
    rows = {
        int(line.split()[0]): line.split()[1:]
        for line in result.stdout.splitlines()
        if line.strip()[:1].isdecimal() and "seeds" not in line
    }
    assert rows[2][1] == "2"
    assert rows[2][-2:] == ["this", "config"]
    assert rows[6][0] == f"{paired_power(3.0, 2.0, 6):.2f}"
    assert rows[6][-1] == "needed"


@pytest.mark.parametrize("words", [(), ("--spread", 2, "--from", ".")])
def test_a_plan_needs_one_source_of_the_spread(words, config_file):
    result = call("plan", config_file, "--effect", 3, *words)
    assert result.exit_code == 2
    assert "give the spread: either --spread POINTS or --from FOLDER" in result.stderr


@pytest.mark.parametrize("overrides", [(), ("--train.batch-size", 8), ("--train.batch_size=8",)])
def test_config_prints_json_that_is_the_same_experiment(overrides, config_file):
    result = call("config", config_file, *overrides)
    assert result.exit_code == 0
    given = [("train.batch_size", "8")] if overrides else []
    assert validate(json.loads(result.stdout)) == load_config(config_file, given)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--train.batchsize", "8"],
            "train.batchsize: unknown field 'batchsize' (did you mean 'batch_size'?)",
        ),
        (["--train.batch_size", "many"], "train.batch_size: is 'many'; it must be a valid integer"),
        (["--train.batch_size"], "--train.batch_size needs a value, e.g. --train.batch_size 1"),
        (["train.batch_size", "8"], "'train.batch_size' is neither an option nor a field"),
        (["--model.classes", "3"], "model.classes: is 3, but the data has 4 classes"),
    ],
)
@pytest.mark.parametrize("command", ["config", "train"])
def test_what_cannot_be_right_exits_with_2_and_a_message(command, words, says, config_file):
    result = call(command, config_file, *words)
    assert result.exit_code == 2
    assert says in result.stderr
    assert "Traceback" not in result.output


def test_a_missing_config_exits_with_2(tmp_path):
    result = call("train", tmp_path / "nope.toml")
    assert result.exit_code == 2
    assert "nope.toml: no such file" in result.stderr


def test_a_missing_data_folder_exits_with_3_and_names_the_field(config_file, tmp_path):
    voc = '{ kind = "voc", root = "/no/such/folder", class_names = ["a", "b", "c", "d"] }'
    result = call("train", config_file, "--data", voc, "--study", "none", "--out", tmp_path / "o")
    assert result.exit_code == 3
    assert "data.root" in result.stderr
    assert "/no/such/folder" in result.stderr
    assert not (tmp_path / "o").exists()


@pytest.mark.parametrize("command", ["train", "study", "show"])
def test_missing_scikit_learn_exits_with_3_and_a_remedy(command, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    path = tmp_path / "digits.toml"
    path.write_text(CONFIG.replace(MODEL, DIGITS))
    result = call(command, path, "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert result.stderr.startswith(f"fpnlab {command}: digits: the images come with scikit-learn")
    assert result.stderr.rstrip().endswith("pip install scikit-learn")
    assert "data.root" not in result.stderr


def test_a_study_without_a_study_table_exits_with_2(config_file, tmp_path):
    result = call("study", config_file, "--study", "none", "--out", tmp_path)
    assert result.exit_code == 2
    assert "study: absent; a study needs a [study] table" in result.stderr


def test_the_folder_of_another_run_exits_with_5(trained, config_file):
    result = call("train", config_file, "--seed", 1, "--out", trained)
    assert result.exit_code == 5
    assert "the fields that differ: seed (0 there, 1 here); choose another folder" in result.stderr


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["report"], 5, "not the folder of a run"),
        (["evaluate"], 2, "config.json: not the config of a run"),
    ],
)
def test_commands_on_a_run_reject_a_folder_without_one(words, code, says, tmp_path):
    result = call(*words, tmp_path)
    assert result.exit_code == code
    assert says in result.stderr


def test_a_run_that_diverges_exits_with_4_and_still_has_a_report(config_file, tmp_path):
    wild = ("--train.learning_rate", "1e20", "--model.backbone.norm.kind", "none")
    result = call("train", config_file, *wild, "--train.examples", 48, "--out", tmp_path)
    assert result.exit_code == 4
    assert "diverged: loss or gradient not finite at step" in result.stderr
    assert "try a lower train.learning_rate" in result.stderr
    assert "diverged" in (tmp_path / "report.html").read_text()


def table(output):
    lines = [line.split() for line in output.splitlines() if not line.startswith("report")]
    return {line[0]: line[1:] for line in lines}


def test_training_again_and_evaluating_print_the_same_table(trained, config_file):
    again = call("train", config_file, "--out", trained)
    assert (again.exit_code, "was finished" in again.stderr) == (0, True)
    measured = call("evaluate", trained)
    assert measured.exit_code == 0
    found = table(measured.stdout)
    assert found["points"] == ["running", "precise", "batch"]
    assert found == table(again.stdout)
    stored = json.loads((trained / "result.json").read_text())["metrics"]
    assert found["AP50"] == [f"{100 * metrics['AP50']:.1f}" for metrics in stored.values()]


def test_a_report_is_written_anew(trained):
    (trained / "report.html").unlink()
    result = call("report", trained)
    assert result.exit_code == 0
    assert result.stdout == f"report: {trained / 'report.html'}\n"
    assert "</html>" in (trained / "report.html").read_text()


@pytest.mark.parametrize("options", [(), ("--split", "train"), ("--run", "trained", "--count", 5)])
def test_show_draws_a_picture(options, trained, config_file, tmp_path):
    options = [trained if word == "trained" else word for word in options]
    result = call("show", config_file, *options, "--out", tmp_path / "show.png")
    assert result.exit_code == 0
    assert result.stdout == f"{tmp_path / 'show.png'}\n"
    with Image.open(tmp_path / "show.png") as image:
        image.load()
        assert min(image.size) > 100


def test_show_with_a_run_of_other_classes_exits_with_5(trained, config_file, tmp_path):
    stored = json.loads((trained / "config.json").read_text())
    stored["experiment"]["data"] = {"kind": "voc", "root": "r", "class_names": ["a", "b", "c", "d"]}
    (tmp_path / "config.json").write_text(json.dumps(stored))
    result = call("show", config_file, "--run", tmp_path, "--out", tmp_path / "show.png")
    assert result.exit_code == 5
    assert "its classes are a, b, c, d, but those of the data are circle, square" in result.stderr


def test_predict_writes_json_and_a_picture_an_image(trained, tmp_path):
    photos = tmp_path / "photos"
    (photos / "more").mkdir(parents=True)
    for path, size in ((photos / "a.png", (90, 40)), (photos / "more" / "a.jpg", (500, 700))):
        Image.new("RGB", size, "red").save(path)
    (photos / "broken.png").write_bytes(b"broken")
    result = call("predict", trained, photos, "--score", 0, "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert f"{photos / 'broken.png'}: left out: does not decode" in result.stderr
    assert "2 images predicted, 1 left out" in result.stdout
    written = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [(image["width"], image["height"]) for image in written["images"]] == [
        (90, 40),
        (500, 700),
    ]
    for image, picture in zip(written["images"], ("a.png", "a_2.png")):
        for found in image["detections"]:
            x1, y1, x2, y2 = found["box_xyxy"]
            assert 0 <= x1 <= x2 <= image["width"]
            assert 0 <= y1 <= y2 <= image["height"]
        with Image.open(tmp_path / "out" / picture) as drawn:
            assert drawn.width >= image["width"]


def test_predict_leaves_out_what_is_no_picture_and_prints_a_line_each(trained, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    Image.new("RGB", (20, 20)).save(photos / "a.png")
    Image.new("1", (7_100, 7_100)).save(photos / "large.png")
    Image.new("RGB", (20, 20)).save(photos / "eps.jpg", "EPS")
    os.mkfifo(photos / "pipe.png")
    (photos / "endless.tif").symlink_to("/dev/zero")
    result = call("predict", trained, photos, "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert "1 image predicted, 4 left out" in result.stdout
    endless, eps, large, pipe = result.stderr.splitlines()
    assert "endless.tif: left out: is a device; expected a regular file" in endless
    assert "eps.jpg: left out: does not decode (it is none of JPEG, PNG, BMP, TIFF, WEBP" in eps
    assert "large.png: left out: has 7100 x 7100 = 50,410,000 pixels" in large
    assert "pipe.png: left out: is a named pipe; expected a regular file" in pipe


DAMAGE = {
    "empty": lambda content: b"",
    "half": lambda content: content[: len(content) // 2 - 3],
    "another type": lambda content: b"[]\n" + content,
    "wrong fields": lambda content: b'{"step": "x", "examples": [], "status": 5}\n' * 2,
    "deep": lambda content: b"[" * 200_000,
    "binary": lambda content: b"\xff\xfe\0",
}


@pytest.mark.parametrize("damage", [*DAMAGE, "pipe", "endless"])
@pytest.mark.parametrize("name", ["result.json", "metrics.jsonl", "config.json"])
def test_a_damaged_file_of_a_run_is_an_error_of_one_line(
    name, damage, trained, config_file, tmp_path
):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    path = folder / name
    if damage == "pipe":
        path.unlink()
        os.mkfifo(path)
    elif damage == "endless":
        os.truncate(path, 2**42)
    else:
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    for words in (
        ["train", config_file, "--out", folder],
        ["evaluate", folder],
        ["show", config_file, "--run", folder, "--out", tmp_path / "show.png"],
    ):
        result = call(*words)
        *progress, last = result.stderr.splitlines() or [""]
        assert all(line.startswith("1/1  tiny  done") for line in progress)
        if result.exit_code:
            assert last.startswith(f"fpnlab {words[0]}: ")
            assert path.name in last


def test_predict_without_an_image_exits_with_3(trained, tmp_path):
    result = call("predict", trained, tmp_path, "--out", tmp_path / "out")
    assert result.exit_code == 3
    assert f"{tmp_path}: no image; these are taken: .jpg" in result.stderr


def test_a_study_ends_with_its_table_and_a_report(config_file, tmp_path):
    result = call("study", config_file, "--train.examples", 48, "--out", tmp_path)
    assert result.exit_code == 0
    assert "1/1" in result.stderr
    assert f"report: {tmp_path / 'report.html'}\n" in result.stdout
    assert json.loads((tmp_path / "summary.json").read_text())["counts"]["done"] == 1
    again = call("study", config_file, "--train.examples", 48, "--out", tmp_path)
    assert "was finished" in again.stderr


def test_a_study_says_its_verdicts_and_keeps_to_its_claims(config_file, tmp_path):
    rule = (
        '{ kind = "difference", arm = "BN", evaluation = "precise", baseline = "BN", '
        'baseline_evaluation = "running", axis_values = [4], side = "above" }'
    )
    claims = f'[{{ statement = "It helps.", rules = [{rule}] }}]'
    words = ("study", config_file, "--train.examples", 48, "--out", tmp_path)
    result = call(*words, "--study.claims", claims)
    assert result.exit_code == 0
    assert "INCONCLUSIVE  It helps.\n  - AP: BN (precise) minus BN (running), " in result.stdout
    again = call(*words, "--study.claims", claims.replace("above", "below"))
    assert again.exit_code == 5
    assert "claims.0.rules.0.side (above there, below here)" in " ".join(again.stderr.split())


def test_a_dry_run_lists_the_trials_and_what_they_take_and_writes_nothing(
    config_file, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PJRT_NPROC", "2")  # The command sets what is not set.
    monkeypatch.setenv("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    axes = '[{ field = "train.learning_rate", values = [0.05, 0.1] }]'
    result = call("study", config_file, "--study.axes", axes, "--dry-run", "--workers", 2)
    assert result.exit_code == 0
    rows = [line.split()[:5] for line in result.stdout.splitlines()]
    for rate in ("0.05", "0.1"):
        assert ["BN", rate, "1", "1,600", "400"] in rows
    assert "measuring a few steps, 1 of 1: bn-learning_rate-0.05-seed-0" in result.stderr
    assert "2 trials of 800 steps: " in result.stdout
    assert re.search(r"1 program: .* of additional compilation", result.stdout)
    assert re.search(r"With 2 workers: about .*, and \d+\.\d\d CPU hours", result.stdout)
    assert list(tmp_path.iterdir()) == []


def test_a_study_of_which_every_trial_failed_exits_with_4(config_file, tmp_path):
    wild = ("--train.learning_rate", "1e20", "--model.backbone.norm.kind", "none")
    result = call("study", config_file, *wild, "--train.examples", 48, "--out", tmp_path)
    assert result.exit_code == 4
    assert (
        "all 1 trials failed or diverged, e.g. bn-batch_size-4-seed-0: loss or gr" in result.stderr
    )
    assert "</html>" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("command", ["train", "study"])
def test_a_folder_with_other_files_needs_the_word_of_the_user(command, config_file, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    result = call(command, config_file, "--out", tmp_path)
    assert result.exit_code == 5
    assert "holds other files (thesis.tex); give a new or empty folder" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    words = ("--allow-existing", "--train.examples", 48)
    assert call(command, config_file, "--out", tmp_path, *words).exit_code == 0


def test_evaluate_says_that_the_data_have_changed_or_moved(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (12, 8, 8, 3), np.uint8)
    for i, image in enumerate(pixels):
        folder = tmp_path / "data" / ("train", "test")[i % 2] / "ab"[i // 2 % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{i}.png")
    (tmp_path / "c.toml").write_text(
        f"""
        data = {{ kind = "image_folder", root = "{tmp_path / "data"}", image_size = [8, 8],
          class_names = ["a", "b"] }}
        model = {{ classes = 2, backbone = {{ depths = [1], widths = [4],
          stem = {{ size = 3, stride = 1, pool = false }}, norm = {{ kind = "batch_norm" }} }} }}
        train = {{ examples = 8, batch_size = 4, learning_rate = 0.1 }}
        """.replace("\n          ", " ")
    )
    run = tmp_path / "run"
    assert call("train", tmp_path / "c.toml", "--out", run).exit_code == 0
    (tmp_path / "data").rename(tmp_path / "moved")
    assert call("evaluate", run).exit_code == 3
    moved = call("evaluate", run, "--data.root", tmp_path / "moved")
    assert (moved.exit_code, moved.stderr) == (0, "")
    root = ("--data.root", tmp_path / "moved")
    again = call("train", tmp_path / "c.toml", "--out", run, *root)
    assert (again.exit_code, "was finished" in again.stderr) == (0, True)

    Image.fromarray(pixels[0] // 2).save(tmp_path / "moved/train/a/0.png")
    changed = call("evaluate", run, *root)
    assert changed.exit_code == 0
    assert "data: changed since the run: train/a/0.png (other content)" in changed.stderr
    assert table(changed.stdout).keys() == table(moved.stdout).keys()
    again = call("train", tmp_path / "c.toml", "--out", run, *root)
    assert again.exit_code == 5
    assert "the data have changed since this run began: train/a/0.png" in again.stderr
    found = call("verify", run)
    assert found.exit_code == 5
    assert "the data have changed since training: train/a/0.png (other content)" in found.stdout
    assert call("verify", run, "--data.root", tmp_path / "no").exit_code == 0


def test_a_worker_of_no_study_exits_with_5(tmp_path):
    result = call("worker", tmp_path)
    assert result.exit_code == 5
    assert "not the folder of a study" in result.stderr


def test_a_worker_without_the_data_exits_with_3(config_file, tmp_path):
    words = ("study", config_file, "--train.examples", 48, "--out", tmp_path)
    assert call(*words).exit_code == 0
    plan = json.loads((tmp_path / "study.json").read_text())
    names = ["circle", "square", "triangle", "cross"]
    plan["config"]["data"] = {"kind": "voc", "root": "/no/such", "class_names": names}
    (tmp_path / "study.json").write_text(json.dumps(plan))
    result = call("worker", tmp_path)
    assert result.exit_code == 3
    assert "Voc data in /no/such: 1 error" in result.stderr


def test_a_worker_runs_what_is_left_of_a_study(config_file, tmp_path):
    words = ("study", config_file, "--train.examples", 48, "--out", tmp_path)
    assert call(*words).exit_code == 0
    shutil.rmtree(tmp_path / "trials")
    Ledger(tmp_path / "ledger.sqlite").reopen(["bn-batch_size-4-seed-0"])
    result = call("worker", tmp_path, "--owner", "me")
    assert (result.exit_code, result.stdout) == (0, f"me: process {os.getpid()}\n")
    assert json.loads((tmp_path / "trials/bn-batch_size-4-seed-0/result.json").read_text())
    assert "was finished" in call(*words).stderr


def interrupted(words, folder, number):
    """Sends a signal to ``python -m fpnlab`` once it has logged; its exit code and stderr."""
    log = folder / "metrics.jsonl"
    before = log.stat().st_size if log.exists() else 0
    command = [sys.executable, "-m", "fpnlab", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (log.exists() and log.stat().st_size > before):
            time.sleep(0.01)
        process.send_signal(number)
        asked = time.monotonic()
        _, errors = process.communicate(timeout=60)
        assert time.monotonic() - asked < 10
    return process.returncode, errors


def test_signals_save_and_the_same_command_goes_on_to_the_same_end(trained, config_file, tmp_path):
    words = ("train", config_file, "--out", tmp_path)
    saved = []
    for number in (signal.SIGINT, signal.SIGTERM):
        code, errors = interrupted(words, tmp_path, number)
        assert code == 75, errors
        assert "Traceback" not in errors
        step, last = re.search(r"stopped after step (\d+) of (\d+), saved", errors).groups()
        assert last == "400"
        assert (tmp_path / "checkpoints" / step).is_dir()
        saved.append(int(step))
    assert 0 < saved[0] < saved[1] < 400
    assert not (tmp_path / "result.json").exists()

    assert call(*words).exit_code == 0
    one, other = (json.loads((f / "result.json").read_text()) for f in (trained, tmp_path))
    assert other | {"seconds": 0} == one | {"seconds": 0}


@pytest.mark.parametrize("word", ["-batch", "-train.examples", "-help"])
def test_a_long_option_behind_one_dash_is_named(word, config_file):
    result = call("train", config_file, word, "8")
    assert result.exit_code == 2
    assert f"{word}: no such option; did you mean -{word}?" in result.stderr


def test_a_long_option_behind_one_dash_is_named_after_a_flag(config_file):
    result = call("study", config_file, "--dry-run", "-batch", "8")
    assert result.exit_code == 2
    assert "-batch: no such option; did you mean --batch?" in result.stderr


def test_a_negative_number_is_a_value(config_file):
    result = call("train", config_file, "--train.learning_rate", "-1")
    assert "train.learning_rate: is -1" in result.stderr


def test_equal_problems_of_data_are_one_line_and_rare_ones_come_first():
    many = [
        Problem(file=f"{i}.xml", where="object 1", what=f"box ({i}, 2, 3, 4) has no area")
        for i in range(267)
    ]
    rare = Problem(file="x.jpg", where="file", what="cannot be decoded")
    lines = problem_lines([*many[:100], rare, *many[100:]])
    assert lines == [
        "x.jpg, file: cannot be decoded",
        "0.xml, object 1: box (0, 2, 3, 4) has no area (and 266 more like it)",
    ]
