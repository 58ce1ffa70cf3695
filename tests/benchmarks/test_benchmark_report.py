"""Slopes, crossings and limits, and the report made of a result file."""

import math
import random

import pytest

from benchmarks.limits import Work, least_seconds
from benchmarks.problem import BOTH, FORWARD, Case
from benchmarks.report import BEGIN, END, headline_table, machine, markdown, put_between_markers, readme_block
from benchmarks.results import Results
from benchmarks.scaling import crossing, slope, summarise
from benchmarks.timing import measure_in_turn

np = pytest.importorskip("numpy")
LIMITS = {"copy": 40e9, "copy_non_temporal": 50e9, "forward_1": 20e9, "forward_16": 1.5e9, "backward_1": 9e9,
          "backward_16": 0.6e9, "matmul_flops": 1e11}  # fmt: skip


def test_slope_is_that_of_a_fitted_line():
    g = random.Random(0)
    lengths = [1 << p for p in range(8, 17)]
    costs = [3e-6 * n**1.3 * math.exp(g.gauss(0, 0.05)) for n in lengths]
    (fitted, _), covariance = np.polyfit(np.log(lengths[-5:]), np.log(costs[-5:]), 1, cov=True)
    found = slope(lengths, costs)
    assert found["slope"] == pytest.approx(fitted)
    assert (found["high"] - found["low"]) / 2 == pytest.approx(3.182446 * covariance[0, 0] ** 0.5)
    assert found["since"] == lengths[-5]


def test_slope_does_not_depend_on_order():
    assert slope([4, 1, 2], [16, 1, 4]) == slope([1, 2, 4], [1, 4, 16])


def test_crossing():
    lengths = [256, 512, 1024, 2048]
    quadratic = {n: n**2 / 700 for n in lengths}
    assert crossing({n: float(n) for n in lengths}, quadratic) == pytest.approx(700)
    assert crossing({n: n / 10 for n in lengths}, quadratic) == 0
    assert crossing({n: 10.0 * n for n in lengths}, quadratic) is None


def test_least_time_is_the_longest_of_the_limits():
    case = Case(2, 8, 8, 64, 16)
    elements = 2 * 4 * 64 * 64
    compute = elements / 1.5e9
    assert least_seconds(Work.of_scan(case, FORWARD), LIMITS) == pytest.approx(compute)
    assert least_seconds(Work.of_scan(case, BOTH), LIMITS) == pytest.approx(compute + elements / 0.6e9)
    assert least_seconds(Work(bytes=5e9), LIMITS) == pytest.approx(0.1)
    assert least_seconds(Work.of_scan(case, FORWARD), {"matmul_flops": 1e11}) is None


def test_least_bytes_are_those_of_the_tensors():
    case = Case(2, 3, 5, 7, 4)
    x, delta, B = 2 * 15 * 7, 2 * 4 * 15 * 7, 2 * 4 * 15 * 4
    assert case.least_bytes == 4 * (2 * x + delta + 2 * B)
    assert case.least_backward_bytes == 4 * (3 * x + 2 * delta + 4 * B)


@pytest.mark.parametrize(("share", "marked"), [(0.02, False), (0.4, True), (None, False)])
def test_times_of_a_busy_machine_are_marked(share, marked):
    made = {"date": "2026-11-29", "commit": "0" * 40, "changed_files": [], "torch": "2.13.0", "python": "3.11",
            "threads": 2, "others": share}  # fmt: skip
    text = "\n".join(machine({"machine": made, "profile": "quick", "limits": {"copy": 1e10}}))
    assert ("**Measured on a busy machine" in text) == marked


def test_implementations_take_turns():
    called = []
    times = measure_in_turn({name: lambda i, n=name: called.append((n, i)) for name in "ab"}, "cpu", 1e9, least=5)
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 40, "b": 40}
    measured = called[-80:]
    assert [n for n, _ in measured] == ["a", "b"] * 40
    assert [i for _, i in measured] == list(range(80))


def result_file():
    times = []
    for power in range(8, 14):
        for name, seconds in (("ours N=16", 1e-6 * 2**power), ("attention", 2e-9 * 4**power)):
            spread = {"median": seconds, "p20": 0.9 * seconds, "p80": 1.1 * seconds, "limit": seconds / 2, "work": None}
            key = {"suite": "scaling", "case": f"L{power}", "direction": FORWARD, "implementation": name, "ours": True}
            times.append({**key, "length": 1 << power, **spread})
    for name, factor in (("ours", 1), ("ours shuffled", 1.25), ("attention", 3)):
        times.append({**times[0], "suite": "cross_selective_scan", "case": "image", "implementation": name,
                      "median": factor * 1e-3})  # fmt: skip
    slopes, crossings = summarise(times)
    machine = {"cpu": "Some CPU", "cpus": 2, "gpu": {"name": None}, "date": "2026-01-01", "commit": "0123456789ab",
               "changed_files": False, "torch": "2.13", "python": "3.11", "threads": 2, "others": 0.01}  # fmt: skip
    memory = [{"suite": "memory", "case": "image N16 float32", "direction": BOTH, "implementation": "ours",
               "length": 4096, "bytes": 3 << 20, "input_bytes": 1 << 20}]  # fmt: skip
    return {"machine": machine, "profile": "quick", "limits": LIMITS, "missing": {"VMamba": ["not installed"]},
            "times": times, "memory": memory, "scaling": slopes, "crossings": crossings}  # fmt: skip


def test_markdown_has_the_figures():
    text = "\n".join(markdown(result_file()))
    assert "| image | forward | 1 (" in text
    assert "| 1.25x | 3.00x |" in text
    assert "| ours N=16 | seconds | 512 to 8192 | 1.000 |" in text
    assert "| attention | seconds | 512 to 8192 | 2.000 |" in text
    assert "A shuffled image costs +25.0%" in text
    assert "ours N=16 takes less time than attention from about 500 steps on." in text
    assert "Missing: VMamba: not installed." in text
    assert "| image N16 float32 | forward + backward | 1 | 3 |" in text


def test_what_is_faster_than_ours_comes_first():
    data = result_file()
    assert "Faster than ours: nothing." in markdown(data)
    ours = next(t for t in data["times"] if t["implementation"] == "ours")
    for name, factor in (("plain PyTorch", 0.8), ("copy", 0.5), ("ours in Triton", 0.4), ("VMamba", 1.5)):
        data["times"].append({**ours, "implementation": name, "median": factor * ours["median"]})
    lines = markdown(data)
    begin = lines.index("Faster than ours: 2 of 4 times.")
    assert not any(line.startswith(("###", "|")) for line in lines[:begin])
    assert lines[begin + 4 : begin + 6] == [
        "| cross_selective_scan | image | forward | copy | 0.50x |",
        "| cross_selective_scan | image | forward | plain PyTorch | 0.80x |",
    ]


def test_headlines_are_the_least_and_the_greatest_ratio_of_a_suite():
    data = result_file()
    more = [{**t, "case": "other", "median": 2 * t["median"] if t["implementation"] == "ours shuffled" else t["median"]}
            for t in data["times"] if t["suite"] == "cross_selective_scan"]  # fmt: skip
    data["times"] += [*more, {**more[-1], "direction": BOTH}]
    assert headline_table(data)[2:] == [
        "| `cross_selective_scan` | ours shuffled | 1.25x to 2.50x |  |",
        "| `cross_selective_scan` | attention | 3.00x |  |",
    ]


def test_the_readme_warns_of_a_busy_machine(tmp_path):
    data = result_file()
    data["machine"]["others"] = 0.4
    assert "**Measured on a busy machine" in readme_block({tmp_path / "a.json": data}, tmp_path / "README.md", tmp_path)


def test_readme_changes_between_its_markers_alone(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    file = tmp_path / "results" / "some-cpu.json"
    block = readme_block({file: result_file()}, readme, tmp_path / "docs")
    for _ in range(2):
        put_between_markers(readme, block)
    text = readme.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert "(docs/some-cpu.md)" in text
    assert "(results/some-cpu.json)" in text


def test_a_result_file_is_never_written_over(tmp_path):
    results = Results({"device": "some-cpu", "date": "2026-01-01"}, "quick")
    paths = [results.save(tmp_path) for _ in range(3)]
    assert [p.stem for p in paths] == ["some-cpu-2026-01-01", "some-cpu-2026-01-01-2", "some-cpu-2026-01-01-3"]
    assert all(p.exists() for p in paths)


def test_readme_without_markers_is_refused(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("nothing\n")
    with pytest.raises(SystemExit, match="must hold one"):
        put_between_markers(readme, "block")


def test_plots(tmp_path):
    plots = pytest.importorskip("benchmarks.plots").write_plots(result_file(), tmp_path)
    assert {path.name for path in plots.iterdir()} == {"scaling.png", "memory.png"}
