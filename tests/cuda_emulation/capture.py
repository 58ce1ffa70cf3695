"""A CUDA graph of the emulated GPU: captured work is recorded instead of run, and its outputs hold garbage until the
graph is replayed. To another stream, work that has not run yet looks the same."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from emulated import EMPTY, SHARED_BYTES, EmulatedBackend, EmulatedRuntime
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from vmddpm_kernels import interception, routes
from vmddpm_kernels.backends import BACKENDS

routes_module = sys.modules[routes.__module__]  # in the package, this name is the function

_ALLOCATE = {"empty", "empty_strided", "empty_like", "new_empty", "new_empty_strided"}
_READ = {"_local_scalar_dense", "item", "equal", "is_nonzero", "nonzero", "masked_select", "unique"}


class Graph(TorchDispatchMode):
    """A context that captures calls; `replay` runs them in order."""

    def __init__(self) -> None:
        super().__init__()
        self.work: list[Callable[[], Any]] = []
        self.capturing = False

    def __enter__(self) -> "Graph":
        self.capturing = True
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.capturing = False

    def replay(self) -> None:
        for call in self.work:
            call()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        if name in _READ:
            raise RuntimeError(f"{name}: operation not permitted when stream is capturing")
        aliases = [r.alias_info for r in func._schema.returns]
        if name in _ALLOCATE or any(alias is not None and not alias.is_write for alias in aliases):
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            self.work.append(lambda: func(*args, **kwargs))
            written = [
                kwargs[a.name] if a.name in kwargs else args[i]
                for i, a in enumerate(func._schema.arguments)
                if a.alias_info is not None and a.alias_info.is_write
            ]
            return written[0] if len(aliases) == 1 else tuple(written[: len(aliases)])
        results = func(*args, **kwargs)
        self._note(results, lambda: func(*args, **kwargs))
        return results

    def _note(self, results: Any, call: Callable[[], Any]) -> None:
        tensors = [t for t in tree_flatten(results)[0] if isinstance(t, torch.Tensor)]

        def again() -> None:
            fresh = [t for t in tree_flatten(call())[0] if isinstance(t, torch.Tensor)]
            for tensor, value in zip(tensors, fresh, strict=True):
                tensor.copy_(value)

        for tensor in tensors:
            tensor.fill_(float("nan") if tensor.is_floating_point() else 0)  # no permutation, but valid indices
        self.work.append(again)


@dataclass
class CapturedKernels:
    """`_native.cuda`; a graph that is capturing records its launches."""

    native: Any
    graph: Graph
    launched: list[str] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.native, name)
        if name not in ("scan_forward", "scan_backward", "cross_scan", "cross_merge"):
            return function

        def call(*arguments: Any) -> None:
            self.launched.append(name)
            if self.graph.capturing:
                self.graph.work.append(lambda: function(*arguments))
            else:
                function(*arguments)

        return call


def use_graph(monkeypatch: pytest.MonkeyPatch, native: Any) -> Graph:
    """backend="cuda" on CPU tensors, and a graph that can capture it. No GPU has been queried yet."""
    graph = Graph()
    kernels = CapturedKernels(native.cuda, graph)
    monkeypatch.setitem(BACKENDS, "cuda", EmulatedBackend(EmulatedRuntime(kernels, EMPTY, SHARED_BYTES)))
    monkeypatch.setattr(routes_module, "capturing", lambda device: graph.capturing)
    # On a GPU nothing intercepts a capture, so the package must not see the dispatch mode that simulates it.
    monkeypatch.setattr(interception, "_listening", lambda: False)
    monkeypatch.setattr(routes_module, "_routes", routes_module._make_routes)
    return graph
