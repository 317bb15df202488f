import contextlib
import io
import math
import types

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from fpnlab.evaluate.coco import coco_metrics
from fpnlab.types import Detections

NAMES = ("ring", "bar", "disk")
FIXED = ["AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large", "AR100"]
BOUNDS = (20.0**2, 35.0**2)


def truth_of(boxes, classes, valid):
    return types.SimpleNamespace(boxes=boxes, classes=classes, valid=valid)


def corpus(seed, images=6, m=5, d=12):
    """Truth and noisy copies of it: ties of scores, empty images, wrong classes, strays."""
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (images, m, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(8, 50, (images, m, 2))], -1)
    boxes = np.round(boxes).astype(np.float32)
    classes = rng.integers(0, 2, (images, m))  # the third class has no ground truth
    valid = (rng.random((images, m)) < 0.7) & (rng.random((images, 1)) < 0.8)
    pick = rng.integers(0, m, (images, d))
    found = np.take_along_axis(boxes, pick[..., None], 1) + rng.normal(0, 2, (images, d, 4))
    guesses = np.take_along_axis(classes, pick, 1)
    guesses = np.where(rng.random((images, d)) < 0.2, rng.integers(0, 3, (images, d)), guesses)
    detections = Detections(
        boxes=found.astype(np.float32),
        scores=(rng.integers(0, 10, (images, d)) / 10).astype(np.float32),
        classes=guesses,
        valid=(rng.random((images, d)) < 0.9) & (rng.random((images, 1)) < 0.8),
    )
    return detections, truth_of(boxes, classes, valid)


def records(rows):
    out = []
    for i, j in zip(*np.nonzero(rows.valid)):
        x1, y1, x2, y2 = (float(v) for v in rows.boxes[i, j])
        box = [x1, y1, x2 - x1, y2 - y1]
        record = {"image_id": int(i) + 1, "category_id": int(rows.classes[i, j]) + 1, "bbox": box}
        out.append(record)
        if hasattr(rows, "scores"):
            record["score"] = float(rows.scores[i, j])
        else:
            record |= {"id": len(out), "area": box[2] * box[3], "iscrowd": 0}
    return out


def oracle(detections, truth, bounds):
    """The same numbers from pycocotools, through its own summary."""
    small, medium = bounds
    data = COCO()
    data.dataset = {
        "info": {},
        "images": [{"id": i + 1} for i in range(len(truth.boxes))],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
        "annotations": records(truth),
    }
    with contextlib.redirect_stdout(io.StringIO()):
        data.createIndex()
        evaluation = COCOeval(data, data.loadRes(records(detections)), "bbox")
        evaluation.params.areaRng = [[0, 1e10], [0, small], [small, medium], [medium, 1e10]]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    stats = evaluation.stats[[0, 1, 2, 3, 4, 5, 8]]
    by_class = evaluation.eval["precision"][0, :, :, 0, -1].mean(0)
    values = [*stats, *by_class]
    names = [*FIXED, *(f"AP50/{name}" for name in NAMES)]
    return {name: value if value >= 0 else math.nan for name, value in zip(names, values)}


@hypothesis.settings(max_examples=20, deadline=None)
@hypothesis.given(st.integers(0, 10**6))
def test_metrics_equal_pycocotools_on_fuzzed_corpora(seed):
    detections, truth = corpus(seed)
    hypothesis.assume(detections.valid.any())
    got = coco_metrics(detections, truth, NAMES, area_bounds=BOUNDS)
    expected = oracle(detections, truth, BOUNDS)
    assert got.keys() == expected.keys()
    np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=0, atol=1e-9)


def test_more_than_a_hundred_detections_in_an_image_are_cut_as_in_pycocotools():
    detections, truth = corpus(0, images=2, m=4, d=300)
    got = coco_metrics(detections, truth, NAMES, area_bounds=BOUNDS)
    expected = oracle(detections, truth, BOUNDS)
    np.testing.assert_allclose(list(got.values()), list(expected.values()), rtol=0, atol=1e-9)


def test_perfect_detections_score_one_and_missing_areas_are_nan(capfd):
    _, truth = corpus(3)
    truth.boxes[..., 2:] = truth.boxes[..., :2] + 10  # all small
    perfect = Detections(
        boxes=truth.boxes,
        scores=np.ones(truth.valid.shape, np.float32),
        classes=truth.classes,
        valid=truth.valid,
    )
    got = coco_metrics(perfect, truth, NAMES)
    absent = {"AP_medium", "AP_large", "AP50/disk"}
    assert {name for name, value in got.items() if math.isnan(value)} == absent
    np.testing.assert_allclose([got[name] for name in got.keys() - absent], 1, atol=1e-9)
    assert capfd.readouterr() == ("", "")


def test_without_detections_all_is_zero():
    detections, truth = corpus(4)
    nothing = detections.replace(valid=np.zeros_like(detections.valid))
    got = coco_metrics(nothing, truth, NAMES[:2], area_bounds=BOUNDS)
    np.testing.assert_array_equal(list(got.values()), 0)


def test_without_ground_truth_all_is_nan():
    detections, truth = corpus(5)
    truth.valid[:] = False
    got = coco_metrics(detections, truth, NAMES)
    assert list(got) == [*FIXED, *(f"AP50/{name}" for name in NAMES)]
    assert all(math.isnan(value) for value in got.values())


def test_detections_that_are_not_finite_are_left_out():
    detections, truth = corpus(6)
    boxes, scores, valid = (
        x.copy() for x in (detections.boxes, detections.scores, detections.valid)
    )
    boxes[:, 0], boxes[:, 1, 2], scores[:, 2] = np.nan, np.inf, np.nan
    valid[:, :3] = False
    got = coco_metrics(detections.replace(boxes=boxes, scores=scores), truth, NAMES)
    assert got == pytest.approx(
        coco_metrics(detections.replace(valid=valid), truth, NAMES), nan_ok=True
    )
    assert got["AP50"] > 0


def test_the_order_of_images_and_rows_does_not_matter():
    detections, truth = corpus(7)
    scores = np.random.default_rng(0).permutation(detections.scores.size) + 1.0
    detections = detections.replace(scores=scores.reshape(detections.scores.shape))
    turned = [
        types.SimpleNamespace(**{k: v[::-1, ::-1] for k, v in vars(rows).items()})
        for rows in (detections, truth)
    ]
    got = coco_metrics(Detections(**vars(turned[0])), turned[1], NAMES)
    assert got == pytest.approx(coco_metrics(detections, truth, NAMES), nan_ok=True)


def test_coco_metrics_rejects_different_numbers_of_images():
    detections, truth = corpus(8)
    fewer = truth_of(truth.boxes[:4], truth.classes[:4], truth.valid[:4])
    with pytest.raises(ValueError, match="6 images with detections, 4 with ground truth"):
        coco_metrics(detections, fewer, NAMES)


def test_coco_metrics_rejects_a_class_without_a_name():
    detections, truth = corpus(9)
    truth.classes[truth.valid] = 3
    with pytest.raises(ValueError, match="class 3 in a valid row, but there are 3 class names"):
        coco_metrics(detections, truth, NAMES)


def test_coco_metrics_rejects_area_bounds_that_do_not_increase():
    with pytest.raises(ValueError, match="must be positive and increase"):
        coco_metrics(*corpus(10), NAMES, area_bounds=(96.0, 32.0))
