"""A small classifier that is trained on one set of images and tested on another, to measure the value of class samples.

Trained on samples and tested on real images, its accuracy is the classification accuracy score of Ravuri and Vinyals
(2019); compare it with that of a classifier trained on as many real images. Trained on real images and tested on
samples, its accuracy shows whether samples belong to the requested class.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from vmddpm.errors import InputError
from vmddpm.evaluation.images import Images, quantised

WIDTHS = (16, 32, 64)
LEARNING_RATE = 2e-3
BATCH = 64


class Classifier(nn.Module):
    """Three stages of two 3 x 3 convolutions, with 2 x 2 pooling between stages and a global mean at the end: (B, C, H,
    W) in [-1, 1] -> logits (B, K)."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for number, width in enumerate(WIDTHS):
            for _ in range(2):
                layers += [nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers += [nn.MaxPool2d(2, ceil_mode=True)] if number < len(WIDTHS) - 1 else []
        self.features = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.head = nn.Linear(channels, classes)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x))
        return logits


def train_classifier(
    images: Images, labels: Sequence[int], classes: int, *, steps: int = 400, seed: int = 0,
    device: torch.device | str = "cpu",
) -> Classifier:  # fmt: skip
    """Train a classifier on images rounded to 8 bits, with class-balanced batches.

    Args:
        images: float32 (C, H, W) in [-1, 1].
        labels: the class of each image, from 0 to classes - 1.
        classes: number of classes, at least 2.
        steps: training steps with Adam and batches of 64.
        seed: seed of weights and batches; on a CPU the same seed gives the same classifier.

    Raises:
        InputError: if a class has no image, or the numbers of images and labels differ.
    """
    if len(images) != len(labels):
        raise InputError(f"there are {len(labels)} labels for {len(images)} images; each image needs one")
    if steps < 1:
        raise InputError(f"the classifier's steps are {steps}; they must be at least 1")
    indices = [[i for i, label in enumerate(labels) if label == k] for k in range(classes)]
    if empty := [k for k, own in enumerate(indices) if not own]:
        raise InputError(f"class {empty[0]} of {classes} has no image to train a classifier on; add some")
    device = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(len(images[0]), classes).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        targets = torch.arange(BATCH) % classes
        chosen = [indices[k][int(torch.randint(len(indices[k]), (), generator=generator))] for k in targets.tolist()]
        logits = network(_batch(images, chosen).to(device))
        optimizer.zero_grad()
        F.cross_entropy(logits, targets.to(device)).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def predict(classifier: nn.Module, images: Images, *, device: torch.device | str = "cpu") -> Tensor:
    """int64 (n,): the predicted class of each image."""
    found = []
    for first in range(0, len(images), 4 * BATCH):
        batch = _batch(images, range(first, min(first + 4 * BATCH, len(images))))
        found.append(classifier(batch.to(device)).argmax(1).cpu())
    return torch.cat(found)


def class_accuracies(predicted: Tensor, labels: Sequence[int], classes: int) -> list[float | None]:
    """The accuracy within each class; None for a class without an image."""
    truth = torch.tensor(labels)
    return [float((predicted[truth == k] == k).float().mean()) if (truth == k).any() else None for k in range(classes)]


def _batch(images: Images, indices: Sequence[int]) -> Tensor:
    """A batch rounded to 8 bits, so that finer steps do not distinguish 16-bit real images from samples."""
    return torch.stack([quantised(images[i]) for i in indices]).float() / 127.5 - 1
