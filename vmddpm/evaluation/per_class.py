"""Comparison of samples with real images class by class: distances, and classifiers trained on either set."""

import json
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from vmddpm.devices import choose_device
from vmddpm.errors import InputError
from vmddpm.evaluation.classifier import class_accuracies, predict, train_classifier
from vmddpm.evaluation.evaluate import MetricsConfig, RealImages, evaluate
from vmddpm.evaluation.extractor import Extractor
from vmddpm.evaluation.frechet import fit_gaussian
from vmddpm.evaluation.images import ImageFeatures, Images
from vmddpm.evaluation.kid import MIN_IMAGES
from vmddpm.files import write_text

REPORTED_KEYS = ("value", "floor", "kid", "precision", "recall", "n_real", "n_synthetic", "warnings")


class ClassImages:
    """A selection of images, by index."""

    def __init__(self, images: Images, indices: list[int]) -> None:
        self.images, self.indices = images, indices

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, i: int) -> Tensor:
        return self.images[self.indices[i]]


@dataclass(frozen=True)
class Labelled:
    """Images and their classes.

    Attributes:
        images: the images.
        labels: float32 (n, K), 1 for each class of an image.
    """

    images: Images
    labels: Tensor

    def of(self, k: int) -> list[int]:
        """Indices of the images in class k."""
        found: list[int] = self.labels[:, k].nonzero().flatten().tolist()
        return found

    def single(self) -> list[int] | None:
        """The one class of each image; None if some have several."""
        return self.labels.argmax(1).tolist() if bool((self.labels.sum(1) == 1).all()) else None


def evaluate_classes(
    real: RealImages, training: Labelled, samples: Labelled, held_out: Labelled | None, classes: Sequence[str],
    extractor: Extractor, config: MetricsConfig, out: Path, *, classifier_steps: int = 400, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Compare the samples of each class with the training images of that class, as `evaluate` does with all, and train
    classifiers on both. Writes `out`/per_class.json, and evaluation.json and closest.png of each class in a folder
    below `out`/classes, and returns the content of the former.

    Args:
        real: the result of `describe_real` for the training images.
        training, samples, held_out: images with their labels.
        classes: names of the classes.
        classifier_steps: see `classifier.train_classifier`; 0 trains none.

    Raises:
        InputError: as `evaluate`, and if no class can be compared.
    """
    least, found = max(MIN_IMAGES, config.neighbours + 1), {}
    config = replace(config, radiomics=0)
    for k, name in enumerate(classes):
        own_samples, own_training = samples.of(k), training.of(k)
        if min(len(own_samples), len(own_training)) < least:
            found[name] = {"n_real": len(own_training), "n_synthetic": len(own_samples), "value": None,
                           "left_out": f"fewer than {least} real images or samples"}  # fmt: skip
            continue
        class_folder = out / "classes" / f"{k:03d}-{re.sub(r'[^A-Za-z0-9_-]+', '-', name)[:60]}"
        with warnings.catch_warnings():  # the result contains them
            warnings.simplefilter("ignore", UserWarning)
            result = evaluate(_of_class(real, own_training, name), ClassImages(samples.images, own_samples), extractor,
                              config, class_folder, progress=progress)  # fmt: skip
        found[name] = {key: result[key] for key in REPORTED_KEYS}
    if all(values["value"] is None for values in found.values()):
        raise InputError(f"no class has {least} samples and as many training images; draw more with vmddpm sample")
    result = {"distance": extractor.name, "classes": found, "classifiers": None}
    if classifier_steps:
        result["classifiers"] = _classifier_accuracies(training, samples, held_out, classes, classifier_steps, config)
    write_text(out / "per_class.json", json.dumps(result, indent=2, ensure_ascii=False) + "\n")
    return result


def _of_class(real: RealImages, indices: list[int], name: str) -> RealImages:
    mirrored, described = real.features.mirrored, real.features
    features = ImageFeatures(described.features[indices], None if mirrored is None else mirrored[indices],
                             described.pixels[indices], described.images_per_second)  # fmt: skip
    gaussian = fit_gaussian(features.features, f"real images of {name}")
    return RealImages(ClassImages(real.training, indices), features, gaussian, real.held_out, None)


def _classifier_accuracies(
    training: Labelled, samples: Labelled, held_out: Labelled | None, classes: Sequence[str], steps: int,
    config: MetricsConfig,
) -> dict[str, Any] | str:  # fmt: skip
    """Accuracies for each training set and test set, or the reason why there are none."""
    labelled = {"real": training, "samples": samples, "held_out": held_out}
    labels = {name: side.single() for name, side in labelled.items() if side is not None}
    if any(own is None for own in labels.values()):
        return "some images have several classes"
    device, found = choose_device(config.device), {}
    single_labels = {name: (labelled[name], own) for name, own in labels.items() if own is not None}
    for trained_on in ("real", "samples"):
        side, own = single_labels[trained_on]
        if missing := [name for k, name in enumerate(classes) if k not in own]:
            return f"there are no {trained_on} of the class {missing[0]!r}"
        assert side is not None
        network = train_classifier(side.images, own, len(classes), steps=steps, seed=config.seed, device=device)
        for tested_on, (other, truth) in single_labels.items():
            if tested_on == trained_on or other is None:
                continue
            predicted = predict(network, other.images, device=device)
            right = sum(int(a) == b for a, b in zip(predicted, truth)) / len(truth)
            found[f"trained on {trained_on}, tested on {tested_on}"] = {
                "accuracy": right, "classes": dict(zip(classes, class_accuracies(predicted, truth, len(classes)))),
            }  # fmt: skip
    return found


def describe_classes(result: dict[str, Any]) -> str:
    """A summary of the result in a few lines, for a terminal."""
    names = list(result["classes"])
    width = max(len("class"), *map(len, names))
    lines = [f"{'class':<{width}}  real  samples  {result['distance']}   floor"]
    for name, values in result["classes"].items():
        numbers = f"{name:<{width}}  {values['n_real']:>4}  {values['n_synthetic']:>7}  "
        shown = values.get("left_out") or f"{values['value']:>{len(result['distance'])}.4g}  {values['floor']:>6.4g}"
        lines.append(numbers + shown)
    found = result["classifiers"]
    if isinstance(found, dict):
        lines += [f"classifier {name}: {100 * values['accuracy']:.1f} % right" for name, values in found.items()]
    elif found:
        lines.append(f"no classifier: {found}")
    return "\n".join(lines)
