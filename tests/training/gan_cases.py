"""Small GAN runs on real slices."""

from nilearn.datasets import load_mni152_template

from vmddpm.baselines.config import GANConfig
from vmddpm.data import DataConfig, from_volumes
from vmddpm.training import RunConfig, TrainingConfig


def gan_config(system, size=16, gan=None, **training):
    options = {"batch_size": 4, "learning_rate": 2e-4, "steps": 6, "log_every": 1, "checkpoint_every": 2, "flip": True,
               "sample_every": 3, "sample_count": 2, "device": "cpu", **training}  # fmt: skip
    return RunConfig(
        system=system, data=DataConfig(size=size), training=TrainingConfig(**options),
        gan=GANConfig(**{"latent_dim": 12, "base_channels": 8, "attention_size": 8, "cutmix_warmup_steps": 3,
                         **(gan or {})}),
    )  # fmt: skip


def real_slices(size, count):
    """The middle `count` axial slices of a real brain, 4 mm apart."""
    config = DataConfig(size=size, min_foreground=0.2)
    dataset = from_volumes([load_mni152_template(resolution=4)], config)
    first = (len(dataset) - count) // 2
    return [dataset[first + i] for i in range(count)]
