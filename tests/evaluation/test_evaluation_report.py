"""The report finds copies and records how it was made."""

import json
import os
import sys
import warnings
from importlib.metadata import version

import numpy as np
import pytest
import torch
from evaluation_cases import extractor_file, patients
from matplotlib.figure import Figure
from PIL import Image
from torchmetrics.image.fid import FrechetInceptionDistance

from vmddpm.errors import InputError
from vmddpm.evaluation import MetricsConfig, SampleFolder, describe_real, describe_result, evaluate, load_extractor
from vmddpm.evaluation.frechet import fit_gaussian, frechet_distance
from vmddpm.evaluation.images import describe_images, quantised, small_pixels
from vmddpm.evaluation.memorisation import closest, copies, copies_by_pixels, draw_closest, find_copies

CONFIG = MetricsConfig(kid_subsets=10, kid_subset_size=50, batch_size=250)


@pytest.fixture(scope="module")
def extractor(tmp_path_factory):
    return load_extractor(extractor_file(tmp_path_factory.mktemp("extractor")))


def planted(training):
    """1,000 samples: 970 of unseen people, and 10 exact, 10 mirrored and 10 noisy copies of training images."""
    samples = patients(1000, 2)
    originals = torch.arange(30) * 13
    places = torch.arange(30) * 33 + 5
    samples[places] = training[originals]
    samples[places[10:20]] = samples[places[10:20]].flip(3)
    noise = torch.randn(10, 1, 64, 64, generator=torch.Generator().manual_seed(3))
    samples[places[20:]] = (samples[places[20:]] + 0.1 * noise).clamp(-1, 1)
    return samples, places, originals


@pytest.mark.parametrize("held_out", [True, False])
def test_planted_copies_are_found(extractor, held_out):
    training = patients(400, 0)
    samples, places, originals = planted(training)
    described = describe_images(training, extractor, mirror=not held_out, batch_size=250)
    others = describe_images(patients(200, 1), extractor, mirror=True, batch_size=250) if held_out else None
    found = find_copies(describe_images(samples, extractor, mirror=True, batch_size=250), described, others)
    flagged = copies(found.ratio)
    assert flagged[places].all()
    assert flagged.sum() - 30 <= 2
    assert {i for i, _ in closest(found, 30)} == set(places.tolist())
    pixels = found.nearest["pixels"]
    assert torch.equal(pixels.index[places], originals)
    assert pixels.mirrored[places[10:20]].all()
    assert not pixels.mirrored[places[:10]].any()
    assert (found.ratio["features"][places[:10]] < 1e-4).all()
    assert found.ratio["pixels"].median() == pytest.approx(1, abs=0.25)
    assert copies(found.reference_ratio).double().mean() < 0.02


def test_copies_by_pixels_are_nearer_than_a_third_of_what_real_images_are():
    """On a line: real images at 0, 3, 9 and 9 again, of which one is a duplicate."""
    real = torch.tensor([0.0, 3.0, 9.0, 9.0])[:, None, None, None]
    samples = torch.tensor([0.0, 0.9, 1.1, 4.1, 3.9, 9.0, 9.1])[:, None, None, None]
    assert copies_by_pixels(samples, real).tolist() == [True, True, False, False, True, True, False]
    with pytest.raises(InputError, match="nearest of 1 images"):
        copies_by_pixels(samples, real[:1])


def test_ratios_by_loops(extractor):
    """By plain distances in float64, with held-out images and with the training images instead."""
    training, unseen, samples = patients(30, 8), patients(20, 9), patients(25, 10)
    samples[3] = training[4].flip(2)
    for held_out in (unseen, None):
        described = [describe_images(x, extractor, mirror=True) for x in (samples, training, unseen)]
        found = find_copies(*described[:2], None if held_out is None else described[2])
        for space, of in (("pixels", small_pixels), ("features", extractor)):
            def far(a, b, of=of):
                a, b = (of(quantised(x)[None] if x.dim() == 3 else quantised(x)).double() for x in (a, b))
                return (a - b).norm(dim=1)

            others = training if held_out is None else held_out
            for i in range(0, 25, 4):
                ways = torch.stack([far(training, w) for w in (samples[i], samples[i].flip(2))])
                way, t = divmod(ways.argmin().item(), 30)
                around = torch.stack([far(others, training[t]), far(others.flip(3), training[t])])
                around[:, t if held_out is None else []] = torch.inf
                assert found.nearest[space].index[i] == t
                assert found.nearest[space].mirrored[i] == (way == 1)
                assert found.ratio[space][i] == pytest.approx((ways.min() / around.min()).item(), rel=1e-4, abs=1e-6)


def test_report(extractor, tmp_path):
    training, samples = patients(150, 4), patients(120, 5)
    samples[7] = training[11]
    real = describe_real(training, extractor, CONFIG, patients(60, 6), progress=False)
    result = evaluate(real, samples, extractor, CONFIG, tmp_path, progress=False)
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result
    assert (result["n_real"], result["n_synthetic"], result["dimensions"]) == (150, 120, 64)
    assert 0 < result["floor"] < 3 * result["value"]
    assert result["value"] < 3 * result["floor"]  # unseen people of the same kind: a nearly perfect generator
    assert abs(result["kid"]["mean"]) < 4 * result["kid"]["deviation"]
    assert result["precision"] > 0.7
    assert result["recall"] > 0.7
    nearest = result["memorisation"]["closest"][0]
    assert (nearest["sample"], nearest["training_image"]) == (7, 11)
    assert nearest["ratio"] < 1e-3
    assert result["memorisation"]["copies"] >= 1
    assert result["extractor"]["quantisation"].startswith("8 bits")
    assert result["versions"]["torch"] == version("torch")
    assert np.asarray(Image.open(tmp_path / "closest.png")).std() > 20
    text = describe_result(result)
    assert "Fréchet distance, features of features.pt" in text
    assert "a perfect generator would get" in text
    assert result["precision_of_noise"] == 0
    assert "is meaningless" not in text


def test_a_precision_that_noise_reaches_is_reported_as_meaningless(extractor, tmp_path):
    """A few real outliers are so far from all other images that any sample lies within their distance."""
    training = torch.cat([patients(60, 4), torch.randn(2, 1, 64, 64).sign()])
    noise = torch.randn(20, 1, 64, 64).clamp(-1, 1)
    real = describe_real(training, extractor, CONFIG, patients(60, 6), progress=False)
    result = evaluate(real, noise, extractor, CONFIG, tmp_path, progress=False)
    assert result["precision"] > 0.5
    assert result["precision_of_noise"] > 0.5
    (line,) = [line for line in describe_result(result).splitlines() if line.startswith("precision")]
    assert "this precision is meaningless: images of pure noise get" in line


@pytest.mark.parametrize("count", [1, 30])
def test_the_picture_of_the_closest_pairs_says_what_it_shows(count, extractor, tmp_path, monkeypatch):
    """Its texts are those given to matplotlib, inside the picture and not overlapping."""
    training, held_out, samples = patients(30, 8), patients(20, 9), patients(count, 10)
    described = [describe_images(x, extractor, mirror=True) for x in (samples, training, held_out)]
    found = find_copies(*described)
    drawn, save = [], Figure.savefig

    def kept(figure, path, dpi):
        drawn.append(figure)
        save(figure, path, dpi=dpi)

    monkeypatch.setattr(Figure, "savefig", kept)
    with warnings.catch_warnings(action="error"):
        draw_closest(found, samples, training, tmp_path / "closest.png")
    texts = [*drawn[0].texts, *drawn[0].axes[0].texts]
    words = [text.get_text() for text in texts]
    assert words[0].endswith("to the nearest of the held-out real images: 0 is a copy.")
    assert words[1:3] == ["samples", "nearest\ntraining\nimages"]
    drawn[0].canvas.draw()
    boxes = [text.get_window_extent() for text in texts]
    assert all(drawn[0].bbox.x0 <= box.x0 and box.x1 <= drawn[0].bbox.x1 for box in boxes)
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])


def test_distance_of_torchmetrics_with_the_same_extractor(extractor, tmp_path):
    """From images to the figure; torchmetrics uses the same network, and sums of squares without centring."""
    training, samples = patients(300, 11), patients(250, 12)

    class Features(torch.nn.Module):
        def forward(self, images):
            return extractor(images)

    metric = FrechetInceptionDistance(feature=Features(), input_img_size=(1, 64, 64))
    metric.update(quantised(training), real=True)
    metric.update(quantised(samples), real=False)
    real = describe_real(training, extractor, CONFIG, progress=False)
    result = evaluate(real, samples, extractor, CONFIG, tmp_path, progress=False)
    assert result["value"] == pytest.approx(metric.compute().item(), rel=1e-6)


def test_worse_samples_score_worse(extractor, tmp_path):
    training = patients(150, 4)
    real = describe_real(training, extractor, CONFIG, patients(60, 6), progress=False)
    good, noisy = patients(120, 5), (patients(120, 5) + 0.4 * torch.randn(120, 1, 64, 64)).clamp(-1, 1)
    a, b = (evaluate(real, s, extractor, CONFIG, tmp_path / n, progress=False) for s, n in ((good, "a"), (noisy, "b")))
    assert b["value"] > 3 * a["value"]
    assert b["kid"]["mean"] > a["kid"]["mean"] + a["kid"]["deviation"]
    assert b["precision"] < a["precision"]


def test_pathologies(extractor, tmp_path):
    with pytest.raises(ValueError, match="all 20 real images have the same features"):
        describe_real(torch.zeros(20, 1, 64, 64), extractor, CONFIG, progress=False)
    twins = (patients(3, 0) + patients(3, 0).flip(3)).mul(0.5).repeat(12, 1, 1, 1)
    real = describe_real(twins, extractor, CONFIG, progress=False)
    with pytest.raises(ValueError, match="has 5 duplicates among the real images"):
        evaluate(real, patients(20, 1), extractor, CONFIG, tmp_path, progress=False)
    real = describe_real(patients(30, 0), extractor, CONFIG, progress=False)
    with pytest.warns(UserWarning, match="30 real images span fewer than the 64 dimensions"):
        evaluate(real, patients(80, 1), extractor, CONFIG, tmp_path, progress=False)
    with pytest.warns(UserWarning, match="collapsed to one image"):
        evaluate(real, patients(1, 1).repeat(80, 1, 1, 1), extractor, CONFIG, tmp_path, progress=False)
    for option in ({"kid_subsets": 0}, {"copy_threshold": 1.0}, {"batch_size": 0}):
        with pytest.raises(ValueError, match=f"metrics.{next(iter(option))}"):
            MetricsConfig(**option)


class UnusedExtractor:
    """An extractor that must not be called."""

    def to(self, device):
        return self

    def __call__(self, images):
        raise AssertionError("features are computed")


def test_what_can_be_refused_is_refused_before_anything_is_computed(extractor, tmp_path):
    grey, large, colour = torch.zeros(9, 1, 8, 8), torch.zeros(9, 1, 16, 16), torch.zeros(9, 3, 8, 8)
    never = UnusedExtractor()
    for training, held_out, words in (
        (grey[:3], None, "there are 3 real images; .* need at least 4"),
        (grey, large, r"the held-out images have channels and pixels \(1, 16, 16\), the training images \(1, 8, 8\)"),
        (grey, grey[:0], "there are 0 held-out images"),
    ):
        with pytest.raises(InputError, match=words):
            describe_real(training, never, CONFIG, held_out, progress=False)
    real = describe_real(patients(20, 0), extractor, CONFIG, progress=False)
    for samples, words in (
        (colour, r"the samples have channels and pixels \(3, 8, 8\)"),
        (patients(3, 1), "there are 3 samples; .* need at least 4"),
    ):
        with pytest.raises(InputError, match=words):
            evaluate(real, samples, never, CONFIG, tmp_path, progress=False)


@pytest.mark.parametrize("odd", [(9, 8), (8, 8, 3)])
def test_the_last_of_the_samples_is_looked_at_first(extractor, tmp_path, odd):
    """The last file has another size or colour mode, as a picture and in a block."""
    real = describe_real(patients(20, 0)[..., :8, :8], extractor, CONFIG, progress=False)
    for form in ("png", "npy"):
        (tmp_path / form).mkdir()
        for number, shape in enumerate([(8, 8)] * 8 + [odd]):
            pixels = np.zeros(shape, np.uint8)
            if form == "png":
                Image.fromarray(pixels).save(tmp_path / form / f"{number:06d}.png")
            else:
                np.save(tmp_path / form / f"images-{number:08d}.npy", np.atleast_3d(pixels)[None])
        with pytest.raises(InputError, match=r"000008\.(png|npy) holds uint8 images with"):
            evaluate(real, SampleFolder(tmp_path / form), UnusedExtractor(), CONFIG, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_result_is_written_whole_or_not_at_all(extractor, tmp_path, monkeypatch):
    real = describe_real(patients(80, 0), extractor, CONFIG, progress=False)
    evaluate(real, patients(80, 1), extractor, CONFIG, tmp_path, progress=False)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert set(before) == {"evaluation.json", "closest.png"}

    def full(figure, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("matplotlib.figure.Figure.savefig", full)
        for out in (tmp_path, tmp_path / "new"):
            with pytest.raises(OSError, match="No space left"):
                evaluate(real, patients(80, 2), extractor, CONFIG, out, progress=False)
    assert not list((tmp_path / "new").iterdir())
    (tmp_path / "new").rmdir()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def anonymous_memory():
    """Anonymous memory of this process in MiB; file-backed memory (mapped features) can be dropped at any time."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_images(extractor, tmp_path, capsys):
    """50,000 PNG files (links to 64 real ones), from features to mean and covariance."""
    for i, image in enumerate(quantised(patients(64, 7))):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i:06d}.png")
    for i in range(64, 50_000):
        os.link(tmp_path / f"{i % 64:06d}.png", tmp_path / f"{i:06d}.png")
    described = describe_images(SampleFolder(tmp_path, 1000), extractor)  # so that libraries are loaded
    distance = frechet_distance(fit_gaussian(described.features), fit_gaussian(described.features))
    before = peak = anonymous_memory()

    def watch(_):
        nonlocal peak
        peak = max(peak, anonymous_memory())

    described = describe_images(SampleFolder(tmp_path), extractor, progress=watch)
    fit = fit_gaussian(described.features)
    watch(0)
    assert peak - before < 64
    assert fit.count == 50_000
    assert distance < 1e-9
    with capsys.disabled():
        print(f"\n50,000 images at {described.images_per_second:.0f} images/s, peak memory +{peak - before:.1f} MiB")
