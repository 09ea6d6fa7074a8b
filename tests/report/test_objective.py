from __future__ import annotations

import pytest

from softdimo.report.objective import objective, player_line, views
from softdimo.spec import NetworkSpec
from softdimo_plugins.losses.gan import GAN
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


@pytest.mark.parametrize(
    ("settings", "equation", "source"),
    [
        ({"discriminator": {"use": "teacher_features"}}, "E_r[softplus(-D(e_r, r, c))],  e = E^T p_theta", ""),
        (
            {"discriminator": {"use": "pixels"}},
            "E[softplus(-D(x, c))],  x = Dec(E_dec^T p_theta)",
            ", on decoded images",
        ),
        (
            {"discriminator": {"use": "projected", "features": {"use": "cnn"}}, "loss": "hinge"},
            "E[-D(x, c)],  x = Dec(E_dec^T p_theta)",
            ", on decoded images",
        ),
        ({"discriminator": {"use": "teacher_features"}, "since_removed": 1}, "E_r[softplus(-D(x, r, c))]", ""),
    ],
)
def test_the_equation_of_a_gan_is_that_of_its_discriminators_space(settings: dict, equation: str, source: str) -> None:
    (term,) = views([{"use": "gan", **settings}])
    assert term.equation == equation
    assert term.source == f"Soft-Di[M]O (arXiv 2509.22925), Algorithm 1{source}"


def test_a_discriminator_that_does_not_name_its_space_leaves_it_open() -> None:
    class Foreign(NetworkSpec):
        pass

    assert GAN(discriminator=Foreign()).objective() == (GAN.equation, GAN.source)


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
