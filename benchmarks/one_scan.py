"""Calls the compiled scan over an image a few times with nothing around it, neither torch nor numpy:
`python one_scan.py NATIVE LENGTH CALLS`."""

import sys
from array import array
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader

CHANNELS, STATES, ROUTES = 32, 16, 4


def main(native: str, length: int, calls: int) -> None:
    loader = ExtensionFileLoader("vmddpm_kernels._native", native)
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)

    def floats(count: int, value: float) -> array:
        return array("f", [value]) * count

    pixels = length * CHANNELS
    x, y = floats(pixels, 0.5), floats(pixels, float("nan"))
    delta = floats(ROUTES * pixels, -3.0)
    B, C = (floats(ROUTES * length * STATES, value) for value in (0.5, 0.25))
    A, D = floats(ROUTES * CHANNELS * STATES, -1.0), floats(ROUTES * CHANNELS, 1.0)
    last_state = floats(ROUTES * CHANNELS * STATES, float("nan"))
    table = array("i", range(length)) * ROUTES

    def address(values: array) -> int:
        return values.buffer_info()[0]

    def view(values: array, *strides: int) -> tuple[int, int, tuple[int, ...]]:
        return address(values), 0, strides

    arguments = {
        "x": view(x, pixels, 0, CHANNELS, 1),
        "delta": view(delta, ROUTES * pixels, pixels, CHANNELS, 1),
        "B": view(B, ROUTES * length * STATES, length * STATES, STATES, 1),
        "C": view(C, ROUTES * length * STATES, length * STATES, STATES, 1),
        "A": address(A),
        "D": address(D),
        "delta_bias": address(D),
        "initial_state": 0,
        "table": address(table),
    }
    sizes = (1, ROUTES, length, CHANNELS, STATES, False, True, False, True, 1)
    for _ in range(calls):
        module.scan_forward(sizes, arguments, view(y, pixels, 0, CHANNELS, 1), address(last_state), 0)
    assert abs(y[-1]) < float("inf"), "the kernel left an element unwritten"


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
