"""Cross scan and cross merge, copies of an image or a volume to sequences and back (VMamba, arXiv 2401.10166), with
aliases for the names that VMamba and its derivatives use."""

from math import prod

from torch import Tensor

from vmddpm_kernels.checks import check_axes, check_count
from vmddpm_kernels.curves import route_names
from vmddpm_kernels.images import Layout, merge_image, scan_image
from vmddpm_kernels.interception import untraced

__all__ = [
    "CrossMerge",
    "CrossMergeF",
    "CrossMergeTriton",
    "CrossMergeTritonF",
    "CrossMerge_Ab_1direction",
    "CrossMerge_Ab_2direction",
    "CrossScan",
    "CrossScanF",
    "CrossScanTriton",
    "CrossScanTriton1b1",
    "CrossScanTriton1b1F",
    "CrossScanTritonF",
    "CrossScan_Ab_1direction",
    "CrossScan_Ab_2direction",
    "cross_merge",
    "cross_merge_fn",
    "cross_scan",
    "cross_scan_fn",
    "getCSM",
]


def cross_scan(
    x: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int | str = 0,
    *,
    permutation: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """Copy an image to sequences along K routes, by default VMamba's four (its `cross_scan_fn`).

    Args:
        x: (B, C, H, W), or (B, H, W, C) if not `in_channel_first`; for volumes (B, C, D, H, W) or (B, D, H, W, C). Any
            strides.
        in_channel_first: layout of x.
        out_channel_first: layout of the result.
        one_by_one: route k reads an image of its own; x is (B, K, C, H, W) or (B, H, W, K, C), for volumes with D
            before H.
        scans: the routes, see `vmddpm_kernels.routes`. 0 means four routes of an image and six of a volume.
        permutation: (L,) pixel order of Sequence Regeneration, see `patch_permutation`.
        backend: "cuda", "triton", "cpu" or "reference"; the best available one for x's device by default.

    Returns:
        (B, K, C, L), or (B, L, K, C) if not `out_channel_first`, with L = H*W or D*H*W; contiguous, in x's dtype.

    Raises:
        TypeError, ValueError: if an argument is invalid; the message names it.

    Example:
        >>> cross_scan(torch.zeros(1, 8, 4, 16, 16), scans="tri-orientated").shape
        torch.Size([1, 3, 8, 1024])
    """
    layout = Layout(in_channel_first, out_channel_first, one_by_one, scans)
    return scan_image(x, layout, permutation, backend)


def cross_merge(
    y: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int | str = 0,
    *,
    permutation: Tensor | None = None,
    backend: str | None = None,
    size: tuple[int, ...] | None = None,
) -> Tensor:
    """Sum K sequences at the pixels of an image: the adjoint of `cross_scan`, VMamba's `cross_merge_fn`.

    Args:
        y: the sequences. With `size`, as `cross_scan` returns them: (B, K, C, L), or (B, L, K, C) if not
            `out_channel_first`. Without it, (B, K, C, H, W) or (B, H, W, K, C), for volumes with D before H, where H
            and W are the image's size and the elements are steps of the routes.
        in_channel_first: layout of the result, as in VMamba.
        out_channel_first: layout of y.
        one_by_one: return the K images without summing them.
        scans, permutation, backend: as in `cross_scan`.
        size: (H, W), or (D, H, W) for volumes.

    Returns:
        With `size`, an image as `cross_scan` takes it: (B, C, H, W), or (B, H, W, C) if not `in_channel_first`, and so
        on. Without it, (B, C, L) or (B, L, C); with `one_by_one` (B, K, C, L) or (B, L, K, C). Contiguous, in y's
        dtype; half precision is summed in float32 and rounded once.

    Raises:
        TypeError, ValueError: if an argument is invalid; the message names it.

    Example:
        >>> x = torch.randn(1, 3, 4, 6)
        >>> torch.allclose(cross_merge(cross_scan(x), size=(4, 6)), 4 * x)      # four routes visit each pixel
        True
    """
    layout = Layout(in_channel_first, out_channel_first, one_by_one, scans)
    if size is not None:
        size = untraced(_check_size, y, size, bool(out_channel_first), scans)
    return merge_image(y, layout, permutation, backend, size)


def _check_size(y: Tensor, size: tuple[int, ...], channel_first: bool, scans: int | str) -> tuple[int, ...]:
    """`size` as ints. Raise TypeError or ValueError unless it fits the length of y, and y has one sequence for each
    route."""
    letters = "B, K, C, L" if channel_first else "B, L, K, C"
    axes = check_axes("y", y, letters)
    if not isinstance(size, (tuple, list)) or len(size) not in (2, 3):
        raise TypeError(f"size must be (height, width), or (depth, height, width), got {size!r}")
    names = ("depth", "height", "width")[-len(size) :]
    sizes = tuple(check_count(name, count) for name, count in zip(names, size))
    length = axes[3 if channel_first else 1]
    if prod(sizes) != length:
        raise ValueError(f"size is {sizes}, {prod(sizes)} pixels; y ({letters}) = {tuple(axes)} has {length}")
    routes = len(route_names(scans, len(size)))
    if axes[1 if channel_first else 2] != routes:
        raise ValueError(f"y must have shape ({letters}) with K = {routes}, the routes of scans, got {tuple(axes)}")
    return sizes


def cross_scan_fn(
    x: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int | str = 0,
    force_torch: bool = False,
) -> Tensor:
    """`cross_scan` with VMamba's signature; `force_torch` runs the plain PyTorch definition."""
    backend = "reference" if force_torch else None
    return cross_scan(x, in_channel_first, out_channel_first, one_by_one, scans, backend=backend)


def cross_merge_fn(
    y: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int | str = 0,
    force_torch: bool = False,
) -> Tensor:
    """`cross_merge` with VMamba's signature; `force_torch` runs the plain PyTorch definition."""
    backend = "reference" if force_torch else None
    return cross_merge(y, in_channel_first, out_channel_first, one_by_one, scans, backend=backend)


class CrossScanF:
    """`cross_scan` with the interface of VMamba's autograd Function: apply(x, in_channel_first=True,
    out_channel_first=True, one_by_one=False, scans=0). With x (B, C, H, W) alone, VMamba's older CrossScan."""

    apply = staticmethod(cross_scan)


class CrossMergeF:
    """`cross_merge` with the interface of VMamba's autograd Function: apply(y, in_channel_first=True,
    out_channel_first=True, one_by_one=False, scans=0). With y (B, 4, C, H, W) alone, VMamba's older CrossMerge."""

    apply = staticmethod(cross_merge)


class CrossScanTriton1b1:
    """apply(x (B, 4, C, H, W)) -> (B, 4, C, L): route k reads image k."""

    @staticmethod
    def apply(x: Tensor) -> Tensor:
        return cross_scan(x, one_by_one=True)


class CrossScanTriton1b1F:
    """apply(x (B, 4, C, H, W), or (B, H, W, 4, C) if not channel_first) -> (B, 4, C, L): route k reads image k."""

    @staticmethod
    def apply(x: Tensor, channel_first: bool = True) -> Tensor:
        return cross_scan(x, in_channel_first=channel_first, one_by_one=True)


class CrossScan_Ab_1direction:
    """apply(x (B, C, H, W)) -> (B, 4, C, L): rows, four times."""

    @staticmethod
    def apply(x: Tensor) -> Tensor:
        return cross_scan(x, scans="unidi")


class CrossMerge_Ab_1direction:
    """apply(y (B, 4, C, H, W)) -> (B, C, L): the adjoint of `CrossScan_Ab_1direction`."""

    @staticmethod
    def apply(y: Tensor) -> Tensor:
        return cross_merge(y, scans="unidi")


class CrossScan_Ab_2direction:
    """apply(x (B, C, H, W)) -> (B, 4, C, L): rows twice, and twice reversed."""

    @staticmethod
    def apply(x: Tensor) -> Tensor:
        return cross_scan(x, scans="bidi")


class CrossMerge_Ab_2direction:
    """apply(y (B, 4, C, H, W)) -> (B, C, L): the adjoint of `CrossScan_Ab_2direction`."""

    @staticmethod
    def apply(y: Tensor) -> Tensor:
        return cross_merge(y, scans="bidi")


CrossScan = CrossScanTriton = CrossScanTritonF = CrossScanF
CrossMerge = CrossMergeTriton = CrossMergeTritonF = CrossMergeF


def getCSM(mode: int = 1) -> tuple[type, type]:
    """VMamba's (scan, merge) by number: 0 has four directions, 1 one direction, 2 two directions."""
    pairs = {
        0: (CrossScan, CrossMerge),
        1: (CrossScan_Ab_1direction, CrossMerge_Ab_1direction),
        2: (CrossScan_Ab_2direction, CrossMerge_Ab_2direction),
    }
    if mode not in (0, 1, 2):
        raise ValueError(f"mode must be 0, 1 or 2, got {mode!r}")
    return pairs[mode]


# `import vmddpm_kernels.cross_scan as csm` gives the package's function `cross_scan`, which hides this module, so the
# function has the module's names as attributes.
for _name in ("__all__", *__all__):
    setattr(cross_scan, _name, globals()[_name])
