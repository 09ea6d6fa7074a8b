from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softdimo.cli.explain import explain
from softdimo.recipe import load
from softdimo_plugins.discriminators.pixels import Pixels
from softdimo_plugins.discriminators.teacher_features import TeacherFeatures
from softdimo_plugins.losses.dimo import DiMO
from softdimo_plugins.losses.gan import GAN
from tests import tiny
from tests.engine.tiny import batch, context, distillation, players


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tiny.write(tmp_path).parent)
    return tmp_path


def test_a_student_is_explained(home: Path) -> None:
    text = explain(load("student.yaml"))
    for said in (
        "Tiny student\nstudent.yaml",
        "L_gen = L_DiMO + w_GAN L_GAN",
        "L_DiMO = E_t E_{x_t ∼ q(x_t | x_θ)} ∑_{masked i} D(p_φ^i ‖ p_ψ^i)(x_t)",
        "Di[M]O (arXiv 2503.15457), equations 4-8",
        "softdimo_plugins/losses/dimo.py",
        "w_GAN set so that its gradient at the logits has 0.3 x the norm of that of dimo",
        "x_init   0.6 of the units masked (exact count), the others uniform random tokens",
        "critics  dimo, gan: each then trains on the same x_θ, detached",
        "student        adam; lr 1e-5; betas 0.9, 0.999; clip 1",
        "13 in all",
        "teacher    compact, softdimo_plugins/teachers/compact.py; weights from the recipe teacher.yaml",
    ):  # fmt: skip
        assert said in text, said
    plan = text[text.index("softdimo run will") :]
    assert plan.split("\n")[1:5] == [
        "   1. for the tokenizer: tokenizer.yaml (tokenizer, 4 iterations of 8), unless done before",
        "   2. for the teacher: teacher.yaml (teacher, 4 iterations of 8), unless done before",
        "   3. train the student: 4 iterations of 8, and keep its EMA in weights.safetensors",
        "   4. write report.html",
    ]
    assert max(map(len, text.splitlines())) <= 100


def test_overrides_and_the_tiny_version_show(home: Path) -> None:
    text = explain(load("student.yaml", ["train.terms.gan.weight=4", "train.player.every=2"], smoke=True))
    assert "student.yaml (smoke)" in text
    assert "L_gen = L_DiMO + 4 L_GAN" in text
    assert "every 2 iterations" in text
    assert "student                            2" in text
    assert "train the student: 2 iterations" in text


def test_networks_trained_on_data_are_explained(home: Path) -> None:
    teacher = explain(load("teacher.yaml"))
    assert "L = E_t E_{x_t ∼ q(x_t | x_0)} mean_{masked i} −log p_φ(x_0^i | x_t, c)" in teacher
    assert "teacher    compact, softdimo_plugins/teachers/compact.py; trained here, from fresh weights" in teacher
    assert "the network's own loss" in explain(load("tokenizer.yaml"))


def test_measurements_come_after_training_with_what_they_need(home: Path) -> None:
    judge = "{use: cnn, width: 4, features: 4, weights: {recipe: judge.yaml, set: {seed: 3}}}"
    (home / "measured.yaml").write_text(
        "base: student.yaml\neval:\n  samples: 8\n  metrics:\n"
        f"    - {{use: accuracy, features: {judge}}}\n  rows: [{{name: s, of: student}}]\n"
    )
    plan = explain(load("measured.yaml")).split("softdimo run will")[1].split("\n")
    assert plan[3:6] == [
        "   3. train the student: 4 iterations of 8, and keep its EMA in weights.safetensors",
        "   4. for the metric `accuracy`: judge.yaml seed=3 (features, 4 iterations of 8), unless done before",
        "   5. measure 1 rows (s) with accuracy: 8 samples, seeds 0, 1, 2",
    ]


@pytest.mark.parametrize("switch", [{}, {"share_t": True}, {"fresh_samples": True}], ids=str)
def test_the_passes_that_dimo_states_are_those_it_takes(switch: dict[str, bool]) -> None:
    ctx, passes, n = context(), 0.0, 6
    spec = DiMO(use="dimo", player=players(), **switch)
    algorithm = distillation(ctx, torch.Generator().manual_seed(0), gan=False, dimo=spec)

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
        nonlocal passes
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
        passes += len(args[0]) / n * (3 if trains else 1)

    for net in (ctx.teacher, algorithm.network, algorithm.terms[0].term.critic):
        assert net is not None
        net.register_forward_hook(count)
    algorithm.step(0, batch(n))
    assert 3 + sum(spec.passes().values()) == passes


def test_the_passes_that_the_gan_states_are_those_its_trunk_takes() -> None:
    ctx, forwards, n = context(), [0.0, 0.0], 6
    algorithm = distillation(ctx, torch.Generator().manual_seed(0))
    gan = algorithm.terms[1].term
    gan.spec = gan.spec.model_copy(update={"r1": 0.0})
    assert ctx.teacher is not None
    algorithm.terms = [algorithm.terms[1]]

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
        forwards[args[0].requires_grad] += len(args[0]) / n

    ctx.teacher.register_forward_hook(count)
    algorithm.step(0, batch(n))
    stated = GAN(use="gan", discriminator=TeacherFeatures(use="teacher_features")).passes()
    assert list(stated.values()) == [2 * forwards[True], forwards[False]]
    assert GAN(use="gan", discriminator=Pixels(use="pixels")).passes() == {}


def test_a_search_is_explained(home: Path) -> None:
    text = explain(load("whole.yaml"))
    for said in (
        "Search at test time\n  e_best = arg max_e R(Dec(z_θ(e)), c)",
        "Soft-Di[M]O (arXiv 2509.22925), test-time embedding optimization",
        "R          class_log_prob",
        "best of 2  2 forward-equivalents per condition; softdimo_plugins/search/best_of_n.py",
        "scored by class_log_prob",
    ):
        assert said in text, said
    assert "watched" not in text
    one = "{name: %s, weight: %s, reward: {use: connected}}"
    changes = [f"search.score=[{one % ('ink', 1)}, {one % ('again', 0.5)}]", "search.pool=5",
               "search.held_out=[{name: judge, reward: {use: connected}}]",
               "search.methods=[{name: climb, search: {use: tteo, starts: 2, candidates: 8}}]"]  # fmt: skip
    text = explain(load("whole.yaml", changes))
    for said in (
        "R = ∑_i w_i (R_i − m_i) / s_i",
        "the sum of ink, again with weight 0.5, each in standard deviations from its mean over 5 random",
        "our choice: the paper says a combination",
        "watched judge, never optimized",
        "climb 39 forward-equivalents per condition",
        "scored by ink and again",
    ):
        assert said in " ".join(text.split()), said
    assert max(map(len, text.splitlines())) <= 100
    text = explain(load("whole.yaml", [*changes, "search.pool=null"]))
    assert "R = ∑_i w_i R_i" in text
    assert "climb    34 forward-equivalents" in text
