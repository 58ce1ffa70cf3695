"""Calls with another library's arguments, or without a needed one, get an error that says what to write."""

import warnings

import pytest
import torch

import vmddpm_kernels as vk
from vmddpm_kernels import cross_selective_scan, selective_scan, selective_state_update

OF_OTHERS = r"vmddpm_kernels\.compat\.mamba_ssm, those of VMamba in vmddpm_kernels\.compat\.vmamba"

EXTRA, DT_BIAS = "got 1 positional argument too many", "no argument dt_bias; here it is delta_bias"
ORDERS = "pass visit orders as table="


def sequence(batch=2, dim=6, length=5, states=3):
    """u, delta, A, B, C, D of `selective_scan`."""
    return (torch.randn(batch, dim, length), torch.rand(batch, dim, length), -torch.rand(dim, states),
            torch.randn(batch, states, length), torch.randn(batch, states, length), torch.randn(dim))  # fmt: skip


def image(routes=4, batch=2, height=2, width=3, dim=4, states=3):
    """x, delta, A, B, C of `cross_selective_scan`."""
    length = height * width
    return (torch.randn(batch, length, dim), torch.randn(batch, routes, length, dim), -torch.rand(routes, dim, states),
            torch.randn(batch, routes, length, states), torch.randn(batch, routes, length, states))  # fmt: skip


def step():
    """state, u, delta, A, B, C of `selective_state_update`."""
    return (torch.zeros(2, 6, 3), torch.randn(2, 6), torch.rand(2, 6), -torch.rand(6, 3), torch.randn(2, 3),
            torch.randn(2, 3))  # fmt: skip


@pytest.mark.parametrize(
    ("call", "words"),
    [
        # VMamba's order has no z, so its delta_bias lands in z and its flag in delta_bias.
        (lambda: selective_scan(*sequence(), torch.rand(6)), f"z .*; pass a bias as delta_bias=.*{OF_OTHERS}"),
        (lambda: selective_scan(*sequence(), torch.rand(6), True), "z .*; pass a bias as delta_bias="),
        (lambda: selective_scan(*sequence(), None, True), "delta_bias .* flags by keyword, as delta_softplus=True"),
        # mamba_ssm's order has delta_softplus after delta_bias.
        (lambda: selective_scan(*sequence(), None, torch.rand(6), True), f"{EXTRA}.*{OF_OTHERS}"),
        (lambda: selective_scan(*sequence(), dt_bias=torch.rand(6)), f"{DT_BIAS}.*{OF_OTHERS}"),
        (lambda: selective_scan(*sequence(), nrows=1), f"no argument nrows. Functions.*{OF_OTHERS}"),
        (lambda: cross_selective_scan(*image(), torch.rand(4, 4), vk.routes(2, 3)), f"delta_bias .*{ORDERS}"),
        (lambda: cross_selective_scan(*image(), vk.routes(2, 3)), f"D .*{ORDERS}"),
        (lambda: cross_selective_scan(*image(), routes=vk.routes(2, 3)), "no argument routes; here it is table"),
        (lambda: cross_selective_scan(*image(), None, None, vk.routes(2, 3), True), EXTRA),
        (lambda: selective_state_update(*step(), dt_bias=torch.rand(6)), DT_BIAS),
        (lambda: selective_state_update(*step(), None, None, None, True), EXTRA),
        (lambda: vk.cross_merge(torch.randn(1, 4, 2, 6)), r"as cross_scan returns it, give size=\(height, width\)"),
        (lambda: vk.cross_merge(torch.randn(1, 4, 2, 6), size=(2, 2)),
         r"size is \(2, 2\), 4 pixels; y \(B, K, C, L\) = \(1, 4, 2, 6\) has 6"),
        (lambda: vk.cross_merge(torch.randn(1, 3, 2, 24), size=(4, 6)),
         r"y must have shape \(B, K, C, L\) with K = 4, the routes of scans, got \(1, 3, 2, 24\)"),
        (lambda: vk.routes(3, 3, scans="window99999999999999999999-hw"), "of scans must have a side of at most 32768"),
        (lambda: vk.routes(3, 3, scans="skip2@" + "9" * 5000 + "-hw"), "of scans must start at one of its 4 grids"),
        (lambda: vk.routes(3, 3, scans="window\uff12-hw"), "which is not a route"),
        (lambda: vk.cross_merge(torch.randn(1, 4, 2, 6), size=6), r"size must be \(height, width\), or .*, got 6"),
        (lambda: vk.cross_merge(torch.randn(1, 4, 2, 2, 3), size=(2, 3)), r"y must have shape \(B, K, C, L\)"),
    ],
)  # fmt: skip
def test_the_error_of_a_mistaken_call_says_what_to_write(call, words):
    with pytest.raises((TypeError, ValueError), match=words), warnings.catch_warnings(action="error"):
        call()


def test_unspecified_softplus_is_applied_with_a_warning():
    tensors = image(1)
    with pytest.warns(FutureWarning, match="pass delta_softplus=True or False") as record:
        y = cross_selective_scan(*tensors)
    assert [warning.filename for warning in record] == [__file__]
    with warnings.catch_warnings(action="error"):
        assert torch.equal(y, cross_selective_scan(*tensors, delta_softplus=True))
        assert not torch.equal(y, cross_selective_scan(*tensors, delta_softplus=False))
        selective_scan(*sequence())


NO_TABLE = r'table is missing: the 4 routes .*table=routes\(height, width\), with scans="unidi" for rows only, or any '


@pytest.mark.parametrize("backend", [None, "reference"])
def test_several_routes_need_a_table(backend):
    """The error comes before any computation; a single route needs no table."""
    options = {"delta_softplus": True, "backend": backend}
    with pytest.raises(ValueError, match=NO_TABLE):
        cross_selective_scan(*image(), **options)
    with warnings.catch_warnings(action="error"):
        y = cross_selective_scan(*image(), table=vk.routes(2, 3, scans="unidi"), **options)
        assert y.shape == (2, 6, 4)
        tensors, row = image(1), torch.arange(6, dtype=torch.int32)[None]
        y = cross_selective_scan(*tensors, **options)
        torch.testing.assert_close(y, cross_selective_scan(*tensors, table=row, **options))


def test_the_operator_takes_several_routes_without_a_table():
    y, *_ = torch.ops.vmddpm.selective_scan_forward(
        *(tensors := image()), *[None] * 5, True, False, False, "cpu", False
    )
    rows = vk.routes(2, 3, scans="unidi")
    torch.testing.assert_close(y, cross_selective_scan(*tensors, table=rows, delta_softplus=True))


def test_compiled_calls_need_a_table_too():
    def function(*tensors):
        return cross_selective_scan(*tensors)  # in a graph there is no warning about delta_softplus

    for dynamic in (False, True):
        torch.compiler.reset()
        compiled = torch.compile(function, fullgraph=True, dynamic=dynamic, backend="eager")
        with warnings.catch_warnings(action="ignore"):
            torch.testing.assert_close(compiled(*(tensors := image(1))), function(*tensors))
        with pytest.raises(Exception, match=NO_TABLE):
            compiled(*image())


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning", "ignore::DeprecationWarning")
def test_traced_calls_need_a_table_too():
    def function(*tensors):
        return cross_selective_scan(*tensors, delta_softplus=True)

    tensors = image(1)
    torch.testing.assert_close(torch.jit.trace(function, tensors)(*tensors), function(*tensors))
    with pytest.raises(ValueError, match=NO_TABLE):
        torch.jit.trace(function, image())


@pytest.mark.parametrize("in_first", [True, False])
@pytest.mark.parametrize("out_first", [True, False])
@pytest.mark.parametrize("one_by_one", [True, False])
@pytest.mark.parametrize("shuffled", [True, False])
def test_cross_merge_takes_what_cross_scan_returns(in_first, out_first, one_by_one, shuffled):
    """Each pixel is visited once by each of the four routes."""
    height, width, channels = 3, 5, 2
    shape = (height, width, *(4,) * one_by_one, channels)
    x = torch.randn(2, *((*shape[2:], *shape[:2]) if in_first else shape), dtype=torch.float64)
    permutation = vk.patch_permutation(height, width, seed=0) if shuffled else None
    layout = in_first, out_first, one_by_one
    y = vk.cross_scan(x, *layout, permutation=permutation)
    merged = vk.cross_merge(y, *layout, permutation=permutation, size=(height, width))
    torch.testing.assert_close(merged, x if one_by_one else 4 * x)
