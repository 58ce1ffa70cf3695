"""Cross scan and cross merge: an image to four sequences and back (VMamba, arXiv 2401.10166), as pure copies; and the
names under which VMamba and the projects that copied it import them."""

from torch import Tensor

from vmddpm_kernels.checks import check_flag, check_float
from vmddpm_kernels.interception import untraced
from vmddpm_kernels.ops.cross_scan import merge_routes, scan_routes
from vmddpm_kernels.routes import route_order

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
    """The image read along four routes; VMamba's `cross_scan_fn`. L = H*W.

    Args:
        x: (B, C, H, W), or (B, H, W, C) if not `in_channel_first`. With `one_by_one` route k reads an image of
            its own: (B, 4, C, H, W) or (B, H, W, 4, C). Any strides.
        out_channel_first: layout of the result.
        scans: which routes, see `vmddpm_kernels.routes`.
        permutation: (L,) pixel order of Sequence Regeneration, see `patch_permutation`.
        backend: "cuda", "triton", "cpu" or "reference"; the best available one for x's device by default.

    Returns:
        (B, 4, C, L), or (B, L, 4, C) if not `out_channel_first`; contiguous, x's dtype, an exact copy of values.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
    """
    check_float("x", x)
    _check_flags(in_channel_first, out_channel_first, one_by_one)
    image, (height, width) = _image_to_routes(x, in_channel_first, one_by_one, "x")
    order = route_order(height, width, scans, permutation, x.device)
    y = scan_routes(image, order, out_channel_first, backend)              # (B, 4, L, C)
    return y.transpose(2, 3) if out_channel_first else y.transpose(1, 2)


def cross_merge(
    y: Tensor,
    in_channel_first: bool = True,
    out_channel_first: bool = True,
    one_by_one: bool = False,
    scans: int | str = 0,
    *,
    permutation: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """The four sequences put back at their pixels and summed: VMamba's `cross_merge_fn`, `cross_scan`'s adjoint.

    As in VMamba, `in_channel_first` names the image side (the result) and `out_channel_first` the sequence side (y).

    Args:
        y: (B, 4, C, H, W), or (B, H, W, 4, C) if not `out_channel_first`. H and W give the image's size; the
            elements are steps of the routes, in order.
        one_by_one: keep the four images apart instead of summing them.
        scans, permutation, backend: as in `cross_scan`.

    Returns:
        (B, C, L), or (B, L, C) if not `in_channel_first`; with `one_by_one` (B, 4, C, L) or (B, L, 4, C).
        Contiguous, y's dtype; half precision is summed in float32 and rounded once.

    Raises:
        TypeError, ValueError: naming the argument that does not fit.
    """
    check_float("y", y)
    _check_flags(in_channel_first, out_channel_first, one_by_one)
    sequences, (height, width) = _image_to_routes(y, out_channel_first, True, "y")
    order = route_order(height, width, scans, permutation, y.device)
    pixels = merge_routes(sequences, order, not one_by_one, in_channel_first, backend)  # (B, 4 or 1, L, C)
    if one_by_one:
        return pixels.transpose(2, 3) if in_channel_first else pixels.transpose(1, 2)
    return pixels[:, 0].transpose(1, 2) if in_channel_first else pixels[:, 0]


def _check_flags(in_channel_first: bool, out_channel_first: bool, one_by_one: bool) -> None:
    check_flag("in_channel_first", in_channel_first)
    check_flag("out_channel_first", out_channel_first)
    check_flag("one_by_one", one_by_one)


def _image_to_routes(x: Tensor, channel_first: bool, per_route: bool, name: str) -> tuple[Tensor, tuple[int, int]]:
    """An image or four of them -> (B, 1 or 4, L, C) and (H, W)."""
    size = untraced(_image_size, x, channel_first, per_route, name)
    if not per_route:
        x = x.unsqueeze(1 if channel_first else 3)
    image = x.permute(0, 1, 3, 4, 2) if channel_first else x.permute(0, 3, 1, 2, 4)  # (B, K, H, W, C)
    return image.flatten(2, 3), size


def _image_size(x: Tensor, channel_first: bool, per_route: bool, name: str) -> tuple[int, int]:
    axes = ["B, H, W, C", "B, C, H, W", "B, H, W, 4, C", "B, 4, C, H, W"][2 * per_route + channel_first]
    if x.dim() != (5 if per_route else 4) or (per_route and x.shape[1 if channel_first else 3] != 4):
        raise ValueError(f"{name} must have shape ({axes}), got {tuple(x.shape)}")
    height, width = x.shape[-2:] if channel_first else x.shape[1:3]
    if height == 0 or width == 0:
        raise ValueError(f"{name} ({axes}) must have at least one pixel, got {tuple(x.shape)}")
    return height, width


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
    """`cross_scan` for those who call VMamba's autograd Function: apply(x, in_channel_first=True,
    out_channel_first=True, one_by_one=False, scans=0). With x (B, C, H, W) alone, VMamba's older CrossScan."""

    apply = staticmethod(cross_scan)


class CrossMergeF:
    """`cross_merge` for those who call VMamba's autograd Function: apply(y, in_channel_first=True,
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
    """VMamba's pair of scan and merge by number: 0 four directions, 1 one direction, 2 two directions."""
    pairs = {
        0: (CrossScan, CrossMerge),
        1: (CrossScan_Ab_1direction, CrossMerge_Ab_1direction),
        2: (CrossScan_Ab_2direction, CrossMerge_Ab_2direction),
    }
    if mode not in (0, 1, 2):
        raise ValueError(f"mode must be 0, 1 or 2, got {mode!r}")
    return pairs[mode]


# `import vmddpm_kernels.cross_scan as csm` binds the attribute of the package, which is the function: it has the
# names of the module too.
for _name in ("__all__", *__all__):
    setattr(cross_scan, _name, globals()[_name])
