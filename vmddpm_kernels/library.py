"""How a function becomes an operator of PyTorch, `torch.ops.vmddpm.*`: a node of a graph for torch.compile and
torch.export, a name for profilers, a call for dispatch modes to see."""

from collections.abc import Callable
from typing import Any

import torch

from vmddpm_kernels.interception import apply_of, differentiated, entry_below_autograd, transformed

_library = torch.library.Library("vmddpm", "FRAGMENT")


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """The operator of a schema "name(arguments) -> results". Its results are new tensors; `fake` makes them without
    their values, for any sizes: their shapes, dtypes, strides and device."""
    name = _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vmddpm::{name}", fake, lib=_library)
    return getattr(torch.ops.vmddpm, name).default


def differentiate(operator: Any, function: type[torch.autograd.Function], kernel: Callable[..., Any]) -> None:
    """Make `function`, an autograd Function of the arguments of `operator`, its derivative."""

    def dispatched(*args: Any) -> Any:
        if transformed() or differentiated(args):
            return function.apply(*args)
        return entry_below_autograd(operator, kernel, filter(torch.is_tensor, args))(*args)

    _library.impl(operator._schema.name.partition("::")[2], dispatched, "Autograd")


def directly(function: type[torch.autograd.Function], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`function.apply` for calls that nobody intercepts: its forward is the kernel, at once."""

    class Direct(function):  # type: ignore[misc, valid-type]
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            result = kernel(*args)
            function.setup_context(ctx, args, result)
            return result

        setup_context = staticmethod(torch.autograd.Function.setup_context)

    return apply_of(Direct)


def note_change(tensor: torch.Tensor) -> None:
    """Of a kernel that wrote into the tensor: what autograd saved of it is no longer what it was."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def vmap_by_loop(function: type[torch.autograd.Function], info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    """The `vmap` of an autograd Function, one call for each element: the operators have a batch axis of their own."""

    def element(i: int) -> list[Any]:
        return [arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims)]

    results = [function.apply(*element(i)) for i in range(info.batch_size)]
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results), 0
    return tuple(map(torch.stack, zip(*results))), (0,) * len(results[0])
