"""The demo's detector and batches of its scenes."""

import dataclasses
import pathlib

import jax
import numpy as np

from fpnlab.config.experiment import Experiment
from fpnlab.config.load import load_config
from fpnlab.data.dataset import take
from fpnlab.data.load_data import load
from fpnlab.types import Batch

CONFIG = pathlib.Path(__file__).parents[1] / "configs" / "demo.toml"


def demo(batch_size: int) -> Experiment:
    """Returns the demo's experiment at this batch size."""
    return load_config(CONFIG, [("train.batch_size", str(batch_size))])


def batches(experiment: Experiment, count: int) -> Batch:
    """Returns ``count`` batches of scenes, stacked on a leading axis."""
    size = experiment.train.batch_size
    scenes = load(dataclasses.replace(experiment.data, train_size=count * size, test_size=1)).train
    drawn = take(scenes, np.arange(count * size))
    return jax.tree.map(lambda a: a.reshape(count, size, *a.shape[1:]), drawn)
