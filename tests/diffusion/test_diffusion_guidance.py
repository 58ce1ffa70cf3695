"""Conditions and classifier-free guidance: the model's condition inputs, and the guidance scale."""

import pytest
import torch

from vmddpm.diffusion import DiffusionConfig, diffusion_loss, guided, sample
from vmddpm.errors import InputError
from vmddpm.model import VMDDPM, ModelConfig

SMALL = {"base_channels": 8, "channel_multipliers": (1, 2), "sampling": (2, 2), "norm_groups": 4, "d_state": 4,
         "layers_per_stage": 1}  # fmt: skip
PROCESS = DiffusionConfig(timesteps=20)
X, T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(1)), torch.tensor([3, 12])


def model_with(**options):
    """A model whose weights are all nonzero, so that every input has an effect."""
    model = VMDDPM(ModelConfig(**SMALL, **options)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model


def test_a_class_moves_the_time_embedding_by_its_vector():
    model = model_with(classes=("a", "b", "c"))
    labels = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    with torch.no_grad():
        vectors = model.class_embedding.weight.T  # (K, time_dim)
        moved = model.time(T, torch.stack([vectors[1] + vectors[2], vectors[0]]))
        assert not torch.equal(moved, model.time(T))
        noise = model(X, T, (0, 0), labels=labels)
        model.time.forward = lambda t, class_embedding: moved
        assert torch.equal(model(X, T, (0, 0)), noise)


@pytest.mark.parametrize("image_skip", [False, True])
def test_no_condition_is_zeros(image_skip):
    model = model_with(classes=("a", "b"), condition_channels=2, image_skip=image_skip)
    zeros = {"labels": torch.zeros(2, 2), "condition_image": torch.zeros(2, 2, 8, 8)}
    with torch.no_grad():
        without = model(X, T, (0, 0))
        assert torch.equal(without, model(X, T, (0, 0), **zeros))
        for name, values in zeros.items():
            assert not torch.equal(without, model(X, T, (0, 0), **{name: values + 1}))


def test_an_unconditional_model_with_classes_added_predicts_the_same():
    """The class embedding adds the only new weights, and they come last."""
    torch.manual_seed(5)
    plain = VMDDPM(ModelConfig(**SMALL))
    torch.manual_seed(5)
    classed = VMDDPM(ModelConfig(**SMALL, classes=("a", "b")))
    names = list(classed.state_dict())
    assert [name for name in names if name not in plain.state_dict()] == ["class_embedding.weight"]
    assert all(torch.equal(plain.state_dict()[n], classed.state_dict()[n]) for n in plain.state_dict())
    with torch.no_grad():
        assert torch.equal(plain.eval()(X, T, (0, 0)), classed.eval()(X, T, (0, 0)))


@pytest.mark.parametrize(
    ("options", "given", "words"),
    [
        ({"classes": ("a", "b")}, {"labels": torch.zeros(2, 3)}, r"\(B, classes\) = \(2, 2\)"),
        ({}, {"labels": torch.zeros(2, 3)}, "this model has no classes"),
        ({"condition_channels": 1}, {"condition_image": torch.zeros(2, 1, 4, 4)}, r"= \(2, 1, 8, 8\)"),
        ({}, {"condition_image": torch.zeros(2, 1, 8, 8)}, "this model takes none"),
    ],
)
def test_conditions_that_do_not_fit(options, given, words):
    with pytest.raises(InputError, match=words):
        VMDDPM(ModelConfig(**SMALL, **options))(X, T, **given)


@pytest.mark.parametrize("classes", [("a",), ("a", "a"), ("a", ""), ("a", " b"), ("a", 3)])
def test_invalid_classes(classes):
    with pytest.raises(InputError, match="classes is"):
        ModelConfig(classes=classes)


def conditions(members):
    return {"labels": torch.eye(2)[[i % 2 for i in members]]}


def drawn(model, guidance=1.0, conditions=conditions):
    return sample(model, range(4), (1, 8, 8), config=PROCESS, sampler="ddim", steps=4, seed=2, batch_size=2,
                  conditions=conditions, guidance=guidance)  # fmt: skip


def test_guidance_0_is_the_unconditional_model_bit_for_bit():
    model = model_with(classes=("a", "b"))
    without = drawn(model, conditions=None)
    assert torch.equal(drawn(model, 0.0), without)
    assert not torch.equal(drawn(model, 1.0), without)


def test_guidance_is_the_line_through_both_predictions():
    model = model_with(classes=("a", "b")).double()
    condition, x = {"labels": torch.eye(2, dtype=torch.float64)}, X.double()
    with torch.no_grad():
        without, given = model(x, T, order_key=(0, 0)), model(x, T, order_key=(0, 0), **condition)
        assert torch.equal(guided(model, condition, 1.0)(x, T, order_key=(0, 0)), given)
        for w in (0.5, 3.0):
            found = guided(model, condition, w)(x, T, order_key=(0, 0))
            torch.testing.assert_close(found, without + w * (given - without), rtol=1e-12, atol=1e-12)


def test_an_image_does_not_depend_on_the_others_classes():
    """Image i depends on seed and class alone, whatever block it is sampled in."""
    model = model_with(classes=("a", "b"))
    whole = drawn(model, 2.0)
    alone = sample(model, [3], (1, 8, 8), config=PROCESS, sampler="ddim", steps=4, seed=2, batch_size=2,
                   conditions=conditions, guidance=2.0)  # fmt: skip
    assert torch.equal(alone[0], whole[3])


@pytest.mark.parametrize("guidance", [-1.0, float("nan"), float("inf"), 1e4])
def test_invalid_guidance(guidance):
    with pytest.raises(InputError, match="guidance is"):
        drawn(model_with(classes=("a", "b")), guidance)


def test_conditions_for_other_images_are_refused():
    with pytest.raises(InputError, match="1 rows of labels for 2 images"):
        drawn(model_with(classes=("a", "b")), conditions=lambda members: {"labels": torch.eye(2)[:1]})


def test_the_loss_tells_the_model():
    model = model_with(classes=("a", "b"), condition_channels=1)
    condition = {"labels": torch.eye(2), "condition_image": torch.ones(2, 1, 8, 8)}
    noise = torch.randn_like(X)
    loss = diffusion_loss(model, X, T, noise, (0, 0), PROCESS, condition)
    signal = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 20, dtype=torch.float64), 0)[T].view(-1, 1, 1, 1)
    noisy = (signal.sqrt() * X + (1 - signal).sqrt() * noise).float()
    with torch.no_grad():
        expected = (model(noisy, T, (0, 0), **condition) - noise).square().mean()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
