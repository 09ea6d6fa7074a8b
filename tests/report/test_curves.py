from __future__ import annotations

import re

from softdimo.report.curves import charts
from softdimo.report.folder import Log


def titles(columns: dict[str, list[float]], rewards: tuple[str, ...] = ()) -> list[str]:
    made = charts(Log([9, 19, 29], columns), rewards)
    return [re.search(r"<figcaption><span><b>([^<]*)</b>", c).group(1) for c in made]


def test_known_columns_share_charts_and_unknown_ones_get_their_own() -> None:
    up = [1.0, 2.0, 3.0]
    found = titles({"dimo/loss": up, "gan/loss": up, "gan/real": up, "gan/fake": up, "mine/novelty": up, "speed": up})
    assert found == ["Loss of each term", "Discriminator", "mine", "speed"]


def test_lag_is_computed_where_it_is_not_logged() -> None:
    made = charts(Log([9, 19], {"dimo/auxiliary_ce": [3.0, 2.0], "dimo/auxiliary_entropy": [1.0, 1.5]}))
    lag = next(c for c in made if "Auxiliary lag" in c)
    assert "lag from 2.00 to 0.500" in lag


def test_constant_weights_are_not_drawn() -> None:
    assert titles({"dimo/weight": [1.0, 1.0, 1.0], "dimo/loss": [3.0, 2.0, 1.0]}) == ["Loss of each term"]
    assert "Weight" in titles({"gan/weight": [9.0, 5.0, 4.0]})


def test_rewards_are_told_from_held_out_ones() -> None:
    columns = {"reward/loss": [1.0] * 3, "reward/clip": [0.1, 0.2, 0.3], "reward/held_out/judge": [0.3, 0.2, 0.1]}
    made = next(c for c in charts(Log([1, 2, 3], columns)) if "<b>Reward</b>" in c)
    assert "clip (optimized)" in made
    assert "judge (held out)" in made
    assert "loss" not in re.search(r'class="legend">(.*?)</figcaption>', made).group(1)


def test_a_reward_term_without_held_out_rewards_is_known_by_name() -> None:
    assert titles({"mine/clip": [1.0, 2.0, 3.0]}, ("mine",)) == ["Reward"]


def test_critics_have_gradient_norms_of_their_own() -> None:
    made = charts(
        Log([1, 2], {"dimo/critic_grad_norm": [1.0, 2.0], "generator/grad_norm": [3.0, 4.0], "grad_norm": [1, 2]})
    )
    assert len(made) == 1
    assert "dimo&#x27;s critic" in made[0]
    assert "generator<var>4.00</var>" in made[0]


def test_no_log_no_charts() -> None:
    assert charts(Log()) == []
