"""Distances between sets of images, and whether one copies the other."""

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
from vmddpm.evaluation.projected_frechet import projected_frechet_distance
from vmddpm.evaluation.radiomics import load_radiomics
from vmddpm.evaluation.volume_slices import VolumeSlices

__all__ = [
    "Extractor",
    "ExtractorConfig",
    "ExtractorError",
    "Images",
    "MetricsConfig",
    "RealImages",
    "SampleFolder",
    "VolumeSlices",
    "check_images",
    "describe_real",
    "describe_result",
    "evaluate",
    "load_extractor",
    "load_radiomics",
    "projected_frechet_distance",
]
