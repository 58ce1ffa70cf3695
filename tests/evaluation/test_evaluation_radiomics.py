"""The Fréchet Radiomic Distance: refusals always, figures only if frd-score and PyRadiomics are installed."""

import contextlib
import io
import json
import sys

import pytest
import torch
from evaluation_cases import extractor_file, patients
from PIL import Image
from test_evaluation_report import UnusedExtractor

from vmddpm.errors import InputError
from vmddpm.evaluation import MetricsConfig, describe_real, describe_result, evaluate, load_extractor
from vmddpm.evaluation.images import quantised
from vmddpm.evaluation.radiomics import RadiomicFeatures, radiomic_distance, radiomic_features

CONFIG = MetricsConfig(kid_subsets=5, kid_subset_size=20, batch_size=250, radiomics=20)


@pytest.fixture(scope="module")
def frd_score():
    pytest.importorskip("radiomics", reason="needs the extra radiomics")
    return pytest.importorskip("frd_score", reason="needs the extra radiomics")


def test_missing_packages_are_reported_before_anything_is_computed(monkeypatch):
    monkeypatch.setitem(sys.modules, "radiomics", None)  # makes the import fail even if it is installed
    with pytest.raises(InputError, match=r'radiomics is missing; `pip install "\.\[radiomics\]"`'):
        describe_real(torch.zeros(9, 1, 32, 32), UnusedExtractor(), CONFIG, progress=False)


@pytest.mark.parametrize("count", [-3, 1])
def test_a_number_of_images_that_means_nothing_is_refused(count):
    with pytest.raises(InputError, match=rf"metrics.radiomics is {count}; it must be 0 or at least 2"):
        MetricsConfig(radiomics=count)


def described(count, seed, shift=0.0, spread=1.0):
    """Synthetic features: Gaussians of known moments, a constant column, and a column of large numbers."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(count, 4, generator=generator) * spread + shift
    values = torch.cat([values[:, :3], torch.full((count, 1), 0.1), 1e4 + 1e3 * values[:, 3:]], 1)
    return RadiomicFeatures(values, ("a", "b", "c", "constant", "large"), 0)


def test_the_distance_of_gaussians_is_their_closed_form():
    """Two sets of 20,000; the second is shifted by 1 in all 4 features and twice as wide: 4 (1 + (2 - 1)^2)."""
    found = radiomic_distance(described(20_000, 0), described(20_000, 1, shift=1.0, spread=2.0))
    assert found.dimensions == 4  # the constant column is dropped
    assert found.value == pytest.approx(torch.tensor(8.0).log().item(), abs=0.03)
    same = radiomic_distance(described(20_000, 0), described(20_000, 2))
    assert same.value == pytest.approx(same.floor, abs=2)
    assert same.value < found.value - 5
    assert radiomic_distance(described(50, 0), described(50, 0)).value in (None, pytest.approx(-30, abs=15))


def test_features_that_cannot_be_compared_are_refused():
    real = described(10, 0)
    with pytest.raises(InputError, match="5 radiomic features, the samples 1 or others"):
        radiomic_distance(real, RadiomicFeatures(torch.zeros(5, 1), ("a",), 0))
    with pytest.raises(InputError, match="copies of one image"):
        radiomic_distance(real._replace(values=torch.ones(10, 5)), real)


@pytest.mark.slow
@pytest.mark.parametrize(("blur", "noise"), [(0, 0.0), (2, 0.0), (0, 0.2)])
def test_the_distance_is_that_of_frd_score(frd_score, tmp_path, blur, noise):
    """Its own command on two folders of PNG files, with its own normalisation, fit and matrix root."""
    real, samples = patients(20, 0), patients(24, 1)
    samples = torch.nn.functional.avg_pool2d(samples, 2 * blur + 1, 1, blur)
    samples = (samples + noise * torch.randn(samples.shape, generator=torch.Generator().manual_seed(2))).clamp(-1, 1)
    for name, images in (("real", real), ("samples", samples)):
        (tmp_path / name).mkdir()
        for i, image in enumerate(quantised(images)):
            Image.fromarray(image[0].numpy()).save(tmp_path / name / f"{i:06d}.png")
    with contextlib.redirect_stdout(io.StringIO()):
        expected = frd_score.compute_frd([str(tmp_path / "real"), str(tmp_path / "samples")], num_workers=1)
    found = radiomic_distance(radiomic_features(real, 20), radiomic_features(samples, 24))
    assert (found.n_real, found.n_synthetic) == (20, 24)
    assert found.value == pytest.approx(expected, abs=0.01)


@pytest.mark.slow
def test_it_is_in_the_report(frd_score, tmp_path):
    extractor = load_extractor(extractor_file(tmp_path))
    real = describe_real(patients(30, 0), extractor, CONFIG, progress=False)
    samples = patients(30, 1)
    samples[3] = -1  # has no texture
    with pytest.warns(UserWarning, match="the FRD of 20 real images and 19 samples is biased upwards"):
        result = evaluate(real, samples, extractor, CONFIG, tmp_path / "out", progress=False)
    frd = json.loads((tmp_path / "out" / "evaluation.json").read_text())["frd"]
    assert frd == result["frd"]
    assert (frd["n_real"], frd["undefined_real"], frd["n_synthetic"], frd["undefined_synthetic"]) == (20, 0, 19, 1)
    assert any("samples without radiomic features, which are left out of the FRD: 1;" in w for w in result["warnings"])
    assert "Fréchet Radiomic Distance (FRD): " in describe_result(result)
    assert result["versions"]["frd-score"] != "not installed"
    with pytest.raises(InputError, match="described with another"):
        evaluate(real, samples, UnusedExtractor(), MetricsConfig(), tmp_path, progress=False)


def test_images_without_texture_are_refused(frd_score):
    with pytest.raises(InputError, match="samples: 4 of 4 images have no radiomic features"):
        radiomic_features(torch.zeros(4, 1, 32, 32), 4, "samples")


def test_an_image_that_pyradiomics_refuses_is_named(frd_score, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("no such voxel")

    monkeypatch.setattr("frd_score.frd.process_image_mask_pair", refuse)
    with pytest.raises(InputError, match=r"samples: image 0 has no radiomic features \(no such voxel\)"):
        radiomic_features(patients(4, 0), 4, "samples")
