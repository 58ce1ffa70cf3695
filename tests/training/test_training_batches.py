"""The inputs of a step depend on the images' numbers, not on the process or the division of the batch."""

import itertools

import pytest
import torch

from vmddpm.data import DataConfig
from vmddpm.diffusion import DiffusionConfig
from vmddpm.training import RunConfig, TrainingConfig
from vmddpm.training.batches import FLIPS, NOISE, ORDER, epoch_order, generator_of, images_at, inputs_at, prefetch

IMAGES = torch.rand(7, 1, 8, 8, generator=torch.Generator().manual_seed(5)) * 2 - 1
CONFIG = RunConfig(diffusion=DiffusionConfig(timesteps=20), data=DataConfig(size=128),
                   training=TrainingConfig(batch_size=6, sample_steps=2))  # fmt: skip


@pytest.mark.parametrize("cuts", [[0, 6], [0, 3, 6], [0, 1, 2, 3, 4, 5, 6], [0, 4, 6]])
def test_parts_of_a_batch_are_the_batch(cuts):
    whole = inputs_at(IMAGES, 11, CONFIG)
    parts = [inputs_at(IMAGES, 11, CONFIG, range(a, b)) for a, b in itertools.pairwise(cuts)]
    assert all(torch.equal(torch.cat(pieces), value) for pieces, value in zip(zip(*parts), whole))


def test_a_batch_of_another_size_has_the_same_images():
    """Image n of a run does not depend on the batch size (6 or 3)."""
    small = RunConfig(diffusion=CONFIG.diffusion, training=TrainingConfig(batch_size=3, sample_steps=2))
    for a, *b in zip(inputs_at(IMAGES, 2, CONFIG), inputs_at(IMAGES, 4, small), inputs_at(IMAGES, 5, small)):
        assert torch.equal(a, torch.cat(b))


def test_every_epoch_visits_every_image_once():
    options = TrainingConfig(batch_size=3, flip=False)
    seen = torch.cat([images_at(IMAGES, step, options) for step in range(7)])  # 21 = 3 epochs of 7
    for epoch in range(3):
        batch = seen[7 * epoch : 7 * epoch + 7]
        distances = (batch[:, None] - IMAGES[None]).flatten(2).abs().sum(2)
        assert sorted(distances.argmin(1).tolist()) == list(range(7))
        assert distances.min(1).values.max() == 0
    assert epoch_order(7, 0, 0) != epoch_order(7, 0, 1)


def test_half_of_the_images_are_flipped():
    options = TrainingConfig(batch_size=70)
    flipped = plain = 0
    for step in range(20):
        for image in images_at(IMAGES, step, options):
            plain += any(torch.equal(image, original) for original in IMAGES)
            flipped += any(torch.equal(image, original.flip(-1)) for original in IMAGES)
    assert plain + flipped == 1400
    assert abs(flipped - 700) < 5 * 350**0.5


def test_streams_and_numbers_have_generators_of_their_own():
    keys = itertools.product((0, 1), (ORDER, FLIPS, NOISE), range(3000))
    seeds = {generator_of(*key).initial_seed() for key in keys}
    assert len(seeds) == 2 * 3 * 3000
    assert max(seeds) < 2**32  # the bits that torch's CPU generator uses


def test_batches_are_made_ahead_in_order():
    made = []
    batches = prefetch(lambda step: made.append(step) or step, 3)
    assert [next(batches) for _ in range(3)] == [3, 4, 5]
    batches.close()
    assert made == [3, 4, 5, 6]


def test_an_error_is_raised_where_its_batch_is_requested():
    batches = prefetch([0, 1].__getitem__, 0)
    assert [next(batches), next(batches)] == [0, 1]
    with pytest.raises(IndexError):
        next(batches)
