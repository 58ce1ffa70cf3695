"""The configuration of a run: network, diffusion process, data and training."""

from dataclasses import dataclass, field
from typing import Literal

from vmddpm.baselines.config import GANS, GANConfig, multipliers
from vmddpm.data import DataConfig
from vmddpm.data.conditions import ConditionConfig
from vmddpm.diffusion import DiffusionConfig
from vmddpm.errors import InputError
from vmddpm.model import ModelConfig
from vmddpm.model.unet import UNetConfig
from vmddpm.numbers import MAX_MINUTES, check_numbers, check_seed

MAX_VALUES = {"minutes": MAX_MINUTES, "batch_size": 2**20, "micro_batch_size": 2**20, "sample_count": 2**14}


@dataclass(frozen=True)
class TrainingConfig:
    """How the network is trained (paper section IV-A, "Implementation").

    Raises:
        InputError: naming the field, its value and what it must be.
    """

    steps: int = 400_000
    """Optimiser steps; the paper does not state their number."""

    minutes: float | None = None
    """Stop after this training time, if it is reached before `steps`."""

    batch_size: int = 16
    """Images per step, over all processes: "a batch size of 16"."""

    micro_batch_size: int | None = None
    """Images in one pass through the network; gradients of several passes are accumulated. Null takes the process's
    whole part of the batch; smaller values need less memory."""

    activation_checkpointing: bool = False
    """Keep only the inputs of each SSLayer for the backward pass and recompute the rest there: the same gradients with
    less memory, in about a third more time. VM-DDPM only."""

    optimizer: Literal["adam", "muon"] = "adam"
    """The optimiser: "All models use Adam optimizer". "muon", not in the paper, orthogonalises the momentum of matrices
    between features (Jordan et al., 2024), leaves the other weights to Adam, and needs fewer steps."""

    learning_rate: float = 1e-4
    """Learning rate, constant because the paper states no schedule: "a minimum Learning Rate of 1e-4"."""

    warmup_steps: int = 0
    """Steps of linear warm-up of the learning rate; not stated in the paper."""

    cooldown: float = 0.0
    """Final share of the run in which the learning rate falls to a tenth; not stated in the paper."""

    gradient_clip: float = 1.0
    """Largest norm of the gradient; the usual value, not stated in the paper."""

    ema_decay: float = 0.9999
    """Decay of the exponential moving average of the weights, which sampling uses; not stated in the paper, so the
    value of Ho et al. (2020). After n steps it is at most (1 + n) / (10 + n). The raw weights are saved too."""

    flip: bool = True
    """Flip images horizontally at random: "image flipping and other preprocessing operations". A flip puts the heart of
    a chest X-ray on the wrong side."""

    precision: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    """Precision of the network under autocast; weights, optimiser and scan states are always float32. "fp16" uses
    dynamic loss scaling, which skips the first steps. "auto" is bf16 on processors and GPUs that are fast in it, and
    fp32 elsewhere."""

    compile: Literal["no", "default", "reduce-overhead", "max-autotune"] = "no"
    """Mode of torch.compile; "reduce-overhead" replays CUDA graphs on a GPU."""

    seed: int = 0
    """Seed of all random numbers of the run: weights, data order, flips, steps, noise, visit orders."""

    device: str = "auto"
    """Where to train: auto, cpu, cuda ...; "auto" is the GPU if there is one, else the CPU."""

    log_every: int = 10
    """Steps between lines of metrics.jsonl."""

    checkpoint_every: int = 2000
    """Steps between checkpoints."""

    keep_checkpoints: int = 2
    """Number of latest checkpoints to keep, in case one is damaged."""

    sample_every: int = 10_000
    """Steps between grids of samples from the averaged weights; 0 for none."""

    sample_count: int = 16
    """Images in a grid of samples."""

    sample_steps: int = 50
    """DDIM steps for a grid of samples, a divisor of diffusion.timesteps."""

    def __post_init__(self) -> None:
        check_numbers(self, limits=MAX_VALUES)
        check_seed("seed", self.seed)
        for name in ("batch_size", "log_every", "checkpoint_every", "keep_checkpoints", "sample_count", "sample_steps"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("steps", "warmup_steps", "sample_every"):
            self._require(getattr(self, name) >= 0, name, "at least 0")
        for name in ("learning_rate", "gradient_clip"):
            self._require(getattr(self, name) > 0, name, "above 0")
        self._require(self.minutes is None or self.minutes >= 0, "minutes", "at least 0, or null for no limit")
        self._require(0 <= self.ema_decay < 1, "ema_decay", "at least 0 and below 1")
        self._require(0 <= self.cooldown <= 1, "cooldown", "a share from 0 to 1")
        self._require(
            self.micro_batch_size is None or self.micro_batch_size >= 1, "micro_batch_size", "at least 1, or null"
        )
        self._require(self.optimizer in ("adam", "muon"), "optimizer", '"adam" or "muon"')
        self._require(
            self.precision in ("fp32", "bf16", "fp16", "auto"), "precision", '"fp32", "bf16", "fp16" or "auto"'
        )
        modes = ("no", "default", "reduce-overhead", "max-autotune")
        self._require(self.compile in modes, "compile", f"one of {', '.join(modes)}")
        self._require(
            self.compile in ("no", "default") or self.micro_batch_size is None, "compile",
            '"no" or "default" with a micro_batch_size: a CUDA graph overwrites the gradients of its last run',
        )  # fmt: skip

    def _require(self, fits: bool, name: str, needed: str) -> None:
        if not fits:
            raise InputError(f"{name} is {getattr(self, name)!r}; it must be {needed}")


@dataclass(frozen=True)
class RunConfig:
    """The contents of config.yaml in a run folder."""

    model: ModelConfig = field(default_factory=ModelConfig)
    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)
    data: DataConfig = field(default_factory=DataConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)

    system: Literal["vmddpm", "unet", "dcgan", "sagan", "unetgan"] = "vmddpm"
    """The system to train. `model` configures "vmddpm", `unet` the "unet" of the DDPM and DDIM baselines, and `gan` the
    GANs; the other two parts have no effect."""

    unet: UNetConfig = field(default_factory=UNetConfig)
    gan: GANConfig = field(default_factory=GANConfig)
    condition: ConditionConfig = field(default_factory=ConditionConfig)

    def __post_init__(self) -> None:
        systems = ("vmddpm", "unet", *GANS)
        if self.system not in systems:
            raise InputError(f"system is {self.system!r}; it must be one of {', '.join(systems)}")
        if self.data.spatial_dims == 3 and self.system != "vmddpm":
            raise InputError(f"data.spatial_dims is 3, but {self.system} draws images; set it to 2, or system vmddpm")
        if self.system != "vmddpm" and self.condition.is_set:
            raise InputError(f"system is {self.system!r}, which takes no condition; leave out condition.labels and "
                             "condition.image, or train vmddpm")  # fmt: skip
        if self.system in GANS:
            multipliers(self.data.size)  # raises for unsupported sizes
            return
        name, network = ("model", self.model) if self.system == "vmddpm" else ("unet", self.unet)
        if self.data.channels != network.image_channels:
            raise InputError(
                f"data.channels is {self.data.channels} but {name}.image_channels is {network.image_channels}; "
                "they must be equal"
            )
        if name == "model" and self.data.spatial_dims != self.model.spatial_dims:
            raise InputError(
                f"data.spatial_dims is {self.data.spatial_dims} but model.spatial_dims is {self.model.spatial_dims}; "
                "they must be equal: 2 for slices, 3 for volumes"
            )
        stages = f"model.sampling {self.model.sampling}" if name == "model" else f"unet.widths {self.unet.widths}"
        for side, value in (("size", self.data.size), ("depth", self.data.depth or 0)):
            if value % network.size_multiple:
                raise InputError(
                    f"data.{side} is {value}; it must be a multiple of {network.size_multiple} for {stages}"
                )
        if self.diffusion.timesteps % self.training.sample_steps:
            raise InputError(
                f"training.sample_steps is {self.training.sample_steps}; it must divide "
                f"diffusion.timesteps, {self.diffusion.timesteps}"
            )
