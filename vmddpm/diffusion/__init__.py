"""The diffusion process around the network: schedule, objective, samplers (paper section III-A)."""

from vmddpm.diffusion.config import DiffusionConfig
from vmddpm.diffusion.guidance import guided
from vmddpm.diffusion.inpainting import inpaint
from vmddpm.diffusion.loss import diffusion_loss, draw_steps_and_noise, prediction_target, q_sample
from vmddpm.diffusion.sampling import image_generator, make_scheduler, sample

__all__ = [
    "DiffusionConfig",
    "diffusion_loss",
    "draw_steps_and_noise",
    "guided",
    "image_generator",
    "inpaint",
    "make_scheduler",
    "prediction_target",
    "q_sample",
    "sample",
]
