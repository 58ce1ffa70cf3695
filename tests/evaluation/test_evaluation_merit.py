"""Spectra and textures against closed forms, plain sums and torchmetrics, and the sensitivity of each figure."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation_cases import patients
from torchmetrics.image.fid import FrechetInceptionDistance

from vmddpm.evaluation import figures_of_merit, log_spectral_distance, radial_power_spectrum, texture_distance
from vmddpm.evaluation.images import quantised
from vmddpm.evaluation.spectrum import QUANTISATION_NOISE
from vmddpm.evaluation.texture import _filters, local_features


def noise(shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def spectrum_by_sums(images):
    """The full two-dimensional transform as a sum over pixels, ring by ring."""
    images = images.mean(1).numpy()
    height, width = images.shape[1:]
    side = min(height, width)
    y, x = np.arange(height), np.arange(width)
    rings = {}
    for v in range(height):
        for u in range(width):
            wave = np.exp(-2j * np.pi * (v * y[:, None] / height + u * x / width))
            power = np.mean(np.abs((images * wave).sum((1, 2))) ** 2) / (height * width)
            fv, fu = (v if v <= height / 2 else v - height) / height, (u if u <= width / 2 else u - width) / width
            rings.setdefault(round(side * math.hypot(fv, fu)), []).append(power)
    return np.array([np.mean(rings[k]) for k in range(1, side // 2 + 1)])


@pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 9, 9), (2, 1, 8, 13), (1, 1, 11, 6), (2, 1, 2, 2)])
def test_spectrum_by_sums(shape):
    images = noise(shape) + 5
    assert np.allclose(radial_power_spectrum(images), spectrum_by_sums(images), rtol=1e-11)


def test_spectrum_of_one_wave():
    """A wave of amplitude a has the power a^2 n^2 / 4 at two points of the transform, so over a ring of m points
    a^2 n^2 / (2 m)."""
    n, k, amplitude = 64, 7, 0.6
    x = torch.arange(n, dtype=torch.float64)
    wave = amplitude * torch.cos(2 * math.pi * k * x / n).expand(3, 1, n, n)
    f = np.fft.fftfreq(n)
    points = (np.rint(n * np.hypot(f[:, None], f)) == k).sum()
    found = radial_power_spectrum(wave)
    assert found[k - 1].item() == pytest.approx(amplitude**2 * n**2 / (2 * points), rel=1e-12)
    found[k - 1] = 0
    assert found.max() < 1e-20
    assert torch.allclose(radial_power_spectrum(wave.transpose(2, 3)), radial_power_spectrum(wave), atol=1e-20)


def test_spectrum_of_white_noise():
    """It is the variance at every frequency; 500 images with at least 8 points per ring leave an error of 2 %."""
    found = radial_power_spectrum(0.3 * noise((500, 1, 32, 32), 1))
    assert torch.allclose(found, torch.full_like(found, 0.09), rtol=0.07)


def test_distance_of_spectra_in_closed_form():
    a = noise((40, 1, 32, 32), 2)
    b = noise((60, 1, 32, 32), 3)
    assert log_spectral_distance(a, a) == 0
    assert log_spectral_distance(a, 0.5 * a) == pytest.approx(20 * math.log10(2), rel=1e-12)
    assert log_spectral_distance(a, b) == pytest.approx(log_spectral_distance(b, a), rel=1e-12)
    assert 0 < log_spectral_distance(a, b) < 0.5
    # A point has a flat spectrum; blurred with wrap-around, it has the filter's.
    point = torch.zeros(1, 1, 16, 16, dtype=torch.float64)
    point[..., 5, 9] = 16
    blurred = F.avg_pool2d(F.pad(point, (1, 1, 1, 1), mode="circular"), 3, 1)
    f = np.fft.fftfreq(16)
    response = np.outer(*2 * [(1 + 2 * np.cos(2 * np.pi * f)) / 3]) ** 2
    ring = np.rint(16 * np.hypot(f[:, None], f)).astype(int)
    decibels = [10 * np.log10(response[ring == k].mean()) for k in range(1, 9)]
    assert log_spectral_distance(point, blurred) == pytest.approx(np.sqrt(np.mean(np.square(decibels))), rel=1e-10)


def test_power_below_that_of_rounding_counts_as_it():
    """Constant images and images with noise of a hundredth of a grey level do not differ, as a file would store both
    alike."""
    flat = torch.zeros(4, 1, 16, 16)
    faint = 2 / 255 / 100 * noise((4, 1, 16, 16), 4)
    assert log_spectral_distance(flat, faint) == 0
    rounding = quantised(noise((50, 1, 16, 16), 5) / 4) / 127.5 - 1 - noise((50, 1, 16, 16), 5) / 4
    assert radial_power_spectrum(rounding).mean().item() == pytest.approx(QUANTISATION_NOISE, rel=0.05)


def features_by_windows(images):
    """Every window of 11 x 11 pixels, and the smaller windows at its centre, times every filter."""
    windows = np.lib.stride_tricks.sliding_window_view(images.double().mean(1).numpy(), (11, 11), axis=(1, 2))
    answers = []
    for weights, biases in _filters():
        cut = (11 - weights.shape[-1]) // 2
        inner = windows[..., cut : 11 - cut, cut : 11 - cut]
        answers.append(np.einsum("nhwij,fij->nhwf", inner, weights[:, 0].numpy()) + biases.numpy())
    return np.maximum(np.concatenate(answers, 3), 0).reshape(len(images), -1, 48)


def test_texture_by_windows_and_torchmetrics():
    """Features by windows; their Fréchet distance by torchmetrics, with each pixel as an image of 48 values."""
    a, b = patients(20, 0)[..., 10:40, 20:44], patients(17, 1)[..., 10:40, 20:44] * 0.9
    assert np.allclose(local_features(a), features_by_windows(a), atol=2e-6)
    metric = FrechetInceptionDistance(feature=PixelFeatures(), input_img_size=(1, 1, 48))
    metric.set_dtype(torch.float64)
    metric.num_features = 48
    for images, real in ((a, True), (b, False)):
        metric.update(torch.from_numpy(features_by_windows(images)).view(-1, 1, 1, 48), real=real)
    assert texture_distance(a, b) == pytest.approx(metric.compute().item(), rel=1e-5)
    assert texture_distance(a, a) < 1e-9


class PixelFeatures(torch.nn.Module):
    def forward(self, x):
        return x.flatten(1)


def test_texture_in_closed_form():
    """Without biases, half the contrast halves the features, so for mean m and covariance C the distance is |m|^2 / 4 +
    tr C / 4."""
    images = patients(10, 2)
    weights = [(w, torch.zeros_like(b)) for w, b in _filters()]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vmddpm.evaluation.texture._filters", lambda: weights)
        features = local_features(images).flatten(0, 1).double()
        expected = features.mean(0).square().sum() / 4 + features.var(0).sum() / 4
        assert texture_distance(images, images / 2 + 0.3) == pytest.approx(expected.item(), rel=1e-5)


def test_what_each_figure_sees():
    """Compared with real people: other people, and the same blurred inside, mottled, or of another shape."""
    real, people = patients(80, 0), patients(80, 1)
    head = people > -0.8
    mottles = F.interpolate(noise((80, 1, 16, 16)).float(), (64, 64), mode="bicubic")
    blurred = F.avg_pool2d(people, 5, 1, 2, count_include_pad=False)
    inside = F.interpolate(people, (64, 40)).repeat(1, 1, 1, 2)[..., :64]
    alike, flat, mottled, tall = (
        figures_of_merit(images, real)
        for images in (people, torch.where(head, blurred, people), (people + 0.3 * mottles * head).clamp(-1, 1), inside)
    )
    assert flat.spectrum > 5 * alike.spectrum
    assert mottled.spectrum > 3 * alike.spectrum
    for changed in (flat, mottled):
        assert changed.texture > 4 * alike.texture
        assert changed.structure < 1.3 * alike.structure
    assert tall.structure > 2 * alike.structure
    assert str(alike) == (
        f"spectrum {alike.spectrum:.2f} dB, texture {alike.texture:.2g}, structure {alike.structure:.2g}"
    )


def test_unusable_images():
    good, bad = noise((4, 1, 8, 8)), noise((4, 1, 8, 8))
    bad[2, 0, 3, 3] = math.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        figures_of_merit(bad, good)
    with pytest.raises(ValueError, match=r"\(1, 8, 8\), the real ones \(3, 8, 8\)"):
        figures_of_merit(good, good.expand(-1, 3, -1, -1))
    with pytest.raises(ValueError, match=r"\(8, 8\) and \(9, 9\) pixels"):
        log_spectral_distance(good, noise((4, 1, 9, 9)))
    with pytest.raises(ValueError, match="at least 12 x 12 pixels"):
        texture_distance(good, good)
    for shape in ((0, 1, 8, 8), (4, 1, 8, 1), (4, 8, 8)):
        with pytest.raises(ValueError, match="n at least 1, of at least 2 x 2 pixels"):
            radial_power_spectrum(torch.zeros(shape))
