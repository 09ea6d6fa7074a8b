"""Samplers: never the mask id, exact counts, determinism, guidance, and no work that is not needed."""

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from softdimo.errors import PluginError, RecipeError
from softdimo.kinds import Cond, TokenShape
from softdimo.math.guidance import Guidance
from softdimo.math.init import Init
from softdimo.math.rollout import generate
from softdimo_plugins.samplers.maskgit import MaskGIT, most_confident
from softdimo_plugins.samplers.one_step import OneStep
from softdimo_plugins.samplers.random_order import RandomOrder
from softdimo_plugins.samplers.truncate import truncate
from tests.helpers import SHAPE, CountingTeacher, context, labels, rng

ITERATIVE = (MaskGIT, RandomOrder)
GUIDED = Guidance(scale=2.0)


def frequencies(tokens, V):
    """How often each class appears at each unit [L G V]."""
    return torch.nn.functional.one_hot(tokens, V).double().mean(0)


@pytest.mark.parametrize("kind", ITERATIVE)
@settings(max_examples=25, deadline=None)
@given(
    steps=st.integers(1, 12),
    groups=st.integers(1, 3),
    schedule=st.sampled_from(["arccos", "cosine", "linear", "uniform"]),
    scale=st.sampled_from([1.0, 2.0]),
    seed=st.integers(0, 99),
)
def test_every_unit_is_revealed_once_and_never_with_the_mask_id(kind, steps, groups, schedule, scale, seed):
    shape = TokenShape(3, 4, groups, 3)
    net = CountingTeacher(shape)
    sampler = kind(steps=steps, schedule=schedule, guidance=Guidance(scale=scale, ramp="linear"))
    seen = []
    embed = net.embed
    net.embed = lambda tokens: (seen.append((tokens == shape.V).flatten(1).sum(1)), embed(tokens))[1]
    tokens = sampler.sample(net, labels(5), rng(seed))
    assert tokens.shape == (5, 12, groups)
    assert tokens.dtype == torch.int64
    assert int(tokens.min()) >= 0
    assert int(tokens.max()) < shape.V
    left = [set(masked.tolist()) for masked in seen]
    assert all(len(counts) == 1 for counts in left), "every sample has the same number of masked units at each step"
    masked = [counts.pop() for counts in left]
    assert [a - b for a, b in zip(masked, [*masked[1:], 0], strict=True)] == sampler.counts(net)


@pytest.mark.parametrize("kind", ITERATIVE)
def test_more_steps_than_units_is_refused(kind):
    with pytest.raises(RecipeError, match="13 sampling steps for 12"):
        kind(steps=13).sample(CountingTeacher(), labels(2), rng())


@pytest.mark.parametrize("sampler", [MaskGIT(steps=4), RandomOrder(steps=4), OneStep(init=Init())])
def test_a_generator_decides_everything(sampler):
    net = CountingTeacher()
    draws = [sampler.sample(net, labels(30), rng(seed)) for seed in (3, 3, 4)]
    torch.manual_seed(1)
    again = sampler.sample(net, labels(30), rng(3))
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], again)
    assert not torch.equal(draws[0], draws[2])


@pytest.mark.parametrize("sampler", [MaskGIT(steps=3), RandomOrder(steps=3), OneStep(init=Init())])
def test_the_condition_counts(sampler):
    net = CountingTeacher(strength=3.0)
    one = frequencies(sampler.sample(net, Cond(torch.zeros(400, dtype=torch.int64)), rng()), 5)
    other = frequencies(sampler.sample(net, Cond(torch.ones(400, dtype=torch.int64)), rng()), 5)
    assert (one - other).abs().sum(-1).mean() / 2 > 0.3


@pytest.mark.parametrize("kind", ITERATIVE)
@pytest.mark.parametrize("ramp", ["constant", "linear"])
@pytest.mark.parametrize("steps", [1, 4])
def test_passes_are_what_the_network_sees(kind, ramp, steps):
    net = CountingTeacher()
    sampler = kind(steps=steps, guidance=Guidance(scale=3.0, ramp=ramp))
    cond = Cond(torch.zeros(10, dtype=torch.int64), prompts=("a",) * 10)  # prompts: nothing is shared
    sampler.sample(net, cond, rng())
    assert net.rows / 10 == sampler.passes()
    assert net.calls == steps, "a guided step is one batched pass"
    assert sampler.passes() == (2 * steps if ramp == "constant" or steps == 1 else 2 * steps - 1)


def test_unguided_sampling_never_asks_for_the_unconditional_branch():
    net = CountingTeacher()
    net.null = None  # calling it would fail
    for kind in ITERATIVE:
        assert kind(steps=3).passes() == 3
        kind(steps=3).sample(net, labels(4), rng())


def test_the_first_step_is_shared_by_the_samples_of_a_class_and_changes_nothing():
    shared, apart = CountingTeacher(), CountingTeacher()
    for kind in ITERATIVE:
        sampler = kind(steps=4, guidance=GUIDED)
        a = sampler.sample(shared, labels(20), rng(5))
        b = sampler.sample(apart, Cond(labels(20).labels, prompts=("",) * 19 + ("x",)), rng(5))
        assert torch.equal(a, b)
    assert apart.rows - shared.rows == 2 * 2 * (20 - 3)


def test_a_network_in_training_mode_is_not_shared():
    net = CountingTeacher().train()
    RandomOrder(steps=1).sample(net, labels(20), rng())
    assert net.rows == 20


def test_logits_are_computed_where_they_are_needed_only():
    cond = Cond(labels(6).labels, prompts=("x",) * 6)
    ancestral, confident = CountingTeacher(), CountingTeacher()
    RandomOrder(steps=5).sample(ancestral, cond, rng())
    sampler = MaskGIT(steps=5)
    sampler.sample(confident, cond, rng())
    counts = sampler.counts(confident)
    assert ancestral.units == 6 * SHAPE.units
    assert confident.units == 6 * sum(sum(counts[i:]) for i in range(5))


@pytest.mark.parametrize("kind", ITERATIVE)
def test_one_step_of_a_factorized_model_has_its_exact_marginals(kind):
    """From all [M] one step is independent per unit: frequencies are softmax(z_u + s (z_c - z_u)), by hand."""
    net = CountingTeacher(strength=1.5)
    cond = Cond(torch.full((20_000,), 2))
    tokens = kind(steps=1, guidance=GUIDED, temperature=1.3).sample(net, cond, rng())
    e = net.embed(torch.full((1, SHAPE.L, SHAPE.G), SHAPE.V))
    with torch.no_grad():
        z_c, z_u = net(e, Cond(torch.tensor([2]))).logits, net(e, Cond(torch.tensor([-1]))).logits
    p = ((z_u + 2.0 * (z_c - z_u)) / 1.3).softmax(-1)[0]
    assert (frequencies(tokens, 5) - p).abs().max() < 0.015
    unguided = (z_c / 1.3).softmax(-1)[0]
    assert (frequencies(tokens, 5) - unguided).abs().max() > 0.05


def test_sampling_a_known_joint_one_unit_at_a_time():
    """Two coins that always agree: ancestral sampling reproduces the joint, one step cannot."""

    class Coins(CountingTeacher):
        def forward(self, e, cond, at=None, features=()):
            self.calls += 1
            shown = (e[..., 0] - 1).round().long()  # 2 is [M]
            other = shown.flip(1)
            z = torch.zeros(len(e), 2, 1, 2).scatter_(3, other.clamp(max=1)[:, :, None, None], 40.0)
            z[other == 2] = 0.0
            return self.output(z, at)

        def output(self, z, at):
            from softdimo.kinds import Output

            return Output(z if at is None else z[at])

    net = Coins(TokenShape(1, 2, 1, 2), width=1)
    net.embed = lambda tokens: tokens.float() + 1
    cond = Cond(torch.zeros(2000, dtype=torch.int64), prompts=("",) * 1999 + ("x",))
    for kind in ITERATIVE:
        two = kind(steps=2).sample(net, cond, rng())[..., 0]
        assert (two[:, 0] == two[:, 1]).all()
        assert 0.45 < two.float().mean() < 0.55
        one = kind(steps=1).sample(net, cond, rng())[..., 0]
        assert 0.45 < (one[:, 0] == one[:, 1]).float().mean() < 0.55


def test_ties_commit_the_exact_count():
    chosen = most_confident(torch.zeros(7, 10), torch.zeros(7, 10), 4, 1.0)
    assert chosen.shape == (7, 4)
    assert all(len(set(row)) == 4 for row in chosen.tolist())


def test_confidence_decides_without_noise_and_chance_with_much():
    log_p = torch.arange(10.0).expand(4000, 10) / 10
    noise = -torch.empty(4000, 10).exponential_(generator=rng()).log()
    assert most_confident(log_p, noise, 3, 0.0).sort(1).values.unique(dim=0).tolist() == [[7, 8, 9]]
    often = torch.bincount(most_confident(log_p, noise, 3, 1e6).flatten(), minlength=10) / 4000
    assert (often - 0.3).abs().max() < 0.05


def test_noise_anneals_to_zero():
    sampler = MaskGIT(steps=5, choice_temperature=4.0)
    assert [sampler.noise(i) for i in range(5)] == [4.0, 3.0, 2.0, 1.0, 0.0]
    assert MaskGIT(steps=1).noise(0) == 0.0


def test_a_recorded_run_of_the_public_sampler_is_followed_step_by_step():
    """Same guidance ramp, counts, noise weights and, with its draws and Gumbel noise, the same choice of units."""
    run = load_file(Path(__file__).parents[1] / "data" / "maskgit_trace.safetensors")
    sampler = MaskGIT(steps=4, choice_temperature=4.5, guidance=Guidance(scale=4.0, ramp="linear"))
    assert [sampler.scale(i) for i in range(4)] == run["cfg_scale"].tolist()
    assert sampler.counts(CountingTeacher(TokenShape(4, 4, 1, 37))) == run["n_reveal"].tolist()
    masked = torch.ones(2, 16, dtype=torch.bool)
    for i in range(4):
        units = masked.nonzero()[:, 1].view(2, -1)
        log_p = run["guided_logits"][i].log_softmax(-1).gather(-1, run["draws"][i][..., None])[..., 0].gather(1, units)
        noise = run["gumbel"][i].float().gather(1, units)
        chosen = most_confident(log_p, noise, int(run["n_reveal"][i]), sampler.noise(i))
        masked.scatter_(1, units.gather(1, chosen), False)
        assert torch.equal(masked, run["still_masked"][i])


def test_greedy_confidence_seeks_modes():
    """Without noise the first reveals are the units with the most certain draws, so samples lose entropy."""
    net = CountingTeacher(strength=2.0)
    cond = Cond(torch.zeros(3000, dtype=torch.int64))

    def entropy(sampler):
        return torch.special.entr(frequencies(sampler.sample(net, cond, rng()), 5)).sum(-1).mean()

    greedy = entropy(MaskGIT(steps=12, schedule="uniform", choice_temperature=0.0))
    assert greedy < entropy(RandomOrder(steps=12, schedule="uniform")) - 0.02


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_one_step_draws_from_the_student(temperature):
    """Frequencies over many draws of one fixed input are softmax(z / T)."""
    net = CountingTeacher(strength=1.5)
    init = Init(r_init=1.0, sigma=0.0)
    cond = Cond(torch.ones(20_000, dtype=torch.int64))
    tokens = OneStep(init=init, temperature=temperature).sample(net, cond, rng())
    with torch.no_grad():
        z = net(net.embed(torch.full((1, SHAPE.L, SHAPE.G), SHAPE.V)), Cond(torch.tensor([1]))).logits[0]
    assert (frequencies(tokens, 5) - (z / temperature).softmax(-1)).abs().max() < 0.015


def test_one_step_is_the_rollouts_generator():
    net = CountingTeacher()
    ours = OneStep(init=Init(), temperature=1.7).sample(net, labels(50), rng(2))
    with torch.no_grad():
        theirs = generate(net, labels(50), Init(), rng(2), 1.7)
    assert torch.equal(ours, theirs)
    assert OneStep(init=Init()).passes() == 1
    assert net.calls == 2


def test_one_step_takes_the_recipes_initialization():
    init = Init(r_init=0.3, sigma=0.2)
    assert OneStep().build(context(init=init)).init == init
    assert OneStep(init=Init(r_init=0.9)).build(context(init=init)).init.r_init == 0.9
    with pytest.raises(PluginError, match="no `init`"):
        OneStep().sample(CountingTeacher(), labels(2), rng())


def test_soft_decode_and_tokens_agree_in_the_limit_of_low_temperature():
    sampler = OneStep(init=Init(), temperature=1e-4)
    probs = sampler.probs(CountingTeacher(), labels(9), rng(1))
    assert torch.allclose(probs.sum(-1), torch.ones(()))
    assert torch.equal(probs.argmax(-1), sampler.sample(CountingTeacher(), labels(9), rng(1)))


def test_sampling_leaves_no_graph():
    for sampler in (OneStep(init=Init()), MaskGIT(steps=2), RandomOrder(steps=2)):
        assert not sampler.sample(CountingTeacher(), labels(2), rng()).requires_grad
    assert not OneStep(init=Init()).probs(CountingTeacher(), labels(2), rng()).requires_grad


def test_top_k_keeps_exactly_k_even_with_ties():
    z = torch.tensor([[1.0, 3.0, 3.0, 3.0, 0.0]])
    assert int(truncate(z, top_k=2).isfinite().sum()) == 2
    assert torch.equal(truncate(z, top_k=5), z)
    tokens = OneStep(init=Init(), top_k=1).sample(CountingTeacher(), labels(40), rng())
    again = OneStep(init=Init(), top_k=1).logits(CountingTeacher(), labels(40), rng()).argmax(-1)
    assert torch.equal(tokens, again)


def test_top_p_keeps_the_smallest_sufficient_set():
    z = torch.tensor([0.5, 0.05, 0.3, 0.15]).log()
    kept = {p: truncate(z, top_p=p).isfinite().tolist() for p in (0.01, 0.5, 0.51, 0.8, 0.9, 1.0)}
    assert kept[0.01] == kept[0.5] == [True, False, False, False]
    assert kept[0.51] == kept[0.8] == [True, False, True, False]
    assert kept[0.9] == [True, False, True, True]
    assert kept[1.0] == [True] * 4
