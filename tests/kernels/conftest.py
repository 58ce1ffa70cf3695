import pytest

from vmddpm_kernels import backends


@pytest.fixture(autouse=True)
def _poisoned(poisoned_memory):
    """Every kernel test runs on poisoned memory."""


@pytest.fixture(params=["cpu", "reference"])
def backend(request):
    status = backends()[request.param]
    if not status.active:
        pytest.fail(f"backend {request.param} must work where the tests run: {status.detail}")
    return request.param
