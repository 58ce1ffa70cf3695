"""`torch.nn.Linear` through `vmddpm_kernels.linear`."""

from torch import Tensor, nn

from vmddpm_kernels.linear import linear


class Linear(nn.Linear):
    """`torch.nn.Linear`, faster in float32 on CPUs with AVX-512 of other makers than Intel.

    Example:
        >>> layer = Linear(96, 192, bias=False)
        >>> y = layer(torch.randn(2, 1024, 96))                                 # (..., out_features)
    """

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_features) -> (..., out_features)."""
        return linear(x, self.weight, self.bias)


def replace_linear(model: nn.Module) -> nn.Module:
    """Make every `torch.nn.Linear` in the model a `Linear`, in place. Parameters, hooks and the state dict stay as they
    are; subclasses of `torch.nn.Linear` and the projections inside `torch.nn.MultiheadAttention` are left alone.

    Returns:
        The model.

    Example:
        >>> model = replace_linear(nn.Sequential(nn.Linear(768, 3072), nn.SiLU()))
        >>> type(model[0]).__name__
        'Linear'
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model
