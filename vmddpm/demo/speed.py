"""Measures how fast this machine trains and draws at present."""

from collections.abc import Callable
from statistics import median

import torch

from vmddpm.demo.plan import BLOCK, Speed
from vmddpm.devices import choose_device
from vmddpm.evaluation.images import Images
from vmddpm.training import RunConfig
from vmddpm.training.diffusion_learner import DiffusionLearner, Inputs
from vmddpm.training.ranks import Ranks

ROUNDS = 3


def measure_speed(config: RunConfig, dataset: Images, clock: Callable[[], float], limit: float) -> Speed:
    """Time training and drawing steps of a throwaway network: one to warm up, then the median of up to three; about
    `limit` seconds in all."""
    device = choose_device(config.training.device, scans=True)
    learner = DiffusionLearner(config, Ranks(0, 1, device))

    def inputs_at(number: int) -> Inputs:
        return learner.inputs_at(dataset, number, range(config.training.batch_size))

    learner.start(inputs_at, 0)
    t = torch.full((BLOCK,), config.diffusion.timesteps - 1, device=device)
    shape = (BLOCK, *config.data.shape)

    def train(number: int) -> None:
        learner.step(inputs_at(number), number, config.training.learning_rate)

    @torch.no_grad()
    def draw(number: int) -> None:
        learner.ema(torch.zeros(shape, device=device), t, order_key=(config.training.seed, number)).sum().item()

    def time_per_call(step: Callable[[int], None]) -> float:
        started = clock()
        step(0)
        times: list[float] = []
        while not times or (len(times) < ROUNDS and clock() - started < limit / 2):
            before = clock()
            step(1 + len(times))
            times.append(clock() - before)
        return median(times)

    return Speed(time_per_call(train), time_per_call(draw))
