import inspect
from dataclasses import fields

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler

from vmddpm.diffusion import (
    DiffusionConfig,
    diffusion_loss,
    draw_steps_and_noise,
    prediction_target,
    q_sample,
)
from vmddpm.diffusion.config import alphas_cumprod

CPU = torch.device("cpu")
STEPS = torch.tensor([0, 1, 499, 999])


def draws():
    generator = torch.Generator().manual_seed(0)
    return torch.rand(4, 3, 5, 6, generator=generator) * 2 - 1, torch.randn(4, 3, 5, 6, generator=generator)


def linear_alphas(config):
    betas = np.linspace(config.beta_start, config.beta_end, config.timesteps)
    return np.cumprod(1 - betas)


def levels(t):
    alpha = torch.from_numpy(linear_alphas(DiffusionConfig()))[t].view(-1, 1, 1, 1)
    return alpha.sqrt(), (1 - alpha).sqrt()


def test_linear_schedule():
    config = DiffusionConfig()
    np.testing.assert_allclose(alphas_cumprod(config, CPU).double(), linear_alphas(config), rtol=2e-5)


def test_cosine_schedule():
    def alpha_bar(s):
        return np.cos((s + 0.008) / 1.008 * np.pi / 2) ** 2

    t = np.arange(1000)
    betas = np.minimum(1 - alpha_bar((t + 1) / 1000) / alpha_bar(t / 1000), 0.999)
    alphas = alphas_cumprod(DiffusionConfig(beta_schedule="squaredcos_cap_v2"), CPU).double()
    np.testing.assert_allclose(alphas, np.cumprod(1 - betas), rtol=1e-4, atol=1e-9)


def test_closed_form_is_eq_1_step_by_step():
    config = DiffusionConfig()
    mean, variance = 1.0, 0.0
    betas = np.linspace(1e-4, 0.02, 1000)
    x0, _ = draws()
    for t in range(1000):
        mean, variance = np.sqrt(1 - betas[t]) * mean, (1 - betas[t]) * variance + betas[t]
        if t in STEPS:
            step = torch.full((4,), t)
            signal = q_sample(x0, step, torch.zeros_like(x0), config)
            sigma = q_sample(torch.zeros_like(x0), step, torch.ones_like(x0), config)
            torch.testing.assert_close(signal.double(), mean * x0.double(), rtol=1e-5, atol=1e-7)
            # At t = 0 the float32 ᾱ is so close to 1 that 1 - ᾱ keeps three digits.
            np.testing.assert_allclose(sigma.double(), np.sqrt(variance), rtol=5e-4)


def test_q_sample_closed_form():
    x0, noise = draws()
    signal, sigma = levels(STEPS)
    expected = signal * x0.double() + sigma * noise.double()
    x_t = q_sample(x0, STEPS, noise, DiffusionConfig())
    torch.testing.assert_close(x_t.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
def test_diffusers_agrees(schedule):
    config = DiffusionConfig(beta_schedule=schedule, timesteps=1000)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule=schedule)
    x0, noise = draws()
    expected = scheduler.add_noise(x0, noise, STEPS)
    torch.testing.assert_close(q_sample(x0, STEPS, noise, config), expected, rtol=1e-6, atol=1e-6)
    velocity = DiffusionConfig(beta_schedule=schedule, prediction_type="v_prediction")
    expected = scheduler.get_velocity(x0, noise, STEPS)
    torch.testing.assert_close(prediction_target(x0, STEPS, noise, velocity), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loss_is_the_mean_squared_error(prediction_type):
    config = DiffusionConfig(prediction_type=prediction_type)
    x0, noise = draws()
    calls = []

    def model(x, t, order_key):
        calls.append((t, order_key))
        return 0.5 * x

    signal, sigma = levels(STEPS)
    x_t = signal * x0.double() + sigma * noise.double()
    target = noise.double() if prediction_type == "epsilon" else signal * noise.double() - sigma * x0.double()
    loss = diffusion_loss(model, x0, STEPS, noise, (3, 4), config)
    assert loss.shape == ()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), ((0.5 * x_t - target) ** 2).mean(), rtol=1e-5, atol=0)
    assert calls == [(STEPS, (3, 4))]


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_min_snr_weighs_the_error_of_the_image(prediction_type):
    """Hang et al. (2023): for any prediction type the loss is min(SNR, gamma) times the error of the implied image."""
    config = DiffusionConfig(prediction_type=prediction_type, min_snr_gamma=5.0)
    x0, noise = draws()
    signal, sigma = levels(STEPS)
    x_t = signal * x0.double() + sigma * noise.double()
    prediction = 0.5 * x_t
    implied = (x_t - sigma * prediction) / signal if prediction_type == "epsilon" else signal * x_t - sigma * prediction
    errors = ((implied - x0.double()) ** 2).flatten(1).mean(1)
    expected = (errors * (signal**2 / sigma**2).flatten().clamp(max=5.0)).mean()
    loss = diffusion_loss(lambda x, t, order_key: 0.5 * x, x0, STEPS, noise, None, config)
    torch.testing.assert_close(loss.double(), expected, rtol=2e-4, atol=0)


def test_a_perfect_prediction_has_no_loss():
    x0, noise = draws()
    assert diffusion_loss(lambda x, t, order_key: noise, x0, STEPS, noise, None, DiffusionConfig()) == 0


def test_loss_is_taken_in_float32():
    x0, noise = draws()
    prediction = (noise + 0.1).bfloat16()
    loss = diffusion_loss(lambda x, t, order_key: prediction, x0, STEPS, noise, None, DiffusionConfig())
    expected = ((prediction.double() - noise.double()) ** 2).mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=0)


def test_draws_depend_on_the_generator_alone():
    config, shape = DiffusionConfig(timesteps=7), (4000, 1, 2, 2)
    t, noise = draw_steps_and_noise(shape, config, torch.Generator().manual_seed(5))
    torch.manual_seed(1)
    again = draw_steps_and_noise(shape, config, torch.Generator().manual_seed(5))
    assert torch.equal(t, again[0])
    assert torch.equal(noise, again[1])
    assert t.dtype == torch.int64
    counts = torch.bincount(t, minlength=7)
    assert len(counts) == 7  # every step, and no other
    assert (counts - 4000 / 7).abs().max() < 5 * (4000 / 7 * 6 / 7) ** 0.5
    assert noise.shape == shape
    assert abs(noise.mean()) < 5 / 16000**0.5
    assert abs(noise.var() - 1) < 5 * (2 / 16000) ** 0.5


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("timesteps", 0), ("beta_start", 0.0), ("beta_start", 1.5), ("beta_end", 1.0), ("beta_end", 1e-5),
        ("beta_schedule", "cosine"), ("prediction_type", "x0"), ("min_snr_gamma", 0.0),
    ],
)  # fmt: skip
def test_bad_config_names_field_value_and_fix(field, value):
    with pytest.raises(ValueError, match=rf"{field} is {value!r}; it must be "):
        DiffusionConfig(**{field: value})


def test_every_field_is_documented():
    source = inspect.getsource(DiffusionConfig)
    for field in fields(DiffusionConfig):
        assert source.split(f"\n    {field.name}: ")[1].split("\n")[1].startswith('    """'), field.name
