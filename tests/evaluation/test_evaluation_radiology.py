"""The programs in docs/evaluation.md that make extractors from radiology networks run with stand-ins for the packages
they need: the same interfaces, fewer channels."""

import re
import sys
from collections import OrderedDict
from pathlib import Path
from types import ModuleType

import pytest
import torch
from evaluation_cases import patients
from torch import nn

from vmddpm.evaluation import ExtractorConfig, load_extractor
from vmddpm.evaluation.images import quantised

PAGE = (Path(__file__).parents[2] / "docs" / "evaluation.md").read_text(encoding="utf-8")
PROGRAMS = re.findall(r"^```py\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)


def program(word):
    (text,) = [text for text in PROGRAMS if word in text]
    return compile(text, word, "exec")


class DenseNet(nn.Module):
    """Like torchxrayvision.models.DenseNet: `features` takes (B, 1, 224, 224) in -1024..1024 and ends in a norm."""

    def __init__(self, weights):
        super().__init__()
        assert weights == "densenet121-res224-all"
        self.features = nn.Sequential(
            OrderedDict(conv0=nn.Conv2d(1, 4, 7, 32, 3), relu0=nn.ReLU(inplace=True), norm5=nn.BatchNorm2d(4))
        )
        self.features.norm5.running_mean.fill_(50.0)


class ResNet(nn.Module):
    """Like torchvision.models.resnet50: nine children before the classifier, the last one the average pool."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1, self.relu = nn.Conv2d(3, 4, 7, 2, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.layer1, self.layer2 = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 6, 1)
        self.layer3, self.layer4 = nn.Conv2d(6, 6, 1), nn.Conv2d(6, 8, 1)
        self.avgpool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 1000)


@pytest.fixture
def images():
    return quantised(patients(3, 0))


def config(path):
    return ExtractorConfig(path=str(path), size=224, value_range="-1..1", resizer="bilinear")


def seen(images):
    """The input that a network for 224 x 224 in -1..1 should get from 8-bit images."""
    return nn.functional.interpolate(images.float(), (224, 224), mode="bilinear", antialias=True) / 127.5 - 1


def test_torchxrayvision(images, tmp_path, monkeypatch):
    made = []
    package = ModuleType("torchxrayvision")
    package.models = ModuleType("torchxrayvision.models")
    package.models.DenseNet = lambda weights: made.append(DenseNet(weights).eval()) or made[-1]
    monkeypatch.setitem(sys.modules, "torchxrayvision", package)
    monkeypatch.chdir(tmp_path)
    exec(program("torchxrayvision"), {"__name__": "program"})
    found = load_extractor(config("torchxrayvision.pt"))(images)
    with torch.no_grad():
        expected = made[0].features(1024 * seen(images)).relu().mean((2, 3))
    assert found.shape == (3, 4)
    assert found.abs().max() > 1
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-3)


def test_radimagenet(images, tmp_path, monkeypatch):
    theirs = ResNet().eval()
    backbone = nn.Sequential(*list(theirs.children())[:9])
    monkeypatch.chdir(tmp_path)
    torch.save({f"backbone.{name}": value for name, value in backbone.state_dict().items()}, "ResNet50.pt")
    package = ModuleType("torchvision")
    package.models = ModuleType("torchvision.models")
    package.models.resnet50 = ResNet
    monkeypatch.setitem(sys.modules, "torchvision", package)
    monkeypatch.setitem(sys.modules, "torchvision.models", package.models)
    exec(program("torchvision"), {"__name__": "program"})
    found = load_extractor(config("radimagenet.pt"))(images)
    with torch.no_grad():
        expected = backbone(seen(images).expand(-1, 3, -1, -1)).flatten(1)
    assert found.shape == (3, 8)
    assert torch.allclose(found, expected, rtol=1e-4, atol=1e-4)
