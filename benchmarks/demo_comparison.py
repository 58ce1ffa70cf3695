"""Compares three networks of equal size after the same training time on the demo's slices, with the demo's
configuration: VM-DDPM with Sequence Regeneration, VM-DDPM with ordered scans, and the UNet of Ho et al. (2020).
--models can also name variants of the demo's network that differ in one choice (CHOICES).

    python -m benchmarks.demo_comparison --minutes 10 --seeds 0 1 2 --out build/demo_comparison
    python -m benchmarks.demo_comparison --models regenerated adam unweighted --seeds 0 --out build/demo_choices

Run it on an otherwise idle machine. It takes models x seeds x minutes of training, and about a third more to draw
images meanwhile, which does not count as training time. If it is stopped, the same command continues after the last
complete run. OUT gets results.json, README.md and curve.png, which are made from it, and a picture of each run.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, replace
from datetime import date
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.quiet import BUSY, Others
from vmddpm.demo import demo_config, draw_images, halves, mni152_slices
from vmddpm.devices import choose_device
from vmddpm.errors import InputError
from vmddpm.evaluation import figures_of_merit
from vmddpm.evaluation.images import Images
from vmddpm.files import atomic_write, write_text
from vmddpm.model.unet import UNetConfig
from vmddpm.seeding import mix_seed
from vmddpm.training import RunConfig
from vmddpm.training.batches import WEIGHTS, prefetch
from vmddpm.training.diffusion_learner import DiffusionLearner
from vmddpm.training.networks import build_network
from vmddpm.training.pictures import grid, save_png
from vmddpm.training.ranks import Ranks
from vmddpm.training.trainer import learning_rate_at

NETWORKS = {"regenerated": "VM-DDPM", "ordered": "VM-DDPM, scans in order", "unet": "UNet"}
CHOICES: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {  # title, changes to parts of the configuration
    "adam": ("Adam, learning rate 0.002", {"training": {"optimizer": "adam", "learning_rate": 0.002}}),
    "epsilon": ("predicts the noise", {"diffusion": {"prediction_type": "epsilon"}}),
    "linear": ("linear schedule", {"diffusion": {"beta_schedule": "linear"}}),
    "unweighted": ("all noise levels weighted alike", {"diffusion": {"min_snr_gamma": None}}),
    "min-snr": ("min-SNR weights, 5", {"diffusion": {"min_snr_gamma": 5.0}}),
    "fp32": ("float32", {"training": {"precision": "fp32"}}),
    "batch-8": ("batch of 8", {"training": {"batch_size": 8}}),
    "slow": ("learning rate 0.002", {"training": {"learning_rate": 0.002}}),
    "fast": ("learning rate 0.008", {"training": {"learning_rate": 0.008}}),
    "no-skip": ("without image_skip", {"model": {"image_skip": False}}),
    "half-resolution": (
        "sampling (2, 2, 2, 2), 16 channels, batch of 8",
        {"model": {"sampling": (2, 2, 2, 2), "channel_multipliers": (1, 2, 4, 8), "base_channels": 16},
         "training": {"batch_size": 8}},
    ),
}  # fmt: skip
NAMES = NETWORKS | {name: title for name, (title, _) in CHOICES.items()}
SHARES = (1 / 16, 1 / 8, 1 / 4, 1 / 2, 3 / 4, 1)  # images are drawn after these shares of the minutes
UNITS = {"spectrum": "dB", "texture": "Fréchet distance", "structure": "Fréchet distance"}
Record = dict[str, Any]


def configurations(minutes: float) -> dict[str, RunConfig]:
    """The demo's configuration with each network and with each choice."""
    ours = demo_config(minutes)

    def with_(**parts: dict[str, Any]) -> RunConfig:
        return replace(ours, **{part: replace(getattr(ours, part), **options) for part, options in parts.items()})

    return {
        "regenerated": with_(model={"regeneration": True}),
        "ordered": with_(model={"regeneration": False}),
        "unet": replace(ours, system="unet", unet=unet_of(parameters(ours))),
        **{name: with_(**parts) for name, (_, parts) in CHOICES.items()},
    }


def parameters(config: RunConfig) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in build_network(config).parameters())


def unet_of(wanted: int) -> UNetConfig:
    """The UNet of four stages, with attention in the last two, whose number of parameters is closest to `wanted`."""
    choices = [UNetConfig(widths=(w, 2 * w, 3 * w, 4 * w), attention=(False, False, True, True), norm_groups=4)
               for w in range(4, 97, 4)]  # fmt: skip
    return min(choices, key=lambda unet: abs(parameters(RunConfig(system="unet", unet=unet)) - wanted))


def train(
    config: RunConfig, dataset: Images, at: Callable[[float, int, DiffusionLearner], None],
    clock: Callable[[], float] = time.perf_counter,
) -> int:  # fmt: skip
    """Train for the minutes of the configuration and return the number of steps. After each of the SHARES, `at` is
    called with minutes, steps and learner; the time it takes does not count."""
    options = config.training
    assert options.minutes is not None
    torch.manual_seed(mix_seed(options.seed, WEIGHTS) & 0xFFFFFFFF)
    learner = DiffusionLearner(config, Ranks(0, 1, choose_device(options.device, scans=config.system == "vmddpm")))
    step, seconds, coming = 0, 0.0, list(SHARES)

    def inputs_at(number: int) -> Any:
        return learner.inputs_at(dataset, number, range(options.batch_size))

    learner.start(inputs_at, 0)
    with closing(prefetch(inputs_at, 0)) as batches:
        while coming:
            begun = clock()
            learner.step(next(batches), step, learning_rate_at(options, step, seconds))
            seconds, step = seconds + clock() - begun, step + 1
            while coming and seconds >= 60 * options.minutes * coming[0]:
                at(options.minutes * coming.pop(0), step, learner)
    return step


class Comparison:
    """Runs and their results in `folder`/results.json, which the first run creates.

    Args:
        folder: created if missing.
        minutes: training minutes of each run.
        images: number of images drawn after each of the SHARES.
        dataset: images to learn and to compare with.

    Raises:
        InputError: if the folder holds results with other minutes, images or configurations.
    """

    def __init__(self, folder: Path, minutes: float, images: int, dataset: Images) -> None:
        self.folder, self.dataset, self.images = folder, dataset, images
        if not 2 <= images <= len(dataset) - 2:
            raise InputError(f"--images is {images}; it must be from 2 to {len(dataset) - 2}")
        self.configs = configurations(minutes)
        self.real, self.others = halves(dataset, images)
        settings = {"minutes": minutes, "images": images,
                    "configurations": {name: asdict(config) for name, config in self.configs.items()}}  # fmt: skip
        settings = json.loads(json.dumps(settings))
        self.path = folder / "results.json"
        self.data: Record = {
            **settings, "real": asdict(figures_of_merit(self.real, self.others)),
            "parameters": {name: parameters(config) for name, config in self.configs.items()}, "runs": [],
        }  # fmt: skip
        if self.path.exists():
            there: Record = json.loads(self.path.read_text(encoding="utf-8"))
            if different := [name for name, value in settings.items() if there[name] != value]:
                raise InputError(
                    f"{self.path} holds results of other {' and '.join(different)}; give --out another folder"
                )
            self.data["runs"] = there["runs"]

    def has(self, model: str, seed: int) -> bool:
        return any((run["model"], run["seed"]) == (model, seed) for run in self.data["runs"])

    def run(self, model: str, seed: int, clock: Callable[[], float] = time.perf_counter) -> None:
        """Train one network, unless its result exists, and rewrite all files."""
        if self.has(model, seed):
            print(f"{NAMES[model]}, seed {seed}: is there", flush=True)
            return
        config = self.configs[model]
        config = replace(config, training=replace(config.training, seed=seed))
        points: list[Record] = []
        drawn: list[Tensor] = []

        def at(minutes: float, step: int, learner: DiffusionLearner) -> None:
            drawn[:] = [draw_images(learner.ema, config, self.images)]
            merit = figures_of_merit(drawn[0], self.others)
            points.append({"minutes": minutes, "steps": step, **asdict(merit)})
            print(f"{NAMES[model]}, seed {seed}, {minutes:.2f} minutes, {step} steps: {merit}", flush=True)

        others = Others()
        train(config, self.dataset, at, clock)
        self.data["runs"].append(
            {"model": model, "seed": seed, "date": date.today().isoformat(), "torch": torch.__version__,
             "threads": torch.get_num_threads(), "others": others.share(), "points": points}
        )  # fmt: skip
        save_png(grid(drawn[0]), self.folder / f"{model}-{seed}.png")
        write_text(self.path, json.dumps(self.data, indent=1, ensure_ascii=False) + "\n")
        self.report()

    def report(self) -> None:
        """Write README.md and curve.png from the results."""
        draw_curve(self.data, self.folder / "curve.png")
        write_text(self.folder / "README.md", markdown(self.data))


def last(data: Record, model: str, figure: str) -> list[float]:
    """A figure of merit at the end of every run of a model."""
    return [run["points"][-1][figure] for run in data["runs"] if run["model"] == model]


def markdown(data: Record) -> str:
    """The table, the best network by each figure, and how busy the machine was."""
    here = [model for model in NAMES if last(data, model, "spectrum")]
    rows = ["| | parameters | seeds | steps | spectrum, dB | texture | structure |", "| --- " + "| ---: " * 6 + "|"]
    for model in here:
        steps = [run["points"][-1]["steps"] for run in data["runs"] if run["model"] == model]
        cells = [f"{data['parameters'][model] / 1e6:.2f} M", str(len(steps)), f"{statistics.median(steps):g}"]
        cells += [_spread(last(data, model, figure)) for figure in UNITS]
        rows.append(f"| {NAMES[model]} | {' | '.join(cells)} |")
    real = [f"{data['real'][figure]:.3g}" for figure in UNITS]
    rows.append(f"| as many real slices | | | | {' | '.join(real)} |")
    runs = data["runs"]
    busy = [run["others"] for run in runs if run["others"] is not None]
    notes = [
        f"{data['minutes']:g} minutes of training each, {data['images']} images; mean (least to greatest) over seeds. "
        "Less is better.",
        *(verdict(data, figure) for figure in UNITS if len(here) > 1),
        f"{runs[-1]['date']}, torch {runs[-1]['torch']}, {runs[-1]['threads']} threads.",
    ]
    if busy and max(busy) >= BUSY:
        share = f"{100 * max(busy):.0f} %"
        notes.append(f"**Measured on a busy machine**: other programs took up to {share} of the processors.")
    return "\n".join([*rows, "", *notes, "", "![The figures of merit over minutes of training](curve.png)"]) + "\n"


def _spread(values: Sequence[float]) -> str:
    return f"{statistics.mean(values):.3g} ({min(values):.3g} to {max(values):.3g})"


def verdict(data: Record, figure: str) -> str:
    """Which network has the lowest figure, and whether each of its runs is below all runs of the others."""
    ranges = {model: last(data, model, figure) for model in NAMES if last(data, model, figure)}
    first, second = sorted(ranges, key=lambda model: statistics.mean(ranges[model]))[:2]
    clear = all(max(ranges[first]) < min(values) for model, values in ranges.items() if model != first)
    if clear:
        ratio = statistics.mean(ranges[second]) / statistics.mean(ranges[first])
        return f"By {figure}, {NAMES[first]} is best in every run, {ratio:.2g} times ahead of {NAMES[second]}."
    return f"By {figure}, {NAMES[first]} is best on average, but runs of others are as good."


def draw_curve(data: Record, path: Path) -> None:
    """Each figure of merit over minutes: a line through the mean of all seeds, a band from the least to the greatest.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator, NullFormatter

    figure = Figure(figsize=(11, 3.6), layout="constrained", facecolor="white")
    for axes, (name, unit) in zip(figure.subplots(1, len(UNITS)), UNITS.items()):
        for number, (model, label) in enumerate(NAMES.items()):
            curves = [[point[name] for point in run["points"]] for run in data["runs"] if run["model"] == model]
            if not curves:
                continue
            minutes = [share * data["minutes"] for share in SHARES]
            points = list(zip(*curves))
            axes.plot(minutes, [statistics.mean(values) for values in points], "o-", color=f"C{number}", label=label)
            axes.fill_between(minutes, [min(v) for v in points], [max(v) for v in points], color=f"C{number}",
                              alpha=0.15, linewidth=0)  # fmt: skip
        axes.axhline(data["real"][name], color="#8d8d8d", linestyle="--", label="as many real slices")
        axes.set(xlabel="minutes of training", ylabel=unit, title=name, xscale="log", yscale="log")
        axes.set_xticks([share * data["minutes"] for share in SHARES], minor=False)
        axes.xaxis.set_major_formatter("{x:.2g}")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_minor_formatter(NullFormatter())
    axes.legend(frameon=False, fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="training minutes of each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--models", choices=NAMES, nargs="+", default=list(NETWORKS))
    parser.add_argument("--images", type=int, default=36, help="images drawn at each point")
    parser.add_argument("--out", type=Path, default=Path("build/demo_comparison"))
    options = parser.parse_args()
    try:
        comparison = Comparison(options.out, options.minutes, options.images, mni152_slices(demo_config(1).data))
    except InputError as error:
        parser.error(str(error))
    for seed in options.seeds:  # all models of a seed first, so that a stopped comparison is balanced
        for model in options.models:
            comparison.run(model, seed)
    print((options.out / "README.md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
