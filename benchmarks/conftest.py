"""`pytest benchmarks/` checks each case once at a small size. `pytest benchmarks/ --benchmark` estimates the duration,
measures and prints the results; `--results FOLDER` also writes a result file and its plots.

The first test of a case measures all implementations in turn. Each test then replays the times of its implementation to
pytest-benchmark, so that its tables, JSON files and comparisons work."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import quiet
from benchmarks.baselines import load
from benchmarks.gpu.machine import describe
from benchmarks.harness import Harness, Makers
from benchmarks.limits import Work, measure_limits
from benchmarks.plots import write_plots
from benchmarks.quiet import Others
from benchmarks.report import markdown
from benchmarks.results import Results
from benchmarks.scaling import summarise
from benchmarks.timing import keep_freed_memory

TYPICAL = {"quick": 1.5, "full": 6.0}  # typical seconds of a test: drawing inputs, checking and measuring
PROFILES = {"quick": (0.25, 3), "full": (2.0, 10)}  # seconds and minimum rounds for each implementation


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("vmddpm benchmarks")
    group.addoption("--benchmark", action="store_true", help="measure instead of running every case once")
    group.addoption("--profile", choices=PROFILES, default="quick", help="quick (minutes) or full")
    group.addoption("--results", type=Path, default=None,
                    help="folder for a result file and its plots; by default nothing is written")  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MEASURING] = config.getoption("--benchmark") or config.getoption("benchmark_only")
    if not config.stash[MEASURING]:
        config.option.benchmark_disable = True


def pytest_collection_finish(session: pytest.Session) -> None:
    config = session.config
    if not config.stash[MEASURING] or config.option.collectonly:
        return
    writer, profile = config.get_terminal_writer(), config.getoption("--profile")
    count = len(session.items)
    minutes = count * TYPICAL[profile] / 60
    folder = config.getoption("--results")
    kept = f"results go to {folder}" if folder else "no file is written; --results FOLDER keeps the results"
    writer.line(f"\n{count} measurements, profile {profile}: some {minutes:.1f} minutes on an idle machine; {kept}")
    busy = quiet.busy_now()
    if busy is not None and busy > quiet.BUSY:
        writer.line(f"warning: other programs take {busy:.0%} of the processors: the times will be those of a busy "
                    "machine", yellow=True)  # fmt: skip


MEASURING = pytest.StashKey[bool]()
RESULTS = pytest.StashKey[Results]()
OTHERS = pytest.StashKey[Others]()
MACHINE = torch.device("cuda" if torch.cuda.is_available() else "cpu").type


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test by its module's CASES, DIRECTIONS and IMPLEMENTATIONS; tests of one case are neighbours."""
    module = metafunc.module
    if "case" in metafunc.fixturenames:
        cases = module.CASES[metafunc.config.getoption("--profile")]
        metafunc.parametrize("case", cases, ids=lambda c: c.name.replace(" ", "-"))
    for name in ("direction", "implementation"):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, getattr(module, f"{name.upper()}S"), ids=lambda v: v.replace(" ", "-"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.benchmark(timer=CLOCK))


class Clock:
    """A clock for pytest-benchmark that replays measured times: each call of `replay` advances it by one."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def replay(self, seconds: Iterator[float]) -> None:
        self.now += next(seconds)


CLOCK = Clock()


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fill torch.empty with NaN, so that an element that no kernel writes fails the check."""
    with torch.device("meta"):  # at its first use torch.device remembers the functions that it applies to
        torch.empty(0)
    empty = torch.empty

    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        tensor = empty(*args, **kwargs)
        return tensor.fill_(float("nan")) if tensor.is_floating_point() else tensor

    monkeypatch.setattr(torch, "empty", poisoned)


@pytest.fixture(scope="session")
def device() -> str:
    return MACHINE


@pytest.fixture(scope="session")
def measuring(request: pytest.FixtureRequest) -> bool:
    return request.config.stash[MEASURING]


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest, device: str, measuring: bool) -> Results:
    found = Results(describe(device), request.config.getoption("--profile"))
    if measuring:
        keep_freed_memory()
        found["limits"].update(measure_limits(device))
        request.config.stash[RESULTS], request.config.stash[OTHERS] = found, Others()
    return found


@pytest.fixture(scope="session")
def baselines(device: str) -> Any:
    return load(device)


def selected_implementations(request: pytest.FixtureRequest, own: str) -> list[str]:
    """The implementations of all selected tests with the same case and direction as this one, which measures `own`."""

    def key(item: Any) -> tuple[str, dict[str, Any]]:
        return item.originalname, {k: v for k, v in item.callspec.params.items() if k != "implementation"}

    this = request.node
    others = (i for i in request.session.items if i.path == this.path and hasattr(i, "callspec"))
    return [i.callspec.params.get("implementation", own) for i in others if key(i) == key(this)]


@pytest.fixture(scope="session")
def last_measured() -> dict[Any, Any]:
    return {}


@pytest.fixture
def harness(
    request: pytest.FixtureRequest, benchmark: Any, results: Results, baselines: Any, device: str, measuring: bool,
    poisoned_memory: None, last_measured: dict[Any, Any],
) -> Callable[..., None]:  # fmt: skip
    """harness(makers, case, direction, implementation) checks the implementation, or reports its measured times. The
    first test of a case measures all implementations of that case."""
    suite = request.node.originalname.removeprefix("test_")

    def take_part(
        makers: Makers, case: Any, direction: str, implementation: str, *,
        work: Callable[[str], Work | None] = lambda implementation: None, **options: Any,
    ) -> None:  # fmt: skip
        if not measuring:
            one = Harness(makers, [implementation], case.tiny(), direction, device, baselines, **options)
            if one.missing:
                pytest.skip(one.missing[implementation])
            benchmark.pedantic(one.check, (implementation,))
            return
        key = (suite, case, direction)
        if key not in last_measured:
            last_measured.clear()
            names = selected_implementations(request, implementation)
            several = Harness(makers, names, case, direction, device, baselines, **options)
            several.drop_failing()
            request.getfixturevalue("monkeypatch").undo()  # do not time the poisoning
            measured, sets = several.measure(*PROFILES[request.config.getoption("--profile")])
            several.record(suite, results, measured, sets, work)
            last_measured[key] = several.missing, measured
        missing, measured = last_measured[key]
        if implementation in missing:
            pytest.skip(missing[implementation])
        benchmark.group = f"{suite} {direction} {case.name}"
        seconds = measured[implementation]
        benchmark.pedantic(CLOCK.replay, (iter(seconds),), rounds=len(seconds))

    return take_part


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash.get(RESULTS, None)
    if found is None:
        return
    slopes, found.data["crossings"] = summarise(found["times"])
    found["scaling"].extend(slopes)
    found["machine"]["others"] = config.stash[OTHERS].share()
    terminalreporter.write_line("\n".join(markdown(found.data)))
    if folder := config.getoption("--results"):
        path = found.save(folder)
        terminalreporter.write_line(f"\nresults: {path}\nplots: {write_plots(found.data, folder / path.stem)}")
