"""selective_scan and cross_selective_scan against float64 loops: forward and every gradient."""

import pytest
import torch
from emulated import EMPTY, FILLED, use_emulation
from oracle import assert_as_accurate, scan_loop

import vmddpm_kernels as vk

NAMES = ("x", "delta", "A", "B", "C", "D", "delta_bias", "initial_state")


def image_problem(batch, K, length, dim, states, dtype, seed=0):
    g = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64).to(dtype)

    A = -torch.rand(K, dim, states, generator=g, dtype=torch.float64).to(dtype) * 4 - 0.05
    x, delta = normal(batch, length, dim), normal(batch, K, length, dim)
    B, C = normal(batch, K, length, states), normal(batch, K, length, states)
    return x, delta, A, B, C, normal(K, dim), normal(K, dim), normal(batch, K, dim, states)


def rows(K, length):
    """A table of K routes in row-major order, (K, L)."""
    return torch.arange(length, dtype=torch.int32).expand(K, -1)


def run(tensors, function):
    """Outputs, and gradients of a fixed random projection of them."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    outputs = function(*leaves)
    g = torch.Generator().manual_seed(99)
    weights = [torch.randn(o.shape, generator=g, dtype=torch.float64).to(o.dtype) for o in outputs]
    projection = sum((o * w).sum() for o, w in zip(outputs, weights))
    grads = torch.autograd.grad(projection, leaves, allow_unused=True, materialize_grads=True)
    return [*outputs, *grads]


# Each compiled backend, and for `cuda` each way of dividing a problem.
COMPILED = {"cpu": "cpu", "cuda, whole sequences": "cuda", "cuda, segments": "cuda"}


@pytest.fixture
def compare(monkeypatch, emulated_native):
    """Compare every compiled backend with the loop. Errors are taken over several problems together, because a ratio of
    two errors is meaningful only over many values."""

    def compare(problems, operator, loop, dtype):
        runs = {name: [] for name in (*COMPILED, "reference", "exact")}
        for tensors in problems:
            for name, backend in COMPILED.items():
                use_emulation(monkeypatch, emulated_native, EMPTY if name.endswith("segments") else FILLED)
                runs[name].append(run(tensors, lambda *t, backend=backend: operator(backend, *t)))
            runs["reference"].append(run(tensors, lambda *t: operator("reference", *t)))
            runs["exact"].append(run([t.double() for t in tensors], loop))
        for i, name in enumerate(("y", "last_state", *("d" + n for n in NAMES))):
            values = {key: torch.cat([r[i].flatten() for r in results]) for key, results in runs.items()}
            for key in COMPILED:
                ours, theirs = values[key], values["reference"]
                assert ours.dtype == theirs.dtype
                of = ours.dtype if name == "last_state" else dtype
                assert_as_accurate(ours, theirs, values["exact"], of, f"{name} of {key}")

    return compare


# Odd, so that the CPU's last register and the GPU's last warp are never full.
DIMS = {1: 65, 7: 33, 49: 51, 63: 37, 64: 35, 65: 33, 196: 49, 784: 65, 1024: 65}


def sizes():
    """All combinations of length, state count and routes, for the nightly run. Every run takes a selection, with one or
    four routes in turn; common sizes have both."""
    for l, length in enumerate(DIMS):
        for n, states in enumerate((1, 4, 5, 8, 16, 32, 64, 256)):
            for K in (1, 4):
                for discretization in ("mamba", "zoh"):
                    common = states in (1, 16)
                    long = length >= 784 and (discretization == "zoh" or not common)
                    rare = states == 5 or length == 65 or (discretization == "zoh" and not common)
                    both = common and discretization == "mamba" and length < 784
                    other_turn = not both and (1, 4)[(l + n) % 2] != K
                    slow = long or rare or other_turn or (states == 256 and length >= 196)
                    marks = [pytest.mark.slow] if slow else []
                    yield pytest.param(length, states, K, discretization, marks=marks)


def problems_for(batch, K, length, dim, states):
    """The number of problems with enough channels and elements of dB for a meaningful error."""
    channels = min(512 // (K * dim), 1024 // length)
    return max(1, channels, min(16, 256 // (batch * K * length * states)))


@pytest.mark.parametrize(("length", "states", "K", "discretization"), list(sizes()))
def test_cross_selective_scan_float32(compare, length, states, K, discretization):
    g = torch.Generator().manual_seed(length)
    table = torch.stack([torch.randperm(length, generator=g) for _ in range(K)]).int()
    options = {"table": table, "discretization": discretization, "return_last_state": True}

    def operator(backend, *t):
        return vk.cross_selective_scan(*t[:7], initial_state=t[7], backend=backend, **options)

    def loop(*t):
        return scan_loop(*t, table=table, zoh=discretization == "zoh")

    dim = DIMS[length]
    batch = 1 if length > 500 else 2
    repeats = problems_for(batch, K, length, dim, states)
    problems = [image_problem(batch, K, length, dim, states, torch.float32, seed) for seed in range(repeats)]
    compare(problems, operator, loop, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("softplus", [True, False])
@pytest.mark.parametrize(("dim", "states"), [(21, 6), (53, 1)])
def test_cross_selective_scan_other_dtypes(compare, dtype, softplus, dim, states):
    table = vk.routes(5, 14, permutation=vk.patch_permutation(5, 14, seed=4))

    def operator(backend, *t):
        return vk.cross_selective_scan(
            *t[:7], initial_state=t[7], table=table, delta_softplus=softplus, return_last_state=True, backend=backend
        )

    def loop(*t):
        return scan_loop(*t, table=table, softplus=softplus)

    x, delta, A, B, C, D, bias, h0 = image_problem(2, 4, 70, dim, states, dtype)
    if not softplus:  # step sizes must be positive
        delta, bias = delta.abs() * 0.3, bias.abs() * 0.3
    compare([(x, delta, A, B, C, D, bias, h0)], operator, loop, dtype)


@pytest.mark.parametrize(("length", "states", "groups", "discretization"), list(sizes()))
def test_selective_scan_float32(compare, length, states, groups, discretization):
    """The same operator on sequences, with groups, in alternating layouts."""
    batch, dim = 1 if length > 500 else 2, DIMS[length]
    channel_last = states in (1, 16)
    repeats = problems_for(batch, groups, length, dim, states)

    def operator(backend, u, delta, A, B, C, D, bias, h0):
        def sequences(t):  # (B, G, L, C) -> (B, L, G C) or (B, G C, L)
            t = t.transpose(1, 2).flatten(2)
            return t if channel_last else t.transpose(1, 2).contiguous()

        B, C = ((t.transpose(1, 2) if channel_last else t.transpose(2, 3)) for t in (B, C))
        out, last = vk.selective_scan(
            sequences(u), sequences(delta), A.flatten(0, 1), B, C, D.flatten(), delta_bias=bias.flatten(),
            initial_state=h0.flatten(1, 2), delta_softplus=True, return_last_state=True, channel_last=channel_last,
            discretization=discretization, backend=backend,
        )  # fmt: skip
        out = out if channel_last else out.transpose(1, 2)
        return out.unflatten(2, (groups, -1)).transpose(1, 2), last.unflatten(1, (groups, -1))

    problems = []
    for seed in range(repeats):
        _, *rest = image_problem(batch, groups, length, dim, states, torch.float32, seed)
        u = torch.randn(batch, groups, length, dim, generator=torch.Generator().manual_seed(seed))
        problems.append((u, *rest))
    compare(problems, operator, lambda *t: scan_loop(*t, merge=False, zoh=discretization == "zoh"), torch.float32)


def test_selective_scan_gate_and_single_group(backend):
    """z multiplies by silu(z); (B, N, L) matrices are one group."""
    u, delta, z = torch.randn(3, 2, 9, 11, dtype=torch.float64).unbind(0)
    A = -torch.rand(9, 4, dtype=torch.float64)
    B, C = torch.randn(2, 2, 4, 11, dtype=torch.float64).unbind(0)
    loop = scan_loop(
        u.transpose(1, 2)[:, None], delta.transpose(1, 2)[:, None], A[None],
        B.transpose(1, 2)[:, None], C.transpose(1, 2)[:, None], softplus=False, merge=False,
    )[0]  # fmt: skip
    out = vk.selective_scan(u, delta, A, B, C, z=z, backend=backend)
    torch.testing.assert_close(out, loop[:, 0].transpose(1, 2) * z / (1 + torch.exp(-z)))


@pytest.mark.parametrize("zoh", [False, True])
def test_gradcheck_cross_selective_scan(backend, zoh):
    tensors = [t.requires_grad_() for t in image_problem(1, 2, 5, 3, 2, torch.float64)]
    table = torch.stack([torch.randperm(5), torch.randperm(5)]).int()

    def function(*t):
        return vk.cross_selective_scan(
            *t[:7], table=table, initial_state=t[7], return_last_state=True,
            discretization="zoh" if zoh else "mamba", backend=backend,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, tensors, fast_mode=backend == "triton")  # interpreted, so slow


@pytest.mark.parametrize("channel_last", [False, True])
def test_gradcheck_selective_scan(backend, channel_last):
    def normal(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    wide, matrix = ((2, 5, 4), (2, 5, 2, 3)) if channel_last else ((2, 4, 5), (2, 2, 3, 5))
    u, delta, z = normal(*wide), normal(*wide), normal(*wide)
    A = (-torch.rand(4, 3, dtype=torch.float64)).requires_grad_()
    tensors = (u, delta, A, normal(*matrix), normal(*matrix), normal(4), z, normal(4), normal(2, 4, 3))

    def function(*t):
        return vk.selective_scan(
            *t[:8], initial_state=t[8], delta_softplus=True, return_last_state=True, channel_last=channel_last,
            backend=backend,
        )  # fmt: skip

    assert torch.autograd.gradcheck(function, tensors, fast_mode=backend == "triton")  # interpreted, so slow


def test_reference_differentiates_twice():
    tensors = [t.requires_grad_() for t in image_problem(1, 1, 3, 2, 2, torch.float64)[:5]]
    assert torch.autograd.gradgradcheck(lambda *t: vk.cross_selective_scan(*t, backend="reference"), tensors)


@pytest.mark.parametrize(
    ("discretization", "low", "high"),
    [("mamba", 0, 10), ("mamba", 10, 60), ("mamba", 60, 80), ("mamba", 80, 88.7), ("zoh", 0, 10), ("zoh", 10, 40)],
)
def test_growing_states_are_relatively_accurate(discretization, low, high):
    """Two steps, the second with growth e^(delta A): y and the gradient of delta, element by element."""
    g = torch.Generator().manual_seed(0)
    uniform = torch.rand(2, 4096, generator=g, dtype=torch.float64)
    delta = (uniform[0] + 0.5).float()
    A = ((uniform[1] * (high - low) + low) / delta).float()

    def second_step(backend, dtype):
        one, leaf = torch.ones(1, 1, 2, dtype=dtype), delta[None, :, None].expand(1, -1, 2).to(dtype).requires_grad_()
        u, rates = one.expand(1, 4096, 2), A[:, None].to(dtype)
        y = vk.selective_scan(
            u, leaf, rates, one, one, delta_softplus=False, discretization=discretization, backend=backend
        )[..., 1]
        return y.detach().double(), torch.autograd.grad(y.sum(), leaf)[0].double()

    exact = second_step("reference", torch.float64)
    for ours, theirs, right in zip(second_step("cpu", torch.float32), second_step("reference", torch.float32), exact):
        error, allowed = (((v - right) / right).abs().max().item() for v in (ours, theirs))
        assert error <= 2 * allowed


def test_rates_near_the_largest_float():
    """A scaled by log2(e) would be infinite, and NaN where delta is zero."""
    A = torch.full((1, 2), -3e38)
    delta, one = torch.tensor([[[0.0, 1e-38, 2.0]]]), torch.ones(1, 1, 3)
    B = torch.ones(1, 2, 3)

    def scan(backend, dtype):
        leaf = delta.to(dtype).requires_grad_()
        y = vk.selective_scan(
            one.to(dtype), leaf, A.to(dtype), B.to(dtype), B.to(dtype), delta_softplus=False, backend=backend
        )
        return y.detach().double(), torch.autograd.grad(y.sum(), leaf)[0].double()

    for ours, right in zip(scan("cpu", torch.float32), scan("reference", torch.float64)):
        torch.testing.assert_close(ours, right, rtol=1e-5, atol=1e-30)
