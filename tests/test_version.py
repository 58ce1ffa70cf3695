"""The version is defined in one place; files that cannot read it there agree."""

import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import yaml

import vmddpm
import vmddpm_kernels

ROOT = Path(__file__).parents[1]


def test_every_version_is_the_same():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert vmddpm.__version__ == vmddpm_kernels.__version__ == version("vmddpm") == citation["version"]


def test_importing_the_model_package_does_not_import_torch():
    code = "import sys, vmddpm; assert 'torch' not in sys.modules; vmddpm.__version__; assert 'torch' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
