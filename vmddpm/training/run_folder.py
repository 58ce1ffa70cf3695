"""A run's folder on disk: what it holds, and who may continue it.

    config.yaml      the resolved configuration
    metrics.jsonl    one line every `log_every` steps
    checkpoint.pt    everything needed to go on
    weights/         ema/ and raw/: model.safetensors and config.json, for `VMDDPM.from_pretrained`
    samples/         grids of samples, by step
    loss.png         the loss curve, at the end
"""

import json
import os
from contextlib import redirect_stdout
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import yaml

from vmddpm.data import DataConfig
from vmddpm.diffusion import DiffusionConfig
from vmddpm.files import write_text, written_whole
from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.training.config import RunConfig, TrainingConfig

# What may differ when a run is continued: how long it is to be, where it runs and what it reports.
_MAY_CHANGE = {"training": {"steps", "minutes", "device", "log_every", "checkpoint_every", "sample_every",
                            "sample_count", "sample_steps"}, "data": {"root", "cache_dir"}}  # fmt: skip
_SCHEMA = 1


class RunError(RuntimeError):
    """A run folder that cannot be used; the message names it, what is wrong and what to do."""


class RunFolder:
    """Args: path: the folder; it is made by `start`."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.metrics_path = self.path / "metrics.jsonl"
        self.checkpoint_path = self.path / "checkpoint.pt"

    def weights(self, kind: str) -> Path:
        """Folder of the "ema" or "raw" weights."""
        return self.path / "weights" / kind

    def check(self, config: RunConfig) -> None:
        """Raises RunError if the folder holds something else than a run of this configuration; writes nothing."""
        if self.config_path.exists():
            self._refuse_if_different(config)
        elif self.path.exists() and (not self.path.is_dir() or any(self.path.iterdir())):
            raise RunError(f"{self.path} is not empty and holds no run; choose another folder, or empty it")

    def start(self, config: RunConfig) -> dict[str, Any] | None:
        """Takes the folder for a run of `config`; returns the checkpoint to continue from, None for a new run.

        Raises:
            RunError: if the folder holds something else, a run of another configuration, or a damaged checkpoint.
        """
        self.check(config)
        write_text(self.config_path, yaml.safe_dump(to_plain(config), sort_keys=False, allow_unicode=True))
        if not self.checkpoint_path.exists():
            self.metrics_path.unlink(missing_ok=True)
            return None
        checkpoint = self.load_checkpoint()
        self._cut_metrics(checkpoint["step"])
        return checkpoint

    def load_config(self) -> RunConfig:
        """The configuration of the run that is here. Raises RunError if there is none, or it cannot be read."""
        if not self.config_path.exists():
            raise RunError(f"{self.path} holds no run: there is no {self.config_path.name}")
        try:
            plain = yaml.safe_load(self.config_path.read_text(encoding="utf-8"))
            parts = {"model": ModelConfig, "diffusion": DiffusionConfig, "data": DataConfig, "training": TrainingConfig}
            return RunConfig(**{name: part(**plain[name]) for name, part in parts.items()})
        except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
            raise RunError(f"{self.config_path} cannot be read: {error}") from error

    def _refuse_if_different(self, config: RunConfig) -> None:
        here, asked = to_plain(self.load_config()), to_plain(config)
        differences = [
            f"{part}.{name} is {here[part][name]!r} there and {value!r} here"
            for part, fields in asked.items()
            for name, value in fields.items()
            if value != here[part][name] and name not in _MAY_CHANGE.get(part, ())
        ]
        if differences:
            raise RunError(
                f"{self.path} holds a run of another configuration, which is left alone; choose another folder, "
                "or give the run's own configuration to continue it:\n  " + "\n  ".join(differences)
            )

    def save_checkpoint(self, state: dict[str, Any]) -> None:
        with written_whole(self.checkpoint_path) as temporary:
            torch.save({"schema": _SCHEMA, **state}, temporary)

    def save_weights(self, kind: str, model: VMDDPM) -> None:
        with TemporaryDirectory(dir=self.path) as temporary:
            model.save_pretrained(temporary)
            self.weights(kind).mkdir(parents=True, exist_ok=True)
            for file in Path(temporary).iterdir():
                os.replace(file, self.weights(kind) / file.name)

    def load_model(self, kind: str) -> VMDDPM:
        """The "ema" or "raw" weights of the last checkpoint. Raises RunError if there are none."""
        if not (self.weights(kind) / "model.safetensors").exists():
            raise RunError(f"{self.path} has no {kind} weights yet; train until its first checkpoint")
        with redirect_stdout(None):  # huggingface_hub announces every local file
            return VMDDPM.from_pretrained(str(self.weights(kind)))

    def load_checkpoint(self) -> dict[str, Any]:
        """Raises RunError if the file is damaged or of another version. No code in it can run."""
        try:
            checkpoint = torch.load(self.checkpoint_path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch.load documents no closed set
            first_line = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise RunError(
                f"{self.checkpoint_path} is damaged ({first_line}); remove it to start the run again"
            ) from error
        if not isinstance(checkpoint, dict) or checkpoint.get("schema") != _SCHEMA:
            raise RunError(f"{self.checkpoint_path} was written by another version of vmddpm and cannot be continued")
        return checkpoint

    def log(self, metrics: dict[str, Any]) -> None:
        with open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """All whole lines of metrics.jsonl; a line cut off by a crash is left out."""
        if not self.metrics_path.exists():
            return []
        lines = []
        for line in self.metrics_path.read_text(encoding="utf-8").splitlines():
            try:
                lines.append(json.loads(line))
            except json.JSONDecodeError:
                continue
        return lines

    def _cut_metrics(self, step: int) -> None:
        """Forgets what was logged after the checkpoint, as those steps are taken again."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_text(self.metrics_path, "".join(kept))


def to_plain(config: RunConfig) -> dict[str, dict[str, Any]]:
    """Nested dicts of what JSON and YAML know."""
    return json.loads(json.dumps(asdict(config)))
