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
from vmddpm.evaluation.images import SampleFolder
from vmddpm.evaluation.per_class import Labelled, describe_classes, evaluate_classes
from vmddpm.evaluation.projected_frechet import projected_frechet_distance
from vmddpm.evaluation.radiomics import load_radiomics

__all__ = [
    "Extractor",
    "ExtractorConfig",
    "ExtractorError",
    "Labelled",
    "MetricsConfig",
    "RealImages",
    "SampleFolder",
    "check_images",
    "describe_classes",
    "describe_real",
    "describe_result",
    "evaluate",
    "evaluate_classes",
    "load_extractor",
    "load_radiomics",
    "projected_frechet_distance",
]
