"""Visit orders: which pixel each scan route visits at each step.

A *table* is an int32 tensor (K, L): route k visits pixel `table[k, l]` (a row-major index; L = H*W, or D*H*W for a
volume) at step l. Scan directions, space-filling curves, patch shuffling and custom orders are all tables, and so is
their composition; the operators need no other kind of order.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmddpm_kernels.checks import check_count, check_dense, check_memory
from vmddpm_kernels.curves import LETTERS, NUMBERED, parse, pixel_count, route_names, visits
from vmddpm_kernels.interception import untraced
from vmddpm_kernels.library import define

_AXES = {"t": "time", "d": "depth", "h": "height", "w": "width"}


def _names(size: Sequence[Any]) -> list[str]:
    return [_AXES[letter] for letter in LETTERS[-len(size) :]]


def _check_size(size: Sequence[Any]) -> tuple[int, ...]:
    if not 1 <= len(size) <= len(LETTERS):
        raise ValueError(
            f"pass the image's size as 1 to {len(LETTERS)} numbers, got {len(size)}; scans and patch_size go by keyword"
        )
    names = _names(size)
    checked = tuple(check_count(name, extent) for name, extent in zip(names, size))
    if pixel_count(checked) >= 2**31:
        raise ValueError(
            f"{' * '.join(names)} must be below 2^31, the pixels an int32 can number, got "
            + " x ".join(map(str, checked))
        )
    return checked


_cache: dict[tuple[Any, ...], Tensor] = {}  # tables by size, routes and device
_MOST_STEPS = 1 << 24  # in all cached tables together: 64 MiB
_captured: set[tuple[Any, ...]] = set()  # keys of tables that CUDA graphs read, which are never evicted


def _base_routes(size: tuple[int, ...], names: tuple[str, ...], device: torch.device) -> Tensor:
    """The cached table of these routes on `device`. Callers must not change it."""
    device = torch.empty(0, device=device).device  # gives "cuda" the index of the current GPU
    key = (size, names, device.type, device.index)
    table = _cache.get(key)
    if table is None:
        orders = {name: visits(size, parse(name, len(size)), device).to(torch.int32) for name in names}
        table = torch.stack([orders[name] for name in names])
        # A table made during CUDA graph capture has no values before replay; a fake tensor never has any.
        if type(table) is Tensor and not capturing(device):
            _remember(key, table)
    elif capturing(device):
        _captured.add(key)
    return table


def _steps_cached() -> int:
    return sum(table.numel() for table in list(_cache.values()))


def _remember(key: tuple[Any, ...], table: Tensor) -> None:
    room = _MOST_STEPS - table.numel()
    for oldest in [other for other in list(_cache) if other not in _captured] if room >= 0 else []:
        if _steps_cached() <= room:
            break
        _cache.pop(oldest, None)
    if _steps_cached() > room:
        return
    if table.is_cuda:
        torch.cuda.current_stream(table.device).synchronize()  # other streams may read it next
    _cache[key] = table


class RouteOrder(NamedTuple):
    """The visit orders of all routes: a table, or one of VMamba's numbered sets of four routes."""

    table: Tensor | None        # (K, L), rows are permutations
    height: int = 0             # image size, used if there is no table
    width: int = 0
    scans: int = 0

    def route_count(self) -> int:
        return 4 if self.table is None else self.table.shape[0]

    def as_table(self, device: torch.device) -> Tensor:
        if self.table is not None:
            return self.table
        return routes(self.height, self.width, scans=self.scans, device=device)


_CODES = {route_names(name): code for code, name in enumerate(NUMBERED)}


def check_scan_code(scans: object) -> None:
    """Raise ValueError unless `scans` is the number of one of VMamba's sets of routes."""
    if not isinstance(scans, int) or scans not in range(len(NUMBERED)):
        raise ValueError(f"scans must be 0-3 without a table, got {scans!r}")


def route_order(
    size: Sequence[int], scans: int | str, permutation: Tensor | None, device: torch.device
) -> RouteOrder:
    """The visit orders of `routes`; VMamba's numbered sets need no table."""
    size = _check_size(size)
    code = _CODES.get(route_names(scans, len(size)))
    if code is not None and permutation is None:
        return RouteOrder(None, size[0], size[1], code)
    return RouteOrder(routes(*size, scans=scans, permutation=permutation, device=device))


def routes(
    *size: int,
    scans: int | str = 0,
    permutation: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The table of visit orders of the routes over an image or a volume.

    Args:
        size: (H, W), (D, H, W), (T, D, H, W) or (L,) in tokens, each at least 1, their product below 2^31.
        scans: a set of routes, by name or by VMamba's number, or a comma-separated list of routes. With two axes: 0 or
            "cross2d" (rows, columns, both reversed), 1 or "unidi" (rows four times), 2 or "bidi" (rows twice, reversed
            twice), 3 or "rot90" (the image turned by quarter turns), "omnidirectional" (RS-Mamba: the cross scan and
            both diagonals), "local" (LocalMamba: the cross scan and windows of 2 and 7) and "efficient"
            (EfficientVMamba: the four grids of every second pixel, each route starting with a different grid; that
            model stops after the first grid). With three: 0 or "cross3d" (six routes: each axis outermost, and all
            reversed), "ss3d" (MedSegMamba, eight), "axes3d" (twelve: every order of the axes) and "tri-orientated"
            (SegMamba: forwards, backwards and through the slices). With two or three axes: "snake", "hilbert", "zorder"
            and "zigzag". 0 is also the cross scan of one and of four axes. The name of a route is
            `[curve-]axes[-reversed]`, with `axes` from the outermost loop to the innermost: "hw" is rows, "wh" columns,
            "hwd" along the slices; a capital letter reverses an axis. Curves are snake, hilbert, zorder, zigzag,
            diagonal, antidiagonal, window7 and skip2 (any side or stride); see `vmddpm_kernels.curves`.
        permutation: (L,) pixel order of Sequence Regeneration (VM-DDPM, section III-D) from `patch_permutation`. The
            routes run over the shuffled image, which holds pixel `permutation[q]` at position q.
        device: device of the table; by default the permutation's.

    Returns:
        int32 (K, L), L the product of `size`: route k visits pixel `table[k, l]` at step l.

    Raises:
        TypeError, ValueError: if a size is below 1, a route does not exist for this number of axes, or `permutation` is
            not a permutation of range(L).

    Example:
        >>> routes(2, 3, scans="hw,snake-hw").tolist()
        [[0, 1, 2, 3, 4, 5], [0, 1, 2, 5, 4, 3]]
    """
    size = _check_size(size)
    names = route_names(scans, len(size))
    if permutation is not None:
        check_dense("permutation", permutation)
    if device is None and permutation is not None:
        device = permutation.device
    if permutation is not None and (permutation.dim() != 1 or permutation.dtype not in (torch.int32, torch.int64)):
        raise ValueError(
            "permutation must be an integer tensor of shape (L,), "
            f"got {permutation.dtype} of shape {tuple(permutation.shape)}"
        )
    wanted = torch.device(device or "cpu")
    if permutation is not None and permutation.is_meta and wanted.type != "meta":
        raise ValueError(f"permutation is on the meta device and has no values, but the table is requested on {wanted}")
    table: Tensor = _routes(size, ",".join(names), permutation, str(wanted))
    return table


def _make_routes(size: Sequence[int], scans: str, permutation: Tensor | None, device: str) -> Tensor:
    size, names, wanted = tuple(size), tuple(scans.split(",")), torch.device(device)
    # Tensors made in inference mode have no version counter.
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
        base = _base_routes(size, names, wanted)
        if permutation is None:
            return _mark_checked(base.clone())
        if permutation.shape[0] != pixel_count(size) or not _is_checked(permutation):
            check_table(permutation[None], pixel_count(size), name="permutation")
        if permutation.device.type != wanted.type and capturing(wanted):
            raise RuntimeError(
                f"permutation is on {permutation.device}, and cannot be copied to {device} during CUDA graph capture: "
                f"make the table before the capture, or pass a permutation on {device}"
            )
        shuffled = permutation.to(wanted, torch.int32)
        return _mark_checked(shuffled.index_select(0, base.flatten()).view(base.shape))


def _fake_routes(size: Sequence[int], scans: str, permutation: Tensor | None, device: str) -> Tensor:
    return torch.empty((scans.count(",") + 1, pixel_count(size)), dtype=torch.int32, device=device)


# An operator keeps the check of the permutation and the cache out of compiled graphs.
_routes = define(
    "routes(SymInt[] size, str scans, Tensor? permutation, str device) -> Tensor",
    _make_routes,
    _fake_routes,
)


def patch_permutation(
    *size: int,
    patch_size: int = 1,
    seed: int | None = None,
    generator: torch.Generator | None = None,
    keys: Tensor | None = None,
) -> Tensor:
    """A random pixel order that shuffles whole patches: Sequence Regeneration of VM-DDPM, section III-D.

    The image is cut into patches with the same side along each axis. The patches are permuted; pixels inside a patch
    keep their order.

    Args:
        size: (H, W) or (D, H, W) in tokens (1 to 4 numbers), multiples of patch_size.
        patch_size: side of a patch in tokens.
        seed: the order depends on the seed alone.
        generator: a CPU generator to use instead; without both, torch's global generator is used.
        keys: (patches,) real numbers, one for each patch; the patches are sorted by key (stable), so random keys give a
            random order. The order is computed on the device of the keys without synchronizing: a CUDA graph computes
            it again from the current keys at each replay.

    Returns:
        int32 (L,), L the product of `size`: position q of the shuffled image holds pixel `permutation[q]`. On the CPU,
        or on the device of the keys.

    Raises:
        TypeError, ValueError: if a size is not a multiple of patch_size, the number of keys is not the number of
            patches, or more than one of seed, generator and keys is given.

    Example:
        >>> patch_permutation(2, 4, patch_size=2, keys=torch.tensor([0.9, 0.1])).tolist()
        [2, 3, 0, 1, 6, 7, 4, 5]
    """
    patch_size = check_count("patch_size", patch_size)
    size = _check_size(size)
    if any(extent % patch_size for extent in size):
        raise ValueError(
            f"{' and '.join(_names(size))} must be positive multiples of patch_size, "
            f"got {' x '.join(map(str, size))} with patch_size {patch_size}"
        )
    if not isinstance(generator, (torch.Generator, type(None))):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    if sum(source is not None for source in (seed, generator, keys)) > 1:
        raise ValueError("pass only one of seed, generator and keys")
    if keys is not None:
        return _order_by_keys(keys, size, patch_size)
    if seed is not None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**64:
            raise TypeError(f"seed must be an int of at most 64 bits or None, got {seed!r}")
        generator = torch.Generator().manual_seed(seed)
    if generator is None:
        return _draw(size, patch_size, None)
    return untraced(_draw, size, patch_size, generator)  # a traced graph does not record the generator


def _patches(size: Sequence[int], patch_size: int) -> int:
    return pixel_count([extent // patch_size for extent in size])


def _draw(size: Sequence[int], patch_size: int, generator: torch.Generator | None) -> Tensor:
    order = torch.randperm(_patches(size, patch_size), generator=generator, dtype=torch.int32)
    return _mark_checked(_pixels_of(order, size, patch_size))


def _pixels_of(order: Tensor, size: Sequence[int], patch_size: int) -> Tensor:
    """The pixels of the patches in this order, int32."""
    if patch_size == 1:
        return order
    axes = len(size)
    pixels = torch.arange(pixel_count(size), dtype=torch.int32, device=order.device)
    grid = [extent // patch_size for extent in size]
    # (patch row, y, patch column, x) -> (patch row, patch column, y, x): one row of `patched` is one patch.
    outer, inner = range(0, 2 * axes, 2), range(1, 2 * axes, 2)
    halves = [part for extent in grid for part in (extent, patch_size)]
    patched = pixels.view(halves).permute(*outer, *inner).reshape(pixel_count(grid), patch_size**axes)
    shuffled = patched[order.long()].view(*grid, *[patch_size] * axes)
    return shuffled.permute([half for axis in range(axes) for half in (axis, axes + axis)]).flatten()


def _order_by_keys(keys: Tensor, size: tuple[int, ...], patch_size: int) -> Tensor:
    check_dense("keys", keys)
    if keys.is_complex() or keys.dtype == torch.bool:
        raise TypeError(f"keys must be real numbers, got {keys.dtype}")
    patches = _patches(size, patch_size)
    if keys.dim() != 1 or keys.shape[0] != patches:
        raise ValueError(f"keys must have shape (patches,) = ({patches},), got {tuple(keys.shape)}")
    permutation: Tensor = _patch_order(keys, size, patch_size)
    return permutation


def _make_patch_order(keys: Tensor, size: Sequence[int], patch_size: int) -> Tensor:
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
        order = keys.detach().argsort(stable=True).to(torch.int32)  # a permutation for any keys
        return _mark_checked(_pixels_of(order, size, patch_size))


def _fake_patch_order(keys: Tensor, size: Sequence[int], patch_size: int) -> Tensor:
    return torch.empty((pixel_count(size),), dtype=torch.int32, device=keys.device)


# An operator marks its result as a permutation in compiled graphs too.
_patch_order = define(
    "patch_order(Tensor keys, SymInt[] size, SymInt patch_size) -> Tensor", _make_patch_order, _fake_patch_order
)


def capturing(device: torch.device) -> bool:
    """Whether the current stream of the device is capturing a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def check_table(table: Tensor, length: int, name: str = "table") -> None:
    """Raise ValueError unless each row of `table` is a permutation of range(length); on the meta device only the length
    is checked. Raise RuntimeError during CUDA graph capture, when a table cannot be read."""
    right_length = table.shape[-1] == length
    if right_length and table.is_meta:
        return
    if capturing(table.device):
        raise RuntimeError(
            f"{name} must be checked before a CUDA graph is captured: call the operator with it once before the "
            "capture (backend 'reference' reads it in every call)"
        )
    if not right_length or not untraced(_holds_permutations, table):
        raise ValueError(
            f"every row of {name} must hold each of 0..{length - 1} exactly once; "
            f"got shape {tuple(table.shape)} with values "
            + (f"from {int(table.min())} to {int(table.max())}" if table.numel() and not table.is_meta else "none")
        )


def _holds_permutations(table: Tensor) -> bool:
    """Whether each row is a permutation; synchronizes with a GPU once."""
    length = table.shape[-1]
    inside = (table >= 0) & (table < length)
    pixels = table.clamp(0, max(length - 1, 0)).long()
    seen = torch.zeros(table.shape, dtype=torch.bool, device=table.device).scatter_(-1, pixels, True)
    return bool((inside & seen).all())


def _state(table: Tensor) -> tuple[Any, ...] | None:
    """A value that changes whenever the table's values do; None for inference tensors, which have no version
    counter."""
    return None if table.is_inference() else (table._version, table.shape, table.stride(), table.storage_offset())


def _mark_checked(table: Tensor) -> Tensor:
    """Mark the table as checked for the lifetime of its storage: a second check would synchronize with the GPU again. A
    table made during CUDA graph capture is marked only for that capture, as it has no values until replay."""
    table.untyped_storage()._vmddpm_checked = _state(table), capturing(table.device)  # type: ignore[attr-defined]
    return table


def _is_checked(table: Tensor) -> bool:
    state = _state(table)
    checked, captured = getattr(table.untyped_storage(), "_vmddpm_checked", (None, False))
    return state is not None and checked == state and (not captured or capturing(table.device))


def private_copy(table: Tensor) -> Tensor:
    """A copy, marked as checked if the table is."""
    copy = table.clone(memory_format=torch.contiguous_format)
    return _mark_checked(copy) if _is_checked(table) else copy


def check_table_once(table: Tensor, length: int) -> None:
    """`check_table` for a table on a GPU. Tables from `routes` need no check; any other table is read, which
    synchronizes, on first use and after each change.

    Raises:
        ValueError: as `check_table`.
        RuntimeError: for a table that was not checked before CUDA graph capture.
    """
    check_memory((table,))
    if _is_checked(table):
        if table.shape[-1] != length:
            raise ValueError(f"table must have {length} steps, got shape {tuple(table.shape)}")
        return
    check_table(table, length)
    _mark_checked(table)
