"""Every fault gives one clear error with its exit code, leaves earlier work as it was, and can be mended."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import faults
from tests.faults import programs, storage  # noqa: F401  (they fill CASES)
from tests.faults.bench import CASES, Bench, Case, can_mount


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("faults")).prepare()
    yield bench
    bench.close()


def test_the_page_is_made_from_results_that_are_as_expected() -> None:
    here = Path(faults.__file__).parent
    results = json.loads((here / "results" / "faults.json").read_text(encoding="utf-8"))
    assert (here / "faults.md").read_text(encoding="utf-8") == faults.page(results["faults"], results["about"])
    assert [row["fault"] for row in results["faults"]] == [case.name for case in CASES]
    assert all(row["as_expected"] for row in results["faults"])


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.provoke.__name__, marks=[] if c.quick else [pytest.mark.slow]) for c in CASES]
)
def test_a_fault(bench: Bench, case: Case) -> None:
    if case.mounts and not can_mount(bench.root):
        pytest.skip("file systems cannot be mounted here")
    found = case.provoke(bench)
    assert found.code == case.code, found.message
    assert re.search(case.says, found.message), found.message
    assert "Traceback (most recent" not in found.message
    assert found.message.count("error: ") == (case.code != 0 and case.says != "interrupted")
    assert found.intact
    assert found.recovered is (True if case.recovers else None)
