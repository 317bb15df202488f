"""Galleries: selection of trials, of predictions, and size of files."""

import dataclasses
import io

import numpy as np
import pytest
from PIL import Image

from fpnlab.report import gallery
from fpnlab.report.study_folder import read_study


def test_choose_returns_the_seed_nearest_to_the_mean_of_best_and_worst_cell(study_dir):
    study = read_study(study_dir)
    choices = gallery.choose(study)
    assert [choice.reason.split()[1] for choice in choices] == ["best", "worst"]
    for choice, cell in zip(choices, (study.summary.best, study.summary.worst)):
        assert choice.trial.result.arm == cell.arm
        assert choice.trial.result.axis_value == cell.axis_value
        own = cell.values[choice.trial.result.seed]
        distances = [abs(value - cell.mean) for value in cell.values.values()]
        assert abs(own - cell.mean) == min(distances)


def test_a_gallery_shows_as_many_predictions_as_true_boxes(study_dir, monkeypatch):
    seen = {}

    def draw(pictures, names, **rest):
        seen["valid"] = pictures["valid"]
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(gallery, "draw_pictures", draw)
    trial = read_study(study_dir).trials[0]
    gallery.draw_gallery(trial, ("RBC",), io.BytesIO())
    np.testing.assert_array_equal(seen["valid"].sum(axis=1), [5, 5])
    assert seen["valid"][:, :5].all()


def test_large_galleries_are_shrunk_below_the_size_limit(study_dir):
    trial = read_study(study_dir).trials[0]
    with np.load(trial.gallery) as file:
        arrays = dict(file)
    arrays["images"] = np.random.default_rng(0).integers(0, 256, (2, 480, 480, 3), dtype=np.uint8)
    np.savez_compressed(trial.gallery, **arrays)
    gallery.draw_gallery(trial, ("RBC",), file := io.BytesIO())
    assert len(file.getvalue()) <= gallery.LARGEST_FILE


def test_draw_gallery_raises_without_a_gallery(study_dir):
    trial = dataclasses.replace(read_study(study_dir).trials[0], gallery=None)
    with pytest.raises(ValueError, match=r"has no gallery\.npz"):
        gallery.draw_gallery(trial, ("RBC",), io.BytesIO())
