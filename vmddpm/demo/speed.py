"""How fast this machine trains and draws at this moment."""

from collections.abc import Callable
from statistics import median

import torch

from vmddpm.demo.plan import BLOCK, Speed
from vmddpm.devices import choose_device
from vmddpm.diffusion import diffusion_loss
from vmddpm.evaluation.images import Images
from vmddpm.training import RunConfig
from vmddpm.training.batches import inputs_at
from vmddpm.training.learner import adam
from vmddpm.training.networks import build_network

ROUNDS = 3


def measure_speed(config: RunConfig, dataset: Images, clock: Callable[[], float], limit: float) -> Speed:
    """Takes a few steps with a network that is thrown away: one for the first time, then up to three whose median
    counts, fewer once `limit` seconds are over."""
    device = choose_device(config.training.device, scans=True)
    network = build_network(config).to(device).train()
    optimizer = adam(network, config.training.learning_rate)
    t = torch.full((BLOCK,), config.diffusion.timesteps - 1, device=device)
    shape = (BLOCK, *config.data.shape)

    def train(number: int) -> None:
        x0, steps, noise = (values.to(device) for values in inputs_at(dataset, number, config))
        optimizer.zero_grad(set_to_none=True)
        loss = diffusion_loss(network, x0, steps, noise, (config.training.seed, number), config.diffusion)
        loss.backward()
        optimizer.step()
        loss.item()  # waits for a GPU

    @torch.no_grad()
    def draw(number: int) -> None:
        network(torch.zeros(shape, device=device), t, order_key=(config.training.seed, number)).sum().item()

    def timed(step: Callable[[int], None]) -> float:
        begun = clock()
        step(0)
        times: list[float] = []
        while not times or (len(times) < ROUNDS and clock() - begun < limit / 2):
            before = clock()
            step(1 + len(times))
            times.append(clock() - before)
        return median(times)

    training = timed(train)
    network.eval()
    return Speed(training, timed(draw))
