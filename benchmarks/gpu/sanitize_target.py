"""Runs every kernel once on small shapes, for compute-sanitizer. Results must only be finite; tests/gpu checks their
values."""

import argparse
import itertools

import torch

import vmddpm_kernels as vk
from vmddpm_kernels.ops.selective_scan import scan as scan_operator
from vmddpm_kernels.scan_inputs import ScanInputs, scan_options

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
STATES = (1, 5, 16, 40)
FEW = ((1, 3, 150, 40), (2, 2, 20, 33))  # several segments; one segment, as there are few steps
MANY = (530, 2, 70, 40)  # enough sequences that none is divided into segments


def scan(dtype: torch.dtype, states: int, shape: tuple[int, int, int, int], zoh: bool, device: str) -> None:
    batch, K, length, dim = shape

    def normal(*sizes: int) -> torch.Tensor:
        return torch.randn(sizes).to(device, dtype).requires_grad_()

    A = (-torch.rand(K, dim, states) - 0.1).to(device).requires_grad_()
    tensors = [normal(batch, length, dim), normal(batch, K, length, dim), A, normal(batch, K, length, states),
               normal(batch, K, length, states), normal(K, dim), normal(K, dim)]  # fmt: skip
    h0 = normal(batch, K, dim, states)
    table = None if zoh else torch.stack([torch.randperm(length) for _ in range(K)]).int().to(device)
    inputs = ScanInputs(*tensors, h0, table=table)  # also without a table, which the public function requires
    outputs = scan_operator(inputs, scan_options(True, zoh, False), None, last_state=True)
    finite(*outputs, *torch.autograd.grad(outputs, [*tensors, h0], [torch.ones_like(o) for o in outputs]))


def sequences(dtype: torch.dtype, channel_last: bool, device: str) -> None:
    def normal(*sizes: int) -> torch.Tensor:
        t = torch.randn(sizes)
        return (t.transpose(1, -1).contiguous() if channel_last else t).to(device, dtype).requires_grad_()

    u, delta, B, C = normal(2, 66, 131), normal(2, 66, 131), normal(2, 7, 131), normal(2, 7, 131)
    A = (-torch.rand(66, 7) - 0.1).to(device).requires_grad_()
    out = vk.selective_scan(u, delta, A, B, C, delta_softplus=True, channel_last=channel_last)
    finite(out, *torch.autograd.grad(out, [u, delta, A, B, C], torch.ones_like(out)))


def routes(dtype: torch.dtype, in_first: bool, out_first: bool, one_by_one: bool, device: str) -> None:
    batch, channels, height, width = 2, 37, 5, 9
    routes = (4,) if one_by_one else ()
    shape = (batch, *routes, channels, height, width) if in_first else (batch, height, width, *routes, channels)
    x = torch.randn(shape).to(device, dtype).requires_grad_()
    y = vk.cross_scan(x, in_first, out_first, one_by_one)
    shape = (batch, 4, channels, height, width) if out_first else (batch, height, width, 4, channels)
    merged = vk.cross_merge(y.view(shape), in_first, out_first, one_by_one)
    finite(merged, *torch.autograd.grad(merged, x, torch.ones_like(merged)))


def finite(*tensors: torch.Tensor) -> None:
    assert all(bool(torch.isfinite(t).all()) for t in tensors)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dry-run", action="store_true", help="on the CPU")
    device = "cpu" if parser.parse_args().dry_run else "cuda"
    torch.manual_seed(0)
    runs = 0
    shapes = [*itertools.product(DTYPES, STATES, FEW), *itertools.product(DTYPES[:2], (1, 16), [MANY])]
    for dtype, states, shape in shapes:
        scan(dtype, states, shape, zoh=states == 5, device=device)
        runs += 1
    for dtype, last in itertools.product(DTYPES, (False, True)):
        sequences(dtype, last, device)
        runs += 1
    for dtype, *layout in itertools.product(DTYPES, (True, False), (True, False), (False, True)):
        routes(dtype, *layout, device)
        runs += 1
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"all {runs} runs are done")


if __name__ == "__main__":
    main()
