"""Errors of runs, apart from bad arguments."""

from vmddpm.errors import VmddpmError


class RunError(VmddpmError, RuntimeError):
    """A run folder that cannot be used; the message names it, what is wrong and what to do."""


class TrainingError(VmddpmError, RuntimeError):
    """Training cannot go on; the message says why and what to change."""
