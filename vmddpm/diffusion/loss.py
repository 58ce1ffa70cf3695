"""The training objective (paper Eq. 1 and 4). Callers pass all random numbers."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from vmddpm.diffusion.config import DiffusionConfig, alphas_cumprod


def draw_steps_and_noise(
    shape: Sequence[int], config: DiffusionConfig, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Uniform steps t, int64 (B,), and standard normal noise, float32 of `shape` (B, C, H, W) or (B, C, D, H, W), for
    one batch.

    Both are made on the generator's device: a CPU generator gives every device the same numbers.
    """
    t = torch.randint(config.timesteps, (shape[0],), generator=generator, device=generator.device)
    return t, torch.randn(tuple(shape), generator=generator, device=generator.device)


def _levels(t: Tensor, config: DiffusionConfig, axes: int) -> tuple[Tensor, Tensor]:
    """√ᾱ_t and √(1 - ᾱ_t), each (B, 1, 1, 1), with as many axes as the images."""
    alpha = alphas_cumprod(config, t.device)[t].view(-1, *[1] * (axes - 1))
    return alpha.sqrt(), (1 - alpha).sqrt()


# Paper Eq. 1 composed over t steps (Ho et al., 2020, Eq. 4)
def q_sample(x0: Tensor, t: Tensor, noise: Tensor, config: DiffusionConfig) -> Tensor:
    """A draw of q(x_t | x_0): √ᾱ_t x0 + √(1 - ᾱ_t) noise.

    Args:
        x0: (B, C, H, W) images or (B, C, D, H, W) volumes in [-1, 1].
        t: (B,) int64 steps, 0 to timesteps - 1 (0 is the paper's t = 1), on x0's device.
        noise: standard normal, of the shape of x0.

    Returns:
        A tensor of x0's shape.
    """
    signal, sigma = _levels(t, config, x0.dim())
    return signal * x0 + sigma * noise


def prediction_target(x0: Tensor, t: Tensor, noise: Tensor, config: DiffusionConfig) -> Tensor:
    """The target of the prediction, in x0's shape: the noise, or the velocity √ᾱ_t noise - √(1 - ᾱ_t) x0."""
    if config.prediction_type == "epsilon":
        return noise
    signal, sigma = _levels(t, config, x0.dim())
    return signal * noise - sigma * x0


# Paper Eq. 4, L_simple
def diffusion_loss(
    model: Callable[..., Tensor],
    x0: Tensor,
    t: Tensor,
    noise: Tensor,
    order_key: tuple[int | Tensor, int | Tensor] | None,
    config: DiffusionConfig,
    condition: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The mean squared error of the prediction, weighted by `config.min_snr_gamma`: a float32 scalar.

    Args:
        model: called as model(x_t, t, order_key=order_key, **condition).
        x0, t, noise: as in `q_sample`; drawn by the caller, so that they can depend on the step alone.
        order_key: (seed, step) of Sequence Regeneration; None draws one.
        condition: the condition of x0, by the names of the model's arguments, such as {"labels": (B, K)}.
    """
    prediction = model(q_sample(x0, t, noise, config), t, order_key=order_key, **(condition or {}))
    target = prediction_target(x0, t, noise, config)
    if config.min_snr_gamma is None:
        return F.mse_loss(prediction.float(), target.float())
    errors = F.mse_loss(prediction.float(), target.float(), reduction="none").flatten(1).mean(1)  # (B,)
    return (errors * min_snr_weights(t, config)).mean()


# Hang et al. (2023), section 3.4: min(SNR, gamma) for the predicted image
def min_snr_weights(t: Tensor, config: DiffusionConfig) -> Tensor:
    """Weights (B,) of the squared errors: the error of the image is that of the noise times 1 / SNR, and that of the
    velocity times 1 / (SNR + 1)."""
    alpha = alphas_cumprod(config, t.device)[t]
    snr = alpha / (1 - alpha)
    return snr.clamp(max=config.min_snr_gamma) / (snr if config.prediction_type == "epsilon" else snr + 1)
