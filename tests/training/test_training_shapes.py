"""The model learns four shapes by class and samples the requested ones, in two minutes on one core."""

import pytest
import torch
from shapes import SHAPES, write_shapes

from vmddpm.data import DataConfig
from vmddpm.data.conditioned import conditioned
from vmddpm.data.conditions import ConditionConfig
from vmddpm.diffusion import DiffusionConfig
from vmddpm.evaluation import SampleFolder
from vmddpm.evaluation.classifier import predict, train_classifier
from vmddpm.generate import generate
from vmddpm.model import ModelConfig
from vmddpm.samples import sample_labels
from vmddpm.training import RunConfig, RunFolder, TrainingConfig, train
from vmddpm.training.conditions import with_conditions


def share_right(network, images, labels):
    return (predict(network, images) == torch.tensor(labels)).float().mean().item()


@pytest.mark.slow
def test_guided_samples_are_of_the_wanted_class(tmp_path):
    def pictures(name, each, seed):
        root = write_shapes(tmp_path / name, each, seed)
        data = DataConfig(str(root), size=16, min_foreground=0, cache_dir=str(tmp_path / "cache"))
        images = conditioned(data, ConditionConfig(labels="folder"))
        return images, images.labels.argmax(1).tolist()

    (images, labels), (others, truth) = pictures("training", 250, 0), pictures("held-out", 50, 1)
    run = RunConfig(
        ModelConfig(base_channels=32, channel_multipliers=(1, 2), sampling=(2, 2), norm_groups=8, d_state=4,
                    layers_per_stage=1, image_skip=True),
        DiffusionConfig(prediction_type="v_prediction"), images.images.config,
        TrainingConfig(steps=1200, batch_size=32, learning_rate=2e-3, warmup_steps=50, cooldown=0.4, ema_decay=0.995,
                       sample_every=0, device="cpu"),
        condition=ConditionConfig(labels="folder"),
    )  # fmt: skip
    folder = RunFolder(tmp_path / "run")
    train(with_conditions(run, images.classes), images, folder, progress=False)
    options = {"sampler": "ddim", "steps": 25, "batch_size": 50, "device": "cpu", "progress": False}
    generate(folder.path, tmp_path / "samples", 200, guidance=2.0, **options)
    generate(folder.path, tmp_path / "discs", 50, class_name="disc", guidance=2.0, **options)
    real = train_classifier(images, labels, 4)
    assert share_right(real, others, truth) >= 0.98
    samples = SampleFolder(tmp_path / "samples")
    class_indices = sample_labels(tmp_path / "samples", 200, SHAPES, None).argmax(1).tolist()
    assert share_right(real, samples, class_indices) >= 0.95
    assert share_right(real, SampleFolder(tmp_path / "discs"), [1] * 50) >= 0.95
    assert share_right(train_classifier(samples, class_indices, 4), others, truth) >= 0.8  # one in four by chance
