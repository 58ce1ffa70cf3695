"""The results of a run as a file and as a short table, which `python -m benchmarks.gpu.report FILE` prints again."""

import argparse
import json
import os
from collections.abc import Iterator
from itertools import chain, count
from pathlib import Path
from typing import Any

from vmddpm.files import write_text

MOST_OF_A_LOG = 1 << 20  # characters
SAME_WITHIN = 0.02  # a baseline's result that differs by more than this in the mean is not the same computation


def save(results: dict[str, Any], path: Path) -> None:
    """Write the results atomically, also to the folder $OUT if it is set."""
    write(path, json.dumps(results, indent=1) + "\n")
    if out := os.environ.get("OUT"):
        write(Path(out) / path.name, path.read_text())


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)


def unused(folder: Path, name: str) -> Path:
    """The path of a new file; files of other runs on the same day are kept."""
    names = chain([name], (f"{name}-{i}" for i in count(2)))
    return next(path for n in names if not (path := folder / f"{n}.json").exists())


def save_logs(folder: Path) -> None:
    """Save the output of all programs as one file in the folder $OUT, if it is set."""
    if out := os.environ.get("OUT"):
        logs = sorted(folder.glob("*.log"), key=lambda log: log.stat().st_mtime)
        parts = [f"==> {log.name} <==\n{log.read_text(errors='replace')[-MOST_OF_A_LOG:]}" for log in logs]
        write(Path(out) / "run.log", "\n".join(parts))


def load(path: Path) -> dict[str, Any]:
    """The results of a run, complete or not. Raises ValueError if the file has none."""
    try:
        results = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from None
    if not isinstance(results, dict) or results.get("kind") != "gpu run":
        raise ValueError(f"{path}: not the results of benchmarks/gpu/run.py")
    return results


def table(results: dict[str, Any]) -> str:
    phases = results["phases"]
    lines = [*phase_lines(phases), ""]
    lines += counter_lines(phases.get("counters", {}).get("calls", []))
    for name in ("ours", "baselines", "triton"):
        lines += case_lines(phases.get(name, {}))
    for name in ("model", "compiled", "training"):
        lines += step_lines(phases.get(name, {}).get("cases", []))
    if results["cut"]:
        lines.append(f"cut, as their time ran out: {', '.join(results['cut'])}")
    return "\n".join(lines)


def phase_lines(phases: dict[str, Any]) -> Iterator[str]:
    for name, phase in phases.items():
        parts = {name: phase, **{f"  {check}": entry for check, entry in phase.get("checks", {}).items()}}
        for part, entry in parts.items():
            details = [f"{entry.get('seconds', 0)} s"]
            details += [f"{count} {how}" for how, count in entry.get("counts", {}).items()]
            details += [f"{entry['errors']} errors"] if "errors" in entry else []
            details += [f"not measured: {', '.join(entry['not_measured'])}"] if entry.get("not_measured") else []
            details += [entry["error"]] if "error" in entry else []
            yield f"{part:14} {entry['outcome']:8} {', '.join(details)}"
            yield from (f"    {line}" for line in [*entry.get("notes", []), *entry.get("failed", [])[:10]])
            if name == "smoke":
                wrong = (case for case in entry.get("cases", []) if "error" in case)
                yield from (f"    {case['case']}: {case['error']}" for case in wrong)
            if entry["outcome"] == "failed":
                yield from (f"    | {line[:150]}" for line in entry.get("log_ends", [])[-5:])


def counter_lines(calls: list[dict[str, Any]]) -> Iterator[str]:
    """Warp instructions per (step, state), executed and counted without a GPU; for the slowest kernel, its use of the
    issue slots, its resident warps, and their main stall."""
    if calls:
        yield f"{'instructions a step and state':44}{'executed':>9}{'counted':>9}{'difference':>12}{'EX2':>7}{'ms':>8}"
    for call in calls:
        expected = (call["predicted"] or {}).get("all")
        executed, largest = call["instructions"], max(call["kernels"], key=_nanoseconds, default={})
        difference = f"{executed / expected - 1:+.0%}" if executed and expected else "-"
        figures = {
            "issue {:.0f} %": largest.get("smsp__issue_active.avg.pct_of_peak_sustained_active"),
            "{:.0f} warps": largest.get("sm__warps_active.avg.per_cycle_active"),
            "{:.2f} conflicts": call.get("bank conflicts"),
            "{:.1f} B of L2": call.get("L2 bytes"),
        }
        details = [text.format(value) for text, value in figures.items() if isinstance(value, float)]
        details += [f"waits: {stall}" for stall in list(largest.get("stalls", {}))[:1]]
        yield (
            f"{call['case']:44}{_figure(executed, 1):>9}{_figure(expected, 1):>9}{difference:>12}"
            f"{_figure(call.get('EX2 pipe'), 2):>7}{_figure(call['milliseconds'], 2):>8}  {', '.join(details)}"
        )


def _nanoseconds(kernel: dict[str, Any]) -> float:
    value = kernel.get("gpu__time_duration.sum")
    return value if isinstance(value, float) else 0.0


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def step_lines(cases: list[dict[str, Any]]) -> Iterator[str]:
    """Lines on the model's steps and the training runs."""
    for case in cases:
        time = f"{case['ms']:.2f} ms, " if "ms" in case else ""
        memory = f", {case['peak_bytes'] / 2**30:.2f} GiB" if case.get("peak_bytes") else ""
        yield f"{case['case']:44} " + (case.get("error") or f"{time}{case['images_per_second']:.1f} images/s{memory}")


def case_lines(measured: dict[str, Any]) -> Iterator[str]:
    if ceilings := measured.get("ceilings"):
        yield ", ".join(f"{k} {v:.3g}" for k, v in ceilings.items() if isinstance(v, float))
    for name, why in measured.get("baselines", {}).get("missing", {}).items():
        yield f"missing: {name}: {why}"
    if measured.get("cases"):
        yield f"{'milliseconds, then times ours':38}" + "".join(f"{c:48}" for c in ("forward", "forward + backward"))
    for record in measured.get("cases", []):
        wrong = [n for n, d in record.get("differences", {}).items() if not max(d.values()) < SAME_WITHIN]
        if "error" in record:
            yield f"{record['case']:38}{record['error'][:90]}"
        elif "forward_backward" in record:
            sides = [one_direction(record[direction]) for direction in ("forward", "forward_backward")]
            yield f"{record['case']:38}" + "".join(f"{s:48}" for s in sides) + "".join(f"{n} DIFFERS" for n in wrong)


def one_direction(measured: dict[str, Any]) -> str:
    """Our time, then the time of each other implementation over ours, and the memory of baselines over ours."""
    parts = [f"{measured['results']['ours']['ms']:.3f}"]
    for name, ratio in measured["time_over_ours"].items():
        short = {"ours shuffled": "shuffled", "ours channel last": "last", "ours in Triton": "Triton"}.get(name, name)
        memory = measured.get("memory_over_ours", {}).get(name)
        parts.append(f"{short} x{ratio:.2f}" + (f" mem x{memory:.1f}" if memory and short == name else ""))
    return " ".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, metavar="FILE", help="the results of a run, complete or not")
    options = parser.parse_args()
    try:
        results = load(options.file)
    except (ValueError, OSError) as error:
        parser.error(str(error))
    machine = results["machine"]
    print(f"{machine['gpu']['name']}, {machine['date']}, commit {machine['commit']}: {results['outcome']}\n")
    print(table(results))


if __name__ == "__main__":
    main()
