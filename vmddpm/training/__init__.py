"""Training runs: configuration, run folder, trainer."""

from vmddpm.training.config import RunConfig, TrainingConfig
from vmddpm.training.errors import RunError, TrainingError
from vmddpm.training.run_folder import RunFolder
from vmddpm.training.trainer import train

__all__ = ["RunConfig", "RunError", "RunFolder", "TrainingConfig", "TrainingError", "train"]
