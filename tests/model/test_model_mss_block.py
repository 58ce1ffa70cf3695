import pytest
import torch
from torch import nn

from vmddpm.model import ModelConfig, MSSBlock, SSLayer
from vmddpm.model.resnet_block import ResNetBlock, TimeCNN
from vmddpm_kernels import routes

CONFIG = ModelConfig(base_channels=8, norm_groups=4, d_state=4)


def perturbed(module, seed=0):
    """Move every parameter off its initial value, including zero convolutions."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return module


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 8, 4, 6, generator=generator).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(2, CONFIG.time_dim, generator=generator), routes(4, 6)


def zero(*parameters):
    with torch.no_grad():
        for parameter in parameters:
            parameter.zero_()


def test_path_a_input_alone(inputs):
    block = perturbed(MSSBlock(8, CONFIG))
    zero(block.csm.out.weight, block.cnn.conv_out.weight, block.cnn.conv_out.bias)
    assert torch.equal(block(*inputs), inputs[0])


def test_path_b_cnn_alone(inputs):
    block = perturbed(MSSBlock(8, CONFIG))
    zero(block.csm.out.weight)
    x, time, _ = inputs
    branch = block(*inputs) - x
    torch.testing.assert_close(branch, block.cnn(x, time))
    assert branch.abs().max() > 0.1


def test_path_c_csm_alone(inputs):
    block = perturbed(MSSBlock(8, CONFIG))
    zero(block.cnn.conv_out.weight, block.cnn.conv_out.bias)
    x, _, table = inputs
    branch = block(*inputs) - x
    torch.testing.assert_close(branch, block.csm(x, table))
    assert branch.abs().max() > 0.1


def test_path_d_cnn_after_csm(inputs):
    block = perturbed(MSSBlock(8, CONFIG))
    x, time, table = inputs
    long_range = block.csm(x, table)
    mixed = block(*inputs) - x - long_range - block.cnn(x, time)  # the rest without (a), (b) and (c)
    torch.testing.assert_close(mixed, block.cnn(x + long_range, time) - block.cnn(x, time))
    assert mixed.abs().max() > 0.1


def test_linear_branches_unroll_into_exactly_four_paths(inputs):
    class Multiply(nn.Module):
        def __init__(self, factor):
            super().__init__()
            self.factor = factor

        def forward(self, x, _):
            return self.factor * x

    block = MSSBlock(8, CONFIG)
    block.csm, block.cnn = Multiply(3.0), Multiply(5.0)
    x = inputs[0]
    torch.testing.assert_close(block(*inputs), x + 5 * x + 3 * x + 15 * x)


def test_ss_layer_is_a_residual_around_resnet_block_and_mss_block(inputs):
    layer = perturbed(SSLayer(8, CONFIG))
    x, time, table = inputs
    assert torch.equal(layer(*inputs), x + layer.mss(layer.resnet(x, time), time, table))


def test_the_cnn_and_the_resnet_block_start_as_zero_and_identity(inputs):
    x, time, _ = inputs
    assert torch.equal(TimeCNN(8, CONFIG.time_dim, 4)(x, time), torch.zeros_like(x))
    assert torch.equal(ResNetBlock(8, CONFIG.time_dim, 4)(x, time), x)


def test_the_time_scales_and_shifts_each_channel(inputs):
    x, time, _ = inputs
    cnn = perturbed(TimeCNN(8, CONFIG.time_dim, 4))
    first = nn.functional.group_norm(x, 4, cnn.norm_in.weight, cnn.norm_in.bias)
    normalised = nn.functional.group_norm(cnn.conv_in(first * first.sigmoid()), 4)
    scale, shift = (time @ cnn.time.weight.T + cnn.time.bias).split(8, dim=1)
    h = torch.einsum("bchw,bc->bchw", normalised, 1 + scale) + shift[:, :, None, None]
    torch.testing.assert_close(cnn(x, time), cnn.conv_out(h * h.sigmoid()))
    assert not torch.allclose(cnn(x, time), cnn(x, time + 1))
