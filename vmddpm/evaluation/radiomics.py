"""The Fréchet Radiomic Distance (Konz, Osuala et al., Medical Image Analysis, 2026; arXiv:2412.01496).

The features are those of PyRadiomics as configured by the authors' package frd-score: statistics of grey levels and
textures of the image and of its wavelet bands. (PyRadiomics computes Laplacians of Gaussians only for volumes.) Both
packages are optional.
"""

import logging
import math
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from vmddpm.errors import InputError
from vmddpm.evaluation.frechet import fit_gaussian, frechet_distance, frechet_floor
from vmddpm.evaluation.images import Images, quantised

PACKAGES = ("frd-score", "pyradiomics-bhklab")
_VERSION = "v1"  # the version of the paper


class RadiomicFeatures(NamedTuple):
    """The radiomic features of a set of images."""

    values: Tensor  # float32 (n, d), finite
    names: tuple[str, ...]  # names of the d features
    undefined: int  # number of images left out; those of one grey level have no texture


class RadiomicDistance(NamedTuple):
    """The entry for the result file."""

    value: float | None  # the logarithm of the squared Fréchet distance, as in frd-score; None if the distance is 0
    floor: float | None  # the value of a perfect generator with the same numbers of images
    dimensions: int  # number of features that vary among the real images
    n_real: int
    n_synthetic: int
    undefined_real: int  # images left out
    undefined_synthetic: int


def load_radiomics() -> Any:
    """Import and return frd_score.frd, which uses PyRadiomics.

    Raises:
        InputError: naming the missing package and how to install it.
    """
    try:
        import radiomics  # noqa: F401
        from frd_score import frd
    except ImportError as error:
        raise InputError(
            f"the Fréchet Radiomic Distance needs frd-score and PyRadiomics, but {error.name} is missing; "
            '`pip install ".[radiomics]"` in the source tree installs them, or leave metrics.radiomics at 0'
        ) from error
    return frd


def radiomic_features(
    images: Images, count: int, name: str = "images", progress: Callable[[int], object] | None = None
) -> RadiomicFeatures:
    """Features of `count` evenly spaced images of the set, or of all if there are fewer.

    Images are rounded to 8 bits, and the channels of colour images are averaged.

    Args:
        images: see `Images`.
        count: at least 2.
        name: name of the images in messages.
        progress: called with the number of images done.

    Raises:
        InputError: if a package is missing; if PyRadiomics refuses an image; if fewer than two images have features.
    """
    frd = load_radiomics()
    extractor = frd.get_feature_extractor(_VERSION, image_dim=2)
    count = min(count, len(images))
    rows: list[dict[str, float]] = []
    undefined = 0
    with tempfile.TemporaryDirectory(prefix="vmddpm-radiomics-") as folder, _quiet():
        path = Path(folder) / "image.png"
        for done in range(count):
            number = done * len(images) // count
            grey = quantised(images[number]).float().mean(0).round().byte()
            features = None if _flat(grey) else _features(frd, extractor, grey, path, f"{name}: image {number}")
            if features is None or not all(map(math.isfinite, features.values())):
                undefined += 1
            else:
                rows.append(features)
            if progress is not None:
                progress(done + 1)
    if len(rows) < 2:
        raise InputError(
            f"{name}: {undefined} of {count} images have no radiomic features, as images of one grey level have no "
            "texture; the Fréchet Radiomic Distance needs at least 2 others"
        )
    names = tuple(rows[0])
    if any(tuple(row) != names for row in rows):
        raise InputError(f"{name}: PyRadiomics returned different features for some images")
    return RadiomicFeatures(torch.tensor([list(row.values()) for row in rows]), names, undefined)


def _flat(grey: Tensor) -> bool:
    """Whether a slice has a single grey level, ignoring the corner pixel that frd-score leaves out."""
    inside = grey.flatten()[1:]
    return not len(inside) or bool((inside == inside[0]).all())


def _features(frd: Any, extractor: Any, grey: Tensor, path: Path, name: str) -> dict[str, float]:
    """uint8 (H, W) -> {name: feature}, through a file for frd-score."""
    Image.fromarray(grey.numpy()).save(path)
    try:
        _, features, _ = frd.process_image_mask_pair((path, None), feature_extractor=extractor, frd_version=_VERSION)
    except Exception as error:  # PyRadiomics raises any class of exception
        raise InputError(
            f"{name} has no radiomic features ({error}); look at it, or set metrics.radiomics to 0 to do without them"
        ) from error
    return dict(features)


def radiomic_distance(real: RadiomicFeatures, synthetic: RadiomicFeatures, seed: int = 0) -> RadiomicDistance:
    """The logarithm of the squared Fréchet distance of the features, standardised by the mean and standard deviation of
    the real images. Features that are constant over the real images are left out.

    Raises:
        InputError: if the sets have different features, or none varies among the real images.
    """
    if real.names != synthetic.names:
        raise InputError(
            f"the real images have {len(real.names)} radiomic features, the samples {len(synthetic.names)} or others; "
            "compute both with the same version of PyRadiomics"
        )
    varies = real.values.amax(0) > real.values.amin(0)
    if not varies.any():
        raise InputError("all real images have the same radiomic features: they are copies of one image")
    reference = real.values[:, varies].double()
    mean, deviation = reference.mean(0), reference.std(0, correction=0)
    a, b = (
        fit_gaussian((features.values[:, varies].double() - mean) / deviation, name)
        for features, name in ((real, "real images"), (synthetic, "samples"))
    )
    return RadiomicDistance(
        _logarithm(frechet_distance(a, b)), _logarithm(frechet_floor(a, b.count, seed)), len(mean), a.count, b.count,
        real.undefined, synthetic.undefined,
    )  # fmt: skip


def _logarithm(squared: float) -> float | None:
    return math.log(squared) if squared > 0 else None


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence PyRadiomics' messages about filters that do not apply to an image."""
    logger = logging.getLogger("radiomics")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)
