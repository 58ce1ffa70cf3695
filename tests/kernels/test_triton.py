"""The Triton kernels against the float64 loop, forward and every gradient, interpreted on the CPU: error at most twice
that of PyTorch's arithmetic. Problems are small, as a step takes milliseconds; tests of all backends are elsewhere."""

import pytest
import torch
from oracle import assert_as_accurate, scan_loop
from test_scan_accuracy import NAMES, image_problem, run

import vmddpm_kernels as vk
from vmddpm_kernels.backends import BACKENDS
from vmddpm_kernels.scan_inputs import ScanInputs, ScanOptions, ScanSizes

pytestmark = pytest.mark.usefixtures("interpreter")

RESULTS = ("y", "last_state", *("d" + name for name in NAMES))
FLOAT32, FLOAT16, BFLOAT16, FLOAT64 = torch.float32, torch.float16, torch.bfloat16, torch.float64


def check(problems, operator, loop, dtype):
    """Compare over several problems together: a ratio of two errors is meaningful only over many values."""
    ours = [run(tensors, lambda *t: operator("triton", *t)) for tensors in problems]
    theirs = [run(tensors, lambda *t: operator("reference", *t)) for tensors in problems]
    exact = [run([t.double() for t in tensors], loop) for tensors in problems]
    for name, *results in zip(RESULTS, *(zip(*runs) for runs in (ours, theirs, exact))):
        a, b, e = (torch.cat([value.flatten() for value in values]) for values in results)
        assert a.dtype == b.dtype, name
        assert_as_accurate(a, b, e, a.dtype if name == "last_state" else dtype, name)


def check_routes(sizes, dtype, table, repeats=1, softplus=True, zoh=False, arrange=lambda t: t):
    problems = [image_problem(*sizes, dtype, seed) for seed in range(repeats)]
    if not softplus:  # step sizes must be positive
        problems = [[t.abs() * 0.3 if i in (1, 6) else t for i, t in enumerate(tensors)] for tensors in problems]
    options = {"table": table, "delta_softplus": softplus, "discretization": "zoh" if zoh else "mamba"}

    def operator(backend, *t):
        t = [arrange(tensor) for tensor in t]
        return vk.cross_selective_scan(*t[:7], initial_state=t[7], return_last_state=True, backend=backend, **options)

    check(problems, operator, lambda *t: scan_loop(*t, table=table, softplus=softplus, zoh=zoh), dtype)


def random_table(K, length):
    return torch.stack([torch.randperm(length) for _ in range(K)]).int()


# (B, K, L, D, N). A chunk is 32 steps, taken 4 at a time (backwards 1 or 2); a block is 32 channels; more than 16
# states are processed in groups, the last of which may be short (20 are 12 and 8).
@pytest.mark.parametrize(
    "sizes",
    [
        (2, 2, 1, 33, 1), (1, 2, 33, 30, 1), (1, 2, 37, 9, 5), (1, 1, 35, 34, 16), (1, 1, 33, 5, 20), (1, 2, 3, 9, 70),
        (1, 1, 2, 9, 256),
    ],
)  # fmt: skip
def test_sizes(sizes):
    check_routes(sizes, FLOAT32, random_table(sizes[1], sizes[2]), repeats=2)


@pytest.mark.parametrize("sizes", [(2, 2, 1, 33, 1), (1, 2, 33, 30, 1), (1, 2, 6, 9, 4), (1, 1, 3, 9, 20)])
def test_zero_order_hold(sizes):
    check_routes(sizes, FLOAT32, random_table(sizes[1], sizes[2]), repeats=2, zoh=True)


@pytest.mark.parametrize("dtype", [FLOAT16, BFLOAT16, FLOAT64])
@pytest.mark.parametrize(("softplus", "zoh"), [(True, False), (False, True)])
def test_dtypes(dtype, softplus, zoh):
    length = 5 if zoh else 35
    check_routes((1, 2, length, 12, 6), dtype, random_table(2, length), softplus=softplus, zoh=zoh)


@pytest.mark.parametrize("scans", [0, 1, 2, 3])
def test_scans_of_an_image(scans):
    permutation = vk.patch_permutation(4, 5, seed=scans) if scans else None
    check_routes((1, 4, 20, 30, 4), FLOAT32, vk.routes(4, 5, scans=scans, permutation=permutation))


def test_memory_of_another_order():
    """The same shapes with channel-first memory, and as an odd window of a larger tensor."""

    def arrange(t):
        if t.dim() < 3:
            return t
        padded = torch.cat([torch.zeros_like(t[..., :1]), t], dim=-1)
        return padded.transpose(-1, -2).contiguous().transpose(-1, -2)[..., 1:]

    assert not arrange(torch.zeros(2, 3, 4)).is_contiguous()
    check_routes((2, 2, 9, 10, 6), FLOAT32, random_table(2, 9), repeats=2, arrange=arrange)


@pytest.mark.parametrize("channel_last", [False, True])
def test_sequences(channel_last):
    """Independent groups in both layouts, without a table."""
    problems = []
    for seed in range(2):
        _, *rest = image_problem(1, 2, 35, 10, 8, FLOAT32, seed)
        problems.append((torch.randn(rest[0].shape), *rest))

    def operator(backend, u, delta, A, B, C, D, bias, h0):
        def sequences(t):
            t = t.transpose(1, 2).flatten(2)
            return t if channel_last else t.transpose(1, 2).contiguous()

        B, C = ((t.transpose(1, 2) if channel_last else t.transpose(2, 3).contiguous()) for t in (B, C))
        out, last = vk.selective_scan(
            sequences(u), sequences(delta), A.flatten(0, 1), B, C, D.flatten(), delta_bias=bias.flatten(),
            initial_state=h0.flatten(1, 2), delta_softplus=True, return_last_state=True, channel_last=channel_last,
            backend=backend,
        )  # fmt: skip
        out = out if channel_last else out.transpose(1, 2)
        return out.unflatten(2, (2, -1)).transpose(1, 2), last.unflatten(1, (2, -1))

    check(problems, operator, lambda *t: scan_loop(*t, merge=False), FLOAT32)


@pytest.mark.parametrize("dtype", [FLOAT32, BFLOAT16])
def test_routes_walked_in_order(dtype, monkeypatch):
    """One program for all routes of an image adds in the same order as one program per route."""
    from vmddpm_kernels.backends.triton import plan as plans

    tensors, table = image_problem(2, 3, 5, 34, 3, dtype), random_table(3, 5)
    walked, every_route = [], plans.LaunchPlan(block=32, walked=3, group=3, steps=2)

    def planned(*scan, original=plans.plan):
        walked.append(original(*scan).walked)
        return original(*scan)

    def planned_to_walk(*scan):
        walked.append(every_route.walked)
        return every_route

    def operator(*t):
        return vk.cross_selective_scan(*t[:7], table, initial_state=t[7], return_last_state=True, backend="triton")

    results = []
    for rule in (planned, planned_to_walk):
        monkeypatch.setattr(plans, "plan", rule)
        results.append(run(tensors, operator))
    assert walked == [1, 1, 3, 3]
    for name, a, b in zip(RESULTS, *results):
        assert torch.equal(a, b), name


def test_plans():
    """Groups are equal in size, and hold whole vectors if a row does."""
    from vmddpm_kernels.backends.triton.plan import plan

    def planned(batch=1, channels=32, states=16, wide=False, zoh=False, backward=False):
        return plan(ScanSizes(batch, 4, 64, channels, states, wide, sum_routes=True), zoh, backward)

    assert [planned(states=n).group for n in (1, 5, 16, 17, 20, 33, 64, 256)] == [1, 5, 16, 9, 12, 11, 16, 16]
    assert [planned(states=n, wide=True).group for n in (8, 16, 17)] == [8, 8, 6]
    assert [planned(states=n, wide=True, backward=True).group for n in (4, 16, 17)] == [4, 4, 4]
    assert [planned(batch=b).walked for b in (1, 4223, 4224)] == [1, 1, 4]
    assert [planned(batch=b, backward=True).walked for b in (1, 2111, 2112)] == [1, 1, 4]


@pytest.mark.parametrize("backward", [False, True])
def test_every_plan_that_a_search_tries(backward, monkeypatch):
    """Each is as accurate as the default plan."""
    from vmddpm_kernels.backends.triton import plan as plans

    tried = plans.neighbours(ScanSizes(1, 2, 9, 12, 6, wide=False, sum_routes=True), False, backward)
    assert len(set(tried)) == len(tried) == 6
    monkeypatch.setattr(plans, "plan", lambda sizes, zoh, is_backward, original=plans.plan: (
        next(choices) if is_backward == backward else original(sizes, zoh, is_backward)
    ))  # fmt: skip
    choices = iter(tried)
    for _ in tried:
        check_routes((1, 2, 9, 12, 6), FLOAT32, random_table(2, 9))


def test_search(monkeypatch):
    """If enabled, it times all plans once on a GPU and uses the fastest from then on, for any length."""
    from vmddpm_kernels.backends.triton import plan as plans

    scan, ran = (ScanSizes(3, 4, 64, 40, 16, wide=False, sum_routes=True), False, True), []
    tried = plans.neighbours(*scan)

    def chosen(device, length=64):
        sizes, *options = scan
        return plans.chosen_plan(sizes._replace(length=length), *options, ran.append, torch.device(device))

    assert tried[0] == plans.plan(*scan) == chosen("cuda")
    monkeypatch.setenv("VMDDPM_TRITON_AUTOTUNE", "1")
    monkeypatch.setattr(plans, "_searched", {})
    monkeypatch.setattr(plans.triton.testing, "do_bench", lambda run: run() or (ran[-1] != tried[2]))
    assert chosen("cpu") == tried[0]
    assert not ran
    assert [chosen("cuda", length) for length in (64, 65)] == [tried[2]] * 2
    assert ran == tried


def test_same_bits_every_time():
    tensors, table = image_problem(1, 2, 34, 20, 7, FLOAT32), random_table(2, 34)

    def operator(*t):
        return vk.cross_selective_scan(*t[:7], table, initial_state=t[7], return_last_state=True, backend="triton")

    first, second = run(tensors, operator), run(tensors, operator)
    assert all(torch.equal(a, b) for a, b in zip(first, second))


@pytest.mark.parametrize("layouts", [(True, True), (True, False), (False, True), (False, False)])
def test_cross_scan_of_tiles(layouts, monkeypatch):
    """Small images that exceed a reduced tile; images larger than a real tile would take seconds per program."""
    from vmddpm_kernels.backends.triton import cross_scan

    monkeypatch.setattr(cross_scan, "NUMBERS", {2: (256, 512), 4: (256,)})
    monkeypatch.setattr(cross_scan, "SIDES_ALONE", {2: (16, 16), 4: (8, 32)})
    monkeypatch.setattr(cross_scan, "SIDES", {2: (4, 4), 4: (4, 8)})
    for dtype, scans in ((FLOAT32, 0), (FLOAT16, 3)):
        x = torch.randint(-50, 50, (1, 6, 19, 15) if layouts[0] else (1, 19, 15, 6)).to(dtype)
        y = torch.randint(-50, 50, (1, 4, 6, 19, 15) if layouts[1] else (1, 19, 15, 4, 6)).to(dtype)
        for function, tensor in ((vk.cross_scan, x), (vk.cross_merge, y)):
            ours, expected = (
                function(tensor, *layouts, scans=scans, backend=backend) for backend in ("triton", "reference")
            )
            assert torch.equal(ours, expected)


@pytest.mark.parametrize(("length", "wide"), [(0, False), (1, False), (33, True)])
def test_checkpoints_have_the_predicted_shape(length, wide):
    x, delta, A, B, C, D, bias, _ = image_problem(2, 2, length, 5, 3, FLOAT64 if wide else FLOAT32)
    inputs = ScanInputs(x, delta, A, B, C, D, bias)
    result = BACKENDS["triton"].scan(inputs, inputs.sizes(), ScanOptions(), last_state=True, checkpoint=True)
    checkpoints = result.checkpoints
    assert tuple(checkpoints.shape) == BACKENDS["triton"].checkpoint_shape(inputs.sizes())
    assert checkpoints.dtype == (FLOAT64 if wide else FLOAT32)
