"""A table as Markdown, CSV and a picture, with the source and the data of each figure."""

import csv
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from vmddpm.evaluation import SampleFolder
from vmddpm.evaluation.images import Images
from vmddpm.files import atomic_write, write_text
from vmddpm.tables.data import TableData
from vmddpm.tables.paper import DATASETS, SOURCE
from vmddpm.tables.produce import Outcome, Produced
from vmddpm.tables.protocol import Protocol

PICTURE_IMAGES = 16  # images of each system in the picture

# Columns: the value of a result, and its format.
_MEASURED: dict[str, tuple[Callable[[dict[str, Any]], float], str]] = {
    "distance": (lambda r: r["value"], ".4g"),
    "KID": (lambda r: r["kid"]["mean"], ".3g"),
    "precision": (lambda r: r["precision"], ".3f"),
    "recall": (lambda r: r["recall"], ".3f"),
    "copies %": (lambda r: 100 * r["memorisation"]["share"], ".1f"),
}


def write_table(title: str, name: str, protocol: Protocol, data: TableData, produced: Produced, out: Path) -> str:
    """Writes `out`/name.md, .csv and .png; returns the Markdown."""
    header = columns(produced)
    lines = [cells(outcome) for outcome in produced.outcomes]
    if produced.held_out:
        lines.append(_held_out_cells(produced.held_out))
    text = f"# {title}\n\n{_table(header, lines)}\n{notes(protocol, data, produced)}"
    write_text(out / f"{name}.md", text)
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([header, *lines])
    write_text(out / f"{name}.csv", buffer.getvalue())
    draw_grids(produced.outcomes, data.training, out / f"{name}.png")
    return text


def columns(produced: Produced) -> list[str]:
    measured = [f"ours: {produced.extractor.name if key == 'distance' else key}" for key in _MEASURED]
    printed = [f"{SOURCE}: FID, {dataset}" for dataset in DATASETS.values()]
    return ["system", "parameters, M", "of its discriminator, M", "GFLOPs an image", "steps trained", "seeds",
            *measured, *printed]  # fmt: skip


def cells(outcome: Outcome) -> list[str]:
    cost, steps = outcome.cost, outcome.trained_steps
    judged = f"{cost.discriminator_parameters / 1e6:.2f}" if cost.discriminator_parameters else "-"
    sampler = f" ({outcome.row.sampler}, {outcome.passes} steps)" if outcome.passes > 1 else ""
    return [
        outcome.row.name + sampler, f"{cost.parameters / 1e6:.2f}", judged, f"{cost.flops * outcome.passes / 1e9:.3g}",
        f"{min(steps)}" if min(steps) == max(steps) else f"{min(steps)} to {max(steps)}", f"{len(steps)}",
        *(with_deviation([read(r) for r in outcome.results], spec) for read, spec in _MEASURED.values()),
        *(f"{v:.3f}" for v in outcome.row.printed or ()), *([] if outcome.row.printed else ["-"] * len(DATASETS)),
    ]  # fmt: skip


def _held_out_cells(result: dict[str, Any]) -> list[str]:
    return ["held-out real images", *["-"] * 5, *(format(read(result), spec) for read, spec in _MEASURED.values()),
            *["-"] * len(DATASETS)]  # fmt: skip


def with_deviation(values: Sequence[float], spec: str) -> str:
    """The mean, and ± the sample's standard deviation if there is more than one."""
    mean = format(fmean(values), spec)
    return f"{mean} ± {format(stdev(values), spec if spec.endswith('f') else '.2g')}" if len(values) > 1 else mean


def _table(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [header, ["---"] + ["---:"] * (len(header) - 1), *lines]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def notes(protocol: Protocol, data: TableData, produced: Produced) -> str:
    """The source of the figures, and what they can be compared with."""
    first = produced.outcomes[0].results[0]
    extractor, several = first["extractor"], max(len(o.results) for o in produced.outcomes) > 1
    seconds = [s for o in produced.outcomes for s in o.trained_seconds]
    deviation = " Figures with ± are the mean and the standard deviation over seeds of training." if several else ""
    lines = [
        f"Ours (preset {protocol.name}): measured by this program on {data.description}. {protocol.images} images of "
        f"each system and seed, against {first['n_real']} training images; features of `{extractor['path']}` (SHA-256 "
        f"{extractor['sha256'][:12]}..., {first['dimensions']} dimensions, images resized to {extractor['size']} by "
        f"`{extractor['resizer']}`). Trained for {min(seconds):.0f} to {max(seconds):.0f} s each.{deviation}",
        f"{SOURCE}: printed in the paper, not measured here: FID of 50,000 images on its copies of "
        f"{', '.join(DATASETS.values())}. "
        + ("Our distance is a FID too, of the data set named above only."
           if produced.extractor.name == "FID" else
           "Our distance is no FID: it has other features, and the two cannot be compared."),
        f"A perfect generator would get a distance of {first['floor']:.4g} with these numbers of images. KID: kernel "
        f"distance, mean of {first['kid']['subsets']} subsets of {first['kid']['subset_size']}. Precision and recall: "
        f"{first['neighbours']} neighbours. Copies: samples nearer to a training image than "
        f"{first['memorisation']['threshold']:.2f} of that one's distance to the nearest of the "
        f"{first['memorisation']['reference']}; a real image that was not trained on is taken for one in "
        f"{100 * first['memorisation']['share_among_reference']:.1f} %.",
    ]  # fmt: skip
    if protocol.name == "tiny":
        lines.append("Small networks, a short training and one brain: every system runs and learns, but which one is "
                     "better cannot be told from it.")  # fmt: skip
    lines += sorted({warning for o in produced.outcomes for r in o.results for warning in r["warnings"]})
    return "\n" + "\n".join(f"- {line}" for line in lines) + "\n"


def draw_grids(outcomes: Sequence[Outcome], real: Images, path: Path) -> None:
    """Real images and those of each row's first seed, side by side."""
    from matplotlib.figure import Figure

    spread = torch.linspace(0, len(real) - 1, PICTURE_IMAGES).round().int().tolist()
    panels = [("real", [real[i] for i in spread])]
    for outcome in outcomes:
        samples = SampleFolder(outcome.samples[0])
        panels.append((outcome.row.name, [samples[i] for i in range(min(PICTURE_IMAGES, len(samples)))]))
    columns = min(len(panels), 4)
    rows = -(-len(panels) // columns)
    figure = Figure(figsize=(3.3 * columns, 3.55 * rows), layout="constrained", facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False).flatten()
    for ax in axes:
        ax.set_axis_off()
    for ax, (title, images) in zip(axes, panels):
        ax.imshow(_grid(torch.stack(images)), cmap="gray", vmin=0, vmax=255)
        ax.set_title(title, fontsize=9)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=130)


def _grid(images: torch.Tensor) -> np.ndarray:
    from vmddpm.training.pictures import grid

    return grid(images).squeeze(2)
