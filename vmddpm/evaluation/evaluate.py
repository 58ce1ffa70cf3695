"""The evaluation of a set of samples: one result file with all metrics and their settings."""

import json
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from vmddpm.devices import choose_device
from vmddpm.errors import InputError
from vmddpm.evaluation.extractor import Extractor
from vmddpm.evaluation.frechet import Gaussian, fit_gaussian, frechet_distance, frechet_floor
from vmddpm.evaluation.images import ImageFeatures, Images, SampleFolder, describe_images
from vmddpm.evaluation.kid import MIN_IMAGES as KID_LEAST
from vmddpm.evaluation.kid import kernel_distance
from vmddpm.evaluation.memorisation import COPY, draw_closest, find_copies, summary
from vmddpm.evaluation.neighbours import precision_and_recall, share_among
from vmddpm.evaluation.radiomics import PACKAGES as RADIOMICS_PACKAGES
from vmddpm.evaluation.radiomics import (
    RadiomicDistance,
    RadiomicFeatures,
    load_radiomics,
    radiomic_distance,
    radiomic_features,
)
from vmddpm.files import atomic_write, flush
from vmddpm.numbers import check_numbers, check_seed

NOISE_IMAGES = 64
_PACKAGES = ("vmddpm", "torch", "numpy", "pillow", *RADIOMICS_PACKAGES)


@dataclass(frozen=True)
class MetricsConfig:
    """Settings of the metrics.

    Raises:
        InputError: naming the field, its value and what it must be.
    """

    kid_subsets: int = 100
    """Number of subsets for the KID and its standard deviation."""

    kid_subset_size: int = 1000
    """Images in a subset, at most half of the smaller set."""

    neighbours: int = 3
    """k of precision and recall; 3 in Kynkäänniemi et al. (2019)."""

    copy_threshold: float = COPY
    """A sample is a copy if its distance to a training image is below this share of that image's distance to another
    real image."""

    radiomics: int = 0
    """Number of evenly spaced images of each set for the Fréchet Radiomic Distance; 0 skips it. It takes some tenths of
    a second per image, and needs the extra "radiomics"."""

    batch_size: int = 32
    """Images per batch of the extractor."""

    seed: int = 0
    """Seed of the subsets and of the simulated floor."""

    device: str = "auto"
    """Where the extractor runs; "auto" is the GPU if there is one."""

    def __post_init__(self) -> None:
        check_numbers(self, "metrics.", {"kid_subsets": 1_000_000, "batch_size": 2**16})
        check_seed("metrics.seed", self.seed)
        for name in ("kid_subsets", "kid_subset_size", "neighbours", "batch_size"):
            if getattr(self, name) < 1:
                raise InputError(f"metrics.{name} is {getattr(self, name)}; it must be at least 1")
        if self.radiomics < 0 or self.radiomics == 1:
            raise InputError(f"metrics.radiomics is {self.radiomics}; it must be 0 or at least 2")
        if not 0 < self.copy_threshold < 1:
            raise InputError(f"metrics.copy_threshold is {self.copy_threshold}; it must be between 0 and 1")


@dataclass(frozen=True)
class RealImages:
    """The real images of a comparison and their features, computed once for any number of systems."""

    training: Images
    features: ImageFeatures
    gaussian: Gaussian
    held_out: ImageFeatures | None
    radiomics: RadiomicFeatures | None


def check_images(
    images: Images, name: str, shape: tuple[int, ...], config: MetricsConfig, least: int | None = None
) -> None:
    """Check the number and shape of images before any feature is computed.

    Args:
        images: one set of a comparison.
        name: their name in error messages.
        shape: (C, H, W) of the training images.
        least: required number; by default as many as the metrics need.

    Raises:
        InputError: if there are too few, or they have another shape. Every file of a `SampleFolder` is checked, but
            only the first of other images.
    """
    least = max(KID_LEAST, config.neighbours + 1) if least is None else least
    if len(images) < least:
        raise InputError(
            f"there are {len(images)} {name}; the distances, and precision and recall with metrics.neighbours "
            f"{config.neighbours}, need at least {least}: give more"
        )
    if isinstance(images, SampleFolder):
        images.check_shapes(shape)
    elif (found := tuple(images[0].shape)) != shape:
        raise InputError(
            f"the {name} have channels and pixels {found}, the training images {shape}; give images of the same size "
            "and colour"
        )


def describe_real(
    training: Images, extractor: Extractor, config: MetricsConfig, held_out: Images | None = None, *,
    progress: bool = True,
) -> RealImages:  # fmt: skip
    """Compute the features of the training images, and of held-out images if there are any.

    Raises:
        InputError: if images are too few or have different shapes, or packages are missing, before anything is
            computed; also if features are not finite, or all the same.
    """
    if config.radiomics:
        load_radiomics()
    shape = tuple(training[0].shape) if len(training) else ()
    check_images(training, "real images", shape, config)
    if held_out is not None:
        check_images(held_out, "held-out images", shape, config, least=1)
    extractor.to(choose_device(config.device))
    described = _describe(training, extractor, config, "real images", held_out is None, progress)
    others = None if held_out is None else _describe(held_out, extractor, config, "held-out images", True, progress)
    gaussian = fit_gaussian(described.features, "real images")
    if not gaussian.covariance.trace() > 0:
        raise InputError(
            f"all {gaussian.count} real images have the same features: they are constant or copies of one image, or "
            "the extractor's value range is wrong"
        )
    radiomics = _radiomics(training, config, "real images", progress)
    return RealImages(training, described, gaussian, others, radiomics)


def evaluate(
    real: RealImages, samples: Images, extractor: Extractor, config: MetricsConfig, out: Path, *,
    extra_warnings: Sequence[str] = (), progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Compare `samples` with the real images; write `out`/evaluation.json and `out`/closest.png, both or neither, and
    return the content of the former.

    Args:
        extra_warnings: further warnings for the result.

    Raises:
        InputError: as in `describe_real`, for the samples.
    """
    check_images(samples, "samples", tuple(real.training[0].shape), config)
    if (real.radiomics is not None) != bool(config.radiomics):
        raise InputError(
            f"metrics.radiomics is {config.radiomics}, but the real images were described with another; give both the "
            "same configuration"
        )
    extractor.to(choose_device(config.device))
    described = _describe(samples, extractor, config, "samples", True, progress)
    gaussian = fit_gaussian(described.features, "samples")
    kid = kernel_distance(
        real.features.features, described.features, subsets=config.kid_subsets, subset_size=config.kid_subset_size,
        seed=config.seed,
    )  # fmt: skip
    precision, recall = precision_and_recall(real.features.features, described.features, config.neighbours)
    noise = describe_images(_noise(samples[0].shape, config), extractor, batch_size=config.batch_size)
    precision_of_noise = share_among(noise.features, real.features.features, config.neighbours)
    memorisation = find_copies(described, real.features, real.held_out)
    radiomics = _radiomics(samples, config, "samples", progress)
    frd = None if real.radiomics is None or radiomics is None else radiomic_distance(
        real.radiomics, radiomics, config.seed
    )  # fmt: skip
    result: dict[str, Any] = {
        "distance": extractor.name,
        "value": frechet_distance(real.gaussian, gaussian),
        "floor": frechet_floor(real.gaussian, gaussian.count, config.seed),
        "kid": kid._asdict(),
        "frd": None if frd is None else frd._asdict(),
        "precision": precision,
        "precision_of_noise": precision_of_noise,
        "recall": recall,
        "neighbours": config.neighbours,
        "memorisation": summary(memorisation, config.copy_threshold),
        "n_real": real.gaussian.count,
        "n_synthetic": gaussian.count,
        "dimensions": len(gaussian.mean),
        "extractor": extractor.describe(),
        "warnings": [*extra_warnings, *_feature_warnings(real.gaussian, gaussian), *_radiomic_warnings(frd)],
        "images_per_second": round(described.images_per_second, 1),
        "versions": _versions(),
    }
    with atomic_write(out / "evaluation.json") as record, atomic_write(out / "closest.png") as picture:
        draw_closest(memorisation, samples, real.training, picture)
        record.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        flush(record)
        # Remove an earlier result before its picture is replaced, so that a result never has another's picture.
        (out / "evaluation.json").unlink(missing_ok=True)
    for message in result["warnings"]:
        warnings.warn(message, stacklevel=2)
    return result


def _describe(
    images: Images, extractor: Extractor, config: MetricsConfig, name: str, mirror: bool, progress: bool
) -> ImageFeatures:
    with tqdm(total=len(images), desc=f"features of {name}", unit="image", disable=not progress,
              dynamic_ncols=True) as bar:  # fmt: skip
        return describe_images(
            images, extractor, mirror=mirror, batch_size=config.batch_size,
            progress=lambda done: bar.update(done - bar.n),
        )  # fmt: skip


def _radiomics(images: Images, config: MetricsConfig, name: str, progress: bool) -> RadiomicFeatures | None:
    if not config.radiomics:
        return None
    count = min(config.radiomics, len(images))
    with tqdm(total=count, desc=f"radiomic features of {name}", unit="image", disable=not progress,
              dynamic_ncols=True) as bar:  # fmt: skip
        return radiomic_features(images, count, name, progress=lambda done: bar.update(done - bar.n))


def _noise(shape: torch.Size, config: MetricsConfig) -> Tensor:
    """Noise images, like those of an untrained network."""
    generator = torch.Generator().manual_seed(config.seed)
    return torch.randn(NOISE_IMAGES, *shape, generator=generator).clamp(-1, 1)


def _feature_warnings(real: Gaussian, synthetic: Gaussian) -> list[str]:
    messages = []
    dimensions = len(real.mean)
    for name, fit in (("real images", real), ("samples", synthetic)):
        if fit.count <= dimensions:
            messages.append(
                f"{fit.count} {name} span fewer than the {dimensions} dimensions of the features: the distance is "
                "biased upwards, more than the floor says; read the KID too"
            )
    if not synthetic.covariance.trace() > 0:
        messages.append("all samples have the same features: the model has collapsed to one image")
    return messages


def _radiomic_warnings(frd: RadiomicDistance | None) -> list[str]:
    if frd is None:
        return []
    messages = [
        f"{name} without radiomic features, which are left out of the FRD: {undefined}; look for images of one grey "
        "level"
        for name, undefined in (("real images", frd.undefined_real), ("samples", frd.undefined_synthetic))
        if undefined
    ]
    if min(frd.n_real, frd.n_synthetic) <= frd.dimensions:
        messages.append(
            f"the FRD of {frd.n_real} real images and {frd.n_synthetic} samples is biased upwards, more than its floor "
            f"says: both numbers must exceed its {frd.dimensions} features; raise metrics.radiomics"
        )
    return messages


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def _noise_warning(result: dict[str, Any]) -> str:
    """A warning if pure noise has a similar precision; else an empty text."""
    noise = result["precision_of_noise"]
    if noise < max(0.05, result["precision"] / 2):
        return ""
    return (f"; this precision is meaningless: images of pure noise get {noise:.3f}, because the features of real "
            "images are far apart. Use the distances, and look at the images")  # fmt: skip


def _radiomic_line(frd: dict[str, Any] | None) -> list[str]:
    if frd is None:
        return []
    value, floor = ("-inf" if frd[name] is None else f"{frd[name]:.3f}" for name in ("value", "floor"))
    return [
        f"Fréchet Radiomic Distance (FRD): {value}, a logarithm; a perfect generator would get {floor} "
        f"({frd['dimensions']} features, {frd['n_synthetic']} samples against {frd['n_real']} real images)"
    ]


def describe_result(result: dict[str, Any]) -> str:
    """A summary of the result in a few lines, for a terminal."""
    kid, copied = result["kid"], result["memorisation"]
    return "\n".join(
        (
            f"{result['n_synthetic']} samples against {result['n_real']} real images, {result['dimensions']} features "
            f"of {result['extractor']['path']} (resized by {result['extractor']['resizer']})",
            f"{result['distance']}: {result['value']:.4g}; a perfect generator would get {result['floor']:.4g} with "
            "these numbers of images",
            f"kernel distance (KID): {kid['mean']:.4g} ± {kid['deviation']:.2g} ({kid['subsets']} subsets of "
            f"{kid['subset_size']})",
            *_radiomic_line(result["frd"]),
            f"precision {result['precision']:.3f}, recall {result['recall']:.3f} ({result['neighbours']} neighbours)"
            + _noise_warning(result),
            f"copies of training images: {copied['copies']} of {result['n_synthetic']} samples "
            f"({100 * copied['share']:.1f} %; the same rule flags {100 * copied['share_among_reference']:.1f} % of the "
            f"{copied['reference']})",
            f"{result['images_per_second']} images/s through the extractor",
        )
    )
