"""The exact toy: two coupled tokens, a teacher that is a table, and what one step can and cannot learn of them."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch

from softdimo import recipe, run
from softdimo.build import Components, needs_weights
from softdimo.cli.explain import explain
from softdimo.errors import PluginError, RecipeError
from softdimo.export import load
from softdimo.kinds import Cond, Context, ImageShape, TokenShape
from softdimo.math.guidance import Guidance, guided_logits
from softdimo.math.init import Init
from softdimo.math.mdm import remask
from softdimo.math.rollout import generate, rollout
from softdimo.testing import check_data, check_loss, check_teacher, check_tokenizer, context
from softdimo_plugins.data.coupled import Coupled
from softdimo_plugins.losses.dimo import DiMO
from softdimo_plugins.teachers.tabular import Tabular, TabularTeacher, one_step_joint
from softdimo_plugins.tokenizers.gray import Gray
from tests.engine import tiny
from tests.plugins import terms

TOY = Path(__file__).parents[2] / "recipes" / "toy.yaml"
JOINT = (0.4, 0.1, 0.1, 0.4)
PAIRS = TokenShape(1, 2, 1, 2)
ONE = Cond(torch.zeros(1, dtype=torch.long))
SHAPES = [PAIRS, TokenShape(1, 2, 2, 2), TokenShape(1, 3, 1, 3)]
INDEPENDENT = 0.2649
"""Least total variation of two independent coins from JOINT: both fall on 0 with probability sqrt(0.4)."""


def bare(shape: TokenShape = PAIRS) -> Context:
    return Context(ImageShape(1, shape.rows, shape.cols), ("pair",), make=lambda spec: spec, tokens=shape)


def some_joint(shape: TokenShape, seed: int = 0) -> tuple[float, ...]:
    drawn = torch.rand(shape.V**shape.units, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return tuple((drawn / drawn.sum()).tolist())


def distance(p: torch.Tensor) -> float:
    return float((p - torch.tensor(JOINT, dtype=p.dtype)).abs().sum() / 2)


# Data and tokens


def test_pairs_come_in_proportion_to_the_joint() -> None:
    data = Coupled(joint=(0.5, 0.25, 0.05, 0.2), samples=1000).build(bare())
    images = torch.cat([data.source(s).get(torch.arange(len(data.source(s)))).images for s in ("train", "held_out")])
    tokens = Gray().build(bare()).encode(images).squeeze(-1)
    assert torch.bincount(tokens[:, 0] * 2 + tokens[:, 1]).tolist() == [500, 250, 50, 200]
    assert torch.equal(Gray().build(bare()).decode(tokens[..., None]), images)
    assert len(data.source("held_out")) == 200
    assert data.conditions(3).labels.tolist() == [0, 0, 0]


def test_coupled_is_a_data_set() -> None:
    check_data(Coupled().build)


def test_probabilities_sum_to_one() -> None:
    with pytest.raises(ValueError, match=r"the probabilities sum to 0\.9, not to 1"):
        Coupled(joint=(0.4, 0.1, 0.1, 0.3))
    with pytest.raises(ValueError, match="at least 4"):
        Coupled(joint=(0.5, 0.5))


@pytest.mark.parametrize("levels", [2, 5])
def test_gray_is_a_tokenizer(levels: int) -> None:
    check_tokenizer(Gray(levels=levels).build(bare(TokenShape(8, 12, 1, levels))))
    with pytest.raises(RecipeError, match="1 channel, the data has 3"):
        Gray().token_shape(ImageShape(3, 8, 8))


# The teacher


@pytest.mark.parametrize("shape", SHAPES)
def test_a_table_is_a_teacher(shape: TokenShape) -> None:
    check_teacher(Tabular(joint=some_joint(shape)).build(bare(shape)))


@pytest.mark.parametrize("shape", SHAPES)
def test_its_conditionals_are_those_of_the_joint(shape: TokenShape) -> None:
    joint = some_joint(shape)
    net = Tabular(joint=joint).build(bare(shape))
    sequences = list(itertools.product(range(shape.V), repeat=shape.units))
    for state in itertools.product(range(shape.V + 1), repeat=shape.units):
        x = torch.tensor(state).view(1, shape.L, shape.G)
        p = net(net.embed(x), ONE).logits.softmax(-1).view(shape.units, shape.V)
        for i in range(shape.units):
            weight = dict.fromkeys(range(shape.V), 0.0)
            for sequence, probability in zip(sequences, joint, strict=True):
                if all(s in (shape.V, v) for j, (s, v) in enumerate(zip(state, sequence, strict=True)) if j != i):
                    weight[sequence[i]] += probability
            expected = [w / sum(weight.values()) for w in weight.values()]
            assert p[i].tolist() == pytest.approx(expected, abs=1e-6)


def test_what_cannot_happen_has_no_effect_on_what_can() -> None:
    net = Tabular(joint=(0.5, 0.5, 0.0, 0.0)).build(bare())
    x = torch.tensor([[1, 2], [2, 1], [0, 2]])[..., None]
    p = net(net.embed(x), ONE.repeat(3)).logits.softmax(-1)[:, :, 0]
    torch.testing.assert_close(p[0, 1], torch.tensor([0.5, 0.5]))  # a first token that never occurs
    torch.testing.assert_close(p[1:], torch.tensor([[[1.0, 0.0], [0.5, 0.5]]] * 2))


def test_logits_of_soft_tokens_are_averages_of_rows() -> None:
    net = TabularTeacher(PAIRS, some_joint(PAIRS))
    p = torch.tensor([[0.3, 0.7], [0.9, 0.1]])[None, :, None]
    table = net.table.view(3, 3, 2, 1, 2)
    expected = torch.einsum("v,w,vwlgu->lgu", p[0, 0, 0], p[0, 1, 0], table[:2, :2])
    torch.testing.assert_close(net(net.soften(p), ONE).logits[0], expected)


def test_tables_that_cannot_be_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"joint: has 4 probabilities; these tokens make 2\^3 sequences"):
        Tabular(joint=JOINT).build(bare(TokenShape(1, 3, 1, 2)))
    with pytest.raises(RecipeError, match=r"\(128 \+ 1\)\^49 = 2\.62e\+103 inputs"):
        Tabular().build(bare(TokenShape(7, 7, 1, 128)))
    net = TabularTeacher(PAIRS)
    e = net.embed(torch.zeros(1, 2, 1, dtype=torch.long))
    with pytest.raises(ValueError, match="has the block 0 only"):
        net(e, ONE, features=(1,))


def test_settings_stand_in_for_weights_where_they_determine_the_network() -> None:
    needs_weights(Gray(use="gray"), "the tokenizer")
    needs_weights(Tabular(use="tabular", joint=JOINT), "the teacher")
    with pytest.raises(PluginError, match="the teacher `tabular` has no `weights:`"):
        needs_weights(Tabular(use="tabular"), "the teacher")


# The joint of one step


@pytest.mark.parametrize(("r_init", "sigma"), [(0.5, 0.0), (1.0, 0.0), (0.5, 0.4), (1.0, 0.9)])
def test_the_summed_joint_is_what_sampling_draws(r_init: float, sigma: float) -> None:
    init, n, rng = Init(r_init=r_init, sigma=sigma), 100_000, torch.Generator().manual_seed(0)
    net = TabularTeacher(PAIRS)
    torch.nn.init.normal_(net.table, std=2, generator=rng)
    with torch.no_grad():
        x = generate(net, ONE.repeat(n), init, rng).flatten(1)
    drawn = torch.bincount(x[:, 0] * 2 + x[:, 1], minlength=4) / n
    summed = one_step_joint(net, init, ONE)
    assert float(summed.sum()) == pytest.approx(1, abs=1e-9)
    assert (drawn - summed).abs().max() < 4 * 0.5 / n**0.5
    finer = one_step_joint(net, init, ONE, nodes=9)
    torch.testing.assert_close(summed, finer, rtol=0, atol=1e-3)


def test_one_step_of_the_teacher_does_not_know_the_joint() -> None:
    net = Tabular(joint=JOINT).build(bare())
    for r_init in (0.0, 0.5, 1.0):
        assert distance(one_step_joint(net, Init(r_init=r_init, sigma=0), ONE)) == pytest.approx(0.3, abs=1e-6)


def trained(folder: Path, *overrides: str) -> torch.Tensor:
    """Train the recipe, faster; the joint of its student."""
    loaded = recipe.load(TOY, ["train.iterations=150", *overrides])
    generator = load(run.run(loaded, folder, say=lambda text: None), device="cpu")
    return one_step_joint(generator.net, generator.init, ONE)


def test_dimo_learns_the_joint(tmp_path: Path) -> None:
    assert distance(trained(tmp_path / "toy")) <= 0.02


def test_without_an_auxiliary_it_neither_learns_the_joint_nor_keeps_it(tmp_path: Path) -> None:
    none = "train.terms.dimo.auxiliary=none"
    assert distance(trained(tmp_path / "none", "train.iterations=20", none)) == pytest.approx(0.3, abs=1e-6)
    solved = trained(tmp_path / "toy", "train.iterations=60")
    after = trained(tmp_path / "after", none, f"train.start.from={tmp_path / 'toy'}")
    assert distance(solved) < 0.1 < distance(after)


def test_without_anything_random_at_the_start_tokens_stay_independent(tmp_path: Path) -> None:
    assert distance(trained(tmp_path / "masks", "init.r_init=1", "train.iterations=30")) >= INDEPENDENT


# Di[M]O without its auxiliary


def test_the_roll_asks_the_student_itself_and_gives_it_no_gradient() -> None:
    ctx = context()
    student = ctx.copy_teacher()
    roll, z = rollout(student, Cond(torch.arange(4) % 3), Init(), torch.Generator().manual_seed(0))
    assert z.requires_grad
    mask = torch.arange(roll.tokens.numel()).view_as(roll.tokens) % 3 == 0
    x_t = roll.tokens.masked_fill(mask, student.shape.V)
    for seen in (roll, roll.detach()):
        logits = seen.student_at(x_t, mask)
        assert not logits.requires_grad
        assert torch.equal(logits, student(student.embed(x_t), roll.cond).logits[mask])


def test_dimo_without_auxiliary_takes_the_students_own_prediction_for_psi() -> None:
    ctx = terms.context()
    term = DiMO(use="dimo", name="dimo", auxiliary="none", guidance=Guidance(scale=2.0)).build(ctx)
    assert (term.critic, term.player) == (None, None)
    seen = terms.roll(ctx)
    rng = torch.Generator()
    rng.set_state(seen.rng.get_state())
    mask, x_t = remask(seen.tokens, term.teacher, term.schedule, rng)
    with torch.no_grad():
        q = guided_logits(term.teacher, term.teacher.embed(x_t), seen.cond, 2.0, at=mask)
        expected = (seen.student_at(x_t, mask).softmax(-1) - q.softmax(-1)) / terms.B
    found = terms.gradient(term.generator(seen)[0], seen)
    torch.testing.assert_close(found[mask], expected)
    assert not found[~mask].any()


def test_for_a_copy_of_the_teacher_that_is_no_gradient_at_all() -> None:
    ctx = terms.context()
    term = DiMO(use="dimo", name="dimo", auxiliary="none", guidance=Guidance(scale=1.0)).build(ctx)
    seen, _ = rollout(ctx.copy_teacher(), terms.real(ctx).cond, Init(), torch.Generator().manual_seed(0))
    assert terms.gradient(term.generator(seen)[0], seen).abs().max() < 1e-12


def test_it_keeps_the_contract_of_losses() -> None:
    ctx = context()
    check_loss(DiMO(use="dimo", auxiliary="none").build(ctx), ctx)


def test_it_takes_the_passes_that_it_states() -> None:
    ctx, passes = tiny.context(), 0.0
    spec = DiMO(use="dimo", name="dimo", auxiliary="none")
    algorithm = tiny.distillation(ctx, torch.Generator().manual_seed(0), gan=False)
    algorithm.terms[0].term, algorithm.terms[0].critic = spec.build(ctx), None

    def count(module: torch.nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
        nonlocal passes
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in module.parameters())
        passes += len(args[0]) / 6 * (3 if trains else 1)

    for net in (ctx.teacher, algorithm.network):
        net.register_forward_hook(count)
    algorithm.step(0, tiny.batch(6))
    assert passes == 3 + sum(spec.passes().values()) == 6


@pytest.mark.parametrize(
    ("setting", "what"),
    [
        ("share_t=true", r"share_t is about training psi, and with auxiliary: none there is no psi"),
        ("label_smoothing=0.1", "label_smoothing is about training psi"),
    ],
)
def test_settings_of_psi_are_refused_without_one(setting: str, what: str) -> None:
    with pytest.raises(RecipeError, match=rf"train\.terms\.0.*{what}"):
        recipe.load(TOY, ["train.terms.dimo.auxiliary=none", f"train.terms.dimo.{setting}"])


def test_psi_needs_a_player() -> None:
    with pytest.raises(RecipeError, match="psi trains, so it needs a player"):
        recipe.load(TOY, ["train.terms.dimo.player=null"])


def test_explain_tells_of_the_toy() -> None:
    text = explain(recipe.load(TOY))
    assert "tabular, softdimo_plugins/teachers/tabular.py; determined by its settings" in text
    assert "dimo's critic" in text
    none = explain(recipe.load(TOY, ["train.terms.dimo.auxiliary=none"]))
    assert "critic" not in none.split("Players")[1]
    assert "dimo: student at x_t  1" in " ".join(none.split("\n")).replace("   ", "  ")


def test_the_recipe_builds_on_the_meta_device() -> None:
    assert Components(recipe.load(TOY).recipe, "meta").require_teacher().table.is_meta
