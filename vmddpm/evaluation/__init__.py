"""Distances between sets of images."""

from vmddpm.evaluation.projected_frechet import projected_frechet_distance

__all__ = ["projected_frechet_distance"]
