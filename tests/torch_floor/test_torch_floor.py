"""The check against the oldest torch, on a fake torch with few functions."""

from textwrap import dedent

import pytest
from torch_floor import floor, uses_of_missing_names

pytest.importorskip("mypy")

TORCH = {
    "__init__.pyi": """
        from typing import overload
        from torch import nn as nn

        class Tensor:
            def sum(self, dim: int) -> Tensor: ...

        @overload
        def zeros(size: int, *, dtype: str = ...) -> Tensor: ...
        @overload
        def zeros(size: tuple[int, ...], *, dtype: str = ...) -> Tensor: ...
    """,
    "nn/__init__.pyi": "",
    "nn/functional.pyi": """
        from torch import Tensor

        def silu(input: Tensor, inplace: bool = ...) -> Tensor: ...
    """,
}
# Each line is followed by what it uses that torch lacks, if anything.
PROGRAM = """
    import torch
    import torch.nn.functional as F
    from torch import Tensor
    from torch import nn, Generator  # Generator
    import torch.nn.later  # torch.nn.later

    def function(x: Tensor, untyped):
        y = F.silu(x, inplace=True).sum(0) + torch.zeros(3, dtype="float32")
        y = F.silu(x, later=True)  # later
        y = F.later(x)  # later
        y = torch.zeros(3, later=True)  # later
        y = x.sum(0).later()  # later
        y = torch.nn.Later  # Later
        if hasattr(torch, "later"):
            y = torch.later(x)
        y = getattr(x, "later", None)
        return untyped.later

    def unannotated(x, size=torch.later):  # later
        return [torch.zeros(size, later=i) for i in x]  # later

    for own in (1, "one"):
        own.later
"""


def write(folder, files):
    for name, text in files.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(dedent(text).lstrip())


def test_every_use_of_what_torch_lacks_is_found(tmp_path):
    write(tmp_path / "types" / "torch", TORCH)
    write(tmp_path / "package", {"__init__.py": "", "program.py": PROGRAM})
    expected = {
        number: line.partition("  # ")[2]
        for number, line in enumerate(dedent(PROGRAM).lstrip().splitlines(), 1)
        if "  # " in line
    }
    found = [line.split(":", 2) for line in uses_of_missing_names(tmp_path / "types", tmp_path, ("package",))]
    assert {file for file, _, _ in found} == {"package/program.py"}
    assert [int(number) for _, number, _ in found] == list(expected)
    for (_, _, what), name in zip(found, expected.values()):
        assert f'"{name}"' in what


def test_without_torch_nothing_is_found_to_be_there(tmp_path):
    write(tmp_path / "package", {"__init__.py": "", "program.py": "import torch"})
    (line,) = uses_of_missing_names(tmp_path, tmp_path, ("package",))
    assert line.startswith("package/program.py:1: ")


def test_floor(tmp_path):
    write(tmp_path, {"pyproject.toml": '[project]\ndependencies = ["triton", "torch>=2.9.1", "numpy>=1"]'})
    assert floor(tmp_path / "pyproject.toml") == "2.9.1"
    assert floor().startswith("2.")
