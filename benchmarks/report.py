"""Makes Markdown tables and plots from result files: `python -m benchmarks.report FILES --readme README.md`.

`--out` gets the plots and a page of tables for each file; `--readme` gets a table of headline ratios for each file,
between the markers <!-- benchmarks --> and <!-- /benchmarks -->, with a link to its page in `--out`."""

import argparse
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.plots import write_plots
from benchmarks.quiet import BUSY
from benchmarks.results import Record, load

BEGIN, END = "<!-- benchmarks -->", "<!-- /benchmarks -->"
DIRECTIONS = {"forward_backward": "forward + backward", "ddim_step": "DDIM step", "training_step": "training step"}
IN_README = ("cross_selective_scan", "cross_scan", "cross_merge", "without_kernels")


def markdown(data: Record) -> list[str]:
    """All tables and findings of a result file."""
    lines = [f"## {title(data)}", "", *machine(data), "", *faster_table(data)]
    for suite in dict.fromkeys(t["suite"] for t in data["times"]):
        lines += ["", f"### {suite}", "", *time_table(data, suite)]
    lines += ["", "### Memory beside the inputs", "", *memory_table(data), "", "### How cost grows with length", ""]
    lines += slope_table(data)
    return [*lines, "", *(f"- {line}" for line in [*findings(data), *missing(data)])]


def title(data: Record) -> str:
    machine = data["machine"]
    return machine["gpu"]["name"] or f"{machine['cpu']}, {machine['cpus']} cores"


def machine(data: Record) -> Iterator[str]:
    machine, limits = data["machine"], data["limits"]
    changed = " with changed files" if machine["changed_files"] else ""
    yield (f"{machine['date']}, commit {machine['commit'][:10]}{changed}, torch {machine['torch']}, "
           f"Python {machine['python']}, {machine['threads']} threads, profile {data['profile']}.")  # fmt: skip
    if machine["others"] is not None:
        mark = "**Measured on a busy machine: do not compare these times.** " if machine["others"] > BUSY else ""
        yield (f"{mark}Other processes, those of the memory suite among them, took {machine['others']:.0%} of the "
               "processors.")  # fmt: skip
    rates = ", ".join(f"{name} {value:.3g}" for name, value in limits.items() if isinstance(value, float))
    yield f"Limits measured in the same run, a second: {rates}."


def in_order(records: list[Record]) -> dict[tuple[str, str], dict[str, Record]]:
    """(case, direction) -> implementation -> record"""
    rows: dict[tuple[str, str], dict[str, Record]] = {}
    for record in records:
        rows.setdefault((record["case"], record["direction"]), {})[record["implementation"]] = record
    return rows


def faster_table(data: Record) -> list[str]:
    """All times below ours, fastest first, including implementations of other computations."""
    compared = []
    for suite in dict.fromkeys(t["suite"] for t in data["times"]):
        for (case, direction), row in in_order([t for t in data["times"] if t["suite"] == suite]).items():
            for name, record in row.items():
                if "ours" in row and name.split()[0] != "ours":
                    where = [suite, case, DIRECTIONS.get(direction, direction), name]
                    compared.append((record["median"] / row["ours"]["median"], where))
    faster = [[*where, f"{ratio:.2f}x"] for ratio, where in sorted(compared) if round(ratio, 2) < 1]
    if not faster:
        return ["Faster than ours: nothing."]
    head = ["suite", "case", "", "faster than ours", "its time over ours"]
    return [f"Faster than ours: {len(faster)} of {len(compared)} times.", "", *table(head, faster)]


def time_table(data: Record, suite: str) -> list[str]:
    """Our time, its share of the limit, and other times as multiples of it; without "ours", only times."""
    rows = in_order([t for t in data["times"] if t["suite"] == suite])
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    if "ours" not in names:
        body = [[case, *(milliseconds(row.get(name)) for name in names)] for (case, _), row in rows.items()]
        return table(["ms (p20 to p80)", *names], body)
    baselines = [name for name in names if name != "ours"]
    body = []
    for (case, direction), row in rows.items():
        ours = row.get("ours")
        ratios = [f"{row[n]['median'] / ours['median']:.2f}x" if ours and n in row else "" for n in baselines]
        body.append([case, DIRECTIONS.get(direction, direction), milliseconds(ours), share(ours), *ratios])
    return table(["case", "", "ours, ms (p20 to p80)", "of the limit", *baselines], body)


def milliseconds(record: Record | None) -> str:
    if record is None:
        return ""
    median, low, high = (f"{1e3 * record[key]:.3g}" for key in ("median", "p20", "p80"))
    return f"{median} ({low} to {high})"


def share(record: Record | None) -> str:
    return f"{record['limit'] / record['median']:.0%}" if record and record["limit"] else ""


def memory_table(data: Record) -> list[str]:
    rows = in_order(data["memory"])
    names = list(dict.fromkeys(name for row in rows.values() for name in row))
    body = [[case, DIRECTIONS.get(direction, direction), f"{next(iter(row.values()))['input_bytes'] / 2**20:.3g}",
             *(f"{row[n]['bytes'] / 2**20:.3g}" if n in row else "" for n in names)]
            for (case, direction), row in rows.items()]  # fmt: skip
    return table(["MiB", "", "inputs", *names], body)


def slope_table(data: Record) -> list[str]:
    body = [[c["implementation"], c["unit"], f"{c['since']} to {c['lengths'][-1]}", f"{c['slope']:.3f}",
             f"{c['low']:.3f} to {c['high']:.3f}"] for c in data["scaling"]]  # fmt: skip
    return table(["", "unit", "lengths", "slope", "95 %"], body)


def findings(data: Record) -> Iterator[str]:
    for name, length in data["crossings"].items():
        if length == 0:
            yield f"{name} takes less time than attention at every length measured."
        elif length is None:
            yield f"{name} takes more time than attention up to the longest length measured."
        else:
            yield f"{name} takes less time than attention from about {length:,.0f} steps on."
    costs = [row["ours shuffled"]["median"] / row["ours"]["median"] - 1
             for suite in ("cross_selective_scan", "csm", "model")
             for row in in_order([t for t in data["times"] if t["suite"] == suite]).values()
             if {"ours", "ours shuffled"} <= row.keys()]  # fmt: skip
    if costs:
        yield f"A shuffled image costs {statistics.median(costs):+.1%} ({min(costs):+.1%} to {max(costs):+.1%})."


def missing(data: Record) -> Iterator[str]:
    for name, reasons in data["missing"].items():
        for why in reasons:
            yield f"Missing: {name}: {why}."


def table(head: list[str], body: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]


def headline_table(data: Record) -> list[str]:
    """Times of others as multiples of ours: the smallest and the largest ratio over a suite's cases."""
    body = []
    for suite in IN_README:
        rows = in_order([t for t in data["times"] if t["suite"] == suite])
        ratios: dict[str, dict[str, list[float]]] = {}  # implementation -> direction -> one for each case
        for (_, direction), row in rows.items():
            for name in (name for name in row if "ours" in row and name != "ours"):
                ratio = row[name]["median"] / row["ours"]["median"]
                ratios.setdefault(name, {}).setdefault(direction, []).append(ratio)
        for name, by_direction in ratios.items():
            extents = [extent(by_direction.get(direction, [])) for direction in ("forward", "forward_backward")]
            body.append([f"`{suite}`", name, *extents])
    return table(["time over ours", "of", "forward", DIRECTIONS["forward_backward"]], body)


def extent(ratios: list[float]) -> str:
    if not ratios:
        return ""
    least, greatest = f"{min(ratios):.2f}x", f"{max(ratios):.2f}x"
    return least if least == greatest else f"{least} to {greatest}"


def readme_block(files: dict[Path, Record], readme: Path, out: Path) -> str:
    lines = []

    def link(path: Path) -> str:
        return os.path.relpath(path, readme.parent)

    for path, data in files.items():
        lines += [*headline_table(data), "", f"{title(data)}: {next(machine(data))}",
                  *(line for line in machine(data) if line.startswith("**")),  # measured on a busy machine
                  "Above 1x ours is faster; the ratios are the least and the greatest of the cases measured.",
                  f"[Every figure]({link(out / f'{path.stem}.md')}) · [result file]({link(path)})", ""]  # fmt: skip
    return "\n".join([BEGIN, *lines[:-1], END])


def put_between_markers(readme: Path, block: str) -> None:
    text = readme.read_text()
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{readme} must hold one {BEGIN} and one {END}")
    before, rest = text.split(BEGIN)
    readme.write_text(before + block + rest.split(END)[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, default=Path("docs/benchmarks"))
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args()
    try:
        files: dict[Path, Any] = {path: load(path) for path in options.files}
    except (ValueError, OSError) as error:
        parser.error(str(error))
    options.out.mkdir(parents=True, exist_ok=True)
    for path, data in files.items():
        plots = write_plots(data, options.out / path.stem)
        pictures = [f"![{plot.stem}]({path.stem}/{plot.name})" for plot in sorted(plots.glob("*.png"))]
        (options.out / f"{path.stem}.md").write_text("\n".join([*markdown(data), "", *pictures, ""]))
    if options.readme:
        put_between_markers(options.readme, readme_block(files, options.readme, options.out))


if __name__ == "__main__":
    main()
