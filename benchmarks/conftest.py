"""`pytest benchmarks/` checks every case once; `pytest benchmarks/ --benchmark` measures."""

import pytest
import torch


def pytest_addoption(parser):
    parser.addoption("--benchmark", action="store_true", help="measure instead of running every case once")


def pytest_configure(config):
    if not config.getoption("--benchmark"):
        config.option.benchmark_disable = True


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
