"""Resizing for extractors. FIDs are comparable only if the resizing is the same."""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

RESIZERS = ("tf1", "bilinear", "bicubic", "none")


@lru_cache(maxsize=8)
def _tf1_matrix(size_in: int, size_out: int, device: torch.device) -> Tensor:
    """float32 (size_out, size_in): the matrix of TensorFlow 1's ResizeBilinear for a row of pixels.

    Output pixel i samples position i * size_in / size_out: no half-pixel centres, no antialiasing.
    """
    position = torch.arange(size_out, dtype=torch.float64) * size_in / size_out
    low = position.floor().long()
    weight = position - low
    matrix = torch.zeros(size_out, size_in, dtype=torch.float64)
    rows = torch.arange(size_out)
    matrix[rows, low] += 1 - weight
    matrix[rows, (low + 1).clamp(max=size_in - 1)] += weight
    return matrix.float().to(device)


def resize(images: Tensor, size: int, resizer: str) -> Tensor:
    """float32 (B, C, H, W) -> (B, C, size, size).

    Args:
        resizer: "tf1", as in the original FID of Heusel et al. (2017); "bilinear" and "bicubic" with antialiasing, as
            in torchmetrics and clean-fid; "none" leaves it to the extractor.
    """
    if resizer == "none":
        return images
    if resizer == "tf1":
        rows = _tf1_matrix(images.shape[2], size, images.device)
        columns = _tf1_matrix(images.shape[3], size, images.device)
        return rows @ images @ columns.T
    return F.interpolate(images, (size, size), mode=resizer, antialias=True)
