"""`vmddpm table1` and `vmddpm ablate` as functions."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from vmddpm.data import DataConfig
from vmddpm.devices import choose_device
from vmddpm.errors import InputError
from vmddpm.evaluation import ExtractorConfig
from vmddpm.samples import check_count
from vmddpm.tables.data import TableData, mni152, of_folder
from vmddpm.tables.paper import DATASETS
from vmddpm.tables.produce import Produced, produce, write_record
from vmddpm.tables.protocol import Protocol, Row, ablation_rows, deep_merge, load_protocol, table1_rows
from vmddpm.tables.render import write_table

logger = logging.getLogger(__name__)

TABLES = {
    "table1": ("Table I: the systems", table1_rows),
    "ablate": ("Table II: Sequence Regeneration, and its other readings", ablation_rows),
}


def make_table(
    name: str,
    out: Path,
    *,
    preset: str = "tiny",
    dataset: str | None = None,
    root: str | None = None,
    held_out: str | None = None,
    extractor: ExtractorConfig | None = None,
    minutes: float | None = None,
    images: int | None = None,
    seeds: list[int] | None = None,
    device: str | None = None,
    progress: bool = True,
) -> Produced:
    """Makes "table1" or "ablate" in the folder `out`, or what is missing of it, and writes it as Markdown, CSV, picture
    and JSON.

    Args:
        preset: "tiny" or "paper".
        dataset, root, held_out: with "paper": its data set, the folder of it, and a folder of held-out images.
        extractor: replaces the preset's extractor.
        minutes: training time of each run; replaces the preset's length.
        images: number of images drawn for each run; replaces the preset's number.
        seeds: replace the preset's seeds.
        device: for training and sampling.

    Raises:
        InputError, RunError, TrainingError: on unusable options, before anything is trained where that can be known.
    """
    protocol = _protocol(name, preset, dataset, extractor, minutes, images, seeds, {
        "training": {"device": device} if device else {}, "data": {"root": root} if root else {},
    })  # fmt: skip
    title, make_rows = TABLES[name]
    rows: list[Row] = make_rows(protocol)
    choose_device(
        rows[0].configs[0].training.device, scans=True
    )  # an unusable one is reported before images are decoded
    choose_device(protocol.metrics.device)
    data = _data(rows[0].configs[0].data, dataset, held_out)
    produced = produce(rows, protocol, data, out, progress=progress)
    text = write_table(title, name, protocol, data, produced, out)
    write_record(out, name, produced)
    logger.info("\n%s\nwritten to %s.md, .csv, .json; look at %s.png", text, out / name, out / name)
    return produced


def _protocol(
    name: str, preset: str, dataset: str | None, extractor: ExtractorConfig | None, minutes: float | None,
    images: int | None, seeds: list[int] | None, base: dict[str, Any],
) -> Protocol:  # fmt: skip
    protocol = load_protocol(preset, dataset)
    if seeds is not None and (not seeds or len(set(seeds)) != len(seeds)):
        raise InputError(f"seeds is {seeds}; it must be one or more numbers, each once")
    if extractor is not None and extractor.path:
        protocol = replace(protocol, extractor=extractor)
    if minutes is not None:
        protocol = replace(protocol, minutes=minutes)
    if images is not None:
        check_count("images", images)
        protocol = replace(protocol, images=images, batch=min(images, protocol.batch))
    if seeds is not None:
        protocol = replace(protocol, seeds={**protocol.seeds, name: seeds})
    return replace(protocol, base=deep_merge(protocol.base, base))


def _data(config: DataConfig, dataset: str | None, held_out: str | None) -> TableData:
    if dataset is None:
        if config.root or held_out:
            raise InputError("root and held-out are for the preset paper; the preset tiny brings its own images")
        return mni152(config)
    if not config.root:
        raise InputError(f"root is not given; it must be the folder of {DATASETS[dataset]}")
    return of_folder(config, held_out, DATASETS[dataset])
