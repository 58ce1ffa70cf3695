"""Low-rank step sizes (`dt_proj`) for kernels that read full ones: this module computes the step sizes before the scan,
and the gradients of their factor and weight after it."""

import torch
from torch import Tensor

from vmddpm_kernels.backends.extension import typed
from vmddpm_kernels.checks import check_memory
from vmddpm_kernels.interception import not_autocast
from vmddpm_kernels.scan_inputs import ScanInputs


def with_step_sizes(inputs: ScanInputs) -> ScanInputs:
    """The inputs without `dt_proj`: delta (B, K, L, D) in the dtype of the factor, or in float64 if that is the
    accumulation's."""
    if inputs.dt_proj is None:
        return inputs
    factor, weight = _operands(inputs)
    with not_autocast(factor.device.type):
        delta = torch.matmul(factor, weight.mT)
    return inputs._replace(delta=delta, dt_proj=None)


def gradients_of_factors(inputs: ScanInputs, grads: list[Tensor | None]) -> list[Tensor | None]:
    """The gradients of `inputs` from `grads`, the gradients of `with_step_sizes(inputs)`."""
    if inputs.dt_proj is None:
        return grads
    factor, weight = _operands(inputs)
    ddelta = grads[1]
    assert ddelta is not None
    with not_autocast(factor.device.type):
        dfactor = torch.matmul(ddelta, weight)                                  # (B, K, L, R)
        by_route = (t.transpose(0, 1).flatten(1, 2) for t in (ddelta, factor))  # (K, B L, .)
        dweight = torch.bmm(next(by_route).mT, next(by_route))                  # (K, D, R)
    assert inputs.dt_proj is not None
    return [
        grads[0],
        dfactor.to(inputs.delta.dtype).contiguous(),
        *grads[2:8],
        dweight.to(inputs.dt_proj.dtype).contiguous(),
    ]


def _operands(inputs: ScanInputs) -> tuple[Tensor, Tensor]:
    """The factor and the weight in one dtype, after a check of their storage, which torch's operators do not make."""
    factor, weight = inputs.delta.detach(), inputs.dt_proj
    assert weight is not None
    check_memory((factor, weight))
    dtype = torch.float64 if inputs.sizes().wide else factor.dtype
    return typed(factor, dtype), typed(weight.detach(), dtype)
