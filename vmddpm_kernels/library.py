"""How a function becomes an operator of PyTorch, `torch.ops.vmddpm.*`: a node of a graph for torch.compile and
torch.export, a name for profilers, a call for dispatch modes to see."""

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("vmddpm", "FRAGMENT")


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """The operator of a schema "name(arguments) -> results". Its results are new tensors; `fake` makes them without
    their values, for any sizes: their shapes, dtypes, strides and device."""
    name = _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vmddpm::{name}", fake, lib=_library)
    return getattr(torch.ops.vmddpm, name).default


def differentiate(operator: Any, function: type[torch.autograd.Function]) -> None:
    """Makes `function`, an autograd Function of the arguments of `operator`, its derivative."""

    def autograd(*args: Any) -> Any:
        if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
            return apply(function, *args)
        return below_autograd(operator, *args)

    _library.impl(operator._schema.name.partition("::")[2], autograd, "Autograd")


def apply(function: type[torch.autograd.Function], *args: Any) -> Any:
    """`function.apply` of all its arguments. That binds them to a signature first, which costs more than all the rest;
    only transforms (torch.func) need more than what is called here."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    return super(torch.autograd.Function, function).apply(*args)  # type: ignore[misc]


def below_autograd(operator: Any, *args: Any) -> Any:
    """Calls the kernel of an operator, past the derivative that `differentiate` gave it."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)
