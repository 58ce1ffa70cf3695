"""Evaluation class by class, and classifiers trained on one set of images and tested on another."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from vmddpm.errors import InputError
from vmddpm.evaluation import (
    ExtractorConfig,
    Labelled,
    MetricsConfig,
    describe_classes,
    describe_real,
    evaluate,
    evaluate_classes,
    load_extractor,
)
from vmddpm.evaluation.classifier import class_accuracies, predict, train_classifier

sys.path.append(str(Path(__file__).parents[1] / "training"))
from shapes import SHAPES, shape

METRICS = MetricsConfig(kid_subsets=2, kid_subset_size=5, device="cpu")


def pictures(each, seed, kinds=SHAPES):
    """`each` pictures of each kind in turn, float32 (n, 1, 16, 16), and their classes."""
    rng = np.random.default_rng(seed)
    found = np.stack([shape(kind, rng) for _ in range(each) for kind in kinds])
    return torch.from_numpy(found)[:, None].float() / 127.5 - 1, [SHAPES.index(k) for k in kinds] * each


def labelled(images, labels):
    return Labelled(images, torch.eye(len(SHAPES))[labels])


def test_a_classifier_knows_other_pictures_of_the_same_shapes():
    network = train_classifier(*pictures(60, 0), 4, steps=80)
    images, labels = pictures(25, 1)
    predicted = predict(network, images)
    assert (predicted == torch.tensor(labels)).float().mean() > 0.9
    shares = class_accuracies(predicted, labels, 4)
    assert np.mean(shares) == pytest.approx((predicted == torch.tensor(labels)).float().mean().item())
    assert class_accuracies(torch.tensor([0, 1, 1]), [0, 0, 1], 3) == [0.5, 1.0, None]


def test_the_same_seed_is_the_same_classifier_and_leaves_the_global_generator_alone():
    state = torch.random.get_rng_state()
    a, b, c = (train_classifier(*pictures(4, 0), 4, steps=2, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["head.weight"], c["head.weight"])


@pytest.mark.parametrize(
    ("labels", "steps", "words"),
    [([0, 1, 2, 2], 2, "class 3 of 4 has no image"), ([0], 2, "1 labels for 4"), ([0, 1, 2, 3], 0, "steps are 0")],
)
def test_what_no_classifier_can_be_trained_on(labels, steps, words):
    with pytest.raises(InputError, match=words):
        train_classifier(pictures(1, 0)[0], labels, 4, steps=steps)


def test_classes_are_compared_each_with_its_own(tmp_path):
    """A class's figures equal an evaluation of its images alone; swapped shapes are detected."""
    extractor = load_extractor(ExtractorConfig(path="random"))
    images, labels = pictures(10, 0)
    training, real = labelled(images, labels), describe_real(images, extractor, METRICS, progress=False)
    samples, drawn = pictures(8, 1)
    exchanged = [{0: 1, 1: 0}.get(label, label) for label in drawn]
    found = {}
    for name, asked in (("right", drawn), ("exchanged", exchanged)):
        found[name] = evaluate_classes(
            real, training, labelled(samples, asked), labelled(*pictures(5, 2)), SHAPES, extractor, METRICS,
            tmp_path / name, classifier_steps=20 if name == "right" else 0, progress=False,
        )  # fmt: skip
        assert json.loads((tmp_path / name / "per_class.json").read_text()) == found[name]
    right = found["right"]["classes"]
    assert found["exchanged"]["classes"]["cross"]["value"] > 2 * right["cross"]["value"]
    assert found["exchanged"]["classes"]["square"] == right["square"]
    own, alone = images[1::4], describe_real(images[1::4], extractor, METRICS, progress=False)
    assert len(own) == right["disc"]["n_real"] == 10
    expected = evaluate(alone, samples[1::4], extractor, METRICS, tmp_path / "alone", progress=False)
    assert right["disc"]["value"] == pytest.approx(expected["value"], rel=1e-4)
    assert right["disc"]["kid"]["mean"] == pytest.approx(expected["kid"]["mean"], rel=1e-4, abs=1e-6)
    classified = found["right"]["classifiers"]
    ways = [("real", "samples"), ("real", "held_out"), ("samples", "real"), ("samples", "held_out")]
    assert set(classified) == {f"trained on {a}, tested on {b}" for a, b in ways}
    assert all(len(values["classes"]) == 4 and 0 <= values["accuracy"] <= 1 for values in classified.values())
    text = describe_classes(found["right"])
    assert "classifier trained on samples, tested on real: " in text
    assert all(name in text for name in SHAPES)


def test_small_classes_and_several_classes_are_reported(tmp_path):
    extractor = load_extractor(ExtractorConfig(path="random"))
    images, labels = pictures(6, 0)
    real = describe_real(images, extractor, METRICS, progress=False)
    few = labelled(*pictures(6, 1, ("cross", "disc")))
    several = Labelled(few.images, few.labels + torch.eye(4)[2])
    found = evaluate_classes(real, labelled(images, labels), few, None, SHAPES, extractor, METRICS, tmp_path / "few",
                             classifier_steps=2, progress=False)  # fmt: skip
    assert found["classes"]["square"]["left_out"] == "fewer than 4 real images or samples"
    assert found["classifiers"] == "there are no samples of the class 'square'"
    found = evaluate_classes(real, labelled(images, labels), several, None, SHAPES, extractor, METRICS,
                             tmp_path / "several", classifier_steps=2, progress=False)  # fmt: skip
    assert "several classes" in found["classifiers"]
    assert found["classes"]["square"]["n_synthetic"] == 12
    one = Labelled(images[:1], torch.eye(4)[:1])
    with pytest.raises(InputError, match="no class has 4 samples and as many training images"):
        evaluate_classes(real, labelled(images, labels), one, None, SHAPES, extractor, METRICS, tmp_path)
