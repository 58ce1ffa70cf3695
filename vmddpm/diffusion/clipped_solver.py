"""The DPM-Solver of `make_scheduler`, in a separate module because importing diffusers takes seconds."""

from typing import Any

from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor


class ClippedDPMSolver(DPMSolverMultistepScheduler):
    """DPM-Solver++(2M) of Lu et al. (2022), with the predicted image clipped to [-1, 1] as the other samplers do."""

    def convert_model_output(self, *arguments: Any, **options: Any) -> Tensor:
        return super().convert_model_output(*arguments, **options).clamp(-1, 1)
