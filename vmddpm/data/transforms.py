"""From a plane of any size, spacing and intensity to an image: crop, normalise, resize."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from vmddpm.data.config import DataConfig, DataError

# ITU-R BT.601, the weights of Pillow's mode "L".
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
FAR = 1e30  # beyond it, and below one over it, differences and quotients of float32 are not sure to be finite


def choose_mode(config: DataConfig, has_window: bool, has_depth: bool, why: str = "") -> str:
    """What `normalize` means for a file: "window", "full" or "percentile".

    Args:
        has_window: the file brings a window of its own.
        has_depth: the range of its values is that of a bit depth.
        why: what is wrong with the window of a file that has one which cannot be used.

    Raises:
        DataError: if a window is asked for and there is none.
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
    """The values shown black and white.

    Args:
        values: all values of a volume, any shape; those that are not finite are left out.
        mode: as `choose_mode` returns it; "window" is the window of the config.
        depth: largest value of the bit depth, None if the values have none.

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
        black, white = np.percentile(finite, config.percentiles, overwrite_input=True)  # a copy of our own
        # A volume that is nearly all background has equal percentiles, but still an image in it.
        if black < white:
            return float(black), float(white)
    return float(finite.min()), float(finite.max())


def narrowed(values: np.ndarray, step: float | None) -> np.ndarray:
    """The values as float32, or as float64 where float32 would round them too much.

    Args:
        step: the least difference that counts; None if there is none, as of floating point: then float32 must leave 18
            bits of the range.
    """
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32, copy=False)
    if values.dtype.itemsize <= 2 or values.dtype == np.float32:
        return narrow
    finite = np.isfinite(values)  # not a copy of those values, which may be most of the memory
    if not finite.any():
        return narrow
    low = float(values.min(where=finite, initial=np.inf)) if values.dtype.kind == "f" else float(values.min())
    high = float(values.max(where=finite, initial=-np.inf)) if values.dtype.kind == "f" else float(values.max())
    largest = max(-low, high)
    fits = largest <= 2**6 * (high - low) if step is None else largest <= 2**24 * step
    return narrow if (fits or low == high) and largest <= float(np.finfo(np.float32).max) else values.astype(np.float64)


def normalise(pixels: np.ndarray, black: float, white: float) -> np.ndarray:
    """Maps black to -1 and white to 1, and clips; black may be the larger (an inverted image).

    Args:
        pixels: float32, any shape.

    Returns:
        float32 of the same shape. Pixels that are not finite are background, -1, and so is all of a constant
        image.
    """
    if black == white:
        return np.full(pixels.shape, -1, np.float32)
    finite = np.isfinite(pixels)
    if max(abs(black), abs(white)) < FAR and abs(white - black) > 1 / FAR:
        scaled = (np.where(finite, pixels, np.float32(black)) - black) * (2 / (white - black)) - 1
    else:
        part = 0.5 if max(abs(black), abs(white)) > 1 else 1.0  # the difference of the largest numbers is infinite
        values = np.where(finite, pixels.astype(np.float64), black)
        scaled = (values * part - black * part) / (white * part - black * part) * 2 - 1
    return np.where(finite, np.clip(scaled, -1, 1), -1).astype(np.float32)


def centre_square(pixels: np.ndarray, spacing: tuple[float, float] = (1.0, 1.0)) -> np.ndarray:
    """The largest centred part that is square in millimetres.

    Resizing that part to a square also makes its pixels square: thick slices seen from the side are stretched
    to their true proportions, by one interpolation instead of two. The sides are right to the nearest pixel.

    Args:
        pixels: (H, W) or (H, W, 3).
        spacing: millimetres from row to row and from column to column.

    Raises:
        DataError: if the part is less than 2 pixels high or wide, such as a side view of a single slice.
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
    """Antialiased bilinear resize: never above or below the values it is given.

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
    """Crops, normalises and resizes one plane; a crop of a volume is normalised.

    Args:
        pixels: float32 (H, W), or (H, W, 3) in colour; row 0 is the top. With `spatial_dims` 3, (D, H, W).
        black, white: as `display_range` returns them.
        spacing: millimetres from row to row and from column to column.

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
    """Mirrors each image left to right with probability one half.

    "image flipping and other preprocessing operations to avoid model overfitting" (paper, IV-A
    Implementation) is read as horizontal flips, of the training images only. A flip moves the heart to the
    other side of a chest, so images to be compared with should not be flipped.

    Args:
        images: (B, C, H, W), or volumes (B, C, D, H, W) with the patient's right and left along W.
        generator: where the B coin flips are drawn from, on its own device.

    Returns:
        A new tensor of the same shape, dtype and device.
    """
    coins = torch.rand(images.shape[0], generator=generator, device=generator.device) < 0.5
    return torch.where(coins.to(images.device).view(-1, *[1] * (images.dim() - 1)), images.flip(-1), images)
