"""Visit orders: which pixel each scan route reads at each step.

A *table* is an int32 tensor (K, L): route k visits pixel `table[k, l]` (row-major index, L = H*W) at step l.
Everything that reorders pixels (the four scan directions, patch shuffling, any curve a user brings) is such a
table, so the operators know one kind of order only and composed orders are one table again.
"""

from contextlib import nullcontext
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vmddpm_kernels.checks import check_count, check_dense
from vmddpm_kernels.interception import untraced
from vmddpm_kernels.library import define

SCAN_CODES = {"cross2d": 0, "unidi": 1, "bidi": 2, "rot90": 3}


def check_scan_code(scans: int | str) -> int:
    """The number of a set of routes, given by number or name."""
    code = SCAN_CODES.get(scans, -1) if isinstance(scans, str) else scans
    if not isinstance(code, int) or code not in range(len(SCAN_CODES)):
        raise ValueError(f"scans must be 0-3 or one of {sorted(SCAN_CODES)}, got {scans!r}")
    return code


def _check_size(height: int, width: int) -> tuple[int, int]:
    height, width = check_count("height", height), check_count("width", width)
    if height * width >= 2**31:
        raise ValueError(f"height * width must be below 2^31, the pixels an int32 can number, got {height} x {width}")
    return height, width


def _base_routes(height: int, width: int, code: int, device: str) -> Tensor:
    return _four_routes(torch.arange(height * width, dtype=torch.int32, device=device).view(height, width), code)


# Of a CPU alone. A table kept on a GPU would have no values where it was made while a CUDA graph was captured, other
# streams would have to wait for it, and graphs would go on reading it when it is no longer kept.
_kept_routes = lru_cache(maxsize=256)(_base_routes)


def _four_routes(image: Tensor, code: int) -> Tensor:
    """The pixels (H, W) in the orders of the four routes, (4, L)."""
    rows, columns = image.flatten(), image.t().flatten()
    if code == 0:
        routes = [rows, columns, rows.flip(0), columns.flip(0)]
    elif code == 1:
        routes = [rows, rows, rows, rows]
    elif code == 2:
        routes = [rows, rows, rows.flip(0), rows.flip(0)]
    else:  # the image turned by 0, 90, 180 and 270 degrees, each read row by row
        routes = [torch.rot90(image, quarter).flatten() for quarter in range(4)]
    return torch.stack(routes)


class RouteOrder(NamedTuple):
    """Which pixel each route visits at each step: a table, or the four regular routes of a number of `routes`."""

    table: Tensor | None        # (K, L), rows are permutations
    height: int = 0             # of the image, where there is no table
    width: int = 0
    scans: int = 0

    def route_count(self) -> int:
        return 4 if self.table is None else self.table.shape[0]

    def as_table(self, device: torch.device) -> Tensor:
        return routes(self.height, self.width, self.scans, device=device) if self.table is None else self.table


def route_order(
    height: int, width: int, scans: int | str, permutation: Tensor | None, device: torch.device
) -> RouteOrder:
    """`routes` with the same arguments, without a table where none is needed."""
    height, width = _check_size(height, width)
    table = None if permutation is None else routes(height, width, scans, permutation, device)
    return RouteOrder(table, height, width, check_scan_code(scans))


def routes(
    height: int,
    width: int,
    scans: int | str = 0,
    permutation: Tensor | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """The four scan routes of VMamba over a height x width image, as a table.

    Args:
        height, width: image size in tokens, each at least 1.
        scans: 0 or "cross2d" (rows, columns, both reversed), 1 or "unidi" (rows four times),
            2 or "bidi" (rows twice, reversed twice), 3 or "rot90" (the image turned by quarter turns).
        permutation: (L,) pixel order of Sequence Regeneration (VM-DDPM, section III-D), as `patch_permutation`
            returns it: the shuffled image holds pixel `permutation[q]` at place q, and the routes run over
            the shuffled image.
        device: where the table is made; the permutation's device if not given.

    Returns:
        int32 (4, L), L = height * width: `table[k, l]` is the pixel route k visits at step l.

    Raises:
        ValueError: on a size below 1, an unknown `scans`, or a permutation that is not one of range(L).
    """
    height, width = _check_size(height, width)
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
    table: Tensor = _routes(height, width, check_scan_code(scans), permutation, str(wanted))
    return table


def _make_routes(height: int, width: int, code: int, permutation: Tensor | None, device: str) -> Tensor:
    # The tensors of inference mode do not count their changes.
    with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext():
        if permutation is None and device == "cpu":
            return _mark_checked(_kept_routes(height, width, code, device).clone())
        if permutation is None:
            return _mark_checked(_base_routes(height, width, code, device))
        if permutation.shape[0] != height * width or not _is_checked(permutation):
            check_table(permutation[None], height * width, name="permutation")
        if permutation.device.type != torch.device(device).type and capturing(torch.device(device)):
            raise RuntimeError(
                f"permutation is on {permutation.device}, from where the capture of a CUDA graph cannot copy it to "
                f"{device}: make the table before the capture, or pass a permutation on {device}"
            )
        shuffled = permutation.to(device, torch.int32).view(height, width)
        return _mark_checked(_four_routes(shuffled, code))


def _fake_routes(height: int, width: int, code: int, permutation: Tensor | None, device: str) -> Tensor:
    return torch.empty((4, height * width), dtype=torch.int32, device=device)


# An operator: what it reads (the permutation's values) and remembers (tables it has made) is no part of a graph.
_routes = define(
    "routes(SymInt height, SymInt width, int scans, Tensor? permutation, str device) -> Tensor",
    _make_routes,
    _fake_routes,
)


def patch_permutation(
    height: int,
    width: int,
    patch_size: int = 1,
    *,
    seed: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """A random pixel order that moves whole patches: Sequence Regeneration of VM-DDPM, section III-D.

    The image is cut into patch_size x patch_size patches, the patches change places, the pixels inside a patch
    keep their order.

    Args:
        height, width: image size in tokens, multiples of patch_size.
        patch_size: side of a patch in tokens.
        seed: makes the order a function of the seed alone.
        generator: a CPU generator to draw from instead; without either, torch's global generator is used.

    Returns:
        int32 (L,), L = height * width: place q of the shuffled image holds pixel `permutation[q]`.

    Raises:
        ValueError: if the sizes are not multiples of patch_size, or both seed and generator are given.
    """
    patch_size = check_count("patch_size", patch_size)
    height, width = _check_size(height, width)
    if height % patch_size or width % patch_size:
        raise ValueError(
            "height and width must be positive multiples of patch_size, "
            f"got {height} x {width} with patch_size {patch_size}"
        )
    if not isinstance(generator, (torch.Generator, type(None))):
        raise TypeError(f"generator must be a torch.Generator or None, got {type(generator).__name__}")
    if seed is not None:
        if not isinstance(seed, int) or isinstance(seed, bool) or not -(2**63) <= seed < 2**64:
            raise TypeError(f"seed must be an int of at most 64 bits or None, got {seed!r}")
        if generator is not None:
            raise ValueError("give seed or generator, not both")
        generator = torch.Generator().manual_seed(seed)
    if generator is None:
        return _draw(height, width, patch_size, None)
    return untraced(_draw, height, width, patch_size, generator)  # a traced graph would forget the generator


def _draw(height: int, width: int, patch_size: int, generator: torch.Generator | None) -> Tensor:
    patches = (height // patch_size) * (width // patch_size)
    order = torch.randperm(patches, generator=generator, dtype=torch.int32)
    if patch_size == 1:
        return _mark_checked(order)
    pixels = torch.arange(height * width, dtype=torch.int32)
    # (patch row, y, patch column, x) -> (patch row, patch column, y, x): one row of `patched` is one patch.
    grid = (height // patch_size, patch_size, width // patch_size, patch_size)
    patched = pixels.view(grid).permute(0, 2, 1, 3).reshape(patches, patch_size * patch_size)
    shuffled = patched[order.long()].view(grid[0], grid[2], patch_size, patch_size)
    return _mark_checked(shuffled.permute(0, 2, 1, 3).flatten())


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
    if _is_checked(table):
        if table.shape[-1] != length:
            raise ValueError(f"table must have {length} steps, got shape {tuple(table.shape)}")
        return
    check_table(table, length)
    _mark_checked(table)
