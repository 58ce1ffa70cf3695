"""Decides whether an operator call must go through PyTorch's dispatcher, which takes about 10% of a small scan. Calls
that no mode, transform, profiler or tensor subclass can intercept skip it.

This is the only module that uses private names of torch. If one is missing, every call goes through the dispatcher.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from enum import Enum, auto
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

_TENSORS = (Tensor, torch.nn.Parameter)
Call = Callable[..., Any]
_T = TypeVar("_T")
Function = type[torch.autograd.Function]


def _listening() -> bool:
    """Whether a mode, transform, tracer or profiler is active in this thread."""
    return bool(
        torch._C._len_torch_dispatch_stack()            # dispatch modes: fake tensors, make_fx, FLOP counters
        or torch._C._len_torch_function_stack()         # function modes: torch.device, torch.set_default_device
        or torch._C._are_functorch_transforms_active()  # torch.func: grad, vmap, jvp, functionalize
        or torch._C._get_tracing_state() is not None    # torch.jit.trace
        or torch._C._autograd._profiler_enabled()
        or forward_ad._current_level >= 0
    )


def _can_tell() -> bool:
    try:
        _listening()
        torch.empty(0)._is_zerotensor()
    except AttributeError:
        return False
    return True


_CAN_TELL = _can_tell()
_below_autograd: Call = getattr(torch._C, "_AutoDispatchBelowAutograd", nullcontext)


def intercepted(tensors: Iterable[Any]) -> bool:
    """Whether a mode, tracer, transform or tensor can intercept an operator call with these tensors. Subclasses, lazily
    negated tensors and zero tensors without memory can. (Lazily conjugated tensors are complex, and no operator takes
    complex tensors.)"""
    return _needs_autograd(tensors) is None


def _needs_autograd(tensors: Iterable[Any]) -> bool | None:
    """Whether autograd must record a call with these tensors; None if the call can be intercepted."""
    if not _CAN_TELL or _listening():
        return None
    watched, needs = torch.is_grad_enabled(), False
    for tensor in tensors:
        if tensor is not None:
            if type(tensor) not in _TENSORS or tensor.is_neg() or tensor._is_zerotensor():
                return None
            if watched and not needs:
                needs = tensor.requires_grad
    return needs


class Way(Enum):
    """How an operator is called."""

    KERNEL = auto()      # directly: the kernel alone
    AUTOGRAD = auto()    # directly: an autograd Function around the kernel
    TRANSFORM = auto()   # through `Function.apply`, for transforms of torch.func
    DISPATCHER = auto()  # through PyTorch's dispatcher


def way_in(tensors: Iterable[Any]) -> Way:
    """How to call an operator with these tensors."""
    if torch.compiler.is_compiling():
        return Way.DISPATCHER
    needs_autograd = _needs_autograd(tensors)
    if needs_autograd is None:
        return Way.TRANSFORM if transformed() else Way.DISPATCHER
    return Way.AUTOGRAD if needs_autograd else Way.KERNEL


class Ways(NamedTuple):
    """The callables of an operator, one for each `Way`; all take the same arguments."""

    operator: Call
    function: Call  # `apply` of its autograd Function
    directly: Call  # the same for calls that cannot be intercepted
    kernel: Call

    def way_in(self, *tensors: Any) -> Call:
        way = way_in(tensors)
        if way is Way.KERNEL:
            return self.kernel
        if way is Way.AUTOGRAD:
            return self.directly
        return self.function if way is Way.TRANSFORM else self.operator


def apply_of(function: Function) -> Call:
    """`function.apply` without binding the arguments to a signature, its most expensive part."""
    apply: Call = getattr(super(torch.autograd.Function, function), "apply")  # noqa: B009
    return apply


# Whether a gradient is batched by `is_grads_batched`, which looks like an ordinary tensor.
is_batched: Call = getattr(getattr(torch._C, "_functorch", None), "is_legacy_batchedtensor", lambda _: False)


def refuse_batched(*grads: Tensor | None) -> None:
    """Raise RuntimeError for gradients batched by `is_grads_batched`, which look like ordinary tensors."""
    for grad in grads:
        if grad is not None and is_batched(grad):
            raise RuntimeError(
                "the compiled operators take one gradient at a time: leave is_grads_batched, vectorize and "
                "check_batched_grad out, use torch.func.vmap, or pass backend='reference'"
            )


def entry_below_autograd(operator: Call, kernel: Call, tensors: Iterable[Any]) -> Call:
    """The callable for `operator(*args)` inside its own autograd Function: the kernel, unless the call is
    intercepted."""

    def dispatched(*args: Any) -> Any:
        with _below_autograd():
            return operator(*args)

    return dispatched if _below_autograd is not nullcontext and intercepted(tensors) else kernel


def in_forward_mode() -> bool:
    """Whether forward-mode AD is active, so that tensors may carry tangents."""
    return getattr(forward_ad, "_current_level", 0) >= 0


def differentiated(args: Iterable[Any]) -> bool:
    """Whether reverse- or forward-mode AD records a call with these arguments."""
    if in_forward_mode():
        return True
    return torch.is_grad_enabled() and any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)


def transformed() -> bool:
    """Whether a transform of torch.func that needs the autograd Function is active. functionalize needs the operator
    instead."""
    try:
        if not torch._C._are_functorch_transforms_active():
            return False
        interpreter = torch._C._functorch.peek_interpreter_stack()
        return interpreter is not None and interpreter.key() != torch._C._functorch.TransformType.Functionalize
    except AttributeError:
        return True


@contextmanager
def recorded_by_autograd() -> Iterator[None]:
    """A context in which autograd records operations even inside the kernel of an operator."""
    excluded = torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradFunctionality", "AutogradOther", "AutogradNestedTensor"):
        excluded = excluded.remove(getattr(torch._C.DispatchKey, key))
    included = torch._C._dispatch_tls_local_include_set()
    with torch._C._ForceDispatchKeyGuard(included, excluded), torch.enable_grad():
        yield


def not_autocast(device: str) -> AbstractContextManager[Any]:
    """A context in which torch.autocast is off."""
    if not torch.amp.is_autocast_available(device) or not torch.is_autocast_enabled(device):
        return nullcontext()
    return torch.autocast(device, enabled=False)


def traced() -> bool:
    """Whether torch.jit.trace is recording."""
    return _CAN_TELL and torch._C._get_tracing_state() is not None


def untraced(function: Callable[..., _T], *args: Any) -> _T:
    """`function(*args)`, hidden from torch.jit.trace, so that tensor sizes are numbers inside it."""
    state = torch._C._get_tracing_state() if _CAN_TELL else None
    if state is None:
        return function(*args)
    torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
    try:
        return function(*args)
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[attr-defined]
