"""How a function becomes an operator of PyTorch, `torch.ops.vmddpm.*`: a node of a graph for torch.compile and
torch.export, a name for profilers, a call for dispatch modes to see."""

from collections.abc import Callable
from typing import Any

import torch

_library = torch.library.Library("vmddpm", "FRAGMENT")
_kernels: dict[Any, Callable[..., Any]] = {}
_PLAIN = frozenset({torch.Tensor, torch.nn.Parameter, type(None), bool, str})


def define(schema: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> Any:
    """The operator of a schema "name(arguments) -> results". Its results are new tensors; `fake` makes them without
    their values, for any sizes: their shapes, dtypes, strides and device."""
    name = _library.define(schema, tags=torch.Tag.pt2_compliant_tag)
    _library.impl(name, kernel, "CompositeExplicitAutograd")
    torch.library.register_fake(f"vmddpm::{name}", fake, lib=_library)
    operator = getattr(torch.ops.vmddpm, name).default
    _kernels[operator] = kernel
    return operator


def differentiate(operator: Any, function: type[torch.autograd.Function]) -> None:
    """Makes `function`, an autograd Function of the arguments of `operator`, its derivative."""
    name = operator._schema.name.partition("::")[2]

    def dispatched(*args: Any) -> Any:
        return _with_derivative(operator, function, torch._C._any_requires_grad(*args), args)

    _library.impl(name, dispatched, "Autograd")


def call(operator: Any, function: type[torch.autograd.Function], requires_grad: bool, *args: Any) -> Any:
    """`operator(*args)`, whose derivative is `function`, at the least cost where no graph is traced. `requires_grad` is
    False if none of the tensors does."""
    if torch.compiler.is_compiling():
        return operator(*args)
    return _with_derivative(operator, function, requires_grad, args)


def _with_derivative(
    operator: Any, function: type[torch.autograd.Function], requires_grad: bool, args: tuple[Any, ...]
) -> Any:
    if torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    if requires_grad and torch.is_grad_enabled():
        # What `function.apply` does after binding its arguments to a signature, which costs more than all the rest.
        return super(torch.autograd.Function, function).apply(*args)
    return below_autograd(operator, *args)


def below_autograd(operator: Any, *args: Any) -> Any:
    """The kernel of an operator, without its derivative. Where neither a mode nor a profiler nor a tensor's class would
    hear of the call, it is made without the dispatcher, which costs a small scan a tenth of its time."""
    unheard = not torch._C._len_torch_dispatch_stack() and not torch.autograd._profiler_enabled()
    if unheard and _PLAIN.issuperset(map(type, args)):
        return _kernels[operator](*args)
    with torch._C._AutoDispatchBelowAutograd():
        return operator(*args)


def vmap_by_loop(function: type[torch.autograd.Function], info: Any, in_dims: tuple[Any, ...], *args: Any) -> Any:
    """The `vmap` of an autograd Function, one call for each element: the operators have a batch axis of their own."""

    def element(i: int) -> list[Any]:
        return [arg if dim is None else arg.select(dim, i) for arg, dim in zip(args, in_dims)]

    results = [function.apply(*element(i)) for i in range(info.batch_size)]
    if isinstance(results[0], torch.Tensor):
        return torch.stack(results), 0
    return tuple(map(torch.stack, zip(*results))), (0,) * len(results[0])
