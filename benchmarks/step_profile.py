"""The time of a training step of the demo model, by operator.

    python -m benchmarks.step_profile [--batch-size 16] [--steps 5]

The scan is `vmddpm::selective_scan_forward` and `_backward`. The time of an operator excludes operators that it calls;
percentages are of the time of all operators, without Python between them.
"""

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.test_model import TRAINING, ModelCase, along, draw
from vmddpm.demo import demo_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    case = ModelCase("demo", options.batch_size, 64, demo_config(1).model)
    run = along(shuffled=True)(draw(case, "cpu", 0), "cpu", None)
    for _ in range(2):
        run.call(TRAINING)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(options.steps):
            run.call(TRAINING)
    operators = sorted(profiler.key_averages(), key=lambda o: -o.self_cpu_time_total)
    total = sum(o.self_cpu_time_total for o in operators)
    for operator in operators[:20]:
        ms, calls = operator.self_cpu_time_total / options.steps / 1e3, operator.count / options.steps
        share = operator.self_cpu_time_total / total
        print(f"{operator.key:50}{calls:7.0f} calls {ms:9.2f} ms {share:6.1%}")
    print(f"{'all, a step':50}{torch.get_num_threads():7} threads {total / options.steps / 1e3:7.2f} ms")


if __name__ == "__main__":
    main()
