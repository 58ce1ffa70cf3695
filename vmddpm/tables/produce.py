"""Produces the figures of a row: trains, samples and evaluates, reusing existing results."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from vmddpm.baselines.config import GANS
from vmddpm.evaluation import Extractor, RealImages, SampleFolder, describe_real, evaluate, load_extractor
from vmddpm.evaluation.images import Images
from vmddpm.files import sha256, write_text
from vmddpm.generate import generate
from vmddpm.systems import Cost, cost
from vmddpm.tables.data import TableData
from vmddpm.tables.protocol import Protocol, Row
from vmddpm.training import RunConfig, RunError, RunFolder, train
from vmddpm.training.checkpoints import Checkpoints
from vmddpm.training.run_folder import MAY_CHANGE, flat, to_plain
from vmddpm.training.trainer import finished

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The results of a row: one result of `evaluate` for each seed."""

    row: Row
    cost: Cost
    passes: int  # passes of the network for one image
    trained_steps: list[int]
    trained_seconds: list[float]
    results: list[dict[str, Any]]
    samples: list[Path]


@dataclass(frozen=True)
class Produced:
    outcomes: list[Outcome]
    held_out: dict[str, Any] | None  # real images evaluated like samples
    real: RealImages
    extractor: Extractor


def produce(rows: Sequence[Row], protocol: Protocol, data: TableData, out: Path, *, progress: bool = True) -> Produced:
    """Train, sample and evaluate the rows, in the folders runs, samples and evaluations of `out`. To resume
    an interrupted call, repeat it; tables that share a folder share runs.

    Raises:
        RunError, TrainingError, InputError: as training, sampling and evaluation do.
    """
    extractor = load_extractor(protocol.extractor)  # missing weights are reported before anything is trained
    real = describe_real(data.training, extractor, protocol.metrics, data.held_out, progress=progress)
    common = {"extractor": extractor.describe(), "metrics": asdict(protocol.metrics), "data": data.description}
    held_out = None
    if data.held_out is not None:
        folder = out / "evaluations" / f"held-out-{digest(common)}"
        held_out = _load_or_make(folder, partial(evaluate, real, data.held_out, extractor, protocol.metrics, folder,
                                         progress=progress))  # fmt: skip
    outcomes = []
    for row in rows:
        steps, seconds, results, sample_folders = [], [], [], []
        for config in row.configs:
            run = RunFolder(out / "runs" / run_name(config))
            logger.info("%s, seed %d: %s", row.name, config.training.seed, run.path.name)
            state = _train(config, data.training, run, progress)
            drawn, options = _draw(row, config, run, protocol, out, progress)
            folder = out / "evaluations" / f"{drawn.name}-{digest({**common, **options})}"
            results.append(
                _load_or_make(folder, partial(evaluate, real, SampleFolder(drawn, protocol.images), extractor,
                                              protocol.metrics, folder, progress=progress))
            )  # fmt: skip
            steps.append(state["step"])
            seconds.append(state["seconds"])
            sample_folders.append(drawn)
        passes = 1 if row.configs[0].system in GANS else protocol.steps[row.sampler]
        outcomes.append(Outcome(row, cost(row.configs[0]), passes, steps, seconds, results, sample_folders))
    return Produced(outcomes, held_out, real, extractor)


def _train(config: RunConfig, images: Images, run: RunFolder, progress: bool) -> dict[str, Any]:
    """The last checkpoint of the run, after training or continuing it if it is not finished."""
    checkpoints = Checkpoints(run.path / "checkpoints")
    state = checkpoints.newest()
    if state is None or not finished(config.training, state["step"], state["seconds"]):
        train(config, images, run, progress=progress)
        state = checkpoints.newest()
    assert state is not None  # a run that was trained has one
    return state


def _draw(
    row: Row, config: RunConfig, run: RunFolder, protocol: Protocol, out: Path, progress: bool
) -> tuple[Path, dict[str, Any]]:
    """The folder of the row's samples, and the values they depend on."""
    weights = sha256(run.weights("ema") / "model.safetensors")
    options = {"weights": weights, "images": protocol.images, "ordered": row.ordered}
    sampler = "one-pass" if config.system in GANS else row.sampler
    folder = out / "samples" / f"{run.path.name}-{sampler}{'-ordered' if row.ordered else ''}-{weights[:8]}"
    generate(
        run.path, folder, protocol.images, sampler=row.sampler, steps=protocol.steps[row.sampler], ordered=row.ordered,
        seed=config.training.seed, batch_size=protocol.batch, device=config.training.device, progress=progress,
    )  # fmt: skip
    return folder, options


def run_name(config: RunConfig) -> str:
    """The name of a run's folder, a function of its configuration without length of training and location of data."""
    plain = {name: value for name, value in flat(to_plain(config)).items() if name not in MAY_CHANGE}
    return f"{config.system}-seed{config.training.seed}-{digest(plain)}"


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:8]


def _load_or_make(folder: Path, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The existing evaluation in the folder, or a new one."""
    path = folder / "evaluation.json"
    if not path.exists():
        return make()
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}); remove it, and it is made again") from error
    return result


def write_record(out: Path, name: str, produced: Produced) -> None:
    """All results in one file, `out`/name.json."""
    lines = [
        {"row": o.row.name, "sampler": o.row.sampler, "cost": asdict(o.cost), "passes": o.passes,
         "runs": [run_name(c) for c in o.row.configs], "trained_steps": o.trained_steps,
         "trained_seconds": o.trained_seconds, "results": o.results}
        for o in produced.outcomes
    ]  # fmt: skip
    record = {"rows": lines, "held_out_real_images": produced.held_out}
    write_text(out / f"{name}.json", json.dumps(record, indent=1, ensure_ascii=False) + "\n")
