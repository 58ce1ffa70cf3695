"""The results as a file and as a short table."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SAME_WITHIN = 0.02  # a rival's result that differs by more than this in the mean is not the same computation


def save(results: dict[str, Any], path: Path) -> None:
    """Written under a temporary name and renamed; copied to the folder $OUT, if there is one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1) + "\n")
    temporary.replace(path)
    if out := os.environ.get("OUT"):
        shutil.copy(path, Path(out) / path.name)


def save_logs(folder: Path) -> None:
    if out := os.environ.get("OUT"):
        for log in sorted(folder.glob("*.log")):
            if "-" not in log.name:  # those of single tools become one when all have ended
                shutil.copy(log, Path(out) / log.name)


def table(results: dict[str, Any]) -> str:
    return "\n".join([*phase_lines(results["phases"]), "", *case_lines(results["phases"].get("benchmarks", {}))])


def phase_lines(phases: dict[str, Any]) -> Iterator[str]:
    for name, phase in phases.items():
        for part, entry in [(name, phase)] if "outcome" in phase else [(f"{name} {p}", e) for p, e in phase.items()]:
            details = [f"{entry.get('seconds', 0)} s"]
            details += [f"{count} {how}" for how, count in entry.get("counts", {}).items()]
            details += [f"{entry['errors']} errors"] if "errors" in entry else []
            details += entry.get("said", [])
            yield f"{part:22} {entry['outcome']:12} {', '.join(details)}"
            if name in ("model", "training"):
                yield from (f"    {line}" for line in step_lines(entry["cases"]))
            for failed in entry.get("failed", [])[:10]:
                yield f"    {failed}"
            if entry["outcome"] == "failed":
                yield from (f"    | {line[:150]}" for line in entry.get("log_ends", [])[-5:])


def step_lines(cases: list[dict[str, Any]]) -> Iterator[str]:
    """Of the model's steps and of the training runs."""
    for case in cases:
        time = f"{case['ms']:.2f} ms, " if "ms" in case else ""
        memory = f", {case['peak_bytes'] / 2**30:.2f} GiB" if case.get("peak_bytes") else ""
        yield f"{case['case']:44} " + (case.get("error") or f"{time}{case['images_per_second']:.1f} images/s{memory}")


def case_lines(benchmarks: dict[str, Any]) -> Iterator[str]:
    if ceilings := benchmarks.get("ceilings"):
        yield ", ".join(f"{k} {v:.3g}" for k, v in ceilings.items() if isinstance(v, float))
    for name, why in ((benchmarks.get("peers") or {}).get("missing") or {}).items():
        yield f"missing: {name}: {why}"
    if benchmarks.get("cases"):
        yield f"{'milliseconds, then times ours':38}" + "".join(f"{c:48}" for c in ("forward", "forward + backward"))
    for record in benchmarks.get("cases", []):
        if "error" in record:
            yield f"{record['case']:38}{record['error'][:90]}"
            continue
        sides = [one_direction(record[direction]) for direction in ("forward", "forward_backward")]
        apart = [n for n, d in record["differences"].items() if not max(d.values()) < SAME_WITHIN]
        yield f"{record['case']:38}" + "".join(f"{s:48}" for s in sides) + "".join(f"{n} DIFFERS" for n in apart)
    if stopped := benchmarks.get("out of time"):
        yield f"out of time before {stopped['first_not_measured']}"


def one_direction(measured: dict[str, Any]) -> str:
    """Our time, then each other's time over it, then the rival's memory over ours."""
    parts = [f"{measured['results']['ours']['ms']:.3f}"]
    for name, ratio in measured["time_over_ours"].items():
        short = {"ours shuffled": "shuffled", "ours channel last": "last", "ours in Triton": "Triton"}.get(name, name)
        memory = measured.get("memory_over_ours", {}).get(name)
        parts.append(f"{short} x{ratio:.2f}" + (f" mem x{memory:.1f}" if memory and short == name else ""))
    return " ".join(parts)
