import numpy as np
import pytest
import torch
from torch import nn

from vmddpm.diffusion import DiffusionConfig, image_generator, make_scheduler, sample
from vmddpm.model import VMDDPM, ModelConfig

CONFIG = DiffusionConfig()
ALPHAS = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
SHAPE = (1, 4, 4)


def noise_of(index, count, seed=0, shape=SHAPE):
    """The first `count` draws of an image's generator, float64."""
    generator = image_generator(seed, index)
    return [torch.randn(1, *shape, generator=generator)[0].double().numpy() for _ in range(count)]


class Predictor(nn.Module):
    """A denoiser given as a function of (x_t, ᾱ_t) in float64; records its arguments."""

    def __init__(self, function):
        super().__init__()
        self.function = function
        self.calls = []

    def forward(self, x, t, order_key):
        self.calls.append((x, t, order_key, self.training))
        alpha = torch.from_numpy(ALPHAS)[t].view(-1, 1, 1, 1)
        return self.function(x.double(), alpha).float()


def point_mass(x0):
    """The ideal noise prediction for a data set of one image."""
    return Predictor(lambda x, alpha: (x - alpha.sqrt() * x0) / (1 - alpha).sqrt())


def gaussian(mean, std):
    """The ideal noise prediction for independent pixels N(mean, std²)."""
    return Predictor(
        lambda x, alpha: (1 - alpha).sqrt() * (x - alpha.sqrt() * mean) / (alpha * std**2 + 1 - alpha)
    )


@pytest.mark.parametrize(
    ("sampler", "steps"),
    [("ddim", 10), ("ddim", 1), ("ddpm", 1000), ("ddpm", 50), ("ddpm", 61), ("dpm-solver", 1), ("dpm-solver", 20)],
)  # fmt: skip
def test_a_data_set_of_one_image_is_recovered(sampler, steps):
    x0 = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    model = point_mass(x0)
    images = sample(model, range(3), SHAPE, config=CONFIG, sampler=sampler, steps=steps, batch_size=2)
    assert images.shape == (3, *SHAPE)
    assert images.dtype == torch.float32
    # 1 - ᾱ is float32, and the last step divides its rounding error by its √ᾱ, 0.006 if it is the only step.
    tolerance = 2e-5 + 2**-20 / np.sqrt(ALPHAS[1000 // steps - 1])
    torch.testing.assert_close(images.double(), x0.expand(3, *SHAPE), rtol=0, atol=tolerance)


def test_velocity_prediction_recovers_it_too():
    x0 = torch.rand(SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    velocity = Predictor(
        lambda x, alpha: alpha.sqrt() * (x - alpha.sqrt() * x0) / (1 - alpha).sqrt() - (1 - alpha).sqrt() * x0
    )
    config = DiffusionConfig(prediction_type="v_prediction")
    for sampler in ("ddim", "ddpm", "dpm-solver"):
        images = sample(velocity, [0], SHAPE, config=config, sampler=sampler, steps=20, batch_size=1)
        torch.testing.assert_close(images[0].double(), x0, rtol=0, atol=2e-5)


def levels(steps):
    """(ᾱ_t, ᾱ of the next level) of each step, noisiest first; the last level is the image, ᾱ = 1."""
    t = np.floor(1000 * np.arange(steps, 0, -1) / steps + 0.5).astype(int) - 1
    return list(zip(ALPHAS[t], [*ALPHAS[t[1:]], 1.0]))


def test_ddim_on_a_gaussian_is_its_closed_form():
    mean, std, steps = 0.3, 0.05, 20
    x = noise_of(0, 1)[0] - np.sqrt(ALPHAS[999]) * mean  # DDIM is linear in the deviation from √ᾱ mean
    for alpha, following in levels(steps):
        variance = alpha * std**2 + 1 - alpha
        signal = np.sqrt(following / alpha) * alpha * std**2 / variance
        x = x * (signal + np.sqrt((1 - following) * (1 - alpha)) / variance)
    model = gaussian(mean, std)
    image = sample(model, [0], SHAPE, config=CONFIG, sampler="ddim", steps=steps, batch_size=1)[0]
    np.testing.assert_allclose(image.double(), mean + x, rtol=0, atol=2e-6)


def test_ddim_converges_to_the_gaussian():
    mean, std = 0.1, 0.15
    start = noise_of(0, 1)[0]
    scale = np.sqrt(ALPHAS[999] * std**2 + 1 - ALPHAS[999])
    limit = mean + std * (start - np.sqrt(ALPHAS[999]) * mean) / scale  # the map of the continuous process
    errors = []
    for steps in (100, 200, 500, 1000):
        model = gaussian(mean, std)
        image = sample(model, [0], SHAPE, config=CONFIG, sampler="ddim", steps=steps, batch_size=1)[0]
        errors.append(np.abs(image.numpy() - limit).max())
    assert errors == sorted(errors, reverse=True)
    assert 0.9 < np.log10(errors[0] / errors[-1]) < 1.1  # first order: ten times the steps, a tenth of the error


@pytest.mark.parametrize("steps", [10, 50, 61])
@pytest.mark.parametrize("bound", [1.0, 0.05])
def test_ddpm_steps_are_hos_posterior(steps, bound):
    """Every step against Ho et al. (2020), Eq. 7, its β and α taken between neighbouring levels."""
    model = Predictor(lambda x, alpha: bound * torch.sin(7 * x))
    final = sample(model, [5], SHAPE, config=CONFIG, sampler="ddpm", steps=steps, seed=2, batch_size=1)[0]
    noise = noise_of(5, steps, seed=2)
    trajectory = [call[0][0].double().numpy() for call in model.calls] + [final.double().numpy()]
    np.testing.assert_array_equal(trajectory[0], noise[0])
    clipped = 0
    for number, (alpha_bar, previous) in enumerate(levels(steps)):
        x = trajectory[number]
        raw = (x - np.sqrt(1 - alpha_bar) * bound * np.sin(7 * x)) / np.sqrt(alpha_bar)
        x0 = raw.clip(-1, 1)
        clipped += (raw != x0).sum()
        alpha = alpha_bar / previous
        mean = np.sqrt(previous) * (1 - alpha) / (1 - alpha_bar) * x0
        mean += np.sqrt(alpha) * (1 - previous) / (1 - alpha_bar) * x
        std = np.sqrt((1 - previous) / (1 - alpha_bar) * (1 - alpha))
        expected = mean if number == steps - 1 else mean + std * noise[number + 1]
        np.testing.assert_allclose(trajectory[number + 1], expected, rtol=0, atol=2e-5)
    assert clipped > 0


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_steps_are_songs(eta):
    """Every step against Song et al. (2021), Eq. 12 and 16, with ε̂ consistent with the clipped x̂_0."""
    steps = 10
    model = Predictor(lambda x, alpha: torch.sin(7 * x))
    final = sample(model, [5], SHAPE, config=CONFIG, sampler="ddim", steps=steps, eta=eta, batch_size=1)[0]
    noise = noise_of(5, steps + 1)
    trajectory = [call[0][0].double().numpy() for call in model.calls] + [final.double().numpy()]
    for number, (alpha, following) in enumerate(levels(steps)):
        x = trajectory[number]
        x0 = ((x - np.sqrt(1 - alpha) * np.sin(7 * x)) / np.sqrt(alpha)).clip(-1, 1)
        epsilon = (x - np.sqrt(alpha) * x0) / np.sqrt(1 - alpha)
        sigma = eta * np.sqrt((1 - following) / (1 - alpha) * (1 - alpha / following))
        expected = np.sqrt(following) * x0 + np.sqrt(1 - following - sigma**2) * epsilon
        expected += sigma * noise[number + 1]
        np.testing.assert_allclose(trajectory[number + 1], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("steps", [2, 15, 61])
def test_dpm_solver_steps_are_lus(steps):
    """Every step against Lu et al. (2022), "DPM-Solver++", Algorithm 2, with x̂_0 clipped; the ends are first order."""
    model = Predictor(lambda x, alpha: torch.sin(7 * x))
    final = sample(model, [5], SHAPE, config=CONFIG, sampler="dpm-solver", steps=steps, batch_size=1)[0]
    trajectory = [call[0][0].double().numpy() for call in model.calls] + [final.double().numpy()]
    before = lambda_before = None
    for number, (alpha_bar, following) in enumerate(levels(steps)):
        x = trajectory[number]
        x0 = ((x - np.sqrt(1 - alpha_bar) * np.sin(7 * x)) / np.sqrt(alpha_bar)).clip(-1, 1)
        log_snr = np.log(alpha_bar / (1 - alpha_bar)) / 2
        if number == steps - 1:
            expected = x0
        else:
            step = np.log(following / (1 - following)) / 2 - log_snr
            direction = x0
            if before is not None:
                direction = x0 + step / (log_snr - lambda_before) / 2 * (x0 - before)
            expected = np.sqrt((1 - following) / (1 - alpha_bar)) * x
            expected -= np.sqrt(following) * np.expm1(-step) * direction
        np.testing.assert_allclose(trajectory[number + 1], expected, rtol=0, atol=3e-5)
        before, lambda_before = x0, log_snr


def test_ddpm_on_a_gaussian_has_the_moments_of_its_recursion():
    mean, std, shape = 0.1, 0.15, (1, 16, 16)
    images = sample(gaussian(mean, std), range(32), shape, config=CONFIG, sampler="ddpm", batch_size=32)
    offset, variance = -np.sqrt(ALPHAS[999]) * mean, 1.0  # mean and variance of x - √ᾱ mean
    for alpha_bar, previous in levels(1000):
        alpha, total = alpha_bar / previous, alpha_bar * std**2 + 1 - alpha_bar
        x0 = np.sqrt(alpha_bar) * std**2 / total  # x̂_0 - mean per deviation of x_t
        factor = np.sqrt(previous) * (1 - alpha) / (1 - alpha_bar) * x0
        factor += np.sqrt(alpha) * (1 - previous) / (1 - alpha_bar)
        offset *= factor
        variance = factor**2 * variance + (1 - previous) / (1 - alpha_bar) * (1 - alpha)
    count = images.numel()
    assert abs(images.mean() - (mean + offset)) < 5 * np.sqrt(variance / count)
    assert abs(images.double().var() / variance - 1) < 5 * np.sqrt(2 / count)
    assert abs(np.sqrt(variance) / std - 1) < 0.05  # the recursion ends at the data


def tiny_model():
    torch.manual_seed(0)
    model = VMDDPM(ModelConfig(base_channels=8, norm_groups=4, d_state=2, layers_per_stage=1))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.mark.parametrize(("sampler", "eta"), [("ddpm", 0.0), ("ddim", 0.0), ("ddim", 1.0), ("dpm-solver", 0.0)])
def test_an_image_depends_on_seed_and_index_alone(sampler, eta):
    model = tiny_model()
    options = {"config": CONFIG, "sampler": sampler, "steps": 4, "eta": eta, "batch_size": 2}
    torch.manual_seed(1)
    everything = sample(model, range(6), (1, 32, 32), **options)
    state = torch.get_rng_state()
    assert torch.equal(sample(model, range(6), (1, 32, 32), **options), everything)
    assert torch.equal(sample(model, [5, 0, 3, 0], (1, 32, 32), **options), everything[[5, 0, 3, 0]])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.allclose(sample(model, range(6), (1, 32, 32), seed=1, **options), everything)
    assert len({tuple(image.flatten().tolist()) for image in everything}) == 6
    assert everything.abs().max() <= 1
    other_partition = sample(model, range(6), (1, 32, 32), **{**options, "batch_size": 3})
    torch.testing.assert_close(other_partition, everything, rtol=0, atol=1e-3)


def test_the_model_is_called_as_promised_and_handed_back_as_it_came():
    model = nn.Sequential()
    model.inner, model.frozen = gaussian(0.0, 1.0), nn.Dropout().eval()
    model.forward = lambda x, t, order_key: model.inner(x, t, order_key)
    reports = []
    sample(
        model, range(3), SHAPE, config=CONFIG, sampler="ddim", steps=5, seed=9, batch_size=2,
        progress=lambda done, total: reports.append((done, total)),
    )  # fmt: skip
    assert reports == [(i + 1, 10) for i in range(10)]
    assert [call[1].tolist() for call in model.inner.calls[:5]] == [[t, t] for t in (999, 799, 599, 399, 199)]
    assert [call[2] for call in model.inner.calls] == [(9, i) for i in range(5)] * 2
    assert not any(call[3] for call in model.inner.calls)
    assert model.training
    assert model.inner.training
    assert not model.frozen.training


def test_an_error_leaves_the_mode_alone():
    model = Predictor(lambda x, alpha: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        sample(model, [0], SHAPE, config=CONFIG, steps=5)
    assert model.training


def test_no_gradient_is_recorded_and_the_result_takes_part_in_training():
    images = sample(tiny_model(), [0], (1, 32, 32), config=CONFIG, steps=2, batch_size=1)
    assert not images.requires_grad
    assert not images.is_inference()


def test_no_indices_no_images():
    assert sample(gaussian(0.0, 1.0), [], SHAPE, config=CONFIG).shape == (0, *SHAPE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps is 0; it must be from 1 to the 1000 steps of training"),
        ({"steps": 1001, "sampler": "dpm-solver"}, "steps is 1001; it must be from 1 to the 1000 steps"),
        ({"steps": 1001, "sampler": "ddim"}, "steps is 1001; .* divisor .* the nearest is 1000"),
        ({"steps": 260, "sampler": "ddim"}, "steps is 260; .* the nearest is 250"),
        ({"sampler": "euler"}, "sampler is 'euler'; it must be \"ddpm\", \"ddim\" or \"dpm-solver\""),
        ({"sampler": "ddim", "eta": 1.5}, "eta is 1.5; it must be between 0 and 1"),
        ({"sampler": "ddpm", "eta": 0.5}, "eta is 0.5; .* 0 with other samplers"),
        ({"batch_size": 0}, "batch_size is 0; it must be from 1 to 65,536"),
        ({"indices": [3, -1]}, "indices holds -1; images are numbered from 0"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        sample(gaussian(0.0, 1.0), image_shape=SHAPE, config=CONFIG, **{"indices": [0], **options})


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm-solver"])
def test_every_allowed_number_of_steps_starts_at_the_noisiest_and_steps_evenly(sampler):
    for steps in (n for n in range(1, 1001) if sampler != "ddim" or 1000 % n == 0):
        timesteps = make_scheduler(CONFIG, sampler, steps).timesteps.tolist()
        even = np.arange(1000, 0, -1000 / steps)[:steps] - 1
        assert len(timesteps) == steps
        assert (timesteps[0], min(timesteps) >= 0, sorted(set(timesteps))) == (999, True, timesteps[::-1])
        np.testing.assert_allclose(timesteps, even, rtol=0, atol=0.5 + 1e-9)


def test_images_of_a_seed_never_share_their_noise():
    seeds = {image_generator(7, index).initial_seed() for index in range(50_000)}
    assert len(seeds) == 50_000
    assert max(seeds) < 2**32  # all that torch's CPU generator reads
    first, second = (torch.randn(1000, generator=image_generator(7, index)) for index in (0, 1))
    assert abs(torch.corrcoef(torch.stack([first, second]))[0, 1]) < 5 / 1000**0.5
