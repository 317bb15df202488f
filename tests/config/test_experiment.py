"""Configs: what is refused and how it says so, overrides, round trips, studies, configs/."""

import copy
import dataclasses
import json
import pathlib
import re
import tomllib

import pytest

from fpnlab.config import help
from fpnlab.config.load import load_config
from fpnlab.config.messages import MINIMAL
from fpnlab.config.study import Axis
from fpnlab.config.trials import trials
from fpnlab.config.validate import PRESETS, config_hash, hash_of, resolved, training_hash, validate
from fpnlab.errors import ConfigError
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm, NoNorm
from fpnlab.nn.resnet import resnet
from fpnlab.run.folder import RunFolder
from fpnlab.train.step import AdamW

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").rglob("*.toml"))

BASE = """
[data]
kind = "scenes"
image_size = 32
train_size = 32
test_size = 8

[model]
classes = 4
backbone = { depths = [1, 1], widths = [4, 8], norm = { kind = "batch_norm" } }
neck = { channels = 8, min_level = 3, max_level = 4 }
head = { depth = 1 }

[train]
examples = 48
batch_size = 4
learning_rate = 0.1
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
"""


AXIS = {"field": "train.batch_size", "values": [2]}
GRID = {"axes": [AXIS], "arms": {"BN": {}, "LN": {}}}
RULE = {"kind": "equivalence", "arm": "BN", "baseline": "LN", "axis_values": [2], "margin": 1.0}


@pytest.fixture
def table():
    return tomllib.loads(BASE)


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "given.toml"
        path.write_text(text)
        return path

    return write


def put(table, dotted, value):
    *parents, last = dotted.split(".")
    for name in parents:
        table = table.setdefault(name, {})
    table[last] = value


def refusal(table):
    with pytest.raises(ConfigError) as caught:
        validate(table)
    return str(caught.value)


NORM = "model.backbone.norm"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("train.batchsize", 8, "train.batchsize: no such field; the nearest is 'batch_size'; all:"),
        ("trian", {}, "trian: no such field; the nearest is 'train'; all: question, seed,"),
        ("model.neck.width", 8, "model.neck.width: no such field; these are known: channels,"),
        (NORM, {"kind": "batch_norm", "deacy": 0.9}, f"{NORM}.deacy: no such field; the nearest"),
        (NORM, {"kind": "batchnorm"}, f"{NORM}.kind: is 'batchnorm'; the nearest is 'batch_norm'"),
        (
            NORM,
            {"kind": 3},
            f"{NORM}.kind: is 3; these are known: batch_norm, frozen_batch_norm, layer_norm,",
        ),
        (NORM, {"groups": 2.5}, f"{NORM}.kind: is required; these are known: batch_norm,"),
        (NORM, "batch_norm", f"{NORM}: is 'batch_norm'; it must be a table with a kind: batch"),
        (NORM, {"kind": "layer_norm"}, f"{NORM}.axes: is required"),
        (NORM, {"kind": "batch_norm", "decay": 1.0}, f"{NORM}.decay: is 1.0; it must be at least"),
        (NORM, {"kind": "group_norm", "groups": 3}, "4 channels do not split into 3 groups; these"),
        (
            NORM,
            {"kind": "batch_norm", "norm_batch": 3},
            "groups of norm_batch=3; these do: 1, 2, 4",
        ),
        ("model.neck.max_level", 6, "leave pyramid level 6 empty .*; use neck.max_level <= 5 or"),
        ("model.neck.min_level", 1, "need the backbone's level 1; it has"),
        ("model.anchors", {"octaves": 0}, "model.anchors.octaves: is 0; it must be at least 1"),
        (
            "model.classes",
            3,
            "model.classes: is 3, but the data has 4 classes .*set model.classes = 4",
        ),
        ("model.head.depth", -1, "model.head.depth: is -1; it must be at least 0"),
        ("objective.smooth_l1_beta", 0.0, "objective.smooth_l1_beta: is 0.0; it must be above 0"),
        ("train.batch_size", "8", "train.batch_size: is '8'; it must be a valid integer"),
        ("train.batch_size", 8.5, "train.batch_size: is 8.5; it must be a valid integer"),
        ("train.batch_size", True, "train.batch_size: is True; it must be a valid integer"),
        (
            "train.rule",
            "cubic",
            "train.rule: is 'cubic'; it must be 'constant', 'linear' or 'sqrt'",
        ),
        ("train.learning_rate", -1.0, "train.learning_rate: is -1.0; it must be at least 1.2e-38"),
        ("train.learning_rate", float("nan"), "train.learning_rate: is nan; it must be a finite"),
        ("evaluate.area_bounds", [1.0], "evaluate.area_bounds.1: is required"),
        (
            "evaluate.area_bounds",
            [1.0, "x"],
            "evaluate.area_bounds.1: is 'x'; it must be a valid num",
        ),
        ("data", {"kind": "voc", "class_names": ["a"]}, "data.root: is required"),
        ("data.image_size", 8, "data.image_size: is 8; it must be at least 16"),
        ("seed", -1, "seed is -1; it must be at least 0 and below"),
        ("log_examples", 0, "log_examples is 0 .* they must be at least 1"),
        ("train.norm_batch", 3, "train: norm_batch is 3, and batch_size=4 .* these do: 1, 2, 4"),
        (
            "train.micro_batch",
            2,
            r"model: batch norm: a batch of 2 images does not split into groups of norm_batch=4; "
            r"these do: 1, 2 \(at train.micro_batch = 2\)",
        ),
        ("train.updates", 3, r"train: give examples or updates \(both are given\)"),
        ("study", {"axes": [AXIS], "arms": {"BN": 3}}, "study.arms.BN: is 3; it must be a table"),
        ("study", {"axes": [], "arms": {"BN": {}}}, "study: axes is empty; give one or more"),
        (
            "study",
            {"axes": AXIS, "arms": {"BN": {}}},
            "study.axes: is {.*; it must be a valid array",
        ),
        ("study", {"axes": [3], "arms": {"BN": {}}}, "study.axes.0: is 3; it must be a table"),
        (
            "study",
            {"axes": [AXIS, {"feild": "seed", "values": [1]}], "arms": {"BN": {}}},
            "study.axes.1.feild: no such field; the nearest is 'field'; all: field, fields, values",
        ),
        (
            "study",
            {"axes": [AXIS | {"values": {"low": 2, "high": 4}}], "arms": {"BN": {}}},
            "study.axes.0.values.count: is required",
        ),
        (
            "study",
            {"axes": [AXIS | {"values": 2}], "arms": {"BN": {}}},
            "study.axes.0.values: is 2; it must be a valid array",
        ),
        (
            "study",
            {"axes": [AXIS], "arms": {"BN": {"seed": 1}}},
            "study: arms.BN sets seed, which the study itself sets by its axes and seeds",
        ),
        (
            "study",
            {**GRID, "claims": [{"statement": "x", "rules": [RULE | {"kind": "equivalent"}]}]},
            "study.claims.0.rules.0.kind: is 'equivalent'; the nearest is 'equivalence'; all: ",
        ),
        (
            "study",
            {**GRID, "claims": [{"statement": "x", "rules": [RULE | {"magrin": 1.0}]}]},
            "study.claims.0.rules.0.magrin: no such field; the nearest is 'margin'; all: ",
        ),
        (
            "study",
            {**GRID, "claims": [{"statement": "x", "rules": [RULE | {"axis_values": [3]}]}]},
            "study: claims.0.rules.0 names the axis value 3, which there is not; these are known: ",
        ),
    ],
)
def test_a_fault_is_refused_by_its_dotted_path_with_a_remedy(field, value, says, table):
    put(table, field, value)
    message = refusal(table)
    assert re.search(says, message)
    assert len(message.splitlines()) == 1


def test_a_missing_field_is_named(table):
    del table["train"]["batch_size"]
    assert refusal(table) == "train.batch_size: is required"


def test_a_length_in_examples_or_in_updates_is_needed(table):
    del table["train"]["examples"]
    says = "train: give examples or updates (neither is given); the other is none"
    assert refusal(table) == says
    put(table, "train.updates", 12)
    assert validate(table).train.total_examples == 48


def test_batch_norm_over_one_value_is_refused_where_the_batch_is_one_image(table):
    put(table, "model.neck", {"channels": 8, "max_level": 5, "norm": {"kind": "batch_norm"}})
    validate(table)
    put(table, "train.batch_size", 1)
    message = refusal(table)
    assert "one value per channel (norm_batch=1 on a 1x1 map)" in message
    assert "use norm_batch >= 2" in message
    assert "train.batch_size = 1" in message


def test_all_faults_are_told_at_once(table):
    del table["train"]["batch_size"]
    put(table, "seed", "zero")
    put(table, "model.bacbone", 1)
    put(table, "train.weight_decay", float("inf"))
    put(table, "train.optimizer", {"kind": "adam"})
    assert {line.partition(":")[0] for line in refusal(table).splitlines()} == {
        "seed",
        "model.bacbone",
        "train.weight_decay",
        "train.batch_size",
        "train.optimizer.kind",
    }


def test_faults_of_a_spec_and_of_a_spec_inside_it_are_told_at_once(table):
    put(table, "model.backbone.norm.eps", -1.0)
    put(table, "model.backbone.drop_path", 2.0)
    put(table, "model.neck.channels", 0)
    assert [line.partition(":")[0] for line in refusal(table).splitlines()] == [
        "model.backbone.norm.eps",
        "model.backbone.drop_path",
        "model.neck.channels",
    ]


def test_faults_between_fields_are_told_at_once_too(table):
    put(table, "model.classes", 3)
    put(table, "model.neck.max_level", 7)
    assert len(refusal(table).splitlines()) == 2


def test_a_missing_file_names_those_that_are_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        ConfigError, match=r"nope\.toml: no such file; give the path of a TOML file"
    ):
        load_config("nope.toml")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "demo.toml").touch()
    with pytest.raises(ConfigError, match=r"no such file; these are here: configs/demo\.toml"):
        load_config("nope.toml")


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[train", "not a readable TOML file"),
        (
            "[train]\nexamples = 1\nexamples = 2",
            "not a readable TOML file.*overwrite a value",
        ),
    ],
)
def test_a_file_that_is_no_toml_is_refused_with_the_place(text, says, write):
    with pytest.raises(ConfigError, match=rf"given\.toml: {says}"):
        load_config(write(text))


def test_a_folder_is_no_config(tmp_path):
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        load_config(tmp_path)


def test_faults_of_a_file_are_headed_by_its_name(write):
    with pytest.raises(ConfigError, match=r"given\.toml:\ntrain\.rule: is 'x'"):
        load_config(write(BASE + 'rule = "x"'))


@pytest.mark.parametrize(
    ("overrides", "field", "value"),
    [
        ([("train.batch_size", "8")], "train.batch_size", 8),
        ([("train.batch-size", "8")], "train.batch_size", 8),
        ([("train.learning_rate", "8e-3")], "train.learning_rate", 8e-3),
        ([("train.learning_rate", "1")], "train.learning_rate", 1.0),
        ([("train.rule", "sqrt")], "train.rule", "sqrt"),
        ([("train.rule", '"sqrt"')], "train.rule", "sqrt"),
        ([("train.optimizer", '{ kind = "adamw", b1 = 0.5 }')], "train.optimizer", AdamW(b1=0.5)),
        ([("train.optimizer.kind", "adamw")], "train.optimizer", AdamW()),
        ([(NORM, '{ kind = "layer_norm", axes = "c" }')], NORM, LayerNorm(axes="c")),
        ([(f"{NORM}.decay", "0.5"), (f"{NORM}.decay", "0.7")], NORM, BatchNorm(decay=0.7)),
        ([(f"{NORM}.kind", "none")], NORM, NoNorm()),
        ([("train.clip_norm", "none")], "train.clip_norm", None),
        ([("augment.flip", "1"), ("augment", "none")], "augment", None),
        ([("model.head.norm", '{ kind = "none" }')], "model.head.norm", NoNorm()),
        ([("model.backbone.stem", "{ pool = true }")], "model.backbone.stem.pool", True),
        ([("model.backbone.widths", "[8, 8]")], "model.backbone.widths", (8, 8)),
        ([("question", "What is 1 + 1?")], "question", "What is 1 + 1?"),
    ],
)
def test_overrides_win_over_the_file(overrides, field, value, write):
    found = load_config(write(BASE), overrides)
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_an_unknown_override_is_refused_like_an_unknown_field(write):
    with pytest.raises(ConfigError, match=r"train\.batchsize: no such field; the nearest"):
        load_config(write(BASE), [("train.batchsize", "8")])


def test_none_is_refused_where_a_field_needs_a_value(write):
    with pytest.raises(
        ConfigError, match=r"train\.batch_size: is 'none'; it must be a valid integer"
    ):
        load_config(write(BASE), [("train.batch_size", "none")])


def test_a_file_and_an_arm_may_say_none(write):
    text = BASE.replace("learning_rate", 'clip_norm = "none"\nlearning_rate') + STUDY
    study = load_config(
        write(text + '"train.ema_examples" = "none"\n"model.head.norm.kind" = "none"')
    )
    bn, ln = (t.experiment for t in trials(study)[:2])
    assert bn.train.clip_norm is ln.train.clip_norm is ln.train.ema_examples is None
    assert ln.model.head.norm == NoNorm()


@pytest.mark.parametrize("text", [BASE, BASE + STUDY], ids=["run", "study"])
def test_resolved_and_validated_again_is_the_same_experiment(text, write):
    experiment = load_config(write(text))
    again = validate(json.loads(json.dumps(resolved(experiment))))
    assert again == experiment
    assert hash(again.model) == hash(experiment.model)
    assert config_hash(again) == config_hash(experiment)


def leaves(value, path=()):
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    else:
        yield path, value


def test_every_field_is_part_of_the_hash(table):
    experiment = validate(table | {"augment": {}})
    plain = resolved(experiment)
    hashes = {config_hash(experiment)}
    assert hashes == {hash_of(plain)}
    paths = [path for path, _ in leaves(plain)]
    assert len(paths) > 50
    for path in paths:
        changed = copy.deepcopy(plain)
        put(changed, ".".join(path), "something else")
        hashes.add(hash_of(changed))
    assert len(hashes) == len(paths) + 1


def test_the_order_of_fields_in_a_file_does_not_matter(table):
    backwards = {name: dict(reversed(part.items())) for name, part in reversed(table.items())}
    assert config_hash(validate(backwards)) == config_hash(validate(table))


@pytest.fixture
def study(write):
    return load_config(write(BASE + STUDY))


def test_a_study_has_one_trial_for_each_seed_value_and_arm_in_this_order(study):
    plan = trials(study)
    assert [(t.seed, t.axis_value, t.arm) for t in plan] == [
        (seed, value, arm) for seed in (0, 1) for value in (2, 4) for arm in ("BN", "LN")
    ]
    assert plan[1].name == "ln-batch_size-2-seed-0"
    assert len({t.name for t in plan}) == len(plan)
    assert len({config_hash(t.experiment) for t in plan}) == len(plan)
    for trial in plan:
        assert trial.experiment.study is None
        assert trial.experiment.seed == trial.seed
        assert trial.experiment.train.batch_size == trial.axis_value


def test_paired_trials_differ_in_what_their_arms_set_and_nothing_else(study):
    plan = trials(study)
    for bn, ln in zip(plan[::2], plan[1::2]):
        assert isinstance(bn.experiment.model.backbone.norm, BatchNorm)
        one, other = (dict(leaves(resolved(t.experiment))) for t in (bn, ln))
        differing = {path for path in one.keys() | other.keys() if one.get(path) != other.get(path)}
        assert {path[:3] for path in differing} == {("model", "backbone", "norm")}


def test_faults_of_trials_are_named_by_trial_before_any_starts(write):
    with pytest.raises(ConfigError) as caught:
        load_config(
            write(BASE + STUDY.replace('axes = "hwc"', 'axes = "hw"') + "\n[study.arms.GN]\nx = 1")
        )
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 8
    assert lines[0] == f"ln-batch_size-2-seed-0: {NORM}.axes: is 'hw'; it must be 'hwc' or 'c'"
    assert lines[1].startswith("gn-batch_size-2-seed-0: x: no such field")


def test_trials_may_not_change_the_data(write):
    with pytest.raises(ConfigError, match=r"ln-batch_size-2-seed-0: data: all trials .* share"):
        load_config(write(BASE + STUDY + '"data.train_size" = 16'))


def test_trials_of_one_name_are_refused(write):
    with pytest.raises(ConfigError, match="ln-batch_size-2-seed-0: two trials have this name"):
        load_config(write(BASE + STUDY + "\n[study.arms.ln]"))


def test_names_of_trials_are_names_of_folders(study):
    arms = {"a/b c": {}, "..": {"train.weight_decay": 0.0}}
    widths = Axis(field="model.backbone.widths", values=([4, 8], [8, 8]))
    plan = dataclasses.replace(study.study, axes=(widths,), arms=arms, seeds=(0,))
    names = [t.name for t in trials(dataclasses.replace(study, study=plan))]
    assert names[0] == "a-b-c-widths--4--8--seed-0"
    assert all("/" not in name for name in names)


def test_a_name_too_long_for_a_folder_is_refused(study):
    plan = dataclasses.replace(study.study, arms={"a" * 200: {}})
    with pytest.raises(ConfigError, match="a name of a folder; give the arm a shorter one"):
        trials(dataclasses.replace(study, study=plan))


def test_one_more_axis_multiplies_the_arms_and_names_them(write):
    more = '[[study.axes]]\nfield = "train.learning_rate"\nvalues = [0.1, 0.3]\n'
    plan = trials(
        load_config(write(BASE + STUDY.replace("[study.arms.BN]", f"{more}[study.arms.BN]")))
    )
    assert [(t.arm, t.experiment.train.learning_rate) for t in plan[:4]] == [
        ("BN learning_rate=0.1", 0.1),
        ("BN learning_rate=0.3", 0.3),
        ("LN learning_rate=0.1", 0.1),
        ("LN learning_rate=0.3", 0.3),
    ]
    assert plan[1].name == "bn-learning_rate-0.3-batch_size-2-seed-0"
    assert len(plan) == 2 * 2 * 2 * 2


@pytest.mark.parametrize(("place", "value"), [("0", "[8]"), ("0.values", "[8]")])
def test_an_override_reaches_into_a_list(place, value, write):
    given = value if "." in place else '{ field = "train.batch_size", values = [8] }'
    experiment = load_config(write(BASE + STUDY), [(f"study.axes.{place}", given)])
    assert [t.experiment.train.batch_size for t in trials(experiment)] == [8] * 4


def test_a_combination_of_axes_that_cannot_be_is_refused_by_its_trial(write):
    more = '[[study.axes]]\nfield = "train.norm_batch"\nvalues = [4]\nonly = ["BN"]\n'
    with pytest.raises(ConfigError) as caught:
        load_config(write(BASE + STUDY.replace("[study.arms.BN]", f"{more}[study.arms.BN]")))
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 2
    assert lines[0].startswith("bn-norm_batch-4-batch_size-2-seed-0: train: norm_batch is 4, and")


def test_a_norm_batch_reaches_the_check_of_shapes(table):
    """One image a group on a map of one pixel has no variance."""
    put(table, "model.neck", {"channels": 8, "max_level": 5, "norm": {"kind": "batch_norm"}})
    validate(table)
    put(table, "train.norm_batch", 1)
    assert "one value per channel (norm_batch=1 on a 1x1 map)" in refusal(table)


def test_tuning_without_validation_images_is_refused(write):
    text = BASE + STUDY.replace("[study.arms.BN]", "[study.tune]\n\n[study.arms.BN]")
    with pytest.raises(ConfigError, match=r"study\.tune: the data hold no images out for validati"):
        load_config(write(text))


def test_a_run_has_no_trials(table):
    with pytest.raises(ConfigError, match=r"study: absent; a study needs a \[study\] table"):
        trials(validate(table))


def test_a_run_folder_gives_its_experiment_back(table, tmp_path):
    experiment = validate(table)
    with pytest.raises(ConfigError, match="not the config of a run"):
        RunFolder(tmp_path).stored()
    content = {"experiment": resolved(experiment), "hash": config_hash(experiment)}
    (tmp_path / "config.json").write_text(json.dumps(content))
    assert RunFolder(tmp_path).stored().experiment == experiment


def test_help_describes_every_field_by_the_path_that_overrides_it(table):
    for path, _ in leaves(resolved(validate(table | {"augment": {}}))):
        if path[-1] != "kind":
            field, _ = help.sections(".".join(path))
            assert field.path == ".".join(path)
            assert field.meaning


def test_there_are_configs():
    assert {path.name for path in CONFIGS} >= {"demo.toml", "bccd.toml"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_asks_a_question_and_says_command_duration_and_expectation(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith('question = "')
    assert lines[0].endswith('?"')
    comments = "\n".join(lines[1 : lines.index("[data]")])
    for word in ("Command", "Takes", "Expect"):
        assert f"\n# {word} " in comments
    assert f"configs/{path.name}" in comments


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_and_all_its_trials_are_valid(path):
    experiment = load_config(path)
    assert validate(resolved(experiment)) == experiment
    if experiment.study:
        assert trials(experiment)


WRONG = {
    "train.schedule.warmpu=0.1": "train.schedule.warmpu: no such field; the nearest is 'warmup'",
    "batch_size=8": "batch_size: no such field; did you mean train.batch_size or",
    'data.kind=["digits"]': "data.kind: is ['digits']",
    "model.backbone=resnet19": "model.backbone: is 'resnet19'; the nearest is",
    f"train.batch_size={'9' * 5000}": "(5002 characters); it must be",
    "data.train_size=1000000000": "data.train_size: is 1000000000; it must be at least 1 and",
    "data.kind=voc data.image_size=[240,50000]": "data.image_size: is (240, 50000); it must be at",
    "data.train_size=1000000 data.image_size=4096": "pixels, and at most 4000000000 (12 GB)",
    "model.backbone.depths=[1000000000]": "model.backbone.depths: is (1000000000,); it must be",
    "evaluate.area_bounds=[9.0,4.0]": "evaluate.area_bounds: is (9.0, 4.0); the bound of small",
    "evaluate.population_examples=10000000": "population_examples: 10000000 images of 32x32 are",
    "train.batch_size=100000000 train.examples=2000000000": "train.batch_size: 100000000 images",
    "evaluate.batch_size=100000000": "evaluate.batch_size: 100000000 images of 32x32 are",
    "evaluate.population_examples=1000000000000": "evaluate.population_examples: is 1000000000000;",
    "train.clip_norm=0.0 train.ema_examples=0": "train.ema_examples: is 0; it must be at least 1",
    "model.pixel_deviation=0.0": "model.pixel_deviation: is 0.0; it must be above 0",
    "model.neck.channels=0": "model.neck.channels: is 0; it must be at least 1",
    "model.backbone.norm.reference_batch=0": "model.backbone.norm.reference_batch: is 0",
    "objective.focal_gamma=-1.0": "objective.focal_gamma: is -1.0; it must be at least 0",
    "model.postprocess.nms_iou=2.0": "model.postprocess.nms_iou: is 2.0; it must be",
    "train.examples=4294967296": "train.examples: is 4294967296; it must be at least 1 and below",
    "train.learning_rate=1e-60": "train.learning_rate: is 1e-60; it must be at least 1.2e-38",
    "model.backbone.norm.eps=0.0": "model.backbone.norm.eps: is 0.0; it must be above 0",
}


@pytest.mark.parametrize("given", WRONG)
def test_an_error_names_the_field_and_what_would_work(given, write):
    overrides = [tuple(pair.split("=")) for pair in given.split(" ")]
    with pytest.raises(ConfigError) as caught:
        load_config(write(BASE), overrides)
    assert WRONG[given] in str(caught.value)


def test_a_missing_table_is_shown_at_its_least(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write('question = "why"'))
    for name, example in MINIMAL.items():
        assert f"{name}: is required, e.g. {example}" in str(caught.value)


def test_minimal_tables_and_presets_make_an_experiment(write):
    text = "\n".join(MINIMAL.values())
    assert load_config(write(text)).model.backbone == resnet(18, BatchNorm())
    for name, make in PRESETS.items():
        small = [("model.neck.min_level", "2"), ("model.neck.max_level", "3")]
        levels = small if name.startswith("cifar") else []
        found = load_config(write(text), [("model.backbone", name), *levels])
        assert found.model.backbone == make()


def test_the_name_of_a_kind_stands_for_its_table(write):
    assert load_config(write(BASE), [("train.optimizer", "adamw")]).train.optimizer == AdamW()


def test_text_fields_take_words_that_look_like_numbers_or_none(write):
    data = 'data = { kind = "voc", root = "x", class_names = ["none", "dog"] }'
    text = "\n".join([data, MINIMAL["model"], MINIMAL["train"]])
    found = load_config(write(text), [("data.train", "2007"), ("model.classes", "2")])
    assert (found.data.train, found.data.class_names) == ("2007", ("none", "dog"))


@pytest.mark.parametrize("arm", ["LN-c", "LN_c"])
def test_names_of_arms_keep_their_hyphens(arm, write):
    overrides = [(f"study.arms.{arm}", '{ "train.weight-decay" = 0.0 }')]
    with pytest.raises(ConfigError, match="weight-decay"):
        load_config(write(BASE + STUDY), overrides)
    overrides = [(f"study.arms.{arm}", '{ "train.weight_decay" = 0.0 }')]
    assert arm in load_config(write(BASE + STUDY), overrides).study.arms


def test_files_of_other_encodings_are_read_or_explained(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf" + BASE.encode())
    assert load_config(path) == load_config(path)
    path.write_text(BASE, encoding="utf-16")
    with pytest.raises(ConfigError, match="encoded as UTF-16; save it as UTF-8"):
        load_config(path)
    path.write_text("a = " + "[" * 5000)
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        load_config(path)


@pytest.mark.parametrize(
    ("axes", "arms", "words"),
    [
        (
            [{"field": "model.head.norm", "values": [{"kind": "none"}, {"kind": "batch_norm"}]}],
            {"A": {"model.head.norm.eps": 1e-3}, "B": {}},
            "arms.A sets model.head.norm.eps, a part of what an axis sets",
        ),
        (
            [
                {"field": "train.optimizer", "values": [{"kind": "sgd"}]},
                {"field": "train.optimizer.momentum", "values": [0.5, 0.9]},
            ],
            {"A": {}},
            "an axis sets train.optimizer and another train.optimizer.momentum",
        ),
        (
            [{"field": "train.weight_decay", "values": [0.0, 1e-4]}],
            {"A": {"train.clip_norm": 10.0}, "B": {"train.clip_norm": 10.0}},
            "the same experiment as a-",
        ),
        ([{"field": "train.clip_norm", "values": [1.0], "only": []}], {"A": {}}, "only is empty"),
        (
            [
                {"field": "train.clip_norm", "values": {"low": 1.0, "high": 2.0, "count": 1500}},
                {"field": "train.weight_decay", "values": {"low": 0.0, "high": 1.0, "count": 1500}},
            ],
            {"A": {}},
            "the grid has 6750000 trials, and a study at most 100000",
        ),
    ],
)
def test_trials_that_would_compare_nothing_or_never_end_are_errors(axes, arms, words, write):
    table = tomllib.loads(BASE) | {"study": {"axes": axes, "arms": arms}}
    with pytest.raises(ConfigError, match=words):
        trials(validate(table))


def test_an_axis_inside_an_arms_table_is_fine():
    table = tomllib.loads(BASE) | {
        "study": {
            "axes": [{"field": "model.head.norm.eps", "values": [1e-3, 1e-5]}],
            "arms": {"A": {"model.head.norm": {"kind": "batch_norm"}}},
        }
    }
    assert {t.experiment.model.head.norm.eps for t in trials(validate(table))} == {1e-3, 1e-5}


def test_what_decides_the_weights_has_a_hash_of_its_own(write):
    path = write(BASE)
    one = load_config(path)
    for override in (("evaluate.batch_size", "8"), ("question", "why?"), ("log_examples", "8")):
        other = load_config(path, [override])
        assert training_hash(other) == training_hash(one)
        assert config_hash(other) != config_hash(one)
    assert training_hash(load_config(path, [("train.weight_decay", "0.5")])) != training_hash(one)
