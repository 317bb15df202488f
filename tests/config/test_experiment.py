"""Configs: validation, overrides, round trips, trials of a study, and the files in configs/."""

import copy
import dataclasses
import json
import pathlib
import tomllib

import pytest

from fpnlab.config import help
from fpnlab.config.load import load_config
from fpnlab.config.messages import MINIMAL
from fpnlab.config.study import Axis
from fpnlab.config.trials import trials
from fpnlab.config.validate import (
    PRESETS,
    config_hash,
    hash_of,
    resolved,
    training_hash,
    validate,
    validate_stored,
)
from fpnlab.errors import ConfigError
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm, NoNorm
from fpnlab.nn.published_networks import resnet
from fpnlab.run.folder import RunFolder
from fpnlab.train.step import AdamW

from ..small_config import RUN, STUDY

CONFIGS = sorted((pathlib.Path(__file__).parents[2] / "configs").rglob("*.toml"))


@pytest.fixture
def table():
    return tomllib.loads(RUN)


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


def error_of(table):
    with pytest.raises(ConfigError) as caught:
        validate(table)
    return str(caught.value)


NORM = "model.backbone.norm"


def test_the_length_of_training_can_be_given_in_updates(table):
    del table["train"]["examples"]
    put(table, "train.updates", 12)
    assert validate(table).train.total_examples == 48


def test_batch_norm_over_one_value_is_an_error_only_if_the_batch_is_one_image(table):
    put(table, "model.neck", {"channels": 8, "max_level": 5, "norm": {"kind": "batch_norm"}})
    validate(table)
    put(table, "train.batch_size", 1)
    message = error_of(table)
    assert "one value per channel (norm_batch=1 on a 1x1 map)" in message
    assert "use norm_batch >= 2" in message
    assert "train.batch_size = 1" in message


def test_the_error_of_a_missing_file_names_the_configs_nearby(tmp_path, monkeypatch):
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
def test_the_error_of_an_invalid_toml_file_names_the_file(text, says, write):
    with pytest.raises(ConfigError, match=rf"given\.toml: {says}"):
        load_config(write(text))


def test_the_error_of_a_folder_says_that_it_is_not_a_toml_file(tmp_path):
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        load_config(tmp_path)


def test_errors_of_a_config_are_headed_by_the_name_of_its_file(write):
    with pytest.raises(ConfigError, match=r"given\.toml:\ntrain\.rule: is 'x'"):
        load_config(write(RUN + 'rule = "x"'))


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
        ([("model.pixel_mean", "120")], "model.pixel_mean", 120.0),
        ([("model.pixel_mean", "[123, 116.28, 103]")], "model.pixel_mean", (123.0, 116.28, 103.0)),
        ([("question", "What is 1 + 1?")], "question", "What is 1 + 1?"),
    ],
)
def test_overrides_replace_values_of_the_file(overrides, field, value, write):
    found = load_config(write(RUN), overrides)
    for name in field.split("."):
        found = getattr(found, name)
    assert found == value
    assert type(found) is type(value)


def test_an_override_of_an_unknown_field_is_an_error(write):
    with pytest.raises(ConfigError, match=r"train\.batchsize: unknown field 'batchsize'"):
        load_config(write(RUN), [("train.batchsize", "8")])


def test_an_override_with_none_is_an_error_for_a_field_that_needs_a_value(write):
    with pytest.raises(
        ConfigError, match=r"train\.batch_size: is 'none'; it must be a valid integer"
    ):
        load_config(write(RUN), [("train.batch_size", "none")])


def test_none_as_text_in_a_file_and_in_an_arm_is_none(write):
    text = RUN.replace("learning_rate", 'clip_norm = "none"\nlearning_rate') + STUDY
    study = load_config(
        write(text + '"train.ema_examples" = "none"\n"model.head.norm.kind" = "none"')
    )
    bn, ln = (t.experiment for t in trials(study)[:2])
    assert bn.train.clip_norm is ln.train.clip_norm is ln.train.ema_examples is None
    assert ln.model.head.norm == NoNorm()


COLORS = RUN.replace(
    "[model]",
    "[model]\npixel_mean = [123.675, 116.28, 103.53]\npixel_deviation = [58.395, 57.12, 57.375]",
)


@pytest.mark.parametrize("text", [RUN, RUN + STUDY, COLORS], ids=["run", "study", "colors"])
def test_a_resolved_experiment_validates_to_the_same_experiment(text, write):
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


def test_every_field_changes_the_config_hash(table):
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


def test_the_config_hash_does_not_depend_on_the_order_of_fields(table):
    backwards = {name: dict(reversed(part.items())) for name, part in reversed(table.items())}
    assert config_hash(validate(backwards)) == config_hash(validate(table))


@pytest.fixture
def study(write):
    return load_config(write(RUN + STUDY))


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


def test_paired_trials_differ_only_in_the_fields_that_their_arms_set(study):
    plan = trials(study)
    for bn, ln in zip(plan[::2], plan[1::2]):
        assert isinstance(bn.experiment.model.backbone.norm, BatchNorm)
        one, other = (dict(leaves(resolved(t.experiment))) for t in (bn, ln))
        differing = {path for path in one.keys() | other.keys() if one.get(path) != other.get(path)}
        assert {path[:3] for path in differing} == {("model", "backbone", "norm")}


def test_errors_of_trials_name_the_trial_and_come_all_at_once(write):
    with pytest.raises(ConfigError) as caught:
        load_config(
            write(RUN + STUDY.replace('axes = "hwc"', 'axes = "hw"') + "\n[study.arms.GN]\nx = 1")
        )
    lines = str(caught.value).splitlines()[1:]
    assert len(lines) == 8
    assert lines[0] == f"ln-batch_size-2-seed-0: {NORM}.axes: is 'hw'; it must be 'hwc' or 'c'"
    assert lines[1].startswith("gn-batch_size-2-seed-0: x: unknown field 'x'")


def test_names_of_trials_are_names_of_folders(study):
    arms = {"a/b c": {}, "..": {"train.weight_decay": 0.0}}
    widths = Axis(field="model.backbone.widths", values=([4, 8], [8, 8]))
    plan = dataclasses.replace(study.study, axes=(widths,), arms=arms, seeds=(0,))
    names = [t.name for t in trials(dataclasses.replace(study, study=plan))]
    assert names[0] == "a-b-c-widths--4--8--seed-0"
    assert all("/" not in name for name in names)


def test_a_second_axis_multiplies_the_arms_and_names_them(write):
    more = '[[study.axes]]\nfield = "train.learning_rate"\nvalues = [0.1, 0.3]\n'
    plan = trials(
        load_config(write(RUN + STUDY.replace("[study.arms.BN]", f"{more}[study.arms.BN]")))
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
def test_an_override_sets_an_entry_of_a_list(place, value, write):
    given = value if "." in place else '{ field = "train.batch_size", values = [8] }'
    experiment = load_config(write(RUN + STUDY), [(f"study.axes.{place}", given)])
    assert [t.experiment.train.batch_size for t in trials(experiment)] == [8] * 4


def test_a_norm_batch_reaches_the_check_of_shapes(table):
    """One image a group on a map of one pixel has no variance."""
    put(table, "model.neck", {"channels": 8, "max_level": 5, "norm": {"kind": "batch_norm"}})
    validate(table)
    put(table, "train.norm_batch", 1)
    assert "one value per channel (norm_batch=1 on a 1x1 map)" in error_of(table)


def test_tuning_without_validation_images_is_an_error(write):
    text = RUN + STUDY.replace("[study.arms.BN]", "[study.tune]\n\n[study.arms.BN]")
    with pytest.raises(ConfigError, match=r"study\.tune: the data hold no images out for validati"):
        load_config(write(text))


def test_a_config_without_a_study_has_no_trials(table):
    with pytest.raises(ConfigError, match=r"study: absent; a study needs a \[study\] table"):
        trials(validate(table))


def test_a_run_folder_returns_the_experiment_of_its_config_file(table, tmp_path):
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


def test_the_folder_of_configs_has_the_demo_and_a_real_data_set():
    assert {path.name for path in CONFIGS} >= {"demo.toml", "bccd.toml"}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_a_config_has_a_question_and_a_comment_with_command_duration_and_result(path):
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


def test_the_value_in_an_error_is_cut_if_it_is_long(write):
    with pytest.raises(ConfigError, match=r"train.batch_size: is '9+\.\.\. \(5002 characters\);"):
        load_config(write(RUN), [("train.batch_size", "9" * 5000)])


def test_the_error_of_a_missing_table_shows_a_minimal_one(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write('question = "why"'))
    for name, example in MINIMAL.items():
        assert f"{name}: is required, e.g. {example}" in str(caught.value)


def test_minimal_tables_and_presets_make_an_experiment(write):
    text = "\n".join(MINIMAL.values())
    assert load_config(write(text)).model.backbone == resnet(18, BatchNorm())
    for name, make in PRESETS.items():
        small = [("model.neck.min_level", "2"), ("model.neck.max_level", "3")]
        levels = small if name.startswith(("cifar", "preactivation")) else []
        found = load_config(write(text), [("model.backbone", name), *levels])
        assert found.model.backbone == make()


def test_an_override_with_the_name_of_a_kind_is_a_table_of_that_kind(write):
    assert load_config(write(RUN), [("train.optimizer", "adamw")]).train.optimizer == AdamW()


def test_text_fields_keep_words_that_look_like_numbers_or_none(write):
    data = 'data = { kind = "voc", root = "x", class_names = ["none", "dog"] }'
    text = "\n".join([data, MINIMAL["model"], MINIMAL["train"]])
    found = load_config(write(text), [("data.train", "2007"), ("model.classes", "2")])
    assert (found.data.train, found.data.class_names) == ("2007", ("none", "dog"))


@pytest.mark.parametrize("arm", ["LN-c", "LN_c"])
def test_names_of_arms_keep_their_hyphens(arm, write):
    overrides = [(f"study.arms.{arm}", '{ "train.weight-decay" = 0.0 }')]
    with pytest.raises(ConfigError, match="weight-decay"):
        load_config(write(RUN + STUDY), overrides)
    overrides = [(f"study.arms.{arm}", '{ "train.weight_decay" = 0.0 }')]
    assert arm in load_config(write(RUN + STUDY), overrides).study.arms


def test_a_byte_order_mark_is_skipped_and_utf_16_is_an_error(tmp_path):
    path = tmp_path / "config.toml"
    path.write_bytes(b"\xef\xbb\xbf" + RUN.encode())
    assert load_config(path) == load_config(path)
    path.write_text(RUN, encoding="utf-16")
    with pytest.raises(ConfigError, match="encoded as UTF-16; save it as UTF-8"):
        load_config(path)
    path.write_text("a = " + "[" * 5000)
    with pytest.raises(ConfigError, match="not a readable TOML file"):
        load_config(path)


def test_an_axis_may_set_a_field_inside_a_table_of_an_arm():
    table = tomllib.loads(RUN) | {
        "study": {
            "axes": [{"field": "model.head.norm.eps", "values": [1e-3, 1e-5]}],
            "arms": {"A": {"model.head.norm": {"kind": "batch_norm"}}},
        }
    }
    assert {t.experiment.model.head.norm.eps for t in trials(validate(table))} == {1e-3, 1e-5}


def test_the_training_hash_ignores_fields_that_do_not_change_the_weights(write):
    path = write(RUN)
    one = load_config(path)
    for override in (("evaluate.batch_size", "8"), ("question", "why?"), ("log_examples", "8")):
        other = load_config(path, [override])
        assert training_hash(other) == training_hash(one)
        assert config_hash(other) != config_hash(one)
    assert training_hash(load_config(path, [("train.weight_decay", "0.5")])) != training_hash(one)


def test_stored_tables_that_differ_in_their_seed_share_one_validation():
    table = resolved(validate(tomllib.loads(RUN + STUDY)))
    experiment = validate_stored(table)
    assert experiment == validate(table)
    assert list(experiment.study.arms) == list(table["study"]["arms"])
    other = validate_stored(table | {"seed": 5})
    assert other == dataclasses.replace(experiment, seed=5)
    assert other.model is experiment.model
    with pytest.raises(ConfigError, match="seed: "):
        validate_stored(table | {"seed": "5"})
