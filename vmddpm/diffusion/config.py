"""The diffusion process: steps, noise schedule and what the network predicts."""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor

from vmddpm.errors import InputError
from vmddpm.numbers import check_numbers


@dataclass(frozen=True)
class DiffusionConfig:
    """The forward process of paper section III-A. Each field quotes the sentence it reads, if there is one.

    Raises:
        InputError: if a field is invalid; the message has its name, its value and what it must be.
    """

    timesteps: int = 1000
    """Number of diffusion steps, T; not stated. 1000 is the value of Ho et al. (2020), whom the paper follows. III-A:
    "T and β represent the number of diffusion steps and the variance scheduling"."""

    beta_start: float = 1e-4
    """Variance of the first step; not stated, the value of Ho et al. (2020)."""

    beta_end: float = 0.02
    """Variance of the last step; not stated, the value of Ho et al. (2020)."""

    beta_schedule: Literal["linear", "squaredcos_cap_v2"] = "linear"
    """Noise schedule, β_1 to β_T; not stated. "linear" from beta_start to beta_end is that of Ho et al. (2020);
    "squaredcos_cap_v2", diffusers' name for the cosine schedule of Nichol and Dhariwal (2021), ignores both."""

    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the network predicts: "epsilon", the noise (Eq. 4), or "v_prediction", the velocity of Salimans and Ho
    (2022), which is not in the paper. III-A: "directly train the model ε_θ(x_t, t) to predict ε"."""

    min_snr_gamma: float | None = None
    """Gamma of the min-SNR weighting of Hang et al. (2023), who use 5: the squared error of the noise is weighted by
    min(SNR, gamma) / SNR of the image's noise level. Null weights all levels equally (Eq. 4)."""

    def __post_init__(self) -> None:
        check_numbers(self, limits={"timesteps": 1_000_000})
        self._require(self.timesteps >= 1, "timesteps", "at least 1")
        self._require(0 < self.beta_start < 1, "beta_start", "above 0 and below 1")
        self._require(self.beta_start <= self.beta_end < 1, "beta_end", "at least beta_start and below 1")
        self._require(
            self.beta_schedule in ("linear", "squaredcos_cap_v2"), "beta_schedule",
            '"linear" or "squaredcos_cap_v2"',
        )
        self._require(
            self.prediction_type in ("epsilon", "v_prediction"), "prediction_type",
            '"epsilon" or "v_prediction"',
        )
        self._require(self.min_snr_gamma is None or self.min_snr_gamma > 0, "min_snr_gamma", "above 0, or null")

    def _require(self, fits: bool, name: str, needed: str) -> None:
        if not fits:
            raise InputError(f"{name} is {getattr(self, name)!r}; it must be {needed}")

    @property
    def scheduler_options(self) -> dict[str, Any]:
        """The arguments that every scheduler of diffusers shares."""
        return {
            "num_train_timesteps": self.timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.beta_schedule,
            "prediction_type": self.prediction_type,
        }


@lru_cache(maxsize=16)
def alphas_cumprod(config: DiffusionConfig, device: torch.device) -> Tensor:
    """ᾱ_t = Π (1 - β_s) over s <= t, float32 (T,): the schedulers' own, so training and sampling agree."""
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler  # imported late: it takes seconds

    with torch.inference_mode(False):  # a cached inference tensor could not serve a later training step
        alphas: Tensor = DDPMScheduler(**config.scheduler_options).alphas_cumprod.to(device)
        return alphas
