"""The GPU's counters that ncu reads during six calls, with the counts made without a GPU (csrc/BUDGET.md)."""

import csv
import re
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

from benchmarks.gpu.commands import ROOT
from benchmarks.gpu.counter_calls import CALLS, MARKER, Call

BUDGET = ROOT / "csrc" / "BUDGET.md"
INSTRUCTIONS, XU = "smsp__inst_executed.sum", "smsp__inst_executed_pipe_xu.sum"
NANOSECONDS, ISSUE = "gpu__time_duration.sum", "smsp__issue_active.avg.pct_of_peak_sustained_active"
WARPS = "sm__warps_active.avg.per_cycle_active"
FEW = [INSTRUCTIONS, NANOSECONDS, ISSUE, WARPS]
METRICS = [
    *FEW, XU, "sm__warps_active.avg.pct_of_peak_sustained_active",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum", "l1tex__t_bytes.sum", "lts__t_bytes.sum",
    "dram__bytes_read.sum", "dram__bytes_write.sum", "launch__registers_per_thread",
    "launch__shared_mem_per_block", "launch__occupancy_limit_registers", "launch__occupancy_limit_shared_mem",
]  # fmt: skip
STALL = re.compile(r"smsp__average_warps_issue_stalled_(\w+)_per_issue_active\.ratio")  # of WarpStateStats


def options(metrics: Iterable[str], sections: Iterable[str] = ()) -> list[str]:
    """The options of ncu: profile all our launches and the markers, at the GPU's own clock."""
    return [
        *(f"--section={section}" for section in sections),
        "--csv", "--page", "raw", "--print-units", "base", "--clock-control", "none", "--profile-from-start", "off",
        "--target-processes", "all", "--kernel-name-base", "demangled", "--kernel-name",
        f"regex:vmddpm|{MARKER}", "--metrics", ",".join(metrics),
    ]  # fmt: skip


def parse(text: str) -> list[dict[str, Any]]:
    """The launches of ncu's page "raw" in CSV, with numbers as floats. Raises ValueError if there is no table; ncu's
    message is in the log then."""
    lines = text.splitlines()
    first = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), None)
    if first is None:
        raise ValueError("no table from ncu")
    rows = csv.DictReader(line for line in lines[first:] if line.startswith('"'))
    # The row of units has no ID.
    return [{key: number(value) for key, value in row.items() if key} for row in rows if row["ID"]]


def number(text: str | None) -> Any:
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return text


def by_call(launches: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The launches after each marker. Raises ValueError if there are no markers, more markers than calls, or no
    launches after the first."""
    groups: list[list[dict[str, Any]]] = []
    for launch in launches:
        if MARKER in launch["Kernel Name"]:
            groups.append([])
        elif groups:
            groups[-1].append(launch)
    if len(groups) > len(CALLS) or not groups or not groups[0]:
        raise ValueError(f"{len(groups)} markers for {len(CALLS)} calls")
    return groups


def predicted() -> dict[tuple[str, str, str], dict[str, float]]:
    """The counts of csrc/BUDGET.md by shape, dtype and direction: warp instructions per (step, state), their bounds,
    and EX2."""
    pattern = (
        r"^\| `([\d,]+)` \| (\w+) \| (forward|backward) \| [\d.]+ \| ([\d.]+) \| ([\d.]+) to ([\d.]+) \| ([\d.]+) \|"
    )
    found = re.findall(pattern, BUDGET.read_text(), re.MULTILINE)
    return {
        (shape, dtype, direction): dict(zip(("all", "low", "high", "EX2"), map(float, figures), strict=True))
        for shape, dtype, direction, *figures in found
    }


def summary(call: Call, launches: list[dict[str, Any]]) -> dict[str, Any]:
    """Figures of a whole call, per (step, state) of 32 lanes or per (step, channel), and figures of each kernel."""

    def total(metric: str) -> float | None:
        values = [launch.get(metric) for launch in launches]
        return sum(values) if all(isinstance(value, float) for value in values) else None

    def per(metric: str, units: float) -> float | None:
        value = total(metric)
        return None if value is None else round(value / units, 3)

    pairs, steps = prod(call.shape) / 32, prod(call.shape[:4])
    names = {
        "instructions": (INSTRUCTIONS, pairs), "EX2 pipe": (XU, pairs),
        "bank conflicts": ("l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum", pairs),
        "L1 bytes": ("l1tex__t_bytes.sum", steps), "L2 bytes": ("lts__t_bytes.sum", steps),
        "bytes read": ("dram__bytes_read.sum", steps), "bytes written": ("dram__bytes_write.sum", steps),
        "milliseconds": (NANOSECONDS, 1e6),
    }  # fmt: skip
    record: dict[str, Any] = {"case": call.name, "shows": call.shows}
    record |= {name: per(*of) for name, of in names.items()}
    shape = ",".join(map(str, call.shape))
    record["predicted"] = predicted().get((shape, str(call.dtype).removeprefix("torch."), call.direction))
    record["kernels"] = [kernel(launch) for launch in launches]
    return record


def kernel(launch: dict[str, Any]) -> dict[str, Any]:
    stalls = {
        found.group(1): value
        for metric, value in launch.items()
        if (found := STALL.fullmatch(metric)) and isinstance(value, float) and "not_issued" not in metric
    }
    worst = dict(sorted(stalls.items(), key=lambda item: -item[1])[:6])
    figures = {metric: launch[metric] for metric in METRICS if metric in launch}
    return {"kernel": launch["Kernel Name"][:120], "grid": launch.get("Grid Size"), "block": launch.get("Block Size"),
            **figures, "stalls": worst}  # fmt: skip


def read(path: Path) -> list[dict[str, Any]]:
    """The profiled calls, from ncu's file."""
    return [summary(*pair) for pair in zip(CALLS, by_call(parse(path.read_text(errors="replace"))))]
