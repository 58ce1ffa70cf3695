"""The regular routes in Triton, as in csrc/cross_scan/cuda_walk.h."""
# mypy: ignore-errors

import triton
import triton.language as tl


@triton.jit
def regular_walk(scans, route):
    """Three flags of route 0-3 of the routes numbered `scans`: its lines are columns, not rows; it visits them from the
    last to the first; it walks each line backwards. As in vmddpm_kernels.routes, `scans` is 0 for cross2d, 1 for unidi,
    2 for bidi and 3 for rot90."""
    odd, late = route % 2 == 1, (route >= 2) & (scans != 1)
    columns = odd & ((scans == 0) | (scans == 3))
    return columns, late ^ (columns & (scans == 3)), late


@triton.jit
def step_of(scans, route, h, w, height, width):
    """The step at which a route visits pixel (h, w)."""
    columns, lines_back, line_back = regular_walk(scans, route)
    lines, size = tl.where(columns, width, height), tl.where(columns, height, width)
    line, place = tl.where(columns, w, h), tl.where(columns, h, w)
    line = tl.where(lines_back, lines - 1 - line, line)
    return line * size + tl.where(line_back, size - 1 - place, place)
