"""The least work of a module with Cross-Scan Modules, counted while it runs."""

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.limits import Work
from benchmarks.problem import ROUTES
from vmddpm.model.csm import CSM


def work_of(module: nn.Module, call: Callable[[], Any], backward: bool) -> Work:
    """The work of `call`, which runs the module forward, and with `backward` of the backward, which has two matrix
    products for each one forward. Bytes are those of the weights and, with `backward`, of their gradients."""
    scans = [m for m in module.modules() if isinstance(m, CSM)]
    elements = []

    def count(csm: CSM, inputs: tuple[Any, ...]) -> None:
        batch, _, height, width = inputs[0].shape
        elements.append(batch * ROUTES * height * width * csm.A_log.shape[1])

    hooks = [scan.register_forward_pre_hook(count) for scan in scans]
    with FlopCounterMode(display=False) as counter:
        call()
    for hook in hooks:
        hook.remove()
    flops = sum(n for name, n in counter.get_flop_counts()["Global"].items() if str(name).startswith("aten."))
    weights = sum(p.numel() * p.element_size() for p in module.parameters())
    passes = 3 if backward else 1
    return Work((1 + backward) * weights, passes * flops, sum(elements), backward * sum(elements), scans[0].states)
