"""The report on one page: the paper's tables, and the differences with their intervals against the margin."""

import math
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from vmddpm.files import atomic_write
from vmddpm.study import tables

INK, FAINT, BAND = "#1c2733", "#8a97a3", "#dfe9f2"


def save_figure(caption: str, rows: list[dict[str, Any]], paths: list[Path]) -> None:
    """Draw the page and save it to each path. `rows` are results of `report.summary`, one for each reader."""
    heights = [*[0.95] * len(rows), 0.65, 1.2 + 0.35 * len(rows)]
    figure = Figure(figsize=(8.3, sum(heights) + 1.2), layout="constrained")
    axes = figure.subplots(len(heights), 1, height_ratios=heights)
    figure.suptitle(caption, color=INK, fontsize=12)
    for cell, row in zip(axes, rows):
        _draw_table(cell, tables.paper_table(row), [0.18, 0.16, 0.16, 0.25, 0.25])
    _draw_table(axes[-2], tables.fisher_table(rows))
    _draw_differences(axes[-1], rows)
    for path in paths:
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=150)


def _draw_table(axes: Axes, content: tables.Table, widths: list[float] | None = None) -> None:
    headings, rows = content
    axes.set_axis_off()
    lines, box = [headings, *rows], Bbox.from_bounds(0, 0.08, 1, 0.84)
    table = axes.table(lines, bbox=box, colWidths=widths, cellLoc="center", edges="horizontal")
    table.auto_set_font_size(False)
    table.set_fontsize(9)
    for (line, column), cell in table.get_celld().items():
        cell.set_edgecolor(FAINT)
        cell.set_text_props(color=INK, weight="bold" if line == 0 or column == 0 else "normal")


def _draw_differences(axes: Axes, rows: list[dict[str, Any]]) -> None:
    margin = rows[0]["margin"]
    axes.axvspan(-margin, margin, color=BAND, label=f"margin of equivalence, ±{margin:g}")
    axes.axvline(0, color=FAINT, linewidth=0.8)
    drawn = [(y, row) for y, row in enumerate(rows) if not math.isnan(row["difference"])]
    for y, row in drawn:
        axes.plot([row["difference_low"], row["difference_high"]], [y, y], color=INK)
        axes.plot([row["difference"]], [y], "o", color=INK)
    reach = max([margin, *(abs(row[f"difference_{end}"]) for _, row in drawn for end in ("low", "high"))]) * 1.1
    axes.set(xlim=(-reach, reach), ylim=(len(rows) - 0.5, -0.5),
             xlabel="P(judged real given real) - P(judged real given synthetic), 95 % interval")  # fmt: skip
    axes.set_yticks(range(len(rows)), [row["reader"] for row in rows])
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), fontsize=8, frameon=False)
    axes.spines[["top", "right", "left"]].set_visible(False)
