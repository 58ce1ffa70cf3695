"""The whole model with the Triton kernels, interpreted on the CPU, against the C++ kernels."""

import pytest
import torch
from test_model_vmddpm import make_model, noise


@pytest.mark.usefixtures("interpreter")
def test_forward_and_backward_equal_the_cpu_backend(monkeypatch):
    results = {}
    for backend in ("cpu", "triton"):
        monkeypatch.setenv("VMDDPM_BACKEND", backend)
        model = make_model(layers_per_stage=1)
        y = model(noise(1, 1, 32, 32), torch.tensor([30]), order_key=(0, 0))
        y.square().mean().backward()
        results[backend] = {"y": y.detach(), **{name: p.grad for name, p in model.named_parameters()}}
    for name, expected in results["cpu"].items():
        torch.testing.assert_close(results["triton"][name], expected, msg=lambda text, name=name: f"{name}: {text}")
