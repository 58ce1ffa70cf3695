"""Group normalisation with SiLU by the C++ kernels of csrc/."""

import torch
from torch import Tensor

from vmddpm_kernels.backends import extension
from vmddpm_kernels.backends.extension import cast, rounded
from vmddpm_kernels.checks import check_memory

# The channels-last memory format, by the number of axes.
MEMORY_FORMATS = {2: torch.contiguous_format, 4: torch.channels_last, 5: torch.channels_last_3d}


def accumulation(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype is torch.float64 else torch.float32


def group_norm_silu(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y, mean (B, G) and rstd (B, G) of a channels-last x (B, C, ...)."""
    dtype = accumulation(x)
    y = torch.empty_like(x)
    mean, rstd = (torch.empty(x.shape[0], groups, dtype=dtype) for _ in range(2))
    extension.native.group_norm_forward(
        x, cast(weight, dtype), cast(bias, dtype), mean, rstd, y, eps, torch.get_num_threads()
    )
    return y, mean, rstd


def group_norm_silu_backward(
    dy: Tensor, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, rstd: Tensor
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias in their dtypes; None for None."""
    dtype = accumulation(x)
    if not has_pixels(dy):
        check_memory((dy,))
        dy = dy.contiguous(memory_format=MEMORY_FORMATS[dy.dim()])
    dx = torch.empty_like(x)
    dweight, dbias = (torch.empty(x.shape[:2], dtype=dtype) for _ in range(2))
    extension.native.group_norm_backward(
        rounded(dy, x.dtype), x, cast(weight, dtype), cast(bias, dtype), mean, rstd, dx, dweight, dbias,
        torch.get_num_threads(),
    )  # fmt: skip
    return dx, _of(weight, dweight), _of(bias, dbias)


def has_pixels(x: Tensor) -> bool:
    """Whether x is channels-last in memory."""
    memory_format = MEMORY_FORMATS.get(x.dim())
    return memory_format is not None and x.is_contiguous(memory_format=memory_format)


def _of(parameter: Tensor | None, of_images: Tensor) -> Tensor | None:
    """The gradient of a parameter: of each image, or summed over the images that share it, in order."""
    if parameter is None:
        return None
    return rounded(of_images if parameter.dim() == 2 else of_images.sum(0), parameter.dtype)
