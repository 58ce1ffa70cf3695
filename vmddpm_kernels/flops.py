"""FLOP formulas of the operators for `torch.utils.flop_counter`. Importing this module registers them. The package
imports it only if the counter was imported first, because the counter imports triton. fvcore counts a traced model and
takes the formulas as handles:

    FlopCountAnalysis(model, x).set_op_handle(**vmddpm_kernels.flops.FVCORE_HANDLES).total()

An addition, a multiplication and an exponential count as one each; softplus and the copies of cross scan count as zero.
"""

import math
from collections.abc import Callable
from typing import Any

from torch.utils.flop_counter import register_flop_formula

from vmddpm_kernels.ops import cross_scan as copies
from vmddpm_kernels.ops import selective_scan as scans

# For each step, channel and state, as VMamba and fvcore count (arXiv 2401.10166): 2 for exp(delta A), 2 for delta B x,
# 3 for the recurrence (a parallel scan also multiplies the decays), 2 for C h and its sum.
FORWARD = 9
# 7 to recompute the states, 4 for C dy and the reverse recurrence, and 2 for each product with its sum: dB, dC, dA, dx,
# the gradient of the exponent and its part of ddelta.
BACKWARD = 23


def _size(shape: Any) -> int:
    return math.prod(map(int, shape))


def _steps(delta: Any, A: Any) -> int:
    """B K L D, of delta or its factor (B, K, L, .) and A (K, D, N)."""
    return _size(delta[:3]) * int(A[1])


def _rank(dt_proj: Any) -> int:
    return 0 if dt_proj is None else int(dt_proj[2])


@register_flop_formula(scans.selective_scan_forward.overloadpacket)
def selective_scan_forward(
    x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, delta_bias: Any, initial_state: Any, dt_proj: Any = None,
    *args: Any, **kwargs: Any,
) -> int:  # fmt: skip
    """9 B K L D N, B K L D for the skip weight, and 2 B K L D R for `dt_proj`."""
    return _steps(delta, A) * (FORWARD * int(A[2]) + (D is not None) + 2 * _rank(dt_proj))


@register_flop_formula(scans.selective_scan_backward.overloadpacket)
def selective_scan_backward(
    dy: Any, dlast_state: Any, x: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, delta_bias: Any,
    initial_state: Any, dt_proj: Any = None, *args: Any, **kwargs: Any,
) -> int:  # fmt: skip
    """23 B K L D N, 4 B K L D for dx and dD of the skip weight, and 6 B K L D R for `dt_proj`: the step sizes
    again, and the gradients of the factor and of the weight."""
    return _steps(delta, A) * (BACKWARD * int(A[2]) + 4 * (D is not None) + 6 * _rank(dt_proj))


@register_flop_formula(copies.cross_scan_op.overloadpacket)
def cross_scan(*args: Any, **kwargs: Any) -> int:
    """0, for a copy."""
    return 0


@register_flop_formula(copies.cross_merge_op.overloadpacket)
def cross_merge(
    y: Any, table: Any, height: int, width: int, scans: int, sum_routes: bool, *args: Any, **kwargs: Any
) -> int:
    """(K - 1) B L C additions where the routes are summed."""
    return _size(y) - _size(y) // int(y[1]) if sum_routes else 0


def _shapes(values: Any) -> list[Any]:
    """The shapes of traced values; None for values that are not tensors."""
    return [value.type().sizes() if value.isCompleteTensor() else None for value in values]


def _traced_scan(inputs: Any, outputs: Any) -> int:
    return selective_scan_forward(*_shapes(inputs))


# fvcore does not count additions, and VMamba's `flops()` does not count cross scan and merge.
FVCORE_HANDLES: dict[str, Callable[[Any, Any], int] | None] = {
    "vmddpm::selective_scan_forward": _traced_scan,
    "vmddpm::cross_scan": None,
    "vmddpm::cross_merge": None,
    "vmddpm::patch_order": None,
    "vmddpm::routes": None,
}
