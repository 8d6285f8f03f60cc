"""Our networks, losses and scores beside those of the authors' code, with the same weights and inputs.

    python benchmarks/parity.py [METHOD ...]

Runs tests/parity and writes what they compare, and how far it is apart, to results/parity: a file for each
method, all of them if none is named. The authors' numbers are files METHOD.npz in the folder
SKANOMALY_PARITY, by default "parity" beside the folder of the benchmark data. A difference is the largest
one, divided by the largest absolute value of the authors' numbers.
"""

import sys
from pathlib import Path

import pytest

from skanomaly._comparison import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "parity"


class Collector:
    """Plugin of pytest that gathers the references of all tests, and what the tests say of themselves."""

    def pytest_configure(self, config):
        self.references = config.parity_references = []

    def methods(self):
        """Method to its source, what the tests of it say, and the differences of all comparisons."""
        methods = {}
        for about, reference in self.references:
            repository, commit = map(str, reference["source"])
            source = f"[{repository}](https://github.com/{repository}), commit {commit[:7]}"
            source = source if "/" in repository else "no public code of a method"
            methods.setdefault(reference.name, (source, about, {}))[2].update(reference.differences)
        return methods


def report(name, source, about, differences):
    """Section of one method: what is compared, with what, and the largest difference."""
    rows = [(f"`{what}`", f"{value:.0e}" if value else "0") for what, value in sorted(differences.items())]
    largest = max(differences.values())
    text = f"## {name}\n\n{about.strip()}\n\nNumbers of {source}. {len(rows)} comparisons, at most "
    return text + f"{largest:.0e} apart.\n\n" + table(("compared", "largest difference"), rows)


def main(names):
    collector = Collector()
    tests = str(ROOT / "tests" / "parity")
    outcome = pytest.main(["-q", "-p", "no:cacheprovider", tests], plugins=[collector])
    RESULTS.mkdir(parents=True, exist_ok=True)
    methods = collector.methods()
    for name in names or methods:
        (RESULTS / f"{name}.md").write_text(report(name, *methods[name]))
    return outcome


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
