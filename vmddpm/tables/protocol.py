"""A protocol: the networks, length of training, number of images and metrics."""

from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any

import yaml

from vmddpm.errors import InputError
from vmddpm.evaluation import ExtractorConfig, MetricsConfig
from vmddpm.tables.paper import DATASETS, TABLE_I, TABLE_II
from vmddpm.training import RunConfig
from vmddpm.training.run_folder import from_plain

PRESETS = ("tiny", "paper")


@dataclass(frozen=True)
class Protocol:
    """The contents of a file in `presets`.

    Attributes:
        name: name of the preset.
        base: the parts of config.yaml that all runs share.
        systems: the fields that each system changes in `base`.
        steps: sampling steps of "ddpm" and of "ddim".
        images: number of images drawn for each row.
        batch: images drawn at a time.
        seeds: seeds of Table I and of the ablations, one run each.
        minutes: training time of each run; None trains for base.training.steps.
        extractor, metrics: see `vmddpm.evaluation`.
    """

    name: str
    base: dict[str, Any]
    systems: dict[str, dict[str, Any]]
    steps: dict[str, int]
    images: int
    batch: int
    seeds: dict[str, list[int]]
    minutes: float | None = None
    extractor: ExtractorConfig = field(default_factory=ExtractorConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)

    def run_config(self, system: str, seed: int, changes: dict[str, Any] | None = None) -> RunConfig:
        """The configuration of a system's run (the paper's with `changes`)."""
        plain = deep_merge(self.base, {"system": system}, self.systems.get(system, {}), changes or {})
        return from_plain(deep_merge(plain, {"training": {"seed": seed, "minutes": self.minutes}}))


def load_protocol(preset: str, dataset: str | None = None) -> Protocol:
    """A preset; "paper" is completed by the preset of one of the paper's data sets.

    Raises:
        InputError: on an unknown preset or data set.
    """
    if preset not in PRESETS:
        raise InputError(f"preset is {preset!r}; it must be one of {', '.join(PRESETS)}")
    if dataset not in DATASETS and (preset == "paper" or dataset is not None):
        raise InputError(f"dataset is {dataset!r}; with the preset paper it must be one of {', '.join(DATASETS)}")
    plain = _yaml("vmddpm.tables.presets", preset)
    if preset == "paper":
        plain["base"] = deep_merge(_yaml("vmddpm.presets", f"paper-{dataset}"), plain.get("base", {}))
    extractor, metrics = ExtractorConfig(**plain.pop("extractor")), MetricsConfig(**plain.pop("metrics"))
    return Protocol(name=preset, **plain, extractor=extractor, metrics=metrics)


def _yaml(package: str, name: str) -> dict[str, Any]:
    plain: dict[str, Any] = yaml.safe_load((files(package) / f"{name}.yaml").read_text(encoding="utf-8"))
    return plain


def deep_merge(*parts: dict[str, Any]) -> dict[str, Any]:
    """Merge nested dicts; later ones override earlier ones."""
    result: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            current = result.get(name)
            result[name] = deep_merge(current or {}, value) if isinstance(value, dict) else value
    return result


@dataclass(frozen=True)
class Row:
    """A row of a table: a run for each seed, and its sampler."""

    name: str
    configs: list[RunConfig]
    sampler: str = "ddpm"
    ordered: bool = False  # scans in order when images are drawn
    printed: tuple[float, ...] | None = None  # the paper's figures


def table1_rows(protocol: Protocol) -> list[Row]:
    """Table I. The DDIM row samples from the weights of the DDPM row."""
    rows = (("DCGAN", "dcgan", "ddpm"), ("SAGAN", "sagan", "ddpm"), ("UNetGAN", "unetgan", "ddpm"),
            ("DDPM", "unet", "ddpm"), ("DDIM", "unet", "ddim"), ("VM-DDPM", "vmddpm", "ddpm"))  # fmt: skip
    return [
        Row(name, [protocol.run_config(system, seed) for seed in protocol.seeds["table1"]], sampler,
            printed=TABLE_I[name])
        for name, system, sampler in rows
    ]  # fmt: skip


def ablation_rows(protocol: Protocol) -> list[Row]:
    """Table II, and a row for each other interpretation of section III-D that the model has an option for."""
    shuffled: dict[str, Any] = {"regeneration": True}
    rows: tuple[tuple[str, dict[str, Any], bool, str | None], ...] = (
        ("CSM: ordered scans", {"regeneration": False}, False, "CSM"),
        ("Regenerate CSM: shuffled scans", shuffled, False, "Regenerate CSM"),
        ("shuffled in training, ordered in sampling", shuffled, True, None),
        ("shuffled in patches of 2 x 2", {**shuffled, "regeneration_patch_size": 2}, False, None),
        ("shuffled, zero-order hold (Eq. 6)", {**shuffled, "discretization": "zoh"}, False, None),
        ("shuffled, one direction instead of four", {**shuffled, "scans": 1}, False, None),
    )
    return [
        Row(name, [protocol.run_config("vmddpm", seed, {"model": model}) for seed in protocol.seeds["ablate"]],
            ordered=ordered, printed=TABLE_II[key] if key else None)
        for name, model, ordered, key in rows
    ]  # fmt: skip
