"""The examples in the docstrings of the public functions run as printed."""

import doctest
import importlib

import pytest
import torch

import vmddpm_kernels as vk
from vmddpm_kernels import compat, modules

FUNCTIONS = [getattr(vk, name) for name in vk.__all__ if name != "BackendStatus"]
PUBLIC = [*FUNCTIONS, modules.Mamba, modules.Block, modules.RMSNorm, compat.install]


@pytest.mark.parametrize("public", PUBLIC, ids=lambda public: public.__name__)
def test_the_example_runs(public):
    names = {**vars(importlib.import_module(public.__module__)), **vars(vk), **vars(modules), "torch": torch}
    examples = doctest.DocTestFinder(recurse=False).find(public, public.__name__, globs=names)
    assert sum(len(one.examples) for one in examples) > 0
    runner = doctest.DocTestRunner()
    for one in examples:
        runner.run(one)
    assert runner.summarize(verbose=False).failed == 0
