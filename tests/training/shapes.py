"""Synthetic grey pictures of four shapes, each with random place, size, brightness and noise."""

import numpy as np
from PIL import Image

SHAPES = ("cross", "disc", "square", "triangle")


def shape(kind, rng, size=16):
    """A picture, uint8 (size, size)."""
    radius = rng.uniform(0.25, 0.36) * size
    y, x = np.mgrid[:size, :size] - rng.uniform(radius, size - 1 - radius, 2)[:, None, None]
    inside = {
        "cross": (np.minimum(abs(x), abs(y)) <= radius / 3.5) & (np.maximum(abs(x), abs(y)) <= radius),
        "disc": np.hypot(x, y) <= radius,
        "square": np.maximum(abs(x), abs(y)) <= radius * 0.9,
        "triangle": (y <= radius * 0.8) & (abs(x) <= (y + radius) * 0.6),
    }[kind]
    grey = np.where(inside, rng.uniform(170, 250), rng.uniform(0, 40)) + rng.normal(0, 4, (size, size))
    return np.clip(grey, 0, 255).astype(np.uint8)


def write_shapes(root, each, seed=0, size=16):
    """Write `each` pictures of each shape: root/disc/000.png, ..."""
    rng = np.random.default_rng(seed)
    for kind in SHAPES:
        (root / kind).mkdir(parents=True)
        for i in range(each):
            Image.fromarray(shape(kind, rng, size)).save(root / kind / f"{kind}{i:04d}.png")
    return root
