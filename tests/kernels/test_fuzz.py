"""Every public function on random arguments: it returns the reference's result, or names the wrong argument."""

import inspect
import re
import traceback
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
from fuzzing import TARGETS, calls

import vmddpm_kernels as vk

PACKAGE = Path(vk.__file__).parent
RTOL = {torch.float16: 4e-3, torch.bfloat16: 3e-2, torch.float32: 2e-4, torch.complex64: 2e-4}


def tensors_of(result):
    return list(result) if isinstance(result, tuple | list) else [result]


def call(function, arguments, differentiate):
    """The result, with gradients if it is differentiable; or the error, if it is one of ours."""
    torch.manual_seed(0)
    try:
        results = tensors_of(function(**arguments))
    except (TypeError, ValueError, RuntimeError) as error:
        assert_ours(error, function, arguments)
        return error
    leaves = [t for t in arguments.values() if isinstance(t, torch.Tensor) and t.requires_grad]
    values = [None if r is None else r.detach() for r in results]
    if not differentiate or not leaves:
        return values
    total = sum((r.abs() if r.is_complex() else r).double().sum() for r in results if r is not None and r.requires_grad)
    if not isinstance(total, torch.Tensor):
        return [*values, *map(torch.zeros_like, leaves)]
    return [*values, *torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True)]


def assert_ours(error, function, arguments):
    message = str(error)
    if isinstance(error, RuntimeError):
        assert re.match("backend '.*' is not available", message), f"not our own error: {message}"
    names = "|".join(map(re.escape, inspect.signature(function).parameters))
    assert re.search(rf"\b({names})\b", message), f"no argument is named: {message}"
    raised_at = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
    assert PACKAGE in raised_at.parents, f"not our own error: {message}"


def same(a, b, rtol):
    """Whether close. One may be NaN where the other is infinite: products of infinity and zero come in any order."""
    if a is None or b is None:
        return a is b
    if a.dtype != b.dtype or a.shape != b.shape or a.device != b.device:
        return False
    if a.is_meta:
        return True
    if a.dtype.itemsize == 1 and a.is_floating_point():  # float8, for which torch supports little but conversion
        a, b = a.float(), b.float()
    finite = a.isfinite()
    return torch.equal(finite, b.isfinite()) and torch.allclose(a[finite], b[finite], rtol=rtol, atol=rtol)


def differentiable(value):
    """The argument as a leaf."""
    if isinstance(value, torch.Tensor) and (value.is_floating_point() or value.is_complex()):
        return value.detach().requires_grad_()
    return value


@pytest.mark.parametrize("target", TARGETS)
@hypothesis.settings(
    max_examples=hypothesis.settings.default.max_examples * 6 // 5,
    suppress_health_check=[hypothesis.HealthCheck.too_slow, hypothesis.HealthCheck.function_scoped_fixture],
)
@hypothesis.given(st.data())
def test_any_call(target, monkeypatch, data):
    function, arguments, done = data.draw(calls(target))
    differentiate = data.draw(st.booleans())
    if differentiate:
        arguments = {name: differentiable(value) for name, value in arguments.items()}
    ours = call(function, arguments, differentiate)
    with monkeypatch.context() as patch:
        patch.setenv("VMDDPM_BACKEND", "reference")
        reference = call(function, arguments, differentiate)
    hypothesis.event(f"{'spoiled' if done else 'valid'}, {'refused' if isinstance(ours, Exception) else 'returned'}")
    if isinstance(ours, Exception) or isinstance(reference, Exception):
        assert type(ours) is type(reference), f"{ours!r} but {reference!r} after {done}"
        return
    assert len(ours) == len(reference)
    # The error may be that of the least precise argument.
    dtypes = [t.dtype for t in (*arguments.values(), *ours) if isinstance(t, torch.Tensor)]
    rtol = max(RTOL.get(dtype, 1e-9) for dtype in dtypes)
    for a, b in zip(ours, reference):
        assert same(a, b, rtol), f"{a} but {b} after {done}"
