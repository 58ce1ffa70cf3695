"""Checks for non-anatomical differences between two sets of images: windowing, margins, sharpness."""

from collections.abc import Callable

import numpy as np

# A property separates the classes if it tells a real from a synthetic image in more than this share of pairs (half is
# chance), with a p-value below the second number.
MIN_AUC, SIGNIFICANT = 0.75, 1e-3


def differences(real: np.ndarray, synthetic: np.ndarray) -> list[str]:
    """A warning for each property that separates the classes too well.

    Good synthetic images differ in none of them. A difference is either a true property of the synthetic images, which
    is a finding, or a difference in preparation, which spoils the study.

    Args:
        real, synthetic: uint8 (N, S, S, C).
    """
    from scipy.stats import mannwhitneyu

    found = []
    for name, measure in MEASURES.items():
        a, b = ([float(measure(image.astype(float))) for image in images] for images in (real, synthetic))
        test = mannwhitneyu(a, b)
        share = test.statistic / (len(a) * len(b))  # the area under the ROC curve
        if max(share, 1 - share) > MIN_AUC and test.pvalue < SIGNIFICANT:
            found.append(f"{name}: {max(share, 1 - share):.0%} of pairs are told apart by it alone "
                         f"(median {np.median(a):.3g} of the real, {np.median(b):.3g} of the synthetic)")  # fmt: skip
    return found


def _detail(image: np.ndarray) -> float:
    """Mean absolute difference from the mean of the four neighbours."""
    neighbours = (image[:-2, 1:-1] + image[2:, 1:-1] + image[1:-1, :-2] + image[1:-1, 2:]) / 4
    return float(np.abs(image[1:-1, 1:-1] - neighbours).mean()) if min(image.shape[:2]) > 2 else 0.0


MEASURES: dict[str, Callable[[np.ndarray], float | np.floating]] = {
    "mean brightness": np.mean,
    "contrast": np.std,
    "share of black pixels": lambda image: np.mean(image == 0),
    "share of white pixels": lambda image: np.mean(image == 255),
    "number of grey levels": lambda image: len(np.unique(image)),
    "fine detail": _detail,
}
