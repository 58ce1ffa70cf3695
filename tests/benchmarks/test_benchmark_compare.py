"""The comparison tells slower code from a noisy machine, on simulated times with known noise and drift."""

import json
import math
import random
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.compare import changes

ROOT = Path(__file__).parents[2]
CASES = [f"case {i}" for i in range(35)]
IMPLEMENTATIONS = {"ours": 40, "ours shuffled": 40, "ours unfused": 12, "reference": 3, "attention": 15}  # rounds
RUNS = 300


def rounds(g, time, noise, count):
    seconds = sorted(time * math.exp(g.gauss(0, noise)) for _ in range(count))
    spread = {f"p{q}": seconds[round(q / 100 * (count - 1))] for q in (20, 80)}
    return {"rounds": count, "median": seconds[count // 2], **spread}


def run(g, slower=None, by=1.0, noise=0.05, jitter=0.01, drift=0.3, busy=0.0, uneven=0.1, starved=1.0):
    """A simulated result file. Rounds have noise. Between runs each time varies a little (`jitter`), all vary together
    (`drift`), and in some cases (`busy`) another program takes up to two thirds of the processors, which slows
    implementations by different amounts (`uneven`). Implementations that copy, ours in every third case, take
    `starved` times as long."""
    times, slowed = [], {"arithmetic": 1.0, "memory": starved}
    machine = math.exp(g.gauss(0, drift))
    for number, case in enumerate(CASES):
        load = g.uniform(0, math.log(3)) if g.random() < busy else 0.0

        def now(seconds, load=load):
            return machine * seconds * math.exp(g.gauss(0, jitter) + load * (1 + g.gauss(0, uneven)))

        yardsticks = {name: rounds(g, now(1e-3 * longer), noise, 40) for name, longer in slowed.items()}
        for name, count in IMPLEMENTATIONS.items():
            time = 2e-3 * (by if (case, name) == slower else 1.0)
            time *= starved if name == "ours" and number % 3 == 0 else 1.0
            key = {"suite": "s", "case": case, "direction": "forward"}
            key |= {"implementation": name, "ours": name != "attention"}
            times.append(key | rounds(g, now(time), noise, count) | {"yardsticks": yardsticks})
    return {"machine": {"device": "some-cpu", "torch": "2.13", "threads": 2}, "times": times}


def found(a, b, word="slower"):
    return {c.key[1::2] for c in changes(a, b) if getattr(c, word)}


@pytest.mark.parametrize("noise", [{}, {"jitter": 0.03, "busy": 0.05}])
def test_equal_runs_are_equal(noise):
    """Fewer than 1 % of the comparisons, of some hundred times each, find a change."""
    g = random.Random(0)
    false = sum(found(run(g, **noise), run(g, **noise)) != set() for _ in range(RUNS))
    assert false <= RUNS / 100


def test_a_guest_that_fills_the_memory_bus_makes_no_kernel_slower():
    """It slows implementations that copy, and the yardstick that copies."""
    g = random.Random(8)
    false = sum(found(run(g), run(g, starved=1.4)) != set() for _ in range(RUNS))
    assert false <= RUNS / 100


def test_half_as_slow_again_is_found():
    """In more than 99 % of all comparisons, and no other change is found."""
    g = random.Random(1)
    right = 0
    for _ in range(RUNS):
        planted = g.choice(CASES), "ours"
        right += found(run(g), run(g, planted, 1.5)) == {planted}
    assert right >= 0.99 * RUNS


@pytest.mark.parametrize("implementation", ["ours", "ours unfused"])
def test_what_noise_hides_is_not_passed_over(implementation):
    """Times with few measurements while other programs run."""
    g = random.Random(7)
    silent = 0
    for _ in range(RUNS):
        planted = g.choice(CASES), implementation
        a, b = run(g, busy=0.1), run(g, planted, 1.5, busy=0.1)
        silent += planted not in found(a, b) | found(a, b, "too_noisy")
    assert silent <= RUNS / 100


def test_a_machine_that_is_too_busy_to_tell_is_said_to_be():
    """With noise that would hide the change, neither it nor any other change is found."""
    g = random.Random(2)
    for _ in range(20):
        a, b = run(g, noise=0.4), run(g, ("case 7", "ours"), 1.5, noise=0.4)
        assert found(a, b) == set()
        assert ("case 7", "ours") in found(a, b, "too_noisy")


def test_one_noisy_time_leaves_the_others_judged():
    g = random.Random(3)
    a, b = run(g), run(g, ("case 3", "ours"), 1.5)
    for data in (a, b):
        for t in data["times"]:
            if t["implementation"] == "reference":
                t["p80"] *= 3
    assert found(a, b) == {("case 3", "ours")}
    assert {(case, "reference") for case in CASES} <= found(a, b, "too_noisy")


def test_faster_code_is_no_regression():
    g = random.Random(4)
    a, b = run(g, ("case 7", "ours"), 1.5), run(g)
    assert found(a, b, "faster") == {("case 7", "ours")}
    assert found(a, b) == set()


def test_a_baseline_that_became_slower_is_not_ours():
    g = random.Random(5)
    assert found(run(g), run(g, ("case 7", "attention"), 1.5)) == set()


def test_all_of_ours_at_once():
    """A slowdown common to all cases is no drift if the baselines do not share it."""
    g = random.Random(6)
    a, b = run(g), run(g)
    for t in b["times"]:
        if t["ours"]:
            t.update({name: 1.5 * t[name] for name in ("median", "p20", "p80")})
    judged = [c for c in changes(a, b) if not c.too_noisy]
    assert len(judged) >= 70  # three rounds of a reference are few
    assert all(c.slower for c in judged)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"machine": {"device": "other", "torch": "2.13", "threads": 2}}, "device is 'some-cpu' in A and 'other' in B"),
        ({"machine": {"device": "some-cpu", "torch": "2.4", "threads": 2}}, "torch is '2.13' in A"),
        ({"times": []}, "no time in common"),
    ],
)
def test_runs_that_cannot_be_compared(change, message):
    a = run(random.Random(0))
    with pytest.raises(ValueError, match=message):
        changes(a, a | change)


def test_a_run_without_yardsticks():
    a, b = (run(random.Random(0)) for _ in range(2))
    del b["times"][0]["yardsticks"]
    with pytest.raises(ValueError, match="measured without the yardsticks"):
        changes(a, b)


@pytest.mark.parametrize(
    ("planted", "status", "said"),
    [(None, 0, "140 times compared, 0 slower, "), (("case 7", "ours"), 1, "SLOWER s case 7 forward ours: +")],
)
def test_command(tmp_path, planted, status, said):
    g = random.Random(0)
    files = tmp_path / "a.json", tmp_path / "b.json"
    for path, data in zip(files, (run(g), run(g, planted, 1.5))):
        path.write_text(json.dumps(data))
    command = [sys.executable, "-m", "benchmarks.compare", *map(str, files)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == status, done.stderr
    assert said in done.stdout
