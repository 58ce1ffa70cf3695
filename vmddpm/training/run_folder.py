"""The folder of a run.

    config.yaml      the resolved configuration, with absolute paths
    metrics.jsonl    one line every `log_every` steps
    checkpoints/     the states to continue from, see `checkpoints`
    weights/         ema/ and raw/: model.safetensors, its SHA-256 and config.json, for `from_pretrained`
    samples/         grids of samples, by step
    loss.png         the curve of the logged losses, written at the end
    classes.csv      the number of images of each class, if there are classes
    remarks.csv      files that were skipped or read in a special way
    lock             the process that is training
"""

import csv
import io
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import yaml
from safetensors import SafetensorError
from torch import nn

from vmddpm.baselines.config import GANConfig
from vmddpm.data import DataConfig
from vmddpm.data.conditions import ConditionConfig
from vmddpm.data.remarks import Remark, write_remarks
from vmddpm.diffusion import DiffusionConfig
from vmddpm.evaluation.images import Images
from vmddpm.files import (
    LockedError,
    atomic_folder,
    lock,
    make_folder,
    remove_leftovers,
    whole_folder,
    write_text,
)
from vmddpm.model import ModelConfig
from vmddpm.model.pretrained import Pretrained, check_unit
from vmddpm.model.unet import UNetConfig
from vmddpm.training.checkpoints import Checkpoints
from vmddpm.training.conditions import refuse_other_classes
from vmddpm.training.config import RunConfig, TrainingConfig
from vmddpm.training.data_identity import checksums, difference
from vmddpm.training.errors import RunError
from vmddpm.training.networks import load_network

# Options that may change when a run is continued: its length, device and reports.
MAY_CHANGE = {"data.root", "data.cache_dir", "condition.table", "condition.image"} | {
    f"training.{name}"
    for name in ("steps", "minutes", "device", "compile", "micro_batch_size", "activation_checkpointing", "log_every",
                 "checkpoint_every", "keep_checkpoints", "sample_every", "sample_count", "sample_steps")
}  # fmt: skip

LOCKS = ("lock", "lock.held")
REMARKS, CLASSES = "remarks.csv", "classes.csv"
MAX_LISTED = 3  # most differences between configurations that an error message lists


class RunFolder:
    """The run folder `path`; `training` creates it."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config_path = self.path / "config.yaml"
        self.metrics_path = self.path / "metrics.jsonl"
        self.remarks_path = self.path / REMARKS  # images that were skipped or read in a special way

    def weights(self, kind: str) -> Path:
        """Folder of the "ema" or "raw" weights."""
        return whole_folder(self._folder(kind))

    def _folder(self, kind: str) -> Path:
        return self.path / "weights" / kind

    def check(self, config: RunConfig) -> None:
        """Raise RunError unless the folder is new or holds a run of this configuration; writes nothing."""
        if self.config_path.exists():
            self._refuse_if_different(config)
        elif self.path.exists() and (
            not self.path.is_dir() or any(p.name not in LOCKS for p in self.path.iterdir())
        ):
            raise RunError(f"{self.path} is not empty and holds no run; choose another folder, or empty it")
        if (self.path / "checkpoint.pt").exists():
            raise RunError(f"{self.path} is a run of an older version of vmddpm; continue it with that version")

    @contextmanager
    def training(self, config: RunConfig) -> Iterator[tuple[Checkpoints, dict[str, Any] | None]]:
        """Lock the folder for a run of `config` and yield its checkpoints and the state to continue from, None for a
        new run. Only the lock is written; `begin` writes after all checks.

        Raises:
            RunError: if another process is training here, or the folder holds something else, a run of another
                configuration, or only damaged checkpoints; later, if a file cannot be written.
        """
        self.check(config)
        with self._lock():
            try:
                checkpoints = Checkpoints(self.path / "checkpoints", config.training.keep_checkpoints)
                yield checkpoints, checkpoints.newest()
            except OSError as error:
                raise RunError(
                    f"{self.path} cannot be written ({error.strerror or error}); its checkpoints are intact. Make room "
                    "there, then run the same command again to go on"
                ) from error

    def begin(self, config: RunConfig, step: int, remarks: Sequence[Remark] = ()) -> None:
        """Prepare the folder, locked by `training`, for a run of `config` that continues from `step`.

        Args:
            remarks: remarks on the data, for remarks.csv.
        """
        remove_leftovers(self.path)
        condition = config.condition
        root, cache_dir, table, image = (
            path and os.path.abspath(os.path.expanduser(path))
            for path in (config.data.root, config.data.cache_dir, condition.table, condition.image)
        )
        data = replace(config.data, root=root or "", cache_dir=cache_dir)
        plain = to_plain(replace(config, data=data, condition=replace(condition, table=table, image=image)))
        write_text(self.config_path, yaml.safe_dump(plain, sort_keys=False, allow_unicode=True))
        self._truncate_metrics(step)
        if remarks:
            write_remarks(remarks, self.remarks_path)
        else:
            self.remarks_path.unlink(missing_ok=True)  # from an earlier start

    @contextmanager
    def _lock(self) -> Iterator[None]:
        make_folder(self.path)
        with ExitStack() as stack:
            try:
                stack.enter_context(lock(self.path / "lock"))
            except LockedError as error:
                raise RunError(
                    f"{self.path} is being trained by {error.holder}; wait until it ends, or choose another "
                    f"folder{error.advice}"
                ) from None
            yield

    def load_config(self) -> RunConfig:
        """Load the run's configuration. Raises RunError if it is missing or cannot be read."""
        if not self.config_path.exists():
            raise RunError(f"{self.path} holds no run: there is no {self.config_path.name}")
        try:
            return from_plain(yaml.safe_load(self.config_path.read_text(encoding="utf-8")))
        except (yaml.YAMLError, TypeError, AttributeError, ValueError) as error:
            raise RunError(f"{self.config_path} cannot be read: {' '.join(str(error).split())}") from error

    def _refuse_if_different(self, config: RunConfig) -> None:
        stored, requested = flat(to_plain(self.load_config())), flat(to_plain(config))
        differences = [
            f"{name} is {stored[name]!r} there and {value!r} here"
            for name, value in requested.items()
            if value != stored[name] and name not in MAY_CHANGE
        ]
        if differences:
            more = [f"and {len(differences) - MAX_LISTED} more"] if len(differences) > MAX_LISTED else []
            raise RunError(
                f"{self.path} holds a run of another configuration, which is left alone:\n  "
                f"{'; '.join([*differences[:MAX_LISTED], *more])}\n  "
                "choose another folder, or give the run's own configuration to continue it"
            )

    def save_weights(self, kind: str, model: Pretrained) -> None:
        """Replace the saved weights and their configuration atomically, as one folder."""
        with atomic_folder(self._folder(kind)) as temporary:
            try:
                model.save_pretrained(temporary)
            except SafetensorError as error:  # for example a full disk
                raise RunError(f"{self._folder(kind)} cannot be written ({error}); make room there, then run the same "
                               "command again to go on") from error  # fmt: skip

    def load_model(self, kind: str) -> nn.Module:
        """Load the network with the "ema" or "raw" weights of the last checkpoint. Raises RunError if they are missing,
        damaged or not finite."""
        if not self.has_weights(kind):
            raise RunError(f"{self.path} has no {kind} weights yet; train until its first checkpoint")
        config = self.load_config()
        with self._convert_errors(kind):
            model = load_network(config, self.weights(kind))
        values = model.state_dict()
        broken = [name for name, v in values.items() if v.is_floating_point() and not v.isfinite().all()]
        if broken:
            raise RunError(
                f"{self.weights(kind)} holds weights that are NaN or infinite ({broken[0]}: {len(broken)} of "
                f"{len(values)} tensors), and cannot draw images; start the run again with a lower "
                f"training.learning_rate ({config.training.learning_rate:g}), or with training.precision fp32"
            )
        return model

    def difference(self, images: Images) -> str | None:
        """A description of how `images` differ from the training images; None if they do not, or if the run has no
        checkpoint. Raises RunError if no checkpoint can be read, DataError if an image cannot."""
        state = Checkpoints(self.path / "checkpoints").newest()
        return difference(images, checksums(images), state["data"]) if state else None

    def classes(self) -> tuple[str, ...]:
        """The classes of the run; empty if the folder has no run or the run has no classes."""
        return self.load_config().model.classes if self.config_path.exists() else ()

    def write_class_counts(self, counts: Mapping[str, int]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([("class", "images"), *counts.items()])
        write_text(self.path / CLASSES, text.getvalue())

    def class_counts(self) -> dict[str, int]:
        """Training images per class; empty if the run has no classes. Raises RunError if they cannot be read."""
        path = self.path / CLASSES
        if not path.exists():
            return {}
        try:
            rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))[1:]
            return {name: int(count) for name, count in rows}
        except (OSError, ValueError, csv.Error) as error:
            raise RunError(f"{path} cannot be read ({error}); the same `vmddpm train` writes it again") from error

    def has_weights(self, kind: str) -> bool:
        return (self.weights(kind) / "model.safetensors").exists()

    def check_weights(self, kind: str) -> None:
        """Raise RunError if the weights are missing, do not fit their checksum or configuration, or have other classes
        than the run's configuration names."""
        with self._convert_errors(kind):
            check_unit(self.weights(kind))
            own = json.loads((self.weights(kind) / "config.json").read_text(encoding="utf-8")).get("classes") or ()
        refuse_other_classes(self.classes(), own, str(self.weights(kind)))

    @contextmanager
    def _convert_errors(self, kind: str) -> Iterator[None]:
        try:
            yield
        except (SafetensorError, OSError, ValueError, TypeError, RuntimeError) as error:  # weights, config.json
            reason = " ".join(str(error).split())
            raise RunError(
                f"{self.weights(kind)} holds no {kind} weights of this run ({reason:.200}); the same `vmddpm train` "
                "writes them again"
            ) from error

    def log(self, metrics: dict[str, Any]) -> None:
        with open(self.metrics_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(metrics) + "\n")

    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl, without a line that a crash truncated."""
        if not self.metrics_path.exists():
            return []
        lines = []
        for line in self.metrics_path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                found = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(found, dict) and isinstance(found.get("step"), int):
                lines.append(found)
        return lines

    def _truncate_metrics(self, step: int) -> None:
        """Remove the lines after `step`; those steps will be repeated."""
        kept = [json.dumps(line) + "\n" for line in self.metrics() if line["step"] <= step]
        write_text(self.metrics_path, "".join(kept))


def to_plain(config: RunConfig) -> dict[str, Any]:
    """The configuration as nested dicts of JSON values."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(config)))
    return plain


def from_plain(plain: dict[str, Any]) -> RunConfig:
    """The inverse of `to_plain`; missing values get defaults. Raises ValueError or TypeError for invalid values."""
    parts = {"model": ModelConfig, "diffusion": DiffusionConfig, "data": DataConfig, "training": TrainingConfig,
             "unet": UNetConfig, "gan": GANConfig, "condition": ConditionConfig}  # fmt: skip
    return RunConfig(**{name: parts[name](**value) if name in parts else value for name, value in plain.items()})


def flat(plain: dict[str, Any]) -> dict[str, Any]:
    """Flatten nested dicts to {"model.base_channels": 96, ..., "system": "vmddpm"}."""
    flat: dict[str, Any] = {}
    for part, value in plain.items():
        flat |= {f"{part}.{name}": v for name, v in value.items()} if isinstance(value, dict) else {part: value}
    return flat
