"""Every fault gives one clear error with its exit code, leaves earlier work as it was, and can be mended."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.faults import programs, storage  # noqa: F401  (they fill CASES)
from tests.faults.bench import CASES, Bench, Case, can_mount


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("faults")).prepare()
    yield bench
    bench.close()


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
    assert found.message.count("error: ") == (case.code != 0)
    assert found.intact
    assert found.recovered is (True if case.recovers else None)
