"""What a search maximizes, in an equation and in words; for `explain` and for the pages of searches."""

from __future__ import annotations

from softdimo.recipe.model import Method, SearchSection

SOURCE = "Soft-Di[M]O (arXiv 2509.22925), test-time embedding optimization"
FORWARD = "a forward pass of the student counts 1, its backward 2"


def maximized(section: SearchSection) -> str:
    """The equation, in the notation of `report.equation`."""
    search = "e_{best} = arg max_e R(Dec(z_theta(e)), c)"
    if not isinstance(section.score, tuple) or len(section.score) == 1:
        return search
    return f"{search}; R = sum_i w_i {'R_i' if section.pool is None else '(R_i - m_i) / s_i'}"


def rewarded(section: SearchSection) -> str:
    """Which rewards R is made of, and in which units."""
    rewards = section.rewards()
    if len(rewards) == 1:
        return rewards[0].name if rewards[0].weight == 1 else f"{rewards[0].weight:g} x {rewards[0].name}"
    names = ", ".join(f"{r.name}{'' if r.weight == 1 else f' with weight {r.weight:g}'}" for r in rewards)
    if section.pool is None:
        return f"the sum of {names}, each in its own unit"
    return (
        f"the sum of {names}, each in standard deviations from its mean over {section.pool} random starts of the same "
        "condition (our choice: the paper says a combination)"
    )


def budget(method: Method, section: SearchSection) -> float | None:
    """Forward-equivalents per condition, the calibration of several rewards included; None where a plugin states none.

    The most, where a search may stop early.
    """
    passes = getattr(method.search, "passes", None)
    pool = section.pool if len(section.rewards()) > 1 and section.pool is not None else 0
    return None if passes is None else float(passes()) + pool
