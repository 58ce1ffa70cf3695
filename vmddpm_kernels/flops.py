"""FLOP formulas of the operators for `torch.utils.flop_counter`. Importing this module registers them; the package does
so itself only where the counter is imported first, as the counter imports triton. fvcore counts a model that
torch.jit.trace records, and takes the formulas as handles:

    FlopCountAnalysis(model, x).set_op_handle(**vmddpm_kernels.flops.FVCORE_HANDLES).total()

An addition, a multiplication and an exponential count one each. Softplus and the copies of cross scan count nothing.
"""

import math
from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import register_flop_formula

from vmddpm_kernels.ops import cross_scan as copies
from vmddpm_kernels.ops import selective_scan as scans

# For each step, channel and state, as VMamba and fvcore count (arXiv 2401.10166): delta A and its exponential 2,
# delta B x 2, the recurrence 3 (a parallel scan multiplies the decays too), C h and its sum 2.
FORWARD = 9
# The forward's first three again 7, C dy and the reverse recurrence 4, and products with their sums: dB, dC and dA
# 2 each, B dh for dx 2, the gradient of the exponent 2 and its part of ddelta 2.
BACKWARD = 23


def _size(shape: Any) -> int:
    return math.prod(map(int, shape))


@register_flop_formula(scans.selective_scan_forward.overloadpacket)
def selective_scan_forward(x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, *args: Any, **kwargs: Any) -> int:
    """9 B K L D N, and B K L D for the skip weight."""
    return _size(delta) * (FORWARD * int(A[2]) + (D is not None))


@register_flop_formula(scans.selective_scan_backward.overloadpacket)
def selective_scan_backward(
    dy: Any, dlast_state: Any, x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, *args: Any, **kwargs: Any
) -> int:
    """23 B K L D N, and 4 B K L D for dx and dD of the skip weight."""
    return _size(delta) * (BACKWARD * int(A[2]) + 4 * (D is not None))


@register_flop_formula(copies.cross_scan_op.overloadpacket)
def cross_scan(*args: Any, **kwargs: Any) -> int:
    """A copy."""
    return 0


@register_flop_formula(copies.cross_merge_op.overloadpacket)
def cross_merge(
    y: Any, table: Any, height: int, width: int, scans: int, sum_routes: bool, *args: Any, **kwargs: Any
) -> int:
    """(K - 1) B L C additions where the routes are summed."""
    return _size(y) - _size(y) // int(y[1]) if sum_routes else 0


def _shapes(values: Any) -> list[Any]:
    """Of what a traced node reads; None for what is no tensor."""
    return [value.type().sizes() if value.isCompleteTensor() else None for value in values]


def _traced_scan(inputs: Any, outputs: Any) -> int:
    return selective_scan_forward(*_shapes(inputs))


# fvcore counts nothing for additions, and VMamba's `flops()` nothing for cross scan and merge.
FVCORE_HANDLES: dict[str, Callable[[Any, Any], int] | None] = {
    "vmddpm::selective_scan_forward": _traced_scan,
    "vmddpm::cross_scan": None,
    "vmddpm::cross_merge": None,
    "vmddpm::patch_order": None,
    "vmddpm::routes": None,
}
