"""Result files: the measurements of one run on one machine.

    machine     device, versions, commit, date, and the share of the processors that other programs used
    profile     "quick" or "full"
    limits      limits of the machine (limits.py), and its cache
    missing     implementation -> why it was not measured
    times       suite, case, direction, implementation, ours, length, rounds, input_sets; median, p20, p80 in seconds;
                limit, the least seconds that the `work` takes within the limits of the machine, if known; yardsticks:
                rounds, median, p20, p80 of fixed reference work, measured in turn with the implementations
    memory      suite, case, direction, implementation, ours, length, input_bytes, bytes (peak, without the inputs)
    scaling     implementation, unit (seconds, flops), lengths, values, and slope, low, high (95 %) from length
                `since` on
    crossings   states -> the length where attention and ours take the same time
"""

import json
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import save, unused

Record = dict[str, Any]
OURS = ("ours", "reference", "triton")  # first words of the names of implementations in this repository


class Results:
    def __init__(self, machine: Record, profile: str) -> None:
        self.data: Record = {
            "machine": machine,
            "profile": profile,
            "limits": {},
            "missing": {},
            "times": [],
            "memory": [],
            "scaling": [],
            "crossings": {},
        }

    def __getitem__(self, name: str) -> Any:
        return self.data[name]

    def add(self, what: str, suite: str, case: str, direction: str, implementation: str, **values: Any) -> None:
        key = {"suite": suite, "case": case, "direction": direction}
        key |= {"implementation": implementation, "ours": ours(implementation)}
        self.data[what].append(key | values)

    def miss(self, implementation: str, why: str) -> None:
        reasons = self.data["missing"].setdefault(implementation, [])
        if why not in reasons:
            reasons.append(why)

    def save(self, folder: Path) -> Path:
        """Write a new file; `benchmarks.report` makes the tables of the documentation from it."""
        path = unused(folder, f"{self.data['machine']['device']}-{self.data['machine']['date']}")
        save(self.data, path)
        return path


def ours(implementation: str) -> bool:
    return implementation.split()[0] in OURS


def load(path: Path) -> Record:
    """Read a result file. Raises ValueError if it is none."""
    found = json.loads(path.read_text())
    if not isinstance(found, dict) or "times" not in found:
        raise ValueError(
            f"{path}: not the results of `pytest benchmarks`; those of `make gpu`: `python -m benchmarks.gpu.report`"
        )
    return found
