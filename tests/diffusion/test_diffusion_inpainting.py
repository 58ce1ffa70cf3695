"""Inpainting: kept pixels do not change, the schedule is RePaint's, and a region fits its surroundings."""

import pytest
import torch
from torch import nn

from vmddpm.diffusion import DiffusionConfig, inpaint
from vmddpm.diffusion.config import alphas_cumprod
from vmddpm.diffusion.inpainting import walk
from vmddpm.errors import InputError

PROCESS = DiffusionConfig(timesteps=50)
REGION = torch.zeros(1, 4, 4, dtype=torch.bool)
REGION[:, 1:3, 1:3] = True


class GreyModel(nn.Module):
    """The ideal predictor for images of one grey level each, normally distributed with deviation 0.3: the mean of the
    noisy pixels, shrunk towards 0 according to the noise."""

    def forward(self, x, t, order_key=None):
        signal = alphas_cumprod(PROCESS, x.device)[t].view(-1, 1, 1, 1)
        pixels = x[0].numel()
        shrinkage = 0.09 * signal * pixels / (0.09 * signal * pixels + 1 - signal)
        level = shrinkage * x.mean((1, 2, 3), keepdim=True) / signal.sqrt()
        return (x - signal.sqrt() * level) / (1 - signal).sqrt()


def filled(level, indices=range(2), **options):
    options = {"steps": 10, "jump": 2, "resamplings": 4, "batch_size": 2, **options}
    return inpaint(GreyModel(), lambda i: torch.full((1, 4, 4), level), lambda i: REGION, indices, config=PROCESS,
                   **options)  # fmt: skip


def test_the_walk_is_that_of_repaint():
    """Against the timesteps of diffusers' RePaintScheduler, which lists the level above each step down."""
    from diffusers import RePaintScheduler

    for steps, jump, resamplings in [(10, 3, 2), (10, 2, 4), (7, 1, 3), (9, 4, 1), (12, 11, 5)]:
        scheduler = RePaintScheduler(num_train_timesteps=steps)
        scheduler.set_timesteps(steps, jump, resamplings)
        ours = [steps]
        for level, to in walk(steps, jump, resamplings):
            assert level == ours[-1]
            ours += [to] if to < level else range(level + 1, to + 1)
        assert ours[1:] == scheduler.timesteps.tolist()


@pytest.mark.parametrize("sampler", ["ddpm", "ddim"])
def test_kept_pixels_are_the_images_own_and_the_region_is_drawn(sampler):
    images = torch.rand(2, 1, 4, 4) * 2 - 1
    found = inpaint(GreyModel(), lambda i: images[i], lambda i: REGION, range(2), config=PROCESS, sampler=sampler,
                    steps=10, jump=2, resamplings=2, batch_size=2)  # fmt: skip
    kept = ~REGION.expand_as(images)
    assert torch.equal(found[kept], images[kept])
    assert found.isfinite().all()
    assert not torch.equal(found[~kept], images[~kept])


@pytest.mark.parametrize("level", [-0.5, 0.6])
def test_resampling_makes_the_region_fit_its_surroundings(level):
    """In images of one grey level a column determines the rest; the replacement method follows it too little."""
    region = torch.ones(1, 8, 8, dtype=torch.bool)
    region[:, :, 0] = False
    errors = []
    for resamplings in (1, 8):
        images = inpaint(GreyModel(), lambda i: torch.full((1, 8, 8), level), lambda i: region, range(16),
                         config=PROCESS, steps=25, jump=5, resamplings=resamplings, batch_size=16, seed=4)  # fmt: skip
        errors.append((images[region.expand_as(images)] - level).abs().mean().item())
    assert errors[1] < 0.2 * errors[0]


def test_an_image_follows_from_seed_and_number():
    two, other = filled(0.3), filled(0.3, [1])
    assert torch.equal(two[1], other[0])
    assert torch.equal(filled(0.3, seed=0), two)
    assert not torch.equal(filled(0.3, seed=1), two)


def test_all_of_an_image_may_be_drawn():
    everything = torch.ones(1, 4, 4, dtype=torch.bool)
    images = inpaint(GreyModel(), lambda i: torch.full((1, 4, 4), float("nan")).nan_to_num(0.7), lambda i: everything,
                     range(64), config=PROCESS, steps=50, jump=5, resamplings=1, batch_size=64)  # fmt: skip
    levels = images.mean((1, 2, 3))
    assert levels.std().item() == pytest.approx(0.3, rel=0.35)
    assert abs(levels.mean().item()) < 0.15


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sampler": "dpm-solver"}, "cannot go back"),
        ({"sampler": "ddim", "steps": 7}, "divisor of the 50 steps"),
        ({"jump": 10}, "jump is 10; it must be from 1 to below steps, 10"),
        ({"resamplings": 0}, "resamplings is 0"),
        ({"indices": range(3)}, "they must be 1 to 2 numbers of at least 0"),
        ({"guidance": -1.0}, "guidance is -1.0"),
    ],
)
def test_what_cannot_be_drawn(options, words):
    with pytest.raises(InputError, match=words):
        filled(0.0, **options)
