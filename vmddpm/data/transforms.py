"""Crops, normalises and resizes planes of any size, spacing and intensity to images."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm.data.config import DataConfig, DataError

# ITU-R BT.601, the weights of Pillow's mode "L".
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
MAX_WINDOW = 1e30  # beyond it or below its inverse, float32 differences and quotients may overflow


def choose_mode(config: DataConfig, has_window: bool, has_depth: bool, why: str = "") -> str:
    """The normalisation of a file: "window", "full" or "percentile".

    Args:
        has_window: the file has a usable window.
        has_depth: the range of its values is that of a bit depth.
        why: the fault of the file's window, if it has an unusable one.

    Raises:
        DataError: if `normalize` is "window" and there is none.
    """
    if config.normalize == "auto":
        if config.window or has_window:
            return "window"
        return "full" if has_depth else "percentile"
    if config.normalize == "window" and not (config.window or has_window):
        raise DataError(f"{why or 'has no window of its own'}; set window to (centre, width), or change normalize")
    return config.normalize


def display_range(
    values: np.ndarray, mode: str, config: DataConfig, depth: float | None = None
) -> tuple[float, float]:
    """The values shown as black and white.

    Args:
        values: all values of a volume, any shape; non-finite values are ignored.
        mode: from `choose_mode`; "window" is the window of `config`.
        depth: largest value of the bit depth; None if the values have none.

    Returns:
        (black, white) in the units of `values`; equal if the volume is constant.
    """
    if mode == "window" and config.window is not None:
        centre, width = config.window
        return centre - width / 2, centre + width / 2
    if mode == "full" and depth is not None:
        return 0.0, float(depth)
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 0.0
    if mode == "percentile":
        black, white = np.percentile(finite, config.percentiles, overwrite_input=True)  # `finite` is a copy
        # The percentiles of a volume that is nearly all background can be equal although it contains an image.
        if black < white:
            return float(black), float(white)
    return float(finite.min()), float(finite.max())


def narrowed(values: np.ndarray, step: float | None) -> np.ndarray:
    """The values as float32, or as float64 if float32 would round them too much.

    Args:
        step: the smallest difference that matters; None for floating-point values: then float32 must resolve the range
            to 18 bits.
    """
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32, copy=False)
    if values.dtype.itemsize <= 2 or values.dtype == np.float32:
        return narrow
    finite = np.isfinite(values)  # a mask, because a copy of the values could take most of the memory
    if not finite.any():
        return narrow
    low = float(values.min(where=finite, initial=np.inf)) if values.dtype.kind == "f" else float(values.min())
    high = float(values.max(where=finite, initial=-np.inf)) if values.dtype.kind == "f" else float(values.max())
    largest = max(-low, high)
    fits = largest <= 2**6 * (high - low) if step is None else largest <= 2**24 * step
    return narrow if (fits or low == high) and largest <= float(np.finfo(np.float32).max) else values.astype(np.float64)


def normalise(pixels: np.ndarray, black: float, white: float) -> np.ndarray:
    """Map black to -1 and white to 1, and clip; black may be larger than white (an inverted image).

    Args:
        pixels: floats, any shape.

    Returns:
        float32 of the same shape. Non-finite pixels are background, -1, as are all pixels if black equals white.
    """
    if black == white:
        return np.full(pixels.shape, -1, np.float32)
    finite = np.isfinite(pixels)
    if max(abs(black), abs(white)) < MAX_WINDOW and abs(white - black) > 1 / MAX_WINDOW:
        scaled = (np.where(finite, pixels, np.float32(black)) - black) * (2 / (white - black)) - 1
    else:
        part = 0.5 if max(abs(black), abs(white)) > 1 else 1.0  # halved, so that differences do not overflow
        values = np.where(finite, pixels.astype(np.float64), black)
        scaled = (values * part - black * part) / (white * part - black * part) * 2 - 1
    return np.where(finite, np.clip(scaled, -1, 1), -1).astype(np.float32)


def centre_square(pixels: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """The largest centred part that is square in millimetres, to the nearest pixel.

    Resizing the part to a square image also makes its pixels square: side views of thick slices are stretched
    to their true proportions, with one interpolation instead of two.

    Args:
        pixels: (H, W) or (H, W, 3).
        spacing: row spacing and column spacing in millimetres.

    Raises:
        DataError: if the part is less than 2 pixels high or wide, as in a side view of a single slice.
    """
    height, width = pixels.shape[:2]
    side = min(height * spacing[0], width * spacing[1])
    rows, columns = round(side / spacing[0]), round(side / spacing[1])
    if min(rows, columns) < 2:
        raise DataError(
            f"the centre square of {height} x {width} pixels of {spacing[0]:g} x {spacing[1]:g} mm is only "
            f"{rows} x {columns} pixels; choose other axes"
        )
    top, left = (height - rows) // 2, (width - columns) // 2
    return pixels[top : top + rows, left : left + columns]


def resize(images: Tensor, size: int) -> Tensor:
    """Antialiased bilinear resize, which stays within the range of its input.

    Args:
        images: float (B, C, H, W).

    Returns:
        float (B, C, size, size).
    """
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=True)


def prepare(
    pixels: np.ndarray,
    black: float,
    white: float,
    config: DataConfig,
    spacing: tuple[float, float] = (1.0, 1.0),
) -> np.ndarray:
    """Crop, normalise and resize one plane; a crop of a volume is only normalised.

    Args:
        pixels: floats (H, W), or (H, W, 3) in colour; row 0 is the top. With `spatial_dims` 3, (D, H, W).
        black, white: from `display_range`.
        spacing: row spacing and column spacing in millimetres.

    Returns:
        float32 of `config.shape` in [-1, 1].

    Raises:
        DataError: if the plane has too few pixels.
    """
    if config.spatial_dims == 3:
        return normalise(pixels, black, white)[None]
    image = normalise(centre_square(pixels, spacing), black, white)
    if image.ndim == 3 and config.channels == 1:
        image = image @ LUMINANCE
    planes = np.moveaxis(image, 2, 0) if image.ndim == 3 else image[None]  # (1 or 3, h, w)
    resized = resize(torch.from_numpy(np.ascontiguousarray(planes))[None], config.size)[0]
    return resized.clamp(-1, 1).expand(config.channels, -1, -1).numpy()


def random_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror each image left to right with probability one half.

    "image flipping and other preprocessing operations to avoid model overfitting" (paper, IV-A
    Implementation) is read as horizontal flips of the training images only. A flip moves the heart to the
    other side of the chest, so reference images for a comparison should not be flipped.

    Args:
        images: (B, C, H, W), or volumes (B, C, D, H, W) with the patient's right and left along W.
        generator: source of the B random bits, drawn on its device.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    coins = torch.rand(images.shape[0], generator=generator, device=generator.device) < 0.5
    return torch.where(coins.to(images.device).view(-1, *[1] * (images.dim() - 1)), images.flip(-1), images)
