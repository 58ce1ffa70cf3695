"""Detects copies by the distance of each sample to its nearest training image, relative to distances of real images.

A model that reproduces its training set has a FID of 0, so a FID is incomplete without this check.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmddpm.errors import InputError
from vmddpm.evaluation.images import ImageFeatures, Images, mirrored_pixels, quantised
from vmddpm.evaluation.neighbours import nearest, nearest_k

COPY = 1 / 3  # threshold of the distance ratio, as in Yoon et al. (2023)
LABELS, WIDEST_SENTENCE = 0.8, 8.5  # inches: width of the row names, and smallest width of the picture
_AROUND = 5  # nearest real images considered for each training image, and as many mirror images


@dataclass(frozen=True)
class NearestTraining:
    """The nearest training image of each image or of its mirror image."""

    distance: Tensor  # float64 (n,)
    index: Tensor  # int64 (n,)
    mirrored: Tensor  # bool (n,)


class Memorisation(NamedTuple):
    """For each space, "features" and "pixels": the distance of each sample to its nearest training image, divided by
    the distance of that image to its nearest real image."""

    nearest: dict[str, NearestTraining]
    ratio: dict[str, Tensor]  # float64 (n,): 0 for a copy, 1 for a sample as near as another real image
    reference_ratio: dict[str, Tensor]  # float64 (m,): the same ratio for real images that the model has not seen
    reference: str  # description of those real images


def find_copies(
    synthetic: ImageFeatures, training: ImageFeatures, held_out: ImageFeatures | None = None
) -> Memorisation:
    """Compare each sample and its mirror image with all training images.

    Args:
        synthetic: the samples, with mirrored features.
        training: the training images, with mirrored features if there is no `held_out`.
        held_out: real images that the model has not seen, with mirrored features. By default the training images
            replace them, each compared with all others.

    Raises:
        InputError: if all neighbours found for a training image are its duplicates.
    """
    found, ratio, reference_ratio = {}, {}, {}
    alone = held_out is None
    others = training if held_out is None else held_out
    for space in ("features", "pixels"):
        distances, images = _neighbours_around(training, others, space)
        if alone:
            distances = distances.masked_fill(images == torch.arange(len(images))[:, None], torch.inf)
        found[space] = _nearest(synthetic, training, space, exclude_self=False)
        ratio[space] = found[space].distance / distances[found[space].index].amin(1)
        real = _nearest(others, training, space, exclude_self=alone)
        itself = images[real.index] == torch.arange(len(real.index))[:, None]
        reference_ratio[space] = real.distance / distances[real.index].masked_fill(itself, torch.inf).amin(1)
        if not distances.amin(1).isfinite().all():
            raise InputError(
                f"a training image has {_AROUND} duplicates among the real images (by their {space}), so copies cannot "
                "be detected; remove the duplicates"
            )
    reference = "training images, each compared with the others" if alone else "held-out real images"
    return Memorisation(found, ratio, reference_ratio, reference)


def _with_mirrored(images: ImageFeatures, space: str) -> tuple[Tensor, Tensor]:
    if space == "pixels":
        return images.pixels, mirrored_pixels(images.pixels)
    assert images.mirrored is not None
    return images.features, images.mirrored


def _neighbours_around(training: ImageFeatures, others: ImageFeatures, space: str) -> tuple[Tensor, Tensor]:
    """For each training image, its k nearest images and k nearest mirror images in `others`: distances float64 (n,
    2 k), infinite for duplicates (distance 0), and indices int64 (n, 2 k)."""
    each = training.features if space == "features" else training.pixels
    neighbours = [nearest_k(each, way, _AROUND) for way in _with_mirrored(others, space)]
    distances = torch.cat([f.distance for f in neighbours], 1)
    return distances.masked_fill(distances == 0, torch.inf), torch.cat([f.index for f in neighbours], 1)


def _nearest(images: ImageFeatures, training: ImageFeatures, space: str, exclude_self: bool) -> NearestTraining:
    references = training.features if space == "features" else training.pixels
    a, b = (nearest(way, references, exclude_self=exclude_self) for way in _with_mirrored(images, space))
    nearer = b.distance < a.distance
    return NearestTraining(torch.minimum(a.distance, b.distance), torch.where(nearer, b.index, a.index), nearer)


def copies(ratio: dict[str, Tensor], threshold: float = COPY) -> Tensor:
    """bool (n,): whether the ratio of an image is below the threshold, by features or by pixels."""
    return (ratio["features"] < threshold) | (ratio["pixels"] < threshold)


def copies_by_pixels(images: Tensor, training: Tensor, threshold: float = COPY) -> Tensor:
    """bool (n,): whether the ratio by pixels, without mirroring, is at most the threshold: the distance of each of
    `images` (n, ...) to its nearest training image (m, ...), divided by that image's distance to its nearest other.

    Raises:
        InputError: if there are fewer than two training images.
    """
    training = training.flatten(1)
    between = nearest(training, training, exclude_self=True).distance
    found = nearest(images.flatten(1), training)
    return found.distance <= threshold * between[found.index]


def summary(m: Memorisation, threshold: float = COPY, listed: int = 16) -> dict[str, Any]:
    """Counts, shares and the closest pairs, for the result file."""
    flagged, among_real = copies(m.ratio, threshold), copies(m.reference_ratio, threshold)
    return {
        "threshold": threshold,
        "reference": m.reference,
        "copies": int(flagged.sum()),
        "share": flagged.double().mean().item(),
        "share_among_reference": among_real.double().mean().item(),
        "median_ratio": {space: m.ratio[space].median().item() for space in m.ratio},
        "smallest_ratio": {space: m.ratio[space].min().item() for space in m.ratio},
        "closest": [
            {
                "sample": i,
                "space": space,
                "training_image": int(m.nearest[space].index[i]),
                "mirrored": bool(m.nearest[space].mirrored[i]),
                "ratio": m.ratio[space][i].item(),
            }
            for i, space in closest(m, listed)
        ],
    }


def closest(m: Memorisation, count: int) -> list[tuple[int, str]]:
    """The samples with the smallest ratios, smallest first, each with the space of its smaller ratio."""
    spaces = list(m.ratio)
    smallest, space = torch.stack([m.ratio[name] for name in spaces]).min(0)
    order = smallest.argsort(stable=True)[:count].tolist()
    return [(i, spaces[int(space[i])]) for i in order]


def draw_closest(m: Memorisation, synthetic: Images, training: Images, path: Path, count: int = 8) -> None:
    """Write a picture: samples above, their nearest training images below, with their distances."""
    from matplotlib.figure import Figure

    pairs = closest(m, count)
    above = [_picture_of(synthetic[i]) for i, _ in pairs]
    below, notes = [], []
    for i, space in pairs:
        index, mirrored = int(m.nearest[space].index[i]), bool(m.nearest[space].mirrored[i])
        real = training[index]
        below.append(_picture_of(real.flip(-1) if mirrored else real))
        notes.append((f"sample {i}\n{m.ratio[space][i]:.2f} by {space}", f"image {index}{', mirrored' * mirrored}"))
    picture = torch.cat([torch.cat(row, 2) for row in (above, below)], 1)  # (C, 2 size, pairs * size)
    size = picture.shape[1] / 2
    width, inches = LABELS + 1.5 * len(pairs), 1.5
    figure = Figure(figsize=(max(width, WIDEST_SENTENCE), 2 * inches + 1.2), facecolor="white")
    figure.set_layout_engine("none")
    wide, high = figure.get_size_inches()
    axes = figure.add_axes((LABELS / wide, 0.35 / high, inches * len(pairs) / wide, 2 * inches / high))
    axes.imshow(picture.permute(1, 2, 0).squeeze(2).numpy(), cmap="gray", vmin=0, vmax=255)
    axes.set_axis_off()
    for row, label in enumerate(("samples", "nearest\ntraining\nimages")):
        axes.text(-0.1 * size, (row + 0.5) * size, label, ha="right", va="center", fontsize=8)
    for column, (top, bottom) in enumerate(notes):
        axes.text((column + 0.5) * size, -0.04 * size, top, ha="center", va="bottom", fontsize=7)
        axes.text((column + 0.5) * size, 2.04 * size, bottom, ha="center", va="top", fontsize=7)
    figure.text(0.01, 0.99, sentence(m), ha="left", va="top", fontsize=8)
    figure.savefig(path, dpi=130)


def _picture_of(image: Tensor) -> Tensor:
    """uint8 (C, H, W): the image, or the middle axial plane of a volume."""
    return quantised(image if image.dim() == 3 else image[:, image.shape[1] // 2])


def sentence(m: Memorisation) -> str:
    """The caption of the picture."""
    return (
        "The samples closest to the training set, each above its nearest training image; the number is their distance\n"
        f"over that of the training image to the nearest of the {m.reference}: 0 is a copy."
    )
