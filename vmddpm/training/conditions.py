"""The conditions of a run: classes and condition images that the model gets in training and sampling."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vmddpm.data.conditioned import ConditionedImages
from vmddpm.data.labels import shorten_list
from vmddpm.diffusion.guidance import Conditions
from vmddpm.errors import InputError
from vmddpm.evaluation.images import Images
from vmddpm.model import ModelConfig
from vmddpm.training.config import RunConfig
from vmddpm.training.errors import RunError, TrainingError


def condition_names(model: ModelConfig) -> tuple[str, ...]:
    """The model's condition arguments, in the order of a training step's inputs."""
    return (("labels",) if model.classes else ()) + (("condition_image",) if model.condition_channels else ())


def with_conditions(config: RunConfig, classes: Sequence[str]) -> RunConfig:
    """The run with `model.classes` and `model.condition_channels` set from its condition."""
    channels = config.condition.image_channels if config.condition.image is not None else 0
    model = replace(config.model, classes=tuple(classes), condition_channels=channels)
    return replace(config, model=model) if config.condition.is_set else config


def refuse_unfit(config: RunConfig, images: Images) -> None:
    """Raise TrainingError unless the images have exactly the conditions that the model takes."""
    conditioned = images if isinstance(images, ConditionedImages) else None
    found = conditioned.classes if conditioned else ()
    if config.model.classes != found:
        raise TrainingError(
            f"the images have the classes {_named(found)}, model.classes is {_named(config.model.classes)}; leave it "
            "out, and set condition.labels to the source of the classes"
        )
    channels = len(conditioned.condition_images[0]) if conditioned and conditioned.condition_images is not None else 0
    if config.model.condition_channels != channels:
        raise TrainingError(
            f"model.condition_channels is {config.model.condition_channels}, but the condition images "
            f"have {channels} channels; leave it out, and give those images with condition.image"
        )


def refuse_other_classes(classes: Sequence[str], trained_classes: Sequence[str], where: str) -> None:
    """Raise RunError if the classes of a run differ from those its weights were trained with."""
    if tuple(classes) != tuple(trained_classes):
        raise RunError(
            f"{where} was trained with the classes {_named(trained_classes)}, the run's configuration names "
            f"{_named(classes)}; restore its config.yaml"
        )


def _named(classes: Sequence[str]) -> str:
    return shorten_list(classes) or "(none)"


def labels_of(wanted: Sequence[str], classes: Sequence[str]) -> Tensor:
    """float32 (K,), 1 for each wanted class. Raises InputError on an unknown class."""
    labels = torch.zeros(len(classes))
    for name in wanted:
        if name not in classes:
            raise InputError(
                f"class is {name!r}, which the run does not have; its classes are {shorten_list(classes)}"
                if classes else f"class is {name!r}, but the run was trained without classes"
            )  # fmt: skip
        labels[list(classes).index(name)] = 1
    return labels


def separator_of(config: RunConfig) -> str | None:
    """The separator between the classes of one image; None if each image has one class."""
    return "|" if config.condition.labels == "chestxray" else config.condition.separator


def split_classes(text: str, config: RunConfig) -> list[str]:
    """Split a text into class names at the separator of the run's labels."""
    separator = separator_of(config)
    return [name.strip() for name in (text.split(separator) if separator else [text])]


def class_rows(classes: Sequence[str], selected: Sequence[str] | None) -> Tensor:
    """float32 (n, K): labels of image i are row i modulo n. One row with the wanted classes, or one row per class."""
    return torch.eye(len(classes)) if selected is None else labels_of(selected, classes)[None]


def conditions_to_draw(
    model: ModelConfig, condition_images: Images | None, selected: Sequence[str] | None = None
) -> Conditions | None:
    """The conditions of sampled images, by image number; None if the model takes none.

    Args:
        condition_images: condition images; image i gets number i, modulo their count.
        selected: classes of every image; None takes each class in turn.

    Raises:
        InputError: on an unknown class, or if `condition_images` is missing or the model has no use for it.
    """
    rows = class_rows(model.classes, selected)
    if bool(model.condition_channels) != (condition_images is not None):
        raise InputError(
            "the run was trained without condition images; leave condition-images out" if condition_images
            else "the run was trained with condition images; give a folder of them with condition-images"
        )  # fmt: skip

    def conditions(members: Sequence[int]) -> dict[str, Tensor]:
        found = {"labels": rows[[i % len(rows) for i in members]]} if model.classes else {}
        if condition_images is not None:
            found["condition_image"] = torch.stack([condition_images[i % len(condition_images)] for i in members])
        return found

    return conditions if condition_names(model) else None
