import os

# Before scipy is imported: scikit-learn's array API check runs only then.
os.environ.setdefault("SCIPY_ARRAY_API", "1")

import inspect
from collections import Counter
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, settings

matplotlib.use("agg")
torch.set_num_threads(1)
settings.register_profile(
    "suite",
    deadline=None,
    derandomize=True,
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("suite")

DATA = Path(os.environ.get("SKANOMALY_DATA", Path(__file__).parents[2] / "shared" / "data"))

#: Modules of detectors that hold others.
COMPOSITES = {"skanomaly.ensemble", "skanomaly.patches"}

#: CPU seconds: of all tests of one detector, and of one test that is so marked.
BUDGET = {"detector": 15, "learning": 5, "study": 3}


@pytest.fixture(scope="session")
def benchmark_data():
    """A loader of benchmark sets by name, as arrays; skips where they are absent."""

    def load(name):
        path = DATA / f"{name}.npz"
        if not path.exists():
            pytest.skip(f"{path.name} is not in {DATA}; set SKANOMALY_DATA to the folder of benchmark images")
        with np.load(path) as arrays:
            return dict(arrays)

    return load


def cpu_seconds(children=True):
    """CPU time of this process, and of its children that have ended."""
    return sum(os.times()[: 4 if children else 2])


def tested_module(item):
    """Module of the detector that a test is about: that of its parameter, or the namesake of its file."""
    for value in item.callspec.params.values() if hasattr(item, "callspec") else ():
        module = (value if inspect.isclass(value) else type(value)).__module__
        if module.startswith("skanomaly.detectors.") or module in COMPOSITES:
            return module.rpartition(".")[2]
    stem = item.path.stem.removeprefix("test_")
    return stem if item.path.parent.name == "detectors" or f"skanomaly.{stem}" in COMPOSITES else None


def pytest_addoption(parser):
    parser.addoption("--budget", action="store_true", help="fail where tests take more CPU time than BUDGET")


def pytest_configure(config):
    config.pluginmanager.register(Budget(config))


class Budget:
    """CPU time of the tests, gathered over all processes of a run and printed after it."""

    def __init__(self, config):
        self.config, self.workers, self.tests, self.detectors, self.over = config, 0.0, {}, Counter(), []

    # Methods of a plugin, since functions of this file would not see the tests in doc/.
    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item):
        item.began = cpu_seconds(), cpu_seconds(children=False)
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item, call):
        if call.when == "teardown":
            marks = [name for name in BUDGET if item.get_closest_marker(name)]
            total, own = cpu_seconds() - item.began[0], cpu_seconds(children=False) - item.began[1]
            item.user_properties.append(("cpu", (total, own, tested_module(item), marks)))
        return (yield)

    def pytest_runtest_logreport(self, report):
        if report.when == "teardown":
            seconds, own, module, marks = dict(report.user_properties)["cpu"]
            self.tests[report.nodeid] = seconds
            # Not the children: workers of a search import torch once, for whichever detector comes first.
            self.detectors.update({module: own} if module else {})
            self.over += [(report.nodeid, seconds, mark) for mark in marks if seconds > BUDGET[mark]]

    def pytest_testnodedown(self, node):
        self.workers += getattr(node, "workeroutput", {}).get("cpu", 0.0)

    @pytest.hookimpl(wrapper=True)
    def pytest_sessionfinish(self, session):
        if hasattr(self.config, "workeroutput"):
            self.config.workeroutput["cpu"] = cpu_seconds()
        self.over += [(name, s, "detector") for name, s in self.detectors.items() if s > BUDGET["detector"]]
        if self.config.getoption("--budget") and self.over:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
        return (yield)

    def pytest_terminal_summary(self, terminalreporter):
        total = self.workers + cpu_seconds(children=not self.workers)
        terminalreporter.section(f"{total:.0f} CPU seconds, {sum(self.tests.values()):.0f} of them in tests")
        slowest = sorted(self.tests.items(), key=lambda item: -item[1])[:10]
        for title, rows in ("detectors", self.detectors.most_common()), ("slowest tests", slowest):
            terminalreporter.write_line(f"{title}:")
            for name, seconds in rows:
                terminalreporter.write_line(f"{seconds:8.1f}  {name}")
        for name, seconds, kind in self.over:
            limit = BUDGET[kind]
            terminalreporter.write_line(f"over budget: {name} took {seconds:.1f}, a {kind} may {limit}")
