"""The install lines of plugins/README.md are those that the runner tries, and the distributions are what it says."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import distributions  # noqa: E402

README = (ROOT / "plugins/README.md").read_text(encoding="utf-8")


def test_lines_that_are_tried():
    resolves, conflicts = (distributions.documented(kind, README) for kind in ("resolves", "conflicts"))
    assert len(resolves) == 4
    assert len(conflicts) == 2
    assert not set(resolves) & set(conflicts)
    for name, (wanted, _) in distributions.LINES.items():
        assert wanted in resolves
        assert f"./plugins/{name}" in wanted
    with pytest.raises(SystemExit, match="no block of lines"):
        distributions.documented("other", README)


@pytest.mark.parametrize("name", distributions.LINES)
def test_a_distribution_is_found_by_its_reward(name):
    settings = tomllib.loads((ROOT / "plugins" / name / "pyproject.toml").read_text(encoding="utf-8"))
    rewards = settings["project"]["entry-points"]["softdimo.reward"]
    assert f"| `{name}/` | `{next(iter(rewards))}` |" in README
    for address in rewards.values():
        module, _, cls = address.partition(":")
        source = (ROOT / "plugins" / name / Path(*module.split("."))).with_suffix(".py")
        assert f"class {cls}(" in source.read_text(encoding="utf-8")
    assert "softdimo" in settings["project"]["dependencies"]


def test_what_is_known_is_of_these_lines():
    known = distributions.json.loads((ROOT / "benchmarks/results/distributions.json").read_text(encoding="utf-8"))
    assert set(known["lines"]) == {
        line for kind in ("resolves", "conflicts") for line in distributions.documented(kind, README)
    }


@pytest.mark.parametrize("name", distributions.LINES)
def test_the_native_reward_was_seen_to_agree_with_the_package(name):
    """At every size of image, with tiny networks and with those of full size."""
    known = distributions.json.loads((ROOT / "benchmarks/results/distributions.json").read_text(encoding="utf-8"))[name]
    assert known["passed"] >= 8
    told = [
        re.fullmatch(r"(tiny|full) .*: scores differ by (\S+), gradients by (\S+) of .*", x) for x in known["agreement"]
    ]
    assert {match[1] for match in told if match} == {"tiny", "full"}
    for match in told:
        assert match
        assert float(match[2]) <= 1e-6
        assert float(match[3]) <= 1e-5
