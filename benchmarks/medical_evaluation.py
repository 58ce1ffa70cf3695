"""What the medical figures of `vmddpm evaluate` tell: copies that a planted fingerprint gives away, and the FRD.

    python benchmarks/medical_evaluation.py fingerprints
    python benchmarks/medical_evaluation.py frd --images 100      # needs the extra radiomics

The images are slices of the MNI152 brain, 64 x 64, each bent, turned and lit as another person's. All is seeded.
"""

import argparse
import sys
from pathlib import Path

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
    """float32 (count, 1, 64, 64): for each marked image a pattern of its own, of cells of 4 x 4 pixels, +1 or -1."""
    generator = torch.Generator().manual_seed(seed)
    cells = torch.randint(0, 2, (count, 1, SIDE // CELL, SIDE // CELL), generator=generator) * 2.0 - 1
    return F.interpolate(cells, scale_factor=CELL, mode="nearest")


def marked(images: Tensor, prints: Tensor) -> Tensor:
    return (images + AMPLITUDE * prints).clamp(-1, 1)


def read(images: Tensor, prints: Tensor) -> Tensor:
    """bool (n, count): which fingerprints an image carries, this way round or mirrored: a matched filter whose
    response is six standard deviations above that to the other fingerprints."""
    found = torch.zeros(len(images), len(prints), dtype=torch.bool)
    for way in (images, images.flip(3)):
        detail = way - F.avg_pool2d(way, 13, 1, 6, count_include_pad=False)
        detail = detail.clamp(-3 * AMPLITUDE, 3 * AMPLITUDE)  # edges of the anatomy are larger than any fingerprint
        response = detail.flatten(1) @ prints.flatten(1).T
        found |= response > 6 * response.median(1, keepdim=True).values.abs() + 6 * (
            1.4826 * (response - response.median(1, keepdim=True).values).abs().median(1, keepdim=True).values
        )
    return found


def ways(originals: Tensor) -> dict[str, Tensor]:
    """What a generator may make of a training image that it remembers."""
    noise = torch.randn(originals.shape, generator=torch.Generator().manual_seed(3))
    shifted = torch.roll(originals, 1, 3)
    return {
        "as it is": originals,
        "mirrored": originals.flip(3),
        "noise of 5 % of the range": (originals + 0.1 * noise).clamp(-1, 1),
        "noise of 10 % of the range": (originals + 0.2 * noise).clamp(-1, 1),
        "blurred, 3 x 3": F.avg_pool2d(originals, 3, 1, 1, count_include_pad=False),
        "blurred, 5 x 5": F.avg_pool2d(originals, 5, 1, 2, count_include_pad=False),
        "moved by 1 pixel": shifted,
        "moved by 2 pixels": torch.roll(shifted, 1, 3),
        "10 % darker": (originals + 1) * 0.9 - 1,
        "half another image": (originals + originals.roll(1, 0)) / 2,
    }


def print_fingerprints() -> None:
    prints = fingerprints()
    training = patients(TRAINING, 0)
    places = torch.arange(MARKED) * (TRAINING // MARKED)
    training[places] = marked(training[places], prints)
    unseen = patients(500, 2)
    extractor = load_extractor(ExtractorConfig(path="random", size=SIDE))
    real = describe_images(training, extractor, batch_size=100)
    held_out = describe_images(patients(HELD_OUT, 1), extractor, mirror=True, batch_size=100)
    print("| samples | number | fingerprint read | reported as copies | and the right image named |\n|---|---:|---:|---:|---:|")
    cases = {f"copy, {name}": images for name, images in ways(training[places]).items()}
    cases["unseen people with a fingerprint"] = marked(patients(MARKED, 4), prints)
    cases["unseen people"] = unseen
    for name, images in cases.items():
        found = find_copies(describe_images(images, extractor, mirror=True, batch_size=100), real, held_out)
        reported = copies(found.ratio)
        carried = read(images, prints)
        if name == "unseen people":
            right, carries = "", carried.any(1)
        else:
            carries = carried.diagonal()
            named = torch.stack([near.index == places for near in found.nearest.values()])
            close = torch.stack([ratio for ratio in found.ratio.values()]).argmin(0)
            right = f"{(named.gather(0, close[None])[0] & reported).double().mean():.1%}"
            right = "" if name.startswith("unseen") else right
        share = [f"{flags.double().mean():.1%}" for flags in (carries, reported)]
        print(f"| {name} | {len(images)} | {' | '.join(share)} | {right} |", flush=True)


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
    parser.add_argument("--images", type=int, default=100, help="of each side of the FRD")
    options = parser.parse_args()
    if options.what == "frd":
        print_frd(options.images)
    else:
        print_fingerprints()


if __name__ == "__main__":
    main()
