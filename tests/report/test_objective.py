from __future__ import annotations

from softdimo.report.objective import objective, player_line, views
from tests.report.fake import PLAYER, TERMS


def test_terms_say_what_their_classes_say() -> None:
    dimo, gan, reward = views(TERMS)
    assert objective([dimo, gan, reward]) == "L_{gen} = L_{DiMO} + w_{GAN} L_{GAN} + 2 L_{Reward}"
    assert "2503.15457" in dimo.source
    assert dimo.file == "softdimo_plugins/losses/dimo.py"
    assert "p_psi" in dimo.equation
    assert gan.rule == "set so that its gradient at the logits has 0.3 x the norm of that of dimo"
    assert dimo.player == PLAYER
    assert not reward.player


def test_a_term_with_a_name_of_its_own_keeps_it() -> None:
    (term,) = views([{"use": "reward", "name": "clip", "weight": -0.5}])
    assert objective([term]) == "L_{gen} = -0.5 L_{clip}"


def test_a_plugin_that_is_not_installed_is_named_and_no_more() -> None:
    (term,) = views([{"use": "somebody:novelty", "weight": 1.0}])
    assert (term.name, term.symbol, term.equation, term.file) == ("novelty", "L_{novelty}", "", "")


def test_players_in_words() -> None:
    assert (
        player_line(PLAYER)
        == "adam; lr 0.0006 (20 iterations of warm-up, cosine decay to 0 of it); betas 0, 0.99; clip 1"
    )
    sgd = {"optimizer": {"name": "sgd", "lr": 1e-5, "momentum": 0.9}, "every": 2, "accumulate": 4, "clip": None}
    assert player_line(sgd) == "sgd; lr 1e-5; momentum 0.9; every 2 iterations; 4 turns per step; no clipping"
