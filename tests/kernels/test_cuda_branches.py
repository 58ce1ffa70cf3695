"""Every branch of the CUDA kernels on small problems, against the float64 loop: each number of states per thread, each
walk, each way to fetch a tile, each way to divide a problem. Short enough for sanitizers too, which find a missing
barrier or an overrun even if the values are right; see test_cuda_sanitized.py. The problems are too small for a ratio
of two errors (test_scan_accuracy.py uses that rule), so errors must be within a few units in the last place."""

import pytest
import torch
from emulated import EMPTY, FILLED, use_emulation
from oracle import relative_error, scan_loop
from test_scan_accuracy import image_problem, rows, run

import vmddpm_kernels as vk

# name: (B, K, L, D, N), dtype, multiprocessors, options. 20 is one tile and a piece; 37 a chunk and a piece.
CASES = {
    "one state a thread": ((1, 2, 37, 33, 1), torch.float32, FILLED, {}),
    "two slices": ((1, 1, 20, 33, 2), torch.float32, FILLED, {}),
    "four states a thread": ((1, 2, 37, 35, 4), torch.float32, FILLED, {}),
    "four slices, two tiles": ((1, 1, 37, 64, 7), torch.float32, FILLED, {}),
    "sixteen states a thread": ((1, 2, 37, 33, 16), torch.float32, FILLED, {}),
    "three tiles, three routes": ((1, 3, 37, 96, 5), torch.bfloat16, FILLED, {}),
    "routes that meet": ((1, 3, 20, 33, 6), torch.float32, EMPTY, {}),
    "four tiles, five groups": ((1, 2, 20, 600, 2), torch.float32, FILLED, {}),
    "several passes": ((1, 2, 20, 5, 67), torch.float32, FILLED, {}),
    "segments": ((1, 2, 70, 33, 6), torch.float32, EMPTY, {}),
    "segments, one state": ((1, 2, 70, 33, 1), torch.float32, EMPTY, {}),
    "segments, double": ((1, 1, 40, 5, 3), torch.float64, EMPTY, {}),
    "whole rows, half": ((1, 2, 20, 40, 8), torch.float16, FILLED, {}),
    "whole rows, bfloat16, segments": ((1, 2, 70, 32, 16), torch.bfloat16, EMPTY, {}),
    "single elements, half": ((1, 2, 20, 5, 3), torch.float16, FILLED, {}),
    "double": ((1, 2, 37, 9, 5), torch.float64, FILLED, {}),
    "parts of the batch": ((5, 4, 70, 5, 6), torch.bfloat16, FILLED, {}),
    "parts of the batch, one state": ((9, 4, 100, 5, 1), torch.float32, FILLED, {}),
    "no softplus": ((2, 2, 37, 9, 5), torch.float32, FILLED, {"delta_softplus": False}),
    "zoh": ((1, 2, 37, 9, 6), torch.float32, FILLED, {"discretization": "zoh"}),
    "zoh, one state": ((1, 1, 20, 9, 1), torch.float32, FILLED, {"discretization": "zoh"}),
    "zoh, sixteen": ((1, 1, 20, 9, 12), torch.float32, FILLED, {"discretization": "zoh"}),
    "zoh, double": ((1, 1, 20, 5, 2), torch.float64, FILLED, {"discretization": "zoh"}),
    "zoh, segments": ((1, 1, 40, 5, 5), torch.float32, EMPTY, {"discretization": "zoh"}),
    "zoh, segments, one state": ((1, 1, 40, 5, 1), torch.float32, EMPTY, {"discretization": "zoh"}),
    "zoh, segments, double": ((1, 1, 40, 5, 2), torch.float64, EMPTY, {"discretization": "zoh"}),
}


@pytest.mark.parametrize("case", CASES)
def test_summed_routes(case, monkeypatch, emulated_native):
    sizes, dtype, multiprocessors, options = CASES[case]
    use_emulation(monkeypatch, emulated_native, multiprocessors)
    _, K, length, _, _ = sizes
    table = torch.stack([torch.randperm(length) for _ in range(K)]).int()
    tensors = list(image_problem(*sizes, dtype))
    softplus = options.get("delta_softplus", True)
    if not softplus:  # step sizes must be positive
        tensors[1], tensors[6] = tensors[1].abs() * 0.3, tensors[6].abs() * 0.3

    def operator(*t):
        return vk.cross_selective_scan(
            *t[:7], table, initial_state=t[7], return_last_state=True, backend="cuda", **options
        )

    def loop(*t):
        return scan_loop(*t, table=table, softplus=softplus, zoh=options.get("discretization") == "zoh")

    check(tensors, operator, loop, dtype)


@pytest.mark.parametrize("channel_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("length", [40, 37])
@pytest.mark.parametrize("multiprocessors", [EMPTY, FILLED])
def test_sequences(channel_last, dtype, length, multiprocessors, monkeypatch, emulated_native):
    """Independent groups without a table; 16-byte fetches along the steps, because 40 steps make whole chunks."""
    use_emulation(monkeypatch, emulated_native, multiprocessors)
    _, delta, A, B, C, D, bias, h0 = image_problem(2, 2, length, 33, 8, dtype)
    u = torch.randn(delta.shape).to(dtype)

    def operator(u, delta, A, B, C, D, bias, h0):
        def sequences(t):
            t = t.transpose(1, 2).flatten(2)
            return t if channel_last else t.transpose(1, 2).contiguous()

        B, C = ((t.transpose(1, 2) if channel_last else t.transpose(2, 3).contiguous()) for t in (B, C))
        out, last = vk.selective_scan(
            sequences(u), sequences(delta), A.flatten(0, 1), B, C, D.flatten(), delta_bias=bias.flatten(),
            initial_state=h0.flatten(1, 2), delta_softplus=True, return_last_state=True, channel_last=channel_last,
            backend="cuda",
        )  # fmt: skip
        out = out if channel_last else out.transpose(1, 2)
        return out.unflatten(2, (2, -1)).transpose(1, 2), last.unflatten(1, (2, -1))

    def loop(*t):
        return scan_loop(*t, merge=False)

    check((u, delta, A, B, C, D, bias, h0), operator, loop, dtype)


def check(tensors, operator, loop, dtype):
    names = ("y", "last_state", "dx", "ddelta", "dA", "dB", "dC", "dD", "ddelta_bias", "dinitial_state")
    exact = run([t.double() for t in tensors], loop)
    for name, ours, expected in zip(names, run(tensors, operator), exact):
        unit = torch.finfo(ours.dtype if name == "last_state" else dtype).eps
        assert relative_error(ours, expected) <= 8 * unit, name


@pytest.mark.parametrize("permuted", [False, True])
@pytest.mark.parametrize("layouts", [(True, True), (True, False), (False, True), (False, False)])
def test_cross_scan_and_merge(layouts, permuted, monkeypatch, emulated_native):
    use_emulation(monkeypatch, emulated_native)
    permutation = vk.patch_permutation(5, 9, seed=1) if permuted else None
    for dtype in (torch.float16, torch.float32, torch.float64, torch.bfloat16):
        x = torch.randint(-50, 50, (2, 7, 5, 9) if layouts[0] else (2, 5, 9, 7)).to(dtype)
        y = torch.randint(-50, 50, (2, 4, 7, 5, 9) if layouts[1] else (2, 5, 9, 4, 7)).to(dtype)
        for function, tensor in ((vk.cross_scan, x), (vk.cross_merge, y)):
            ours = function(tensor, *layouts, permutation=permutation, backend="cuda")
            assert torch.equal(ours, function(tensor, *layouts, permutation=permutation, backend="reference"))


# Whole vectors; runs that begin anywhere in a sector; whole images and several channels at a time; a single row or
# column; channels that do not fill vectors.
@pytest.mark.parametrize("sizes", [(2, 16, 8, 16), (1, 20, 9, 11), (1, 16, 17, 33), (1, 17, 1, 19), (1, 8, 40, 1)])
@pytest.mark.parametrize("layouts", [(True, True), (True, False), (False, True), (False, False)])
def test_regular_routes(layouts, sizes, monkeypatch, emulated_native):
    """On a GPU filled by the work and on one that is not, with and without shared memory for whole images."""
    batch, channels, height, width = sizes
    for multiprocessors, shared_bytes in ((FILLED, 227 * 1024), (EMPTY, 20 * 1024)):
        use_emulation(monkeypatch, emulated_native, multiprocessors, shared_bytes)
        for dtype in (torch.float16, torch.float32, torch.float64):
            for scans in (0, 3):
                check_copies(layouts, scans, False, batch, channels, height, width, dtype)
        check_copies(layouts, 2, True, batch, channels, height, width, torch.bfloat16)


def check_copies(layouts, scans, one_by_one, batch, channels, height, width, dtype, **options):
    def random(first, apart):
        shape = (batch, *apart, channels, height, width) if first else (batch, height, width, *apart, channels)
        return torch.randint(-50, 50, shape).to(dtype)

    x = random(layouts[0], (4,) if one_by_one else ())
    y = random(layouts[1], (4,))
    for function, tensor in ((vk.cross_scan, x), (vk.cross_merge, y)):
        ours = function(tensor, *layouts, one_by_one, scans, backend="cuda", **options)
        assert torch.equal(ours, function(tensor, *layouts, one_by_one, scans, backend="reference", **options))


def test_small_shared_memory(monkeypatch, emulated_native):
    """Blocks are narrower on GPUs with less shared memory, down to the smallest existing size."""
    tensors = image_problem(1, 2, 40, 64, 16, torch.float32)

    def scan(*t):
        return vk.cross_selective_scan(*t[:7], rows(2, 40), backend="cuda", discretization="zoh")

    results = []
    for kilobytes in (227, 163, 99):
        use_emulation(monkeypatch, emulated_native, FILLED, kilobytes * 1024)
        y = scan(*(leaves := [t.clone().requires_grad_() for t in tensors]))
        results.append([y, *torch.autograd.grad(y.sum(), leaves[:7])])
    for other in results[1:]:
        for a, b in zip(results[0], other):
            torch.testing.assert_close(a, b)
    use_emulation(monkeypatch, emulated_native, FILLED, 4 * 1024)
    with pytest.raises(ValueError, match="bytes of shared memory a block"):
        scan(*tensors)
