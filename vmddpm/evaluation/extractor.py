"""The feature extractor: a file from the user, or fixed random convolutions. Nothing is downloaded."""

import hashlib
import importlib
import itertools
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vmddpm.errors import InputError, VmddpmError
from vmddpm.evaluation.resize import RESIZERS, resize
from vmddpm.files import sha256
from vmddpm.numbers import check_numbers

INCEPTION_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/metrics/inception-2015-12-05.pt"
INCEPTION_SHA256 = "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
HOW_TO_GET_ONE = f"""download Inception-v3 of the original FID, a program that will run with your rights, with
  curl -LO {INCEPTION_URL}
  and give --extractor.path inception-2015-12-05.pt, or random, which is not FID; others are in docs/evaluation.md"""

_RANGES = ("0..255", "-1..1", "0..1", "imagenet")


class ExtractorError(VmddpmError, ValueError):
    """An extractor is unusable; the message says what to do."""


@dataclass(frozen=True)
class ExtractorConfig:
    """The feature extractor and its preprocessing.

    Raises:
        InputError: naming the field, its value and what it must be.
    """

    path: str = ""
    """A TorchScript file, such as NVIDIA's inception-2015-12-05.pt; or weights for `module`; or "random", for fixed
    random convolutions, whose distances are not FIDs. A TorchScript file is a program that will be run: use only files
    from sources you trust. Weights are data."""

    module: str | None = None
    """package.module:function, which builds the network without arguments; `path` then holds its state_dict
    (.safetensors, or from torch.save). Null for TorchScript. Importing the module runs its code."""

    resizer: Literal["tf1", "bilinear", "bicubic", "none"] = "tf1"
    """How images are resized for the network: "tf1" is TensorFlow 1's bilinear resize, used by the original FID;
    "bilinear" and "bicubic" are antialiased, as in torchmetrics and clean-fid; "none" leaves it to the network. FIDs of
    different resizers are not comparable."""

    size: int = 299
    """Side of the network's input images."""

    value_range: Literal["0..255", "-1..1", "0..1", "imagenet"] = "0..255"
    """Value range of the input; "imagenet" is 0..1, normalised by ImageNet's mean and standard deviation."""

    def __post_init__(self) -> None:
        check_numbers(self, "extractor.", {"size": 8192})
        if self.size < 1:
            raise InputError(f"extractor.size is {self.size}; it must be at least 1")
        for name, allowed in (("resizer", RESIZERS), ("value_range", _RANGES)):
            if getattr(self, name) not in allowed:
                raise InputError(f"extractor.{name} is {getattr(self, name)!r}; it must be one of {', '.join(allowed)}")


class Extractor:
    """Computes features: extractor(images uint8 (B, 1 or 3, H, W)) -> float32 (B, d). With a network for volumes, the
    input is uint8 (B, 1, D, H, W).

    Args:
        network: takes float32 (B, 3, size, size) and returns (B, d), or (B, d, h, w), which is averaged. For volumes it
            takes (B, 1, D, H, W) without resizing, and may return (B, d, d', h, w).
        config: preprocessing.
        name: name of its distance in results and tables.
        digest: SHA-256 of its weights.
    """

    def __init__(self, network: nn.Module, config: ExtractorConfig, name: str, digest: str) -> None:
        self.network = network.eval()
        self.config, self.name, self.digest = config, name, digest
        self.device = torch.device("cpu")
        forward: Any = getattr(network, "forward", None)
        schema = getattr(forward, "schema", None)  # only TorchScript has one
        # NVIDIA's Inception returns class logits by default.
        self._options = {"return_features": True} if schema and "return_features" in str(schema) else {}

    def to(self, device: torch.device) -> "Extractor":
        self.device = device
        self.network.to(device)
        return self

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        volumes = images.dim() == 5
        if images.shape[1] == 1 and not volumes:
            images = images.expand(-1, 3, -1, -1)
        pixels = images.to(self.device).float()
        pixels = pixels if volumes else resize(pixels, self.config.size, self.config.resizer)
        try:
            features = self.network(_in_range(pixels, self.config.value_range), **self._options)
        except RuntimeError as error:  # in the user's network
            reason = str(error).strip().rpartition("\n")[2]
            raise ExtractorError(
                f"{self.name}: the extractor fails on {len(pixels)} images of "
                f"{' x '.join(map(str, pixels.shape[2:]))} ({reason}); set extractor.size to what it takes, or "
                "metrics.batch_size to less"
            ) from error
        if not isinstance(features, Tensor) or features.dim() not in (2, 2 + len(pixels.shape[2:])):
            shape = tuple(features.shape) if isinstance(features, Tensor) else type(features).__name__
            raise ExtractorError(
                f"{self.name}: the extractor returned {shape}; it must return features (B, d) or (B, d, h, w)"
            )
        return (features.flatten(2).mean(2) if features.dim() > 2 else features).float()

    def describe(self) -> dict[str, Any]:
        """The entry for the result file."""
        return {**asdict(self.config), "path": Path(self.config.path).name, "sha256": self.digest,
                "quantisation": "8 bits, before resizing", "grey": "repeated to 3 channels"}  # fmt: skip


def _in_range(pixels: Tensor, value_range: str) -> Tensor:
    if value_range == "0..255":
        return pixels
    if value_range == "-1..1":
        return pixels / 127.5 - 1
    unit = pixels / 255
    if value_range == "0..1":
        return unit
    mean, deviation = unit.new_tensor([0.485, 0.456, 0.406]), unit.new_tensor([0.229, 0.224, 0.225])
    return (unit - mean[:, None, None]) / deviation[:, None, None]


def load_extractor(config: ExtractorConfig, axes: int = 2) -> Extractor:
    """Load the extractor.

    Args:
        axes: 2 for images, 3 for volumes.

    Raises:
        ExtractorError: if the file is missing or does not give a network, or if `resizer` would resize volumes.
    """
    if axes == 3 and config.resizer != "none":
        raise ExtractorError(
            f"extractor.resizer is {config.resizer!r}, which resizes images; volumes go to the network unchanged: "
            "set it to none, or compare slices"
        )
    if config.path == "random":
        network = random_convolutions(axes=axes)
        weights = b"".join(v.numpy().tobytes() for v in network.state_dict().values())
        return Extractor(network, config, "Fréchet distance, random features", hashlib.sha256(weights).hexdigest())
    if not config.path:
        raise ExtractorError(f"extractor.path is not given; {HOW_TO_GET_ONE}")
    path = Path(config.path)
    if not path.is_file():
        raise ExtractorError(f"extractor.path: there is no file {path}; {HOW_TO_GET_ONE}")
    digest = sha256(path)
    network = _with_weights(_factory(config.module)(), path) if config.module else _torchscript(path)
    name = "FID" if digest == INCEPTION_SHA256 else f"Fréchet distance, features of {path.name}"
    return Extractor(network, config, name, digest)


def _torchscript(path: Path) -> nn.Module:
    try:
        network: nn.Module = torch.jit.load(str(path), map_location="cpu")
        return network
    except Exception as error:  # torch.jit.load documents no closed set
        raise ExtractorError(
            f"{path} is not TorchScript ({str(error).splitlines()[0]}); save the network with torch.jit.save, or set "
            "extractor.module to the function that builds it, as package.module:function"
        ) from error


def _factory(name: str) -> Callable[[], nn.Module]:
    module, _, function = name.partition(":")
    try:
        make: Callable[[], nn.Module] = getattr(importlib.import_module(module), function)
        return make
    except (ImportError, AttributeError, ValueError) as error:
        raise ExtractorError(
            f"extractor.module is {name!r}; it must be package.module:function that can be imported ({error})"
        ) from error


def _with_weights(network: nn.Module, path: Path) -> nn.Module:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            network.load_state_dict(load_file(path))
        else:
            network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # neither loader documents a closed set
        raise ExtractorError(f"{path} does not hold the weights of the network: {error}") from error
    return network


def random_convolutions(features: int = 64, seed: int = 20240505, axes: int = 2) -> nn.Module:
    """Four strided convolutions with random weights from the seed, for images in 0..255: (B, 3, H, W) -> (B, 64, h, w),
    or with axes 3 for volumes: (B, 1, D, H, W) -> (B, 64, d, h, w).

    Their features distinguish textures, contrast and coarse shapes, but not anatomy. They are a substitute for a
    pretrained network in tests, and for comparing runs on the same images.
    """
    generator = torch.Generator().manual_seed(seed)
    widths = (3 if axes == 2 else 1, 16, 32, 64, features)
    layer = nn.Conv2d if axes == 2 else nn.Conv3d
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        convolution = layer(inputs, outputs, 3, stride=2, padding=1)
        scales = (2 / (3**axes * inputs)) ** 0.5, 0.1  # weight, bias
        for parameter, scale in zip(convolution.parameters(), scales):
            parameter.data = torch.randn(parameter.shape, generator=generator) * scale
        layers += [convolution, nn.ReLU()]
    return nn.Sequential(_Centred(), *layers)


class _Centred(nn.Module):
    def forward(self, pixels: Tensor) -> Tensor:
        return pixels / 127.5 - 1
