"""What samples of classes are worth: a small classifier trained on one set of images and tested on another.

Trained on samples and tested on real images, its accuracy is the classification accuracy score of Ravuri and Vinyals
(2019), to be read beside that of a classifier trained on as many real images. Trained on real images and tested on
samples, it tells whether samples are of the class that was asked for.
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
    """Three stages of two 3 x 3 convolutions, each of which but the last halves the size, then a mean over places:
    (B, C, H, W) in [-1, 1] -> logits (B, K)."""

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
    """A classifier of the images, 8-bit as their files are; each batch has as many of each class.

    Args:
        images: float32 (C, H, W) in [-1, 1].
        labels: the class of each, from 0 to classes - 1.
        classes: their number, at least 2.
        steps: of Adam, with batches of 64.
        seed: of weights and batches; on a CPU the same gives the same classifier.

    Raises:
        InputError: if a class has no image, or images and labels are not as many.
    """
    if len(images) != len(labels):
        raise InputError(f"there are {len(labels)} labels for {len(images)} images; each image needs one")
    if steps < 1:
        raise InputError(f"the classifier's steps are {steps}; they must be at least 1")
    places = [[i for i, label in enumerate(labels) if label == k] for k in range(classes)]
    if empty := [k for k, own in enumerate(places) if not own]:
        raise InputError(f"class {empty[0]} of {classes} has no image to train a classifier on; add some")
    device = torch.device(device)
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = Classifier(len(images[0]), classes).to(device).train()
    optimizer = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        wanted = torch.arange(BATCH) % classes
        chosen = [places[k][int(torch.randint(len(places[k]), (), generator=generator))] for k in wanted.tolist()]
        logits = network(_batch(images, chosen).to(device))
        optimizer.zero_grad()
        F.cross_entropy(logits, wanted.to(device)).backward()
        optimizer.step()
        schedule.step()
    return network.eval()


@torch.no_grad()
def predict(classifier: nn.Module, images: Images, *, device: torch.device | str = "cpu") -> Tensor:
    """int64 (n,): the class of each image, by `classifier`."""
    found = []
    for first in range(0, len(images), 4 * BATCH):
        batch = _batch(images, range(first, min(first + 4 * BATCH, len(images))))
        found.append(classifier(batch.to(device)).argmax(1).cpu())
    return torch.cat(found)


def class_accuracies(predicted: Tensor, labels: Sequence[int], classes: int) -> list[float | None]:
    """The share of each class's images that is taken for it; None of a class without an image."""
    truth = torch.tensor(labels)
    return [float((predicted[truth == k] == k).float().mean()) if (truth == k).any() else None for k in range(classes)]


def _batch(images: Images, places: Sequence[int]) -> Tensor:
    """Images as their 8-bit files hold them: real ones of 16 bits are not told from samples by their finer steps."""
    return torch.stack([quantised(images[i]) for i in places]).float() / 127.5 - 1
