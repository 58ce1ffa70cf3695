"""Benchmarks of the operators and the model against baselines and the limits of the machine."""
