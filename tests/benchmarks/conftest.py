"""The package `benchmarks` lies beside the installed ones, in the root of the repository."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
