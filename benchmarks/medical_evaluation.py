"""Tests the medical metrics of `vmddpm evaluate`: detection of copies with a planted fingerprint, and the FRD.

    python benchmarks/medical_evaluation.py fingerprints
    python benchmarks/medical_evaluation.py frd --images 100      # needs the extra radiomics

The images are slices of the MNI152 brain, 64 x 64, each warped, rotated and shaded to look like another person's. All
random numbers are seeded.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm.evaluation import ExtractorConfig, load_extractor
from vmddpm.evaluation.images import describe_images
from vmddpm.evaluation.memorisation import copies, find_copies
from vmddpm.evaluation.radiomics import radiomic_distance, radiomic_features

sys.path.append(str(Path(__file__).parents[1] / "tests" / "evaluation"))
from evaluation_cases import patients

SIDE, CELL, AMPLITUDE = 64, 4, 0.06  # pixels; of a range of 2: 8 grey levels of 256
TRAINING, MARKED, HELD_OUT = 400, 100, 200


def fingerprints(count: int = MARKED, seed: int = 7) -> Tensor:
    """float32 (count, 1, 64, 64): a different pattern for each marked image, with cells of 4 x 4 pixels, +1 or -1."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, 2, (count, 1, SIDE // CELL, SIDE // CELL), generator=generator) * 2.0 - 1
    return F.interpolate(cells, scale_factor=CELL, mode="nearest")


def marked(images: Tensor, prints: Tensor) -> Tensor:
    return (images + AMPLITUDE * prints).clamp(-1, 1)


def read(images: Tensor, prints: Tensor) -> Tensor:
    """bool (n, count): the fingerprints of each image, also if mirrored or moved sideways by up to 2 pixels. A matched
    filter is applied to the fine detail; its response must exceed the median of all by five deviations."""
    pattern = _detail(prints).flatten(1)
    found = torch.zeros(len(images), len(prints), dtype=torch.bool)
    for way in (images, images.flip(3)):
        for step in range(-2, 3):
            detail = _detail(way.roll(step, 3)).clamp(-AMPLITUDE, AMPLITUDE)  # edges of the anatomy are larger
            response = detail.flatten(1) @ pattern.T
            response -= response.median(1, keepdim=True).values
            deviation = 1.4826 * response.abs().median(1, keepdim=True).values
            found |= response > 5 * deviation
    return found


def _detail(images: Tensor) -> Tensor:
    return images - F.avg_pool2d(images, 5, 1, 2, count_include_pad=False)


def ways(originals: Tensor) -> dict[str, Tensor]:
    """Variants of a training image that a generator may have memorised."""
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(3))
    return {
        "as it is": originals,
        "mirrored": originals.flip(3),
        "noise of 5 % of the range": (originals + 0.1 * noise).clamp(-1, 1),
        "noise of 10 % of the range": (originals + 0.2 * noise).clamp(-1, 1),
        "blurred, 3 x 3": F.avg_pool2d(originals, 3, 1, 1, count_include_pad=False),
        "blurred, 5 x 5": F.avg_pool2d(originals, 5, 1, 2, count_include_pad=False),
        "moved by 1 pixel": originals.roll(1, 3),
        "moved by 2 pixels": originals.roll(2, 3),
        "10 % darker": (originals + 1) * 0.9 - 1,
        "half another image": (originals + originals.roll(1, 0)) / 2,
    }


class Row(NamedTuple):
    """Shares of the samples of one kind."""

    name: str
    number: int
    read: float  # with a readable fingerprint; for copies, their own
    reported: float  # reported as copies
    named: float | None  # reported as copies of the right image


def measure(chosen: Sequence[str] = ()) -> Iterator[Row]:
    """One row for each kind of samples, or for those whose names contain one of the `chosen`."""
    prints, training = fingerprints(), patients(TRAINING, 0)
    places = torch.arange(MARKED) * (TRAINING // MARKED)
    training[places] = marked(training[places], prints)
    extractor = load_extractor(ExtractorConfig(path="random", size=SIDE))
    real = describe_images(training, extractor, batch_size=100)
    held_out = describe_images(patients(HELD_OUT, 1), extractor, mirror=True, batch_size=100)
    cases = {f"copies, {name}": images for name, images in ways(training[places]).items()}
    cases["unseen people with a fingerprint"] = marked(patients(MARKED, 4), prints)
    cases["unseen people"] = patients(500, 2)
    for name, images in cases.items():
        if chosen and not any(part in name for part in chosen):
            continue
        found = find_copies(describe_images(images, extractor, mirror=True, batch_size=100), real, held_out)
        reported, carried = copies(found.ratio), read(images, prints)
        carries, named = carried.any(1), None
        if name.startswith("copies"):
            carries = carried.diagonal()
            space = torch.stack([found.ratio[space] for space in found.nearest]).argmin(0)
            nearest = torch.stack([near.index for near in found.nearest.values()]).gather(0, space[None])[0]
            named = _share(reported & (nearest == places))
        yield Row(name, len(images), _share(carries), _share(reported), named)


def _share(flags: Tensor) -> float:
    return flags.double().mean().item()


def print_fingerprints() -> None:
    print("| samples | number | fingerprint read | reported | right image named |\n|---|---:|---:|---:|---:|")
    for row in measure():
        shares = ["" if share is None else f"{100 * share:.0f} %" for share in row[2:]]
        print(f"| {row.name} | {row.number} | {' | '.join(shares)} |", flush=True)


def print_frd(count: int) -> None:
    real, others = patients(count, 0), patients(count, 1)
    noise = torch.randn(others.shape, generator=torch.Generator().manual_seed(3))
    reference = radiomic_features(real, count)
    print("| samples | FRD | floor |\n|---|---:|---:|")
    for name, images in {
        "other people": others,
        "other people, blurred 3 x 3": F.avg_pool2d(others, 3, 1, 1, count_include_pad=False),
        "other people, noise of 5 % of the range": (others + 0.1 * noise).clamp(-1, 1),
        "pure noise": noise.clamp(-1, 1),
    }.items():
        found = radiomic_distance(reference, radiomic_features(images, count))
        print(f"| {name} | {found.value:.2f} | {found.floor:.2f} |", flush=True)
    print(f"{found.n_real} images against {found.n_synthetic}, {found.dimensions} features")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fingerprints", "frd"))
    parser.add_argument("--images", type=int, default=100, help="images on each side of the FRD")
    options = parser.parse_args()
    if options.what == "frd":
        print_frd(options.images)
    else:
        print_fingerprints()


if __name__ == "__main__":
    main()
