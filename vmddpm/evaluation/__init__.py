"""Distances between sets of images, and detection of copies."""

from vmddpm.evaluation.evaluate import (
    MetricsConfig,
    RealImages,
    check_images,
    describe_real,
    describe_result,
    evaluate,
)
from vmddpm.evaluation.extractor import Extractor, ExtractorConfig, ExtractorError, load_extractor
from vmddpm.evaluation.images import Images, SampleFolder
from vmddpm.evaluation.merit import Merit, figures_of_merit
from vmddpm.evaluation.per_class import Labelled, describe_classes, evaluate_classes
from vmddpm.evaluation.projected_frechet import projected_frechet_distance
from vmddpm.evaluation.radiomics import load_radiomics
from vmddpm.evaluation.spectrum import log_spectral_distance, radial_power_spectrum
from vmddpm.evaluation.texture import texture_distance
from vmddpm.evaluation.volume_slices import VolumeSlices

__all__ = [
    "Extractor",
    "ExtractorConfig",
    "ExtractorError",
    "Images",
    "Labelled",
    "Merit",
    "MetricsConfig",
    "RealImages",
    "SampleFolder",
    "VolumeSlices",
    "check_images",
    "describe_classes",
    "describe_real",
    "describe_result",
    "evaluate",
    "evaluate_classes",
    "figures_of_merit",
    "load_extractor",
    "load_radiomics",
    "log_spectral_distance",
    "projected_frechet_distance",
    "radial_power_spectrum",
    "texture_distance",
]
