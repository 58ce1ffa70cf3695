"""Damaged images are read, or refused with our own error, in bounded time and memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest


def fuzz(folder, first, count):
    program = Path(__file__).with_name("fuzz_images.py")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, program, folder, str(first), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert not result["unclear"], "\n".join(result["unclear"])
    assert sum(result["table"].values()) == count
    assert min(result["table"]["read"], result["table"]["refused"]) > count / 5
    assert result["MiB"] < 600  # Python and its libraries take 250 of it
    return result


def test_damaged_images_are_read_or_refused(tmp_path):
    fuzz(tmp_path, 0, 200)


@pytest.mark.slow
def test_many_damaged_images_are_read_or_refused(tmp_path, capsys):
    result = fuzz(tmp_path, 1000, 5000)
    with capsys.disabled():
        print(f"\n5,000 damaged images: {result['table']}, {result['MiB']} MiB")
