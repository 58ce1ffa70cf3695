"""Weights and image samples equal those recorded before the model supported volumes: bit for bit on the same processor
and torch, up to rounding on others.

`python -m tests.model.test_model_two_dimensional` records them anew after an intended change.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch

from vmddpm.diffusion import DiffusionConfig, sample
from vmddpm.model import VMDDPM, ModelConfig

RECORD = Path(__file__).with_name("two_dimensional.json")
SMALL = {"base_channels": 8, "norm_groups": 4, "d_state": 4}
MODELS = {
    "paper": ({}, DiffusionConfig(timesteps=8)),
    "patches": ({"regeneration_patch_size": 2, "sampling": (2, 2), "channel_multipliers": (1, 2), "scans": "snake",
                 "discretization": "zoh"}, DiffusionConfig(timesteps=8)),
    "demo": ({"sampling": (4, 2), "channel_multipliers": (1, 2), "image_skip": True, "image_channels": 3},
             DiffusionConfig(timesteps=8, prediction_type="v_prediction")),
}  # fmt: skip


def machine():
    return {"torch": torch.__version__, "capability": torch.backends.cpu.get_cpu_capability()}


def drawn(name):
    """The weights of a new model, and samples of a model with every parameter off its initial value."""
    options, process = MODELS[name]
    torch.manual_seed(0)
    model = VMDDPM(ModelConfig(**SMALL, **options))
    weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    shape = model.config.image_channels, 32, 32
    images = sample(model, range(3), shape, config=process, sampler="ddim", steps=4, seed=7, batch_size=2)
    return {"keys": list(model.state_dict()), "weights": weights, "images": images}


def described(found):
    """The record: hashes of all bits, and a subset of values for other machines."""
    record = {"keys": hashlib.sha256("\n".join(found["keys"]).encode()).hexdigest()}
    for part in ("weights", "images"):
        values = found[part].contiguous()
        record[part] = hashlib.sha256(values.numpy().tobytes()).hexdigest()
        record[f"{part}_values"] = values.flatten()[:: max(1, values.numel() // 64)].tolist()
    return record


@pytest.fixture
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the recording
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("name", MODELS)
def test_weights_and_samples_of_images_are_what_they_were(name, one_thread):
    record = json.loads(RECORD.read_text())
    found, before = described(drawn(name)), record["models"][name]
    assert found["keys"] == before["keys"]
    for part in ("weights", "images"):
        values, then = (torch.tensor(r[f"{part}_values"]) for r in (found, before))
        torch.testing.assert_close(values, then, rtol=1e-3, atol=1e-4)
        if record["machine"] == machine():
            assert found[part] == before[part], f"the {part} changed by {(values - then).abs().max():.2g} or less"


if __name__ == "__main__":
    torch.set_num_threads(1)
    found = {name: described(drawn(name)) for name in MODELS}
    RECORD.write_text(json.dumps({"machine": machine(), "models": found}, indent=1) + "\n")
