"""Images in the statistics groups of norms, by position in the model."""

import dataclasses

from fpnlab.nn.classifier import Classifier
from fpnlab.nn.norm_edit import fill_norm_batch, norm_batches
from fpnlab.nn.norm_specs import BatchNorm, GroupNorm, LayerNorm
from fpnlab.nn.published_networks import cifar_resnet


def groups_of(model):
    return norm_batches(fill_norm_batch(model, 16).norm_positions)


def test_norm_batches_of_a_head_and_of_its_backbone_are_separate(make_detector):
    detector = make_detector(LayerNorm(axes="c"))
    head = dataclasses.replace(detector.head, norm=BatchNorm(norm_batch=2))
    found = groups_of(dataclasses.replace(detector, head=head))
    assert found == dict.fromkeys(found) | {"head": 2}
    assert list(found) == ["stem", "branch", "last", "shortcut", "lateral", "output", "head"]


def test_batch_norms_without_norm_batch_have_the_groups_of_training(make_detector):
    detector = make_detector(BatchNorm())
    backbone = dataclasses.replace(
        detector.backbone, stem_norm=BatchNorm(norm_batch=4), last_norm=GroupNorm()
    )
    found = groups_of(dataclasses.replace(detector, backbone=backbone))
    assert (found["stem"], found["branch"], found["last"], found["head"]) == (4, 16, None, 16)


def test_norm_positions_of_a_classifier_have_no_pyramid_and_no_padded_shortcuts():
    classifier = Classifier(classes=2, backbone=cifar_resnet(8, norm=BatchNorm()))
    assert list(classifier.norm_positions) == ["stem", "branch", "last"]
