"""Fixtures of all tests: compilation cache, real data, small models and experiments."""

import dataclasses
import os
import pathlib
from typing import Literal

from fpnlab.compiler import silence_false_alarms

silence_false_alarms()

import jax
import pytest

from fpnlab.config import validate
from fpnlab.config.experiment import Experiment
from fpnlab.config.trials import Trial
from fpnlab.data.augmentation.detector_augment import Augment
from fpnlab.data.load_data import load
from fpnlab.data.sources.scenes import Scenes
from fpnlab.data.sources.voc import Voc
from fpnlab.evaluate.options import Evaluate
from fpnlab.nn.detector import Anchors, Detector
from fpnlab.nn.fpn import Fpn
from fpnlab.nn.norm_specs import BatchNorm, LayerNorm
from fpnlab.nn.resnet import ResNet, Stem
from fpnlab.nn.retina_head import RetinaHead
from fpnlab.run.interrupts import Stop
from fpnlab.run.run import run_trial
from fpnlab.spec import spec
from fpnlab.train.step import AdamW, Train

CACHE = os.environ.get("FPNLAB_CACHE") or pathlib.Path.home() / ".cache" / "fpnlab"
jax.config.update("jax_compilation_cache_dir", str(pathlib.Path(CACHE) / "xla"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)

MAPPINGS = pathlib.Path("/proc/self/maps")


@pytest.fixture(scope="module", autouse=True)
def free_compiled_programs():
    """Frees the compiled programs of a module of tests when the process holds many.

    Linux gives a process 65,530 memory mappings (``vm.max_map_count``), of which each compiled
    program takes several; XLA aborts a process that asks for one more.
    """
    yield
    if MAPPINGS.exists() and MAPPINGS.read_bytes().count(b"\n") > 30_000:
        jax.clear_caches()


@pytest.fixture
def key():
    return jax.random.key(0)


@pytest.fixture(scope="session")
def data_root():
    """The folder with the real data sets; tests that need it are skipped if it is absent."""
    default = pathlib.Path(__file__).parents[2] / "shared" / "data"
    root = pathlib.Path(os.environ.get("FPNLAB_DATA", default))
    if not root.is_dir():
        pytest.skip(f"real data not found at {root}; set FPNLAB_DATA to its folder")
    return root


def small_detector(norm, classes=3):
    return Detector(
        classes=classes,
        backbone=ResNet(
            depths=(1, 1), widths=(4, 8), stem=Stem(size=3, stride=2, pool=True), norm=norm
        ),
        neck=Fpn(channels=8, min_level=3, max_level=4, norm=norm),
        head=RetinaHead(depth=1, norm=norm),
        anchors=Anchors(scale=2.0, octaves=2, ratios=(1.0,)),
    )


@pytest.fixture(scope="session")
def make_detector():
    return small_detector


@pytest.fixture(scope="session")
def detector():
    return small_detector(BatchNorm())


SCENES = Scenes(image_size=32, train_size=32, test_size=8)


@pytest.fixture(scope="session")
def dataset():
    return load(SCENES)


@pytest.fixture(scope="session")
def experiment(make_detector):
    """Batch norm, SGD, averaged weights, augmentation; twelve steps, every second one logged."""
    return Experiment(
        data=SCENES,
        augment=Augment(scale=(0.8, 1.25), brightness=0.2),
        model=make_detector(BatchNorm(), classes=4),
        train=Train(
            examples=48, batch_size=4, learning_rate=0.02, reference_batch=4, ema_examples=16
        ),
        evaluate=Evaluate(batch_size=8, population_examples=8, area_bounds=(64.0, 256.0)),
        log_examples=8,
        checkpoint_seconds=1e9,
    )


@pytest.fixture(scope="session")
def layer_norm_experiment(experiment, make_detector):
    """Layer norm and AdamW, without averaged weights and augmentation."""
    return dataclasses.replace(
        experiment,
        augment=None,
        model=make_detector(LayerNorm(axes="hwc"), classes=4),
        train=dataclasses.replace(experiment.train, optimizer=AdamW(), ema_examples=None),
    )


def start(experiment, dataset, folder, *, stop_after=None):
    """Runs a trial; returns its result and the steps that it reported."""
    stop, steps = Stop(), []

    def report(record):
        steps.append(record.step)
        stop.requested = record.step == stop_after

    trial = Trial("run", "run", experiment.train.batch_size, experiment.seed, experiment)
    return run_trial(trial, dataset, folder, stop=stop, report=report), steps


@pytest.fixture(scope="session")
def run():
    return start


@pytest.fixture(scope="session")
def unbroken(experiment, dataset, tmp_path_factory):
    """The folder of a finished run of ``experiment``; read-only."""
    folder = tmp_path_factory.mktemp("unbroken")
    start(experiment, dataset, folder)
    return folder


@spec
class HeldOut(Scenes):
    """Scenes with a field for a validation share, which the plain scenes lack."""

    kind: Literal["held_out"] = "held_out"
    validation: float = 0.0


@pytest.fixture
def held_out(monkeypatch):
    """Lets experiments use `HeldOut` data during the test."""

    @spec
    class Held(validate.Experiment):
        data: Scenes | Voc | HeldOut

    monkeypatch.setattr(validate, "Experiment", Held)
    validate._adapter.cache_clear()
    yield Held
    validate._adapter.cache_clear()
