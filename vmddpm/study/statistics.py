"""Statistics of the four counts of a reader: those of the paper's Tables III-V, and others."""

import math
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np
from scipy.optimize import brentq
from scipy.stats import binomtest, fisher_exact, norm


class Counts(NamedTuple):
    """One reader's judgements, in the order of the paper's tables."""

    real_as_real: int
    real_as_synthetic: int
    synthetic_as_real: int
    synthetic_as_synthetic: int

    @property
    def real(self) -> int:
        return self.real_as_real + self.real_as_synthetic

    @property
    def synthetic(self) -> int:
        return self.synthetic_as_real + self.synthetic_as_synthetic


class Interval(NamedTuple):
    value: float
    low: float
    high: float


def ratio(part: float, whole: float) -> float:
    """The quotient, or NaN if the divisor is 0."""
    return part / whole if whole else math.nan


def paper_precision(c: Counts) -> tuple[float, float]:
    """Tables III and IV, "Precision": the share of each class that was judged correctly, usually called recall."""
    return ratio(c.real_as_real, c.real), ratio(c.synthetic_as_synthetic, c.synthetic)


def paper_recall(c: Counts) -> tuple[float, float]:
    """Tables III and IV, "Recall": the share of each judgement that was correct, usually called precision."""
    return (ratio(c.real_as_real, c.real_as_real + c.synthetic_as_real),
            ratio(c.synthetic_as_synthetic, c.real_as_synthetic + c.synthetic_as_synthetic))  # fmt: skip


def fisher(c: Counts) -> float:
    """Table V: the two-sided p of Fisher's exact test."""
    return float(fisher_exact(np.reshape(c, (2, 2)))[1])


def accuracy(c: Counts, level: float = 0.95) -> Interval:
    """Share of correct judgements, with Wilson's interval."""
    right, n = c.real_as_real + c.synthetic_as_synthetic, sum(c)
    if n == 0:
        return Interval(math.nan, math.nan, math.nan)
    return Interval(right / n, *binomtest(right, n).proportion_ci(level, "wilson"))


def d_prime(c: Counts, level: float = 0.95) -> Interval:
    """z(P(judged real | real)) - z(P(judged real | synthetic)): 0 for guessing, negative for worse than guessing.

    The interval is that of Gourevitch and Galanter (1967). Where a share is 0 or 1, which has no z, half an answer is
    added to each count (Hautus, 1995).
    """
    if not (c.real and c.synthetic):
        return Interval(math.nan, math.nan, math.nan)
    extra = 0.5 if 0 in c else 0.0
    value = variance = 0.0
    for sign, k, n in ((1, c.real_as_real, c.real), (-1, c.synthetic_as_real, c.synthetic)):
        share = (k + extra) / (n + 2 * extra)
        z = norm.ppf(share)
        value += sign * z
        variance += share * (1 - share) / ((n + 2 * extra) * norm.pdf(z) ** 2)
    return _normal_interval(float(value), math.sqrt(variance), level)


def _normal_interval(value: float, error: float, level: float) -> Interval:
    reach = float(norm.ppf((1 + level) / 2)) * error
    return Interval(value, value - reach, value + reach)


def difference(c: Counts, level: float = 0.95) -> Interval:
    """P(judged real | real) - P(judged real | synthetic), with the score interval of Miettinen and Nurminen (1985)."""
    if not (c.real and c.synthetic):
        return Interval(math.nan, math.nan, math.nan)
    value = c.real_as_real / c.real - c.synthetic_as_real / c.synthetic
    limit = float(norm.ppf((1 + level) / 2))
    # The score decreases from above the limit at -1 to below minus the limit at 1, and may be infinite at both ends.
    low = brentq(lambda d: score(c, d) - limit, -1 + 1e-9, value) if value > -1 + 1e-6 else -1.0
    high = brentq(lambda d: score(c, d) + limit, value, 1 - 1e-9) if value < 1 - 1e-6 else 1.0
    return Interval(value, low, high)


def score(c: Counts, supposed: float) -> float:
    """The difference of the shares minus a hypothetical difference, in standard errors (Miettinen and Nurminen, 1985).

    The standard error uses the maximum-likelihood shares under the hypothetical difference: a root of a cubic, in the
    closed form of Farrington and Manning (1990).
    """
    (x1, n1), (x2, n2) = (c.real_as_real, c.real), (c.synthetic_as_real, c.synthetic)
    p1, p2, t, s = x1 / n1, x2 / n2, n2 / n1, supposed
    a = 1 + t
    b = -(1 + t + p1 + t * p2 + s * (t + 2))
    e = s * s + s * (2 * p1 + t + 1) + p1 + t * p2
    d = -p1 * s * (1 + s)
    v = (b / (3 * a)) ** 3 - b * e / (6 * a * a) + d / (2 * a)
    u = math.copysign(math.sqrt(max((b / (3 * a)) ** 2 - e / (3 * a), 0.0)), v)
    w = (math.pi + math.acos(min(max(v / u**3, -1.0), 1.0) if u else 1.0)) / 3
    q1 = min(max(2 * u * math.cos(w) - b / (3 * a), max(0.0, s)), min(1.0, 1 + s))
    q2 = min(max(q1 - s, 0.0), 1.0)
    variance = (q1 * (1 - q1) / n1 + q2 * (1 - q2) / n2) * (n1 + n2) / (n1 + n2 - 1)
    gap = p1 - p2 - s
    return gap / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, gap) if gap else 0.0


def equivalence(c: Counts, margin: float) -> float:
    """p of two one-sided score tests that the difference lies within plus or minus the margin (Schuirmann, 1987).

    A p below 0.05 means that the reader calls both classes real equally often, to within the margin. This is equivalent
    to the 90 % interval of `difference` lying inside the margin.
    """
    if not (c.real and c.synthetic):
        return math.nan
    return float(max(norm.sf(score(c, -margin)), norm.cdf(score(c, margin))))


def cohen(first: list[str], second: list[str], level: float = 0.95) -> Interval:
    """Cohen's kappa of two readers' judgements of the same images; interval by Fleiss, Cohen and Everitt (1969)."""
    labels = sorted({*first, *second})
    table = np.zeros((len(labels), len(labels)))
    for a, b in zip(first, second):
        table[labels.index(a), labels.index(b)] += 1
    n = table.sum()
    p = table / n if n else table
    rows, columns, agreed = p.sum(1), p.sum(0), p.trace()
    expected = rows @ columns
    if n == 0 or expected == 1:
        return Interval(math.nan, math.nan, math.nan)
    kappa = (agreed - expected) / (1 - expected)
    same = np.diag(p) @ (1 - (rows + columns) * (1 - kappa)) ** 2
    # The weight of a disagreement (i, j) depends on how often the other reader gives these answers.
    other = (1 - kappa) ** 2 * ((p - np.diag(np.diag(p))) * (columns[:, None] + rows[None, :]) ** 2).sum()
    variance = (same + other - (kappa - expected * (1 - kappa)) ** 2) / ((1 - expected) ** 2 * n)
    return _normal_interval(float(kappa), math.sqrt(max(variance, 0.0)), level)


def fleiss(judgements: list[list[str]]) -> float:
    """Fleiss' kappa of two or more readers; `judgements` has a list for each reader, over the same images."""
    if len(judgements) < 2 or not judgements[0]:
        return math.nan
    readers, labels = len(judgements), sorted({answer for answers in judgements for answer in answers})
    votes = np.array([[image.count(label) for label in labels] for image in zip(*judgements)])  # (images, labels)
    agreed = ((votes**2).sum(1) - readers).mean() / (readers * (readers - 1))
    expected = ((votes.sum(0) / votes.sum()) ** 2).sum()
    return float((agreed - expected) / (1 - expected)) if expected < 1 else math.nan


def agreements(answers: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """The agreement of each pair of readers on the images that both have judged and, for three or more readers, of all
    readers.

    Args:
        answers: {reader: {image: judgement}}.
    """
    groups = [*combinations(answers, 2), *([tuple(answers)] if len(answers) > 2 else [])]
    return [_agreement([answers[reader] for reader in group], ", ".join(group)) for group in groups]


def _agreement(given: list[dict[str, str]], readers: str) -> dict[str, Any]:
    shared = sorted(set.intersection(*(set(answers) for answers in given)))
    judgements = [[answers[image] for image in shared] for answers in given]
    agreed = sum(len(set(image)) == 1 for image in zip(*judgements))
    pair = len(given) == 2
    kappa = cohen(judgements[0], judgements[1]) if pair else Interval(fleiss(judgements), math.nan, math.nan)
    return {"readers": readers, "images": len(shared), "agreement": ratio(agreed, len(shared)),
            "measure": "Cohen's kappa" if pair else "Fleiss' kappa",
            "kappa": kappa.value, "kappa_low": kappa.low, "kappa_high": kappa.high}  # fmt: skip
