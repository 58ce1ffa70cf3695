"""Trains on the slices of the MNI152 brain for as long as the time allows: the demo's model, then the paper's at
128 x 128 with and without Sequence Regeneration. Keeps each run's grids, loss curve and throughput in its folder."""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

from vmddpm.demo import demo_config, mni152_slices
from vmddpm.model import ModelConfig
from vmddpm.training import RunConfig, RunFolder, train

SHARES = {"demo": 0.2, "paper": 0.4, "paper-ordered": 0.4}


def run_config(name: str, minutes: float, tiny: bool) -> RunConfig:
    config = demo_config(minutes)
    if tiny:
        config = replace(config, training=replace(config.training, log_every=1))
    if name != "demo" and not tiny:
        config = replace(config, data=replace(config.data, size=128), model=ModelConfig(),
                         training=replace(config.training, batch_size=16, precision="bf16"))  # fmt: skip
    shuffled = name != "paper-ordered"
    return replace(config, model=replace(config.model, regeneration=shuffled))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the run folders")
    parser.add_argument("lines", type=Path, help="where the lines of JSON go")
    parser.add_argument("--seconds", type=float, default=480, help="seconds of training, in total")
    parser.add_argument("--dry-run", action="store_true", help="the demo's model each time")
    options = parser.parse_args()
    for name, share in SHARES.items():
        config = run_config(name, options.seconds * share / 60, options.dry_run)
        folder = RunFolder(options.out / name)
        train(config, mni152_slices(config.data), folder, progress=False)
        last = folder.metrics()[-1]
        if torch.cuda.is_available():
            last["peak_bytes"] = torch.cuda.max_memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        with options.lines.open("a") as lines:
            lines.write(json.dumps({"case": name, **last}) + "\n")
        print(f"{name}: step {last['step']}, loss {last['loss']:.4f}, {last['images_per_second']} images/s", flush=True)


if __name__ == "__main__":
    main()
