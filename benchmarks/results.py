"""Result files: what one run on one machine measured.

    machine     what it ran on: device, versions, commit, date
    profile     "quick" or "full"
    limits      what the machine can do at most (limits.py), and its cache
    missing     contender -> why it took no part
    times       suite, case, direction, contender, ours, rounds, input_sets; median, p20, p80 and least in seconds
    memory      suite, case, direction, contender, ours, bytes
    scaling     contender, unit, lengths, values, and slope, low, high (95 %) from the length `since` on
    crossings   states -> the length where attention and ours take the same time
"""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.report import save
from benchmarks.timing import quantile

Record = dict[str, Any]
FOLDER = Path(__file__).resolve().parent / "results"
OURS = ("ours", "reference", "triton")  # the first word of contenders whose code is this repository's


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

    def add_time(
        self, suite: str, case: str, direction: str, contender: str, seconds: Sequence[float], **more: Any
    ) -> Record:
        record = {"suite": suite, "case": case, "direction": direction, "contender": contender, "ours": ours(contender)}
        record |= {
            "rounds": len(seconds),
            "median": statistics.median(seconds),
            "p20": quantile(seconds, 0.2),
            "p80": quantile(seconds, 0.8),
        }
        self.data["times"].append(record | more)
        return record

    def save(self, folder: Path) -> Path:
        path = folder / f"{self.data['machine']['device']}-{self.data['machine']['date']}.json"
        save(self.data, path)
        return path


def ours(contender: str) -> bool:
    return contender.split()[0] in OURS


def load(path: Path) -> Record:
    return json.loads(path.read_text())
