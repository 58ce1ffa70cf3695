"""Registers functions as PyTorch operators `torch.ops.vmddpm.*`, which torch.compile, torch.export, profilers and
dispatch modes support."""

from collections.abc import Callable
from typing import Any

import torch

from vmddpm_kernels.interception import Ways, apply_of, differentiated, entry_below_autograd, transformed

_library = torch.library.Library("vmddpm", "FRAGMENT")


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """Register an operator with the schema "name(arguments) -> results". Its results are new tensors; `fake` makes
    tensors of the same shapes, dtypes, strides and device without computing values."""
    name = _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vmddpm::{name}", fake, lib=_library)
    return getattr(torch.ops.vmddpm, name).default


def differentiate(operator: Any, function: type[torch.autograd.Function], kernel: Callable[..., Any]) -> Ways:
    """Register `function`, an autograd Function of the same arguments, as the derivative of `operator`, and return the
    ways to call the operator. A function without a `forward` or `vmap` of its own gets one that calls the operator."""

    def below_autograd(*args: Any) -> Any:
        result = entry_below_autograd(operator, kernel, filter(torch.is_tensor, args))(*args)
        return tuple(result) if isinstance(result, list) else result  # a Function may not return a list

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
        return vmap_by_loop(function, info, in_dims, *args)

    def dispatched(*args: Any) -> Any:
        if transformed() or differentiated(args):
            return function.apply(*args)
        return entry_below_autograd(operator, kernel, filter(torch.is_tensor, args))(*args)

    for name, method in (("forward", below_autograd), ("vmap", vmap)):
        if name not in vars(function):
            setattr(function, name, staticmethod(method))
    _library.impl(operator._schema.name.partition("::")[2], dispatched, "Autograd")
    return Ways(operator, function.apply, directly(function, kernel), kernel)


def differentiate_once(operator: Any, kernel: Callable[..., Any], message: str) -> type[torch.autograd.Function]:
    """Register an autograd Function for `operator`, which returns gradients, and return it. It raises RuntimeError if
    they are differentiated again, so that they do not silently act as constants."""

    class Gradients(torch.autograd.Function):
        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, ...]) -> None:
            pass

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> None:
            raise RuntimeError(message)

        @staticmethod
        def jvp(ctx: Any, *tangents: Any) -> None:
            raise RuntimeError(message)

    differentiate(operator, Gradients, kernel)
    return Gradients


def directly(function: type[torch.autograd.Function], kernel: Callable[..., Any]) -> Callable[..., Any]:
    """`function.apply` for calls that cannot be intercepted: its forward calls the kernel directly."""

    class Direct(function):  # type: ignore[misc, valid-type]
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            result = kernel(*args)
            function.setup_context(ctx, args, result)
            return result

        setup_context = staticmethod(torch.autograd.Function.setup_context)

    return apply_of(Direct)


def note_change(tensor: torch.Tensor) -> None:
    """Tell autograd that a kernel changed the tensor in place, so that it rejects stale saved values."""
    if not tensor.is_inference():
        torch.autograd.graph.increment_version(tensor)


def vmap_by_loop(function: type[torch.autograd.Function], info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    """The `vmap` of an autograd Function: one call for each element, as the operators are batched already."""

    def element(i: int) -> list[Any]:
        return [arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims)]

    results = [function.apply(*element(i)) for i in range(info.batch_size)]
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results), 0
    return tuple(map(torch.stack, zip(*results))), (0,) * len(results[0])
