"""Visit orders: which pixel each scan route reads at each step.

A *table* is an int32 tensor (K, L): route k visits pixel `table[k, l]` (row-major number, L = H*W, or D*H*W of a
volume) at step l. Everything that reorders pixels (scan directions, space-filling curves, patch shuffling, any order a
user brings) is such a table, so the operators know one kind of order only and composed orders are one table again.
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
            f"give the image's size as 1 to {len(LETTERS)} numbers, got {len(size)}; scans and patch_size go by keyword"
        )
    names = _names(size)
    checked = tuple(check_count(name, extent) for name, extent in zip(names, size))
    if pixel_count(checked) >= 2**31:
        raise ValueError(
            f"{' * '.join(names)} must be below 2^31, the pixels an int32 can number, got "
            + " x ".join(map(str, checked))
        )
    return checked


_made: dict[tuple[Any, ...], Tensor] = {}  # tables, by size, routes and device
_MOST_STEPS = 1 << 24  # of all of them together: 64 MiB
_captured: set[tuple[Any, ...]] = set()  # those that CUDA graphs read, which are never forgotten


def _base_routes(size: tuple[int, ...], names: tuple[str, ...], device: torch.device) -> Tensor:
    """The table of these routes, made where it is wanted. Nobody may change it."""
    device = torch.empty(0, device=device).device  # "cuda" is the current GPU, whose number is part of the key
    key = (size, names, device.type, device.index)
    table = _made.get(key)
    if table is None:
        orders = {name: visits(size, parse(name, len(size)), device).to(torch.int32) for name in names}
        table = torch.stack([orders[name] for name in names])
        # What is made while a CUDA graph is captured has no values before its replay; a fake tensor never has.
        if type(table) is Tensor and not capturing(device):
            _remember(key, table)
    elif capturing(device):
        _captured.add(key)
    return table


def _steps_made() -> int:
    return sum(table.numel() for table in list(_made.values()))


def _remember(key: tuple[Any, ...], table: Tensor) -> None:
    room = _MOST_STEPS - table.numel()
    for oldest in [other for other in list(_made) if other not in _captured] if room >= 0 else []:
        if _steps_made() <= room:
            break
        _made.pop(oldest, None)
    if _steps_made() > room:
        return
    if table.is_cuda:
        torch.cuda.current_stream(table.device).synchronize()  # other streams may read it from now on
    _made[key] = table


class RouteOrder(NamedTuple):
    """Which pixel each route visits at each step: a table, or the four regular routes of a number of `routes`."""

    table: Tensor | None        # (K, L), rows are permutations
    height: int = 0             # of the image, where there is no table
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
    """Raise ValueError unless a number of VMamba's sets of routes."""
    if not isinstance(scans, int) or scans not in range(len(NUMBERED)):
        raise ValueError(f"scans must be 0-3 where there is no table, got {scans!r}")


def route_order(
    size: Sequence[int], scans: int | str, permutation: Tensor | None, device: torch.device
) -> RouteOrder:
    """`routes` with the same arguments, without a table where none is needed."""
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
    """The routes of a scan over an image or a volume, as a table.

    Args:
        size: (H, W), (D, H, W), (T, D, H, W) or (L,) in tokens, each at least 1, their product below 2^31.
        scans: a set of routes, by the name of the model that it is from or by VMamba's number, or routes of your own
            choice joined by commas. With two axes: 0 or "cross2d" (rows, columns, both reversed), 1 or "unidi" (rows
            four times), 2 or "bidi" (rows twice, reversed twice), 3 or "rot90" (the image turned by quarter turns),
            "omnidirectional" (RS-Mamba: the cross scan and both diagonals), "local" (LocalMamba: the cross scan and
            windows of 2 and 7) and "efficient" (EfficientVMamba: every second pixel first, each route from another
            one on; that model stops after the first quarter). With three: 0 or "cross3d" (six routes: each axis
            outermost, and all reversed), "ss3d" (MedSegMamba, eight), "axes3d" (twelve: every order of the axes) and
            "tri-orientated" (SegMamba: forwards, backwards and through the slices). With both: "snake", "hilbert",
            "zorder" and "zigzag". 0 is the cross scan of one and of four axes too.
            A route is named `[curve-]axes[-reversed]`, `axes` from the outermost loop to the innermost: "hw" is rows,
            "wh" columns, "hwd" along the slices; a capital letter runs backwards. Curves are snake, hilbert, zorder,
            zigzag, diagonal, antidiagonal, window7 and skip2, with any number; see `vmddpm_kernels.curves`.
        permutation: (L,) pixel order of Sequence Regeneration (VM-DDPM, section III-D), as `patch_permutation`
            returns it: the shuffled image holds pixel `permutation[q]` at place q, and the routes run over
            the shuffled image.
        device: where the table is made; the permutation's device if not given.

    Returns:
        int32 (K, L), L the product of `size`: `table[k, l]` is the pixel route k visits at step l.

    Raises:
        TypeError, ValueError: on a size below 1, routes that do not exist or do not fit the number of axes, or a
            permutation that is not one of range(L).

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
        raise ValueError(f"permutation is on meta, where it has no values, but the table is wanted on {wanted}")
    table: Tensor = _routes(size, ",".join(names), permutation, str(wanted))
    return table


def _make_routes(size: Sequence[int], scans: str, permutation: Tensor | None, device: str) -> Tensor:
    size, names, wanted = tuple(size), tuple(scans.split(",")), torch.device(device)
    # The tensors of inference mode do not count their changes.
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
        base = _base_routes(size, names, wanted)
        if permutation is None:
            return _mark_checked(base.clone())
        if permutation.shape[0] != pixel_count(size) or not _is_checked(permutation):
            check_table(permutation[None], pixel_count(size), name="permutation")
        if permutation.device.type != wanted.type and capturing(wanted):
            raise RuntimeError(
                f"permutation is on {permutation.device}, from where the capture of a CUDA graph cannot copy it to "
                f"{device}: make the table before the capture, or pass a permutation on {device}"
            )
        shuffled = permutation.to(wanted, torch.int32)
        return _mark_checked(shuffled.index_select(0, base.flatten()).view(base.shape))


def _fake_routes(size: Sequence[int], scans: str, permutation: Tensor | None, device: str) -> Tensor:
    return torch.empty((scans.count(",") + 1, pixel_count(size)), dtype=torch.int32, device=device)


# An operator: what it reads (the permutation's values) and remembers (tables it has made) is no part of a graph.
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
    """A random pixel order that moves whole patches: Sequence Regeneration of VM-DDPM, section III-D.

    The image is cut into patches of the same side along every axis, the patches change places, the pixels inside a
    patch keep their order.

    Args:
        size: (H, W) or (D, H, W) in tokens (1 to 4 numbers), multiples of patch_size.
        patch_size: side of a patch in tokens.
        seed: makes the order a function of the seed alone.
        generator: a CPU generator to draw from instead; without either, torch's global generator is used.
        keys: (patches,) real numbers, random ones for a random order: the place of a patch is that of its key among
            all, equal keys in the order of the patches. The order is made where the keys are; nothing waits for a
            GPU, so that a CUDA graph with other keys at each replay has other orders.

    Returns:
        int32 (L,), L the product of `size`: place q of the shuffled image holds pixel `permutation[q]`. On the CPU, or
        where the keys are.

    Raises:
        TypeError, ValueError: if the sizes are not multiples of patch_size, the keys are not one for each patch, or
            more than one of seed, generator and keys is given.

    Example:
        >>> patch_permutation(1, 4, patch_size=2, keys=torch.tensor([0.9, 0.1])).tolist()
        [2, 3, 0, 1]
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
        raise ValueError("give one of seed, generator and keys, not both")
    if keys is not None:
        return _order_by_keys(keys, size, patch_size)
    if seed is not None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**64:
            raise TypeError(f"seed must be an int of at most 64 bits or None, got {seed!r}")
        generator = torch.Generator().manual_seed(seed)
    if generator is None:
        return _draw(size, patch_size, None)
    return untraced(_draw, size, patch_size, generator)  # a traced graph would forget the generator


def _patches(size: Sequence[int], patch_size: int) -> int:
    return pixel_count([extent // patch_size for extent in size])


def _draw(size: Sequence[int], patch_size: int, generator: torch.Generator | None) -> Tensor:
    order = torch.randperm(_patches(size, patch_size), generator=generator, dtype=torch.int32)
    return _mark_checked(_pixels_of(order, size, patch_size))


def _pixels_of(order: Tensor, size: Sequence[int], patch_size: int) -> Tensor:
    """The pixels of patches that stand in this order, int32."""
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
        order = keys.detach().argsort(stable=True).to(torch.int32)  # a permutation, whatever the keys are
        return _mark_checked(_pixels_of(order, size, patch_size))


def _fake_patch_order(keys: Tensor, size: Sequence[int], patch_size: int) -> Tensor:
    return torch.empty((pixel_count(size),), dtype=torch.int32, device=keys.device)


# An operator: that its result holds a permutation is remembered with the result's memory.
_patch_order = define(
    "patch_order(Tensor keys, SymInt[] size, SymInt patch_size) -> Tensor", _make_patch_order, _fake_patch_order
)


def capturing(device: torch.device) -> bool:
    """Whether what is done on the device now is not done, but captured for a CUDA graph."""
    return device.type == "cuda" and torch.cuda.is_current_stream_capturing()


def check_table(table: Tensor, length: int, name: str = "table") -> None:
    """Raise ValueError unless every row of `table` is a permutation of range(length); on the meta device, where there
    are no values, only unless it has that length. RuntimeError while a CUDA graph is captured, where nothing may be
    read."""
    right_length = table.shape[-1] == length
    if right_length and table.is_meta:
        return
    if capturing(table.device):
        raise RuntimeError(
            f"{name} has to be read once before a CUDA graph is captured: call the operator with it outside first "
            "(backend 'reference' reads it in every call)"
        )
    if not right_length or not untraced(_holds_permutations, table):
        raise ValueError(
            f"every row of {name} must hold each of 0..{length - 1} exactly once; "
            f"got shape {tuple(table.shape)} with values "
            + (f"from {int(table.min())} to {int(table.max())}" if table.numel() and not table.is_meta else "none")
        )


def _holds_permutations(table: Tensor) -> bool:
    """Read once, as a GPU is waited for."""
    length = table.shape[-1]
    inside = (table >= 0) & (table < length)
    pixels = table.clamp(0, max(length - 1, 0)).long()
    seen = torch.zeros(table.shape, dtype=torch.bool, device=table.device).scatter_(-1, pixels, True)
    return bool((inside & seen).all())


def _state(table: Tensor) -> tuple[Any, ...] | None:
    """What changes whenever the table's values do; None in inference mode, whose tensors do not count changes."""
    return None if table.is_inference() else (table._version, table.shape, table.stride(), table.storage_offset())


def _mark_checked(table: Tensor) -> Tensor:
    """Remember, as long as its memory lives, that the table holds permutations: reading it on a GPU would wait for the
    GPU. One that is made while a CUDA graph is captured holds nothing until the graph is replayed: it counts as checked
    only for what is captured with it."""
    table.untyped_storage()._vmddpm_checked = _state(table), capturing(table.device)  # type: ignore[attr-defined]
    return table


def _is_checked(table: Tensor) -> bool:
    state = _state(table)
    checked, captured = getattr(table.untyped_storage(), "_vmddpm_checked", (None, False))
    return state is not None and checked == state and (not captured or capturing(table.device))


def private_copy(table: Tensor) -> Tensor:
    """A copy that is known to hold permutations if the table is."""
    copy = table.clone(memory_format=torch.contiguous_format)
    return _mark_checked(copy) if _is_checked(table) else copy


def check_table_once(table: Tensor, length: int) -> None:
    """`check_table`, for a table on a GPU: it waits for the GPU the first time it sees a table that `routes` did not
    make, and never again unless the table changes.

    Raises:
        ValueError: as `check_table`.
        RuntimeError: on a table never seen before while a CUDA graph is captured, where nothing may wait.
    """
    check_memory((table,))
    if _is_checked(table):
        if table.shape[-1] != length:
            raise ValueError(f"table must have {length} steps, got shape {tuple(table.shape)}")
        return
    check_table(table, length)
    _mark_checked(table)
