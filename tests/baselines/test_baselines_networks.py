"""The networks of the GANs and the UNet: published sizes, and layers against their definitions."""

import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from vmddpm.baselines.config import GANConfig, multipliers
from vmddpm.baselines.layers import DownBlock, ModulatedNorm, SelfAttention, convolution, follow_spectral_norms
from vmddpm.baselines.networks import Generator, GeneratorConfig, build_discriminator
from vmddpm.model import VMDDPM, ModelConfig
from vmddpm.model.csm import CSM
from vmddpm.model.unet import UNet, UNetConfig
from vmddpm.systems import cost
from vmddpm.training import RunConfig


def parameters(network):
    return sum(p.numel() for p in network.parameters())


def sizes(system, size, latent_dim, channels=3):
    """Parameter counts of generator and discriminator."""
    config = GeneratorConfig(system, channels, size, GANConfig(latent_dim=latent_dim))
    with torch.device("meta"):
        return parameters(Generator(config)), parameters(build_discriminator(config))


def test_published_size_of_dcgan():
    """pytorch/examples and PyTorch's tutorial, 64 x 64 colour, nz 100, ngf and ndf 64; layers summed by hand."""
    generator = (100 * 512 + 512 * 256 + 256 * 128 + 128 * 64 + 64 * 3) * 16 + 2 * (512 + 256 + 128 + 64)
    discriminator = (3 * 64 + 64 * 128 + 128 * 256 + 256 * 512 + 512 * 1) * 16 + 2 * (128 + 256 + 512)
    assert (generator, discriminator) == (3_576_704, 2_765_568)
    assert sizes("dcgan", 64, 100) == (generator, discriminator)


def test_published_size_of_sagan():
    """81.5 million for both networks with ImageNet's classes (Brock et al., 2019, Table 1, row SA-GAN). Each of the
    1,000 classes has gains and biases in every residual block, and an embedding in the discriminator."""
    normalised = 1024 + 1024 + 1024 + 512 + 512 + 256 + 256 + 128 + 128 + 64
    classes = (1000 - 1) * 2 * normalised + 1000 * 1024
    assert sum(sizes("sagan", 128, 128)) + classes == pytest.approx(81.5e6, rel=0.002)


def test_published_size_of_unetgan():
    """Counted in the released code with the options of its script for CelebA at 128 x 128: 33,732,739 and 31,481,667;
    65 of the latter belong to a layer that is never used."""
    assert sizes("unetgan", 128, 128) == (33_732_739, 31_481_667 - 65)


@pytest.mark.parametrize(("widths", "attention", "published"), [
    ((128, 256, 256, 256), (False, True, False, False), 35.7e6),
    ((128, 128, 256, 256, 512, 512), (False, False, False, False, True, False), 114e6),
])  # fmt: skip
def test_published_size_of_the_unet(widths, attention, published):
    """Ho et al. (2020), appendix B: 35.7 million for CIFAR10, 114 million at 256 x 256."""
    with torch.device("meta"):
        assert parameters(UNet(UNetConfig(3, widths, attention))) == pytest.approx(published, rel=0.005)


def test_costs_in_the_papers_setting():
    """Grey 128 x 128, latent 1,000. DCGAN's FLOPs by hand: two per multiply-add of a transposed convolution."""
    found = cost(RunConfig(system="dcgan"))
    assert (found.parameters, found.discriminator_parameters) == sizes("dcgan", 128, 1000, 1)
    widths, side, flops = [1024, 512, 256, 128, 64, 1], 4, 2 * 1000 * 1024 * 16
    for inputs, outputs in zip(widths, widths[1:]):  # noqa: RUF007
        flops += 2 * inputs * outputs * 16 * side**2  # every input pixel meets every weight
        side *= 2
    assert found.flops == flops
    assert "27.53 M and 11.16 M parameters" in str(found)
    assert cost(RunConfig(system="unet")).discriminator_parameters == 0


def test_costs_count_the_scan_whatever_was_imported_first():
    """Runs in a new process because the order of imports matters. The scan by hand: 9 FLOPs for each step, channel and
    state of the four routes, 1 for each skip weight."""
    sizes = {"base_channels": 8, "channel_multipliers": (1, 2), "sampling": (2, 2), "norm_groups": 4, "d_state": 3}
    program = (
        "import vmddpm_kernels; from vmddpm.data import DataConfig; from vmddpm.model import ModelConfig; "
        "from vmddpm.systems import cost; from vmddpm.training import RunConfig; "
        f"print(cost(RunConfig(model=ModelConfig(**{sizes}), data=DataConfig(size=16))).flops)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    model, scan = VMDDPM(ModelConfig(**sizes)).eval(), 0

    def add_scan(module, inputs):
        nonlocal scan
        channels, height, width = inputs[0].shape[1:]
        # The block doubles the channels; the step size of each channel is a sum over ranks.
        scan += 4 * height * width * 2 * channels * (9 * 3 + 1 + 2 * module.rank)

    for module in model.modules():
        if isinstance(module, CSM):
            module.register_forward_pre_hook(add_scan)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(torch.zeros(1, 1, 16, 16), torch.zeros(1, dtype=torch.int64))
    others = sum(flops for op, flops in counter.get_flop_counts()["Global"].items() if "vmddpm" not in str(op))
    assert scan > 0
    assert done.stdout == f"{others + scan}\n", done.stderr


@pytest.mark.parametrize("system", ["dcgan", "sagan", "unetgan"])
@pytest.mark.parametrize(("size", "channels"), [(16, 1), (32, 3)])
def test_shapes(system, size, channels):
    config = GeneratorConfig(system, channels, size, GANConfig(latent_dim=10, base_channels=8, attention_size=8))
    images = Generator(config)(torch.rand(3, 10) * 2 - 1)
    assert images.shape == (3, channels, size, size)
    assert images.abs().max() <= 1
    answers = build_discriminator(config)(images)
    assert [tuple(a.shape) for a in answers] == [(3, 1, size, size), (3,)][system != "unetgan" :]


def test_invalid_sizes():
    assert multipliers(128) == (16, 8, 4, 2, 1)
    for size in (0, 8, 96, 100):
        with pytest.raises(ValueError, match="power of 2"):
            multipliers(size)
    for options in ({"latent_dim": 0}, {"base_channels": 0}, {"loss": "wgan"}, {"beta1": 1.0}, {"cutmix": -1.0}):
        with pytest.raises(ValueError, match=f"gan.{next(iter(options))}"):
            GANConfig(**options)
    with pytest.raises(ValueError, match="system is 'vae'"):
        RunConfig(system="vae")
    with pytest.raises(ValueError, match=r"unet\.widths"):
        UNetConfig(widths=(100,), attention=(False,))


def largest_singular_value(layer):
    return torch.linalg.svdvals(layer.weight.detach().flatten(1).double())[0].item()


def test_spectral_normalisation():
    """After many passes every convolution's largest singular value is 1; eval mode changes nothing."""
    layer = convolution(6, 8)
    layer.parametrizations.weight.original.data *= 7
    for _ in range(50):
        layer(torch.zeros(1, 6, 4, 4))
    assert largest_singular_value(layer) == pytest.approx(1, abs=1e-4)
    before = {k: v.clone() for k, v in layer.eval().state_dict().items()}
    layer(torch.zeros(1, 6, 4, 4))
    assert all(torch.equal(v, before[k]) for k, v in layer.state_dict().items())


def test_averaged_weights_stay_normalised():
    network = nn.Sequential(convolution(4, 5)).eval()
    network[0].parametrizations.weight.original.data = torch.randn(5, 4, 3, 3) * 3
    for _ in range(60):
        follow_spectral_norms(network)
    assert largest_singular_value(network[0]) == pytest.approx(1, abs=1e-4)
    assert not network[0].parametrizations.training


def test_self_attention_by_loops():
    """SAGAN's Eq. 1 to 3 with max-pooled keys and values, pixel by pixel in float64."""
    layer = SelfAttention(16).double().eval()
    assert torch.equal(layer(torch.ones(1, 16, 4, 4).double()), torch.ones(1, 16, 4, 4).double())  # gamma is 0
    layer.gamma.data.fill_(0.7)
    x = torch.randn(2, 16, 4, 6, dtype=torch.float64)
    expected = x.clone()
    for b in range(2):
        maps = {n: F.conv2d(x[b], getattr(layer, n).weight) for n in ("query", "key", "value")}
        pooled = {n: maps[n].unflatten(1, (2, 2)).unflatten(3, (3, 2)).amax((2, 4)) for n in ("key", "value")}
        for i in range(4):
            for j in range(6):
                scores = torch.stack([(maps["query"][:, i, j] * pooled["key"][:, p, q]).sum()
                                      for p in range(2) for q in range(3)])  # fmt: skip
                weights = scores.exp() / scores.exp().sum()
                gathered = sum(w * pooled["value"][:, n // 3, n % 3] for n, w in enumerate(weights))
                expected[b, :, i, j] += 0.7 * layer.out.weight[:, :, 0, 0] @ gathered
    assert torch.allclose(layer(x), expected, atol=1e-12)


def test_modulated_norm():
    """Zero mean and unit variance, then each image's own scale and shift."""
    norm = ModulatedNorm(5, 7).train()
    x, z = torch.randn(6, 5, 4, 4) * 3 + 2, torch.randn(6, 7)
    plain = (x - x.mean((0, 2, 3), keepdim=True)) / (x.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
    expected = plain * (1 + norm.scale(z))[:, :, None, None] + norm.shift(z)[:, :, None, None]
    assert torch.allclose(norm(x, z), expected, atol=1e-5)


def test_down_blocks_shortcut():
    """A block whose convolutions are zero is its average-pooled shortcut."""
    for first in (True, False):
        block = DownBlock(4, 6, first=first)
        block.conv2 = nn.Conv2d(6, 6, 3, padding=1)
        nn.init.zeros_(block.conv2.weight)
        nn.init.zeros_(block.conv2.bias)
        x = torch.randn(1, 4, 8, 8)
        assert torch.allclose(block(x), F.avg_pool2d(block.shortcut(x), 2), atol=1e-6)


def test_weights_come_back(tmp_path):
    config = GeneratorConfig("sagan", 1, 16, GANConfig(latent_dim=6, base_channels=8, attention_size=8))
    generator = Generator(config).eval()
    generator.save_pretrained(tmp_path)
    back = Generator.from_pretrained(str(tmp_path)).eval()
    assert back.config == config
    z = torch.rand(2, 6)
    assert torch.equal(back(z), generator(z))
    (tmp_path / "unet").mkdir()
    unet = UNet(UNetConfig(widths=(8, 16), attention=(False, True), layers_per_stage=1, norm_groups=4)).eval()
    unet.save_pretrained(tmp_path / "unet")
    x, t = torch.randn(2, 1, 8, 8), torch.tensor([3, 700])
    assert torch.equal(UNet.from_pretrained(str(tmp_path / "unet")).eval()(x, t, order_key=(0, 1)), unet(x, t))
