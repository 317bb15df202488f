"""Tiny experiments, compiled once a session, and a way to run and to stop them."""

import dataclasses
from typing import Literal

import pytest

from fpnlab import config
from fpnlab.config import Experiment, Trial
from fpnlab.data.augment import Augment
from fpnlab.data.load import load
from fpnlab.data.scenes import Scenes
from fpnlab.data.voc import Voc
from fpnlab.evaluate.detection import Evaluate
from fpnlab.model.norm import BatchNorm, LayerNorm
from fpnlab.study.signals import Stop
from fpnlab.study.trial import run_trial
from fpnlab.train.step import AdamW, Train
from fpnlab.types import spec

SCENES = Scenes(image_size=32, train_size=32, test_size=8)


@pytest.fixture(scope="session")
def dataset():
    return load(SCENES)


@pytest.fixture(scope="session")
def experiment(make_detector):
    """Batch norm, SGD, averaged weights, random views; a record every second of twelve steps."""
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
    """Layer norm and AdamW, without averaged weights and random views."""
    return dataclasses.replace(
        experiment,
        augment=None,
        model=make_detector(LayerNorm(axes="hwc"), classes=4),
        train=dataclasses.replace(experiment.train, optimizer=AdamW(), ema_examples=None),
    )


def start(experiment, dataset, folder, *, stop_after=None):
    """Runs a trial; returns its result and the steps of the records it reported."""
    stop, steps = Stop(), []

    def report(record):
        steps.append(record["step"])
        stop.requested = record["step"] == stop_after

    trial = Trial("run", "run", experiment.train.batch_size, experiment.seed, experiment)
    return run_trial(trial, dataset, folder, stop=stop, report=report), steps


@pytest.fixture(scope="session")
def run():
    return start


@pytest.fixture(scope="session")
def unbroken(experiment, dataset, tmp_path_factory):
    """The folder of a finished run of ``experiment``; only to be read."""
    folder = tmp_path_factory.mktemp("unbroken")
    start(experiment, dataset, folder)
    return folder


@spec
class HeldOut(Scenes):
    """Scenes of which a share can be held out of training."""

    kind: Literal["held_out"] = "held_out"
    validation: float = 0.0


@pytest.fixture
def held_out(monkeypatch):
    """Experiments may have such data while the test runs."""

    @spec
    class Held(config.Experiment):
        data: Scenes | Voc | HeldOut

    monkeypatch.setattr(config, "Experiment", Held)
    config._adapter.cache_clear()
    yield Held
    config._adapter.cache_clear()
