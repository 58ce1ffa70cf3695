"""Calls the compiled scan over an image a few times with nothing around it, neither torch nor numpy:
`python one_scan.py NATIVE LENGTH CALLS`."""

import sys
from array import array
from importlib.machinery import ExtensionFileLoader
from importlib.util import module_from_spec, spec_from_loader
from math import prod
from types import ModuleType

CHANNELS, STATES, ROUTES = 32, 16, 4
TYPES = ("float32", "float64", "float16", "bfloat16")


class Floats:
    """What the kernels ask of a contiguous float32 tensor."""

    dtype = TYPES[0]

    def __init__(self, value: float, *shape: int) -> None:
        self._strides = tuple(prod(shape[axis + 1 :]) for axis in range(len(shape)))
        self.values = array("f", [value]) * prod(shape)

    def data_ptr(self) -> int:
        return self.values.buffer_info()[0]

    def stride(self) -> tuple[int, ...]:
        return self._strides


class Table:
    def __init__(self, rows: int, length: int) -> None:
        self.values = array("i", range(length)) * rows

    def data_ptr(self) -> int:
        return self.values.buffer_info()[0]


def main(native: str, length: int, calls: int) -> None:
    torch = ModuleType("torch")  # the extension asks it for the names of the types, which torch takes seconds to say
    torch.__dict__.update((name, name) for name in TYPES)
    sys.modules["torch"] = torch
    loader = ExtensionFileLoader("vmddpm_kernels._native", native)
    module = module_from_spec(spec_from_loader(loader.name, loader))
    loader.exec_module(module)

    x, y = (Floats(value, 1, length, CHANNELS) for value in (0.5, float("nan")))
    delta = Floats(-3.0, 1, ROUTES, length, CHANNELS)
    B, C = (Floats(value, 1, ROUTES, length, STATES) for value in (0.5, 0.25))
    A, last_state = (Floats(value, ROUTES, CHANNELS, STATES) for value in (-1.0, float("nan")))
    D = Floats(1.0, ROUTES, CHANNELS)
    tensors = (x, delta, A, B, C, D, D, None, Table(ROUTES, length))
    sizes = (1, ROUTES, length, CHANNELS, STATES, False, True, False, True, 1)
    for _ in range(calls):
        module.scan_forward(sizes, tensors, (y, last_state, None))
    assert abs(y.values[-1]) < float("inf"), "the kernel left an element unwritten"


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))
