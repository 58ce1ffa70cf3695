"""Fused group normalisation and SiLU, which precede each convolution of a ResNet block."""

from torch import Tensor

from vmddpm_kernels.ops.group_norm import check, normalise


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor | None = None, bias: Tensor | None = None, *, eps: float = 1e-5
) -> Tensor:
    """SiLU(GroupNorm(x) weight + bias), Wu and He (2018), with one affine map for all images or one for each.

    On a CPU, a channels-last x (torch.channels_last) is read twice and y is written once, and x is the only tensor of
    its size saved for the backward. Otherwise PyTorch's operators compute the result.

    Args:
        x: (B, C, ...), float16, bfloat16, float32 or float64.
        groups: a divisor of C; each group is normalised by its mean and variance over the pixels of an image.
        weight: (C,), or (B, C) for one scale per image, such as a time embedding gives; 1 if not given.
        bias: (C,) or (B, C); 0 if not given.
        eps: added to the variance.

    Returns:
        y in x's shape, memory order and dtype.

    Raises:
        TypeError, ValueError: if an argument is invalid; the message names it.

    Example:
        >>> x = torch.randn(2, 8, 5, 5).to(memory_format=torch.channels_last)
        >>> y = group_norm_silu(x, 4, torch.ones(8), torch.zeros(2, 8))             # (2, 8, 5, 5)
    """
    check(x, groups, weight, bias)
    return normalise(x, groups, weight, bias, eps)
