"""Training runs: configuration, run folder, trainer."""

from vmddpm.training.config import RunConfig, TrainingConfig
from vmddpm.training.run_folder import RunError, RunFolder
from vmddpm.training.trainer import TrainingError, train

__all__ = ["RunConfig", "RunError", "RunFolder", "TrainingConfig", "TrainingError", "train"]
