"""Four plots of a result file: time over length, times of others over ours, memory, and our distance to the limits."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from benchmarks.results import Record

OURS = ("#0b3c5d", "#328cc1", "#7fb7d9")
COLORS = {
    "ours": "#0b3c5d",
    "ours shuffled": "#7fb7d9",
    "ours unfused": "#00798c",
    "attention": "#d1495b",
    "reference": "#8d8d8d",
    "parallel scan": "#c17c2f",
    "mamba.py": "#edae49",
    "mamba_ssm": "#66a182",
    "VMamba": "#7b4f9d",
    "plain PyTorch, our scan": "#a26769",
}


def write_plots(data: Record, folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    plt.rcParams |= {"font.size": 10, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                     "grid.color": "#e5e5e5", "savefig.dpi": 130, "figure.constrained_layout.use": True}  # fmt: skip
    for plot in (scaling, speed_up, memory, roofline):
        figure = plot(data)
        if figure is not None:
            figure.savefig(folder / f"{plot.__name__}.png")
            plt.close(figure)
    return folder


def scaling(data: Record):
    curves = [c for c in data["scaling"] if c["unit"] == "seconds"]
    if not curves:
        return None
    figure, axes = plt.subplots(figsize=(7, 4.5))
    shades, sides = iter(OURS[::-1]), iter(("top", "center", "bottom"))
    for curve in curves:
        name = curve["implementation"]
        color, side = (COLORS[name], "center") if name in COLORS else (next(shades), next(sides))
        values = [1e3 * v for v in curve["values"]]
        axes.loglog(curve["lengths"], values, "o-", color=color, markersize=4)
        end = curve["lengths"][-1], values[-1]
        axes.annotate(f"  {name}, slope {curve['slope']:.2f}", end, color=color, va=side)
    axes.set(xlabel="steps L (pixels)", ylabel="milliseconds, forward", title="Time over length, 64 channels")
    axes.set_xlim(right=axes.get_xlim()[1] * 6)
    return figure


def speed_up(data: Record):
    """Forward and backward of the fused operator: each dot is another implementation's time over ours."""
    rows: dict[str, dict[str, float]] = {}
    for suite in ("cross_selective_scan", "without_kernels"):
        chosen = [t for t in data["times"] if t["suite"] == suite and t["direction"] == "forward_backward"]
        ours = {t["case"]: t["median"] for t in chosen if t["implementation"] == "ours"}
        for record in chosen:
            if record["case"] in ours and record["implementation"] != "ours":
                ratio = record["median"] / ours[record["case"]]
                rows.setdefault(record["case"], {})[record["implementation"]] = ratio
    if not rows:
        return None
    figure, axes = plt.subplots(figsize=(8, 1.2 + 0.45 * len(rows)))
    for name in dict.fromkeys(n for row in rows.values() for n in row):
        points = [(row[name], case) for case, row in rows.items() if name in row]
        axes.scatter(*zip(*points), color=COLORS.get(name, "black"), label=name, s=45, zorder=3)
    axes.axvline(1, color=COLORS["ours"], linewidth=2)
    axes.set_xscale("log")
    axes.invert_yaxis()
    axes.set(xlabel="time over ours, forward + backward (right of the line: slower than ours)",
             title="cross_selective_scan and the others")  # fmt: skip
    figure.legend(loc="outside right center", frameon=False)
    return figure


def memory(data: Record):
    directions = list(dict.fromkeys(m["direction"] for m in data["memory"]))
    if not directions:
        return None
    figure, panels = plt.subplots(1, len(directions), figsize=(4.2 * len(directions), 3.8), sharey=True, squeeze=False)
    for direction, axes in zip(directions, panels[0]):
        curves: dict[str, list[tuple[int, float]]] = {}
        for record in data["memory"]:
            if record["direction"] == direction and record["case"].endswith("N16 float32"):
                curves.setdefault(record["implementation"], []).append((record["length"], record["bytes"] / 2**20))
        for name, points in curves.items():
            axes.loglog(*zip(*points), "o-", color=COLORS.get(name, "black"), label=name, markersize=5)
        axes.set(xlabel="steps L (pixels)", title=direction.replace("_", " + "))
    panels[0][0].set_ylabel("MiB beside the inputs, at most")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return figure


def roofline(data: Record):
    """State updates per second over state updates per byte, under the limits of memory and the ideal recurrence."""
    limits = data["limits"]
    points = [t for t in data["times"] if t["implementation"] == "ours" and t["direction"] == "forward" and t["work"]]
    points = [t for t in points if t["suite"] in ("cross_selective_scan", "selective_scan") and t["work"]["bytes"]]
    if not points or "forward_16" not in limits:
        return None
    figure, axes = plt.subplots(figsize=(7, 4.5))
    bandwidth = max(limits["copy"], limits["copy_non_temporal"])
    roofs = {states: states * limits[f"forward_{states}"] for states in (1, 16)}
    across = [0.05, 1, max(roofs.values()) / bandwidth * 4]
    axes.loglog(across, [min(x * bandwidth, max(roofs.values())) for x in across], alpha=0)
    axes.plot([across[0], roofs[16] / bandwidth], [across[0] * bandwidth, roofs[16]], color="#8d8d8d")
    axes.annotate(f"memory, {bandwidth / 1e9:.0f} GB/s", (across[0], across[0] * bandwidth), xytext=(16, -6),
                  textcoords="offset points", color="#555555")  # fmt: skip
    for states, roof in roofs.items():
        axes.axhline(roof, color="#8d8d8d", linestyle="--" if states == 1 else "-")
        axes.annotate(f"ideal recurrence, N={states}", (across[-1], roof), ha="right", va="bottom", color="#555555")
    for states, color in zip((1, 4, 16), OURS[::-1]):
        chosen = [(t["work"]["forward_elements"] * states, t) for t in points if t["work"]["states"] == states]
        if chosen:
            axes.scatter([n / t["work"]["bytes"] for n, t in chosen], [n / t["median"] for n, t in chosen], color=color,
                         label=f"N={states}", zorder=3, s=40)  # fmt: skip
    axes.set(xlabel="state updates a byte moved", ylabel="state updates a second", title="Forward, beside the limits")
    axes.legend(frameon=False, loc="lower right")
    return figure
