"""The growth of a cost with the length of the sequence: the slope of the line through (log L, log cost), and the length
at which two such lines cross."""

import math
from collections.abc import Sequence
from typing import Any

from scipy import stats

UPPER = 5  # number of longest lengths that the slope is fitted to


def slope(lengths: Sequence[int], costs: Sequence[float]) -> dict[str, float]:
    """The slope by least squares over the longest lengths, with its 95 % interval: {slope, low, high, since}."""
    points = sorted(zip(lengths, costs))[-UPPER:]
    fit = stats.linregress(*([math.log(p[i]) for p in points] for i in (0, 1)))
    half = fit.stderr * stats.t.ppf(0.975, len(points) - 2) if len(points) > 2 else math.inf
    low, middle, high = (float(fit.slope + v) for v in (-half, 0, half))
    return {"slope": middle, "low": low, "high": high, "since": points[0][0]}


def crossing(ours: dict[int, float], theirs: dict[int, float]) -> float | None:
    """The length from which ours costs less, interpolated between the points of both; 0 if it costs less at all
    lengths, None if it does not at the last."""
    lengths = sorted(ours.keys() & theirs.keys())
    leads = [math.log(theirs[n] / ours[n]) for n in lengths]
    last_slower = max((i for i, a in enumerate(leads) if a <= 0), default=-1)
    if last_slower == -1:
        return 0.0
    if last_slower == len(lengths) - 1:
        return None
    (x0, x1), (y0, y1) = (v[last_slower : last_slower + 2] for v in ([math.log(n) for n in lengths], leads))
    return math.exp(x0 - y0 * (x1 - x0) / (y1 - y0))


def curve_record(implementation: str, unit: str, curve: dict[int, float]) -> dict[str, Any]:
    lengths, values = list(curve), list(curve.values())
    fitted = slope(lengths, values)
    return {"implementation": implementation, "unit": unit, "lengths": lengths, "values": values, **fitted}


def summarise(times: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, float | None]]:
    """The slopes of all implementations in the suite "scaling", and the lengths at which ours cross attention. Both use
    the 20th percentile: disturbances only add time, and a single disturbed length changes the slope."""
    curves: dict[str, dict[int, float]] = {}
    for record in times:
        if record["suite"] == "scaling":
            curves.setdefault(record["implementation"], {})[record["length"]] = record["p20"]
    slopes = [curve_record(name, "seconds", curve) for name, curve in curves.items() if len(curve) > 2]
    attention = curves.get("attention", {})
    crossings = {n: crossing(curve, attention) for n, curve in curves.items() if n != "attention" and attention}
    return slopes, crossings
