import json
import os
import re

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

from vmddpm.errors import InputError
from vmddpm.model import VMDDPM, ModelConfig

SMALL = {"base_channels": 8, "norm_groups": 4, "d_state": 4}


def make_model(**options):
    """A small model with every parameter off its initial value."""
    torch.manual_seed(0)
    model = VMDDPM(ModelConfig(**{**SMALL, **options}))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def noise(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_paper_configuration_reaches_8C_at_a_32nd():
    model = VMDDPM(ModelConfig())
    parameters = sum(p.numel() for p in model.parameters())
    print(f"parameters of the paper's configuration: {parameters:,}")
    assert parameters == 177_996_385
    x, t = noise(1, 1, 32, 64), torch.tensor([10])
    with torch.no_grad():
        assert model.encode(x, t).shape == (1, 8 * 96, 1, 2)
        assert model(x, t).shape == x.shape


@pytest.mark.parametrize(("height", "width"), [(32, 32), (64, 32), (32, 96)])
@pytest.mark.parametrize("channels", [1, 3])
def test_shapes(channels, height, width):
    model = make_model(image_channels=channels)
    x, t = noise(2, channels, height, width), torch.tensor([0, 999])
    assert model.encode(x, t).shape == (2, 64, height // 32, width // 32)
    assert model(x, t).shape == x.shape


def test_the_variant_without_a_patch_embedding_is_at_a_16th():
    model = make_model(sampling=(2, 2, 2, 2))
    x, t = noise(1, 1, 16, 32), torch.tensor([5])
    assert model.encode(x, t).shape == (1, 64, 1, 2)
    assert model(x, t).shape == x.shape


@pytest.mark.parametrize("image_skip", [False, True])
def test_the_image_reaches_the_projection_only_through_its_skip(image_skip):
    """Without the decoder, the image can reach the projection only through the skip at full resolution."""
    model = make_model(image_skip=image_skip)
    with torch.no_grad():
        model.decoder[-1].up.weight.zero_()
    x, t = noise(1, 1, 32, 32), torch.tensor([7])
    moved = x.clone()
    moved[0, 0, 16, 16] += 1
    change = (model(moved, t) - model(x, t)).abs()[0, 0]
    assert (change[16, 16] > 1e-4) == image_skip
    assert (change.max() > 0) == image_skip


def test_the_image_skip_starts_as_no_more_than_a_convolution():
    """Its ResNet block starts as the identity, and a new model with it also predicts zero."""
    torch.manual_seed(0)
    model = VMDDPM(ModelConfig(**SMALL, image_skip=True))
    h, x, time = noise(2, 8, 6, 6), noise(2, 1, 6, 6), noise(2, 32)
    expected = torch.nn.functional.conv2d(
        torch.cat([h, x], 1), model.image_fusion.fuse.weight, model.image_fusion.fuse.bias, padding=1
    )
    torch.testing.assert_close(model.image_fusion(h, x, time), expected)
    assert model(noise(1, 1, 32, 32), torch.tensor([3])).abs().max() == 0


def test_layout():
    model = VMDDPM(ModelConfig(**SMALL))
    assert [len(stage.layers) for stage in model.encoder] == [2, 2, 2, 2]
    assert [len(stage.layers) for stage in model.decoder] == [2, 2, 2, 2]
    assert len(model.bottleneck) == 1
    assert [stage.fuse.in_channels for stage in model.decoder] == [128, 64, 32, 16]


def test_a_new_model_predicts_zero():
    model = VMDDPM(ModelConfig(**SMALL))
    x = noise(2, 1, 32, 32)
    assert torch.equal(model(x, torch.tensor([1, 2])), torch.zeros_like(x))


@pytest.mark.parametrize(
    ("x", "t", "message"),
    [
        ((2, 1, 48, 32), (2,), "multiples of 32 .* got 48 x 32; pad or resize"),
        ((2, 3, 32, 32), (2,), r"x must have shape \(B, 1, H, W\), got \(2, 3, 32, 32\)"),
        ((1, 32, 32), (1,), r"x must have shape"),
        ((2, 1, 32, 32), (1,), r"t must have shape \(B,\) = \(2,\), got \(1,\)"),
        ((2, 1, 32, 32), (), "t must have shape"),
    ],
)
def test_bad_inputs(x, t, message):
    with pytest.raises(ValueError, match=message):
        VMDDPM(ModelConfig(**SMALL))(torch.zeros(x), torch.zeros(t))


def test_patches_ask_for_larger_multiples():
    model = make_model(regeneration_patch_size=2)
    with pytest.raises(ValueError, match="multiples of 64"):
        model(noise(1, 1, 32, 64), torch.tensor([1]))
    assert model(noise(1, 1, 64, 64), torch.tensor([1])).shape == (1, 1, 64, 64)


def test_gradients_reach_every_parameter_and_the_image():
    model = make_model(image_channels=3)
    x = noise(2, 3, 32, 64).requires_grad_()
    model(x, torch.tensor([3, 700]), order_key=(0, 0)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().max() > 0, name
    assert (x.grad != 0).all()


def test_images_of_a_batch_do_not_mix():
    model = make_model().double()
    x, t = noise(3, 1, 32, 32).double(), torch.tensor([1, 50, 900])
    batched = model(x, t, order_key=(0, 0))
    single = torch.cat([model(x[i : i + 1], t[i : i + 1], order_key=(0, 0)) for i in range(3)])
    torch.testing.assert_close(batched, single, rtol=1e-9, atol=1e-11)


def test_feature_maps_are_channels_last_throughout():
    model = make_model()
    checked, perturbed = 0, []

    def check(module, args, out):
        nonlocal checked
        for tensor in (*args, out):
            if isinstance(tensor, torch.Tensor) and tensor.dim() == 4:
                checked += 1
                if not tensor.is_contiguous(memory_format=torch.channels_last):
                    perturbed.append(module)

    for name, module in model.named_modules():
        if ".csm." not in name or name.endswith(".conv"):  # inside a CSM the other tensors are (B, H, W, C)
            module.register_forward_hook(check)
    model(noise(2, 1, 64, 64), torch.tensor([1, 2]))
    assert checked > 500
    assert not perturbed


def test_reduced_precision():
    model = make_model().eval()
    x, t = noise(2, 1, 32, 32), torch.tensor([1, 500])
    with torch.no_grad():
        exact = model(x, t, order_key=(0, 0))
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(x, t, order_key=(0, 0))
        half = model.bfloat16()(x.bfloat16(), t, order_key=(0, 0))
    for rough in (mixed, half):
        assert rough.dtype == torch.bfloat16
        assert (rough.float() - exact).norm() / exact.norm() < 0.05


def test_hub_round_trip(tmp_path):
    model = make_model(sampling=(2, 2, 2, 2), dt_rank=2).eval()
    model.save_pretrained(tmp_path)
    assert {"config.json", "model.safetensors"} <= {path.name for path in tmp_path.iterdir()}
    assert json.loads((tmp_path / "config.json").read_text())["sampling"] == [2, 2, 2, 2]
    loaded = VMDDPM.from_pretrained(tmp_path)
    assert loaded.config == model.config
    for (name, a), (_, b) in zip(model.state_dict().items(), loaded.state_dict().items()):
        assert torch.equal(a, b), name
    x, t = noise(2, 1, 32, 32), torch.tensor([1, 500])
    assert torch.equal(loaded(x, t, order_key=(4, 2)), model(x, t, order_key=(4, 2)))


def test_the_same_network_is_saved_as_the_same_bytes(tmp_path):
    model = make_model()
    for number in range(8):
        model.save_pretrained(tmp_path / str(number))
    assert len({path.read_bytes() for path in tmp_path.glob("*/model.safetensors")}) == 1


@pytest.mark.parametrize("mask", [0o022, 0o027])
def test_a_saved_folder_says_what_it_is_and_is_as_open_as_other_files(tmp_path, mask):
    before = os.umask(mask)
    try:
        make_model().save_pretrained(tmp_path)
    finally:
        assert os.umask(before) == mask
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~mask}
    card = ModelCard.load(tmp_path / "README.md")
    assert (card.data.library_name, card.data.license) == ("vmddpm", "apache-2.0")
    assert "VM-DDPM" in card.text
    assert "Information Needed" not in card.text
    found = {}
    exec(re.search(r"```python\n(.*)```", card.text, re.DOTALL)[1].replace("this folder", str(tmp_path)), found)
    assert isinstance(found["network"], VMDDPM)


def test_a_file_without_some_weights_is_refused(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"Missing key.*layers\.2\."):
        VMDDPM.from_pretrained(tmp_path, config=ModelConfig(**SMALL, layers_per_stage=3))


def test_a_name_that_is_no_folder_does_not_reach_for_a_hub(tmp_path, monkeypatch):
    """Unless it is requested."""
    asked = []

    def download(**options):
        asked.append(options["repo_id"])
        raise ConnectionError

    monkeypatch.setattr("huggingface_hub.hub_mixin.hf_hub_download", download)
    for name in ("someone/vmddpm", tmp_path / "nowhere"):
        with pytest.raises(InputError, match=r"is not a folder; give one .* or pass from_hub=True"):
            VMDDPM.from_pretrained(name)
    assert asked == []
    with pytest.raises(ConnectionError):
        VMDDPM.from_pretrained("someone/vmddpm", from_hub=True)
    assert asked == ["someone/vmddpm"]


def test_weights_with_a_foreign_configuration_are_refused(tmp_path):
    model = make_model()
    model.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "regeneration": False}))  # the same tensors
    with pytest.raises(InputError, match=r"config\.json does not belong to model\.safetensors"):
        VMDDPM.from_pretrained(tmp_path)
    path.unlink()
    with pytest.raises(InputError, match=r"has no config\.json"):
        VMDDPM.from_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    save_file(tensors, tmp_path / "model.safetensors")  # another program's files contain no copy of the configuration
    with pytest.raises(InputError, match=r"delete model\.sha256 if another program wrote these weights"):
        VMDDPM.from_pretrained(tmp_path)
    (tmp_path / "model.sha256").unlink()
    assert VMDDPM.from_pretrained(tmp_path).config == model.config
