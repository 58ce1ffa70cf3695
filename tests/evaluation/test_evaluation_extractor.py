"""Extractors from files, and the preprocessing of their images."""

import hashlib

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from evaluation_cases import extractor_file, patients
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from vmddpm.evaluation import ExtractorConfig, ExtractorError, SampleFolder, load_extractor
from vmddpm.evaluation.extractor import Extractor, random_convolutions
from vmddpm.evaluation.images import describe_images, mirrored_pixels, quantised, small_pixels
from vmddpm.evaluation.resize import resize


def tf1_by_loops(image, size):
    """TensorFlow 1's ResizeBilinear with align_corners=False, in float64."""
    height, width = image.shape
    out = np.zeros((size, size))
    for i in range(size):
        y = i * height / size
        y0 = int(y)
        y1, dy = min(y0 + 1, height - 1), y - y0
        for j in range(size):
            x = j * width / size
            x0 = int(x)
            x1, dx = min(x0 + 1, width - 1), x - x0
            top = image[y0, x0] * (1 - dx) + image[y0, x1] * dx
            bottom = image[y1, x0] * (1 - dx) + image[y1, x1] * dx
            out[i, j] = top * (1 - dy) + bottom * dy
    return out


@pytest.mark.parametrize(("shape", "size"), [((16, 16), 37), ((12, 20), 9), ((8, 8), 8)])
def test_tf1_resize_by_loops(shape, size):
    image = np.random.default_rng(0).integers(0, 256, shape)
    found = resize(torch.tensor(image)[None, None].float(), size, "tf1")[0, 0]
    assert np.abs(found.numpy() - tf1_by_loops(image.astype(float), size)).max() < 1e-4


def test_tf1_resize_as_inside_of_nvidias_inception():
    """The grid is shifted by half an input pixel minus half an output pixel."""
    images = quantised(patients(3, 0)).float()
    theta = torch.eye(2, 3).repeat(3, 1, 1)
    theta[:, 0, 2] = theta[:, 1, 2] = 1 / 64 - 1 / 299
    grid = F.affine_grid(theta, [3, 1, 299, 299], align_corners=False)
    theirs = F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)
    assert (resize(images, 299, "tf1") - theirs).abs().max() < 0.02
    assert (resize(images, 299, "bilinear") - theirs).abs().max() > 1


@pytest.mark.parametrize(("value_range", "black", "white"), [
    ("0..255", [0, 0, 0], [255, 255, 255]), ("-1..1", [-1, -1, -1], [1, 1, 1]), ("0..1", [0, 0, 0], [1, 1, 1]),
    ("imagenet", [-2.1179, -2.0357, -1.8044], [2.2489, 2.4286, 2.64]),
])  # fmt: skip
def test_value_ranges(value_range, black, white):
    """The values that a network gets for a black and a white image, in three channels."""
    extractor = Extractor(nn.Identity(), ExtractorConfig(size=4, value_range=value_range), "x", "")
    images = torch.stack([torch.zeros(1, 6, 6), torch.full((1, 6, 6), 255.0)]).byte()
    assert torch.allclose(extractor(images), torch.tensor([black, white], dtype=torch.float32), atol=1e-4)


def test_torchscript_file(tmp_path):
    config = extractor_file(tmp_path)
    extractor = load_extractor(config)
    images = quantised(patients(5, 0))
    pixels = images.float().expand(-1, 3, -1, -1)
    assert torch.allclose(extractor(images), random_convolutions()(pixels).mean((2, 3)), atol=1e-5)
    said = extractor.describe()
    assert said["sha256"] == hashlib.sha256((tmp_path / "features.pt").read_bytes()).hexdigest()
    assert (said["path"], said["resizer"], said["size"]) == ("features.pt", "tf1", 64)
    assert extractor.name == "Fréchet distance, features of features.pt"


class Inception(nn.Module):
    """A network with the signature of NVIDIA's file, and dropout left on."""

    def __init__(self):
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, img: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        features = self.dropout(img.mean((2, 3)))
        return features if return_features else features.softmax(1)


def test_nvidias_signature_gives_features_in_eval_mode(tmp_path):
    torch.jit.script(Inception().train()).save(str(tmp_path / "inception.pt"))
    extractor = load_extractor(ExtractorConfig(path=str(tmp_path / "inception.pt"), size=8))
    assert extractor(torch.full((2, 1, 8, 8), 200, dtype=torch.uint8)).unique().tolist() == [200]


@pytest.mark.parametrize("ending", ["safetensors", "pth"])
def test_module_with_weights(tmp_path, ending):
    state = random_convolutions(seed=1).state_dict()
    path = tmp_path / f"weights.{ending}"
    save_file(state, path) if ending == "safetensors" else torch.save(state, path)
    config = ExtractorConfig(path=str(path), module="vmddpm.evaluation.extractor:random_convolutions", size=64)
    images = quantised(patients(2, 0))
    expected = random_convolutions(seed=1)(images.float().expand(-1, 3, -1, -1)).mean((2, 3))
    assert torch.allclose(load_extractor(config)(images), expected, atol=1e-5)


def test_errors_say_what_to_fetch(tmp_path):
    for path in ("", str(tmp_path / "missing.pt")):
        with pytest.raises(ExtractorError, match=r"(?s)curl -LO https://nvlabs.*path inception-2015-12-05.pt"):
            load_extractor(ExtractorConfig(path=path))
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(ExtractorError, match="is not TorchScript"):
        load_extractor(ExtractorConfig(path=str(tmp_path / "text.pt")))
    with pytest.raises(ExtractorError, match="does not hold the weights"):
        load_extractor(
            ExtractorConfig(path=str(tmp_path / "text.pt"), module="vmddpm.evaluation.extractor:random_convolutions")
        )
    with pytest.raises(ExtractorError, match=r"package\.module:function"):
        load_extractor(ExtractorConfig(path=str(tmp_path / "text.pt"), module="nowhere:net"))
    with pytest.raises(ValueError, match="resizer is 'lanczos'"):
        ExtractorConfig(resizer="lanczos")
    with pytest.raises(ExtractorError, match=r"must return features \(B, d\)"):
        Extractor(nn.Flatten(0), ExtractorConfig(size=4), "x", "")(torch.zeros(2, 1, 4, 4, dtype=torch.uint8))


def test_the_random_extractor_is_always_the_same():
    extractor = load_extractor(ExtractorConfig(path="random"))
    assert extractor.name == "Fréchet distance, random features"
    assert extractor.digest == load_extractor(ExtractorConfig(path="random")).digest
    assert "FID" not in extractor.name


def test_images_are_described_as_their_files_are(tmp_path):
    """Floats in memory and 8-bit files of the same images give the same features, for any batch size."""
    images = patients(7, 3)
    for i, image in enumerate(quantised(images)):
        Image.fromarray(image[0].numpy()).save(tmp_path / f"{i:06d}.png")
    Image.new("L", (200, 200)).save(tmp_path / "grid.png")
    extractor = load_extractor(extractor_file(tmp_path))
    a = describe_images(images, extractor, mirror=True, batch_size=3)
    b = describe_images(SampleFolder(tmp_path), extractor, batch_size=7)
    assert torch.allclose(a.features, b.features, atol=1e-5)
    assert torch.equal(a.pixels, b.pixels)
    assert torch.allclose(a.mirrored, describe_images(images.flip(3), extractor).features, atol=1e-5)
    assert torch.allclose(mirrored_pixels(a.pixels), small_pixels(quantised(images.flip(3))), atol=1e-5)
    with pytest.raises(ValueError, match="holds 7 numbered images"):
        SampleFolder(tmp_path, 8)
    assert len(SampleFolder(tmp_path, 4)) == 4
    blocks = quantised(images).permute(0, 2, 3, 1).numpy()
    (tmp_path / "blocks").mkdir()
    for first in (0, 4):
        np.save(tmp_path / "blocks" / f"images-{first:08d}.npy", blocks[first : first + 4])
    c = SampleFolder(tmp_path / "blocks")
    assert all(torch.equal(c[i], SampleFolder(tmp_path)[i]) for i in range(7))
