"""Meissonic: the input embedding and its mixtures, time and facts, encodings; its sampler's schedules."""

import sys

import pytest
import torch
from torch import nn
from torch.nn import functional

from softdimo.engine.recompute import recompute
from softdimo.errors import PluginError, RecipeError
from softdimo.kinds import Cond, Context, ImageShape, TokenShape
from softdimo.math.init import Init
from softdimo.math.rollout import rollout
from softdimo.testing import encoded
from softdimo_plugins.discriminators.teacher_features import TeacherFeatures
from softdimo_plugins.lora import Lora, LoraTeacher
from softdimo_plugins.losses.dimo import DiMO, DiMOTerm
from softdimo_plugins.samplers.meissonic import Meissonic as Sampler
from softdimo_plugins.teachers.meissonic import Meissonic
from tests.helpers import CountingTeacher, rng

SIZES = {"width": 32, "heads": 2, "axes": (4, 6, 6), "joint": 2, "single": 2, "text_width": 10, "spare": 3}
SHAPE, IMAGE = TokenShape(4, 6, 1, 9), ImageShape(3, 64, 96)
COND = encoded(3, states=(5, 10), pooled=(32,))


def context(shape=SHAPE, **others):
    return Context(IMAGE, (), None, shape, **others)


def teacher(shape=SHAPE, **settings):
    torch.manual_seed(0)
    return Meissonic(**SIZES | settings).build(context(shape)).requires_grad_(False).eval()


def ids(shape=SHAPE, n=3, masked=True):
    return torch.randint(shape.V + masked, (n, shape.L, 1), generator=rng())


def told(**tensors):
    return Cond(COND.labels, tensors={**COND.tensors, **tensors})


def logits(net, cond=COND):
    return net(net.embed(ids()), cond).logits


def probs(n=3):
    return torch.randn(n, SHAPE.L, 1, SHAPE.V, generator=rng()).softmax(-1)


def test_the_embedding_is_the_normed_and_projected_row_and_the_masks_is_the_last():
    net = teacher()
    rows = net.stem.embeddings.weight
    normed = rows * (rows.square().mean(1, keepdim=True) + 1e-6).rsqrt() * net.stem.layer_norm.weight
    table = normed @ net.stem.conv.weight[:, :, 0, 0].T
    torch.testing.assert_close(net.embed(ids(masked=False)), table[ids(masked=False)[..., 0]])
    torch.testing.assert_close(net.embed(torch.full((1, SHAPE.L, 1), SHAPE.V))[0, 0], table[-1])
    assert len(table) == SHAPE.V + 3
    torch.testing.assert_close(net.table_rms(), table[: SHAPE.V].square().mean().sqrt())


@pytest.mark.parametrize("top_k", [None, 2])
def test_soft_tokens_mix_before_or_after_the_norm(top_k):
    p, mask = probs(), ids() % 2 == 0
    before, after = (teacher(mixing=mixing, top_k=top_k) for mixing in ("before", "after"))
    if top_k:
        kept = torch.zeros_like(p).scatter(-1, p.topk(top_k, -1).indices, 1.0)
        p = p * kept / (p * kept).sum(-1, keepdim=True)
    embeddings = before.embed(torch.arange(SHAPE.V).view(1, -1, 1))[0]
    torch.testing.assert_close(after.soften(probs()), p[:, :, 0] @ embeddings)
    rows = p[:, :, 0] @ before.stem.embeddings.weight[: SHAPE.V]
    torch.testing.assert_close(before.soften(probs()), before._project(rows))
    masked = before.embed(torch.full((3, SHAPE.L, 1), SHAPE.V))
    for net in (before, after):
        e = net.soften(probs(), mask)
        torch.testing.assert_close(e[mask[..., 0]], masked[mask[..., 0]])
        assert torch.equal(e[~mask[..., 0]], net.soften(probs())[~mask[..., 0]])
    size = before.soften(probs()).square().mean(-1).sqrt()
    assert after.soften(probs()).square().mean(-1).sqrt().mean() < 0.9 * size.mean()


def test_autocast_rounds_neither_embeddings_nor_times():
    net, cond = teacher(), told(timestep=torch.tensor([63.0, 62.0, 999.7]), micro=torch.rand(3, 5) * 2048)
    e, soft, modulation = net.embed(ids()), net.soften(probs()), net.modulation(cond, net.embed(ids()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(net.embed(ids()), e)
        assert torch.equal(net.soften(probs()), soft)
        assert torch.equal(net.modulation(cond, e), modulation)
        rough = logits(net, cond)
        assert torch.equal(net.modulation(cond, e.bfloat16()), modulation)  # a strategy brings e to the lower precision
    assert rough.dtype == torch.float32
    exact = logits(net, cond)
    assert 0 < (rough - exact).abs().max() < 0.05 * exact.abs().max()


def test_time_is_that_of_the_settings_or_of_the_conditions():
    still, later = teacher(), teacher(timestep=7.0)
    zero, seven = torch.zeros(3), torch.full((3,), 7.0)
    assert torch.equal(logits(still), logits(still, told(timestep=zero)))
    assert torch.equal(logits(later), logits(still, told(timestep=seven)))
    assert not torch.allclose(logits(still), logits(later))
    mixed = logits(still, told(timestep=torch.tensor([7.0, 0.0, 7.0])))
    torch.testing.assert_close(mixed[[0, 2]], logits(later)[[0, 2]])
    torch.testing.assert_close(mixed[1], logits(still)[1])
    e = still.embed(ids())
    torch.testing.assert_close(still.modulation(COND, e), later.modulation(told(timestep=zero), e))


def test_facts_are_those_of_the_images_the_settings_or_the_conditions():
    plain, other = teacher(), teacher(micro=(512, 768, 1, 2, 5.5))
    assert plain.micro == (96, 64, 0, 0, 6)
    torch.testing.assert_close(logits(plain), logits(plain, told(micro=torch.tensor([[96, 64, 0, 0, 6.0]] * 3))))
    torch.testing.assert_close(logits(other), logits(plain, told(micro=torch.tensor([[512, 768, 1, 2, 5.5]] * 3))))
    assert not torch.allclose(logits(plain), logits(other))


@pytest.mark.parametrize("name", ["states", "pooled"])
def test_both_encodings_count_and_must_be_there(name):
    net = teacher()
    assert not torch.allclose(logits(net), logits(net, told(**{name: COND.tensors[name] + 1})))
    rest = {key: t for key, t in COND.tensors.items() if key != name}
    with pytest.raises(RecipeError, match=f"`meissonic` reads `{name}`, an encoding of the prompts.*`text_encoder:`"):
        logits(net, Cond(COND.labels, tensors=rest))


def test_guidance_needs_the_negative_prompt():
    net = teacher()
    null = net.null(told(timestep=torch.ones(3)))
    assert torch.equal(null.tensors["states"], COND.tensors["null.states"])
    assert torch.equal(null.tensors["pooled"], COND.tensors["null.pooled"])
    assert torch.equal(null.tensors["timestep"], torch.ones(3))
    rest = {key: t for key, t in COND.tensors.items() if key != "null.pooled"}
    with pytest.raises(RecipeError, match=r"null\.pooled"):
        net.null(Cond(COND.labels, tensors=rest))


def test_text_stands_still_and_tokens_turn_by_their_place():
    """Rows and columns of the halved grid; moving the picture by a whole cell is not seen by the text."""
    net = teacher()
    cosines, sines = net.rotation(5, torch.device("cpu"))
    assert cosines.shape == (5 + 2 * 3, 16)
    assert torch.equal(cosines[:6], torch.ones(6, 16))  # the text, and the first cell
    assert torch.equal(sines[:6], torch.zeros(6, 16))
    row, col = sines[5:].view(2, 3, 16)[..., 4:10], sines[5:].view(2, 3, 16)[..., 10:]
    assert torch.equal(row[:, 0], row[:, 2])
    assert torch.equal(col[0], col[1])
    assert torch.allclose(row[1, 0, :2], torch.tensor(1.0).sin())
    assert torch.allclose(col[0, 2, :2], torch.tensor(2.0).sin())


@pytest.mark.parametrize(("halve", "places"), [(True, 6), (False, 24)])
def test_blocks_and_features_see_the_halved_grid(halve, places):
    net = teacher(halve=halve)
    nothing = torch.zeros(3, SHAPE.L, 1, dtype=torch.bool)
    seen = net(net.embed(ids()), COND, at=nothing, features=(0, 1, 2, 3)).features
    assert [f.shape for f in seen] == [(3, places, 32)] * 4
    assert ("down_block.downsample.conv.weight" in net.state_dict()) == halve
    heads = TeacherFeatures(hidden=4).build(context(teacher=net))
    assert heads(net.embed(ids()), torch.rand(3), COND).shape == (3, 4)


@pytest.mark.parametrize(
    ("settings", "shape", "message"),
    [
        ({"heads": 3}, SHAPE, "heads: 3 does not divide width: 32"),
        ({"axes": (4, 6, 8)}, SHAPE, r"axes: \[4, 6, 8\] must make the width of a head, 16"),
        ({}, TokenShape(3, 4, 1, 9), "halve: 3 x 4 tokens cannot be halved"),
        ({}, TokenShape(4, 4, 2, 9), "the tokenizer gives 2 groups"),
        ({}, None, "needs a tokenizer"),
    ],
)
def test_what_cannot_be_built_is_refused(settings, shape, message):
    with pytest.raises(RecipeError, match=message):
        teacher(shape, **settings)


def test_without_diffusers_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers.models", None)
    with pytest.raises(PluginError, match=r"`meissonic` needs diffusers .*pip install 'softdimo\[text\]'"):
        teacher()


def gradients(net, cond=COND):
    z = net(net.embed(ids()), cond).logits
    z.square().mean().backward()
    return {name: p.grad for name, p in net.named_parameters() if p.grad is not None}


def test_recomputed_layers_give_the_same_gradients():
    found = []
    for change in (lambda net: None, recompute):
        net = teacher().requires_grad_(True)
        change(net)
        found.append(gradients(net))
    assert found[0].keys() == found[1].keys() == {name for name, _ in net.named_parameters()}
    for name, g in found[0].items():
        torch.testing.assert_close(g, found[1][name])


def test_adapters_reach_every_linear_layer_outside_stem_and_head():
    net = teacher()
    adapted = LoraTeacher(net, Lora(use="lora", rank=2)).eval()
    assert len(adapted.adapters) == sum(isinstance(m, nn.Linear) for m in net.modules())
    assert torch.equal(logits(adapted), logits(net))


def test_a_student_learns_by_dimo_and_keeps_stem_and_head():
    """One pass of the student, g from the guided teacher, and the gradient in all that may train."""
    net = teacher()
    here = context(teacher=net, init=Init(r_init=0.5, sigma=0.3, noise_rms="unit"), schedule="cosine")
    student = here.copy_teacher()
    roll, z = rollout(student, COND, here.init, rng())
    term = DiMO(use="dimo", guidance={"scale": 4.0}, ratios=(0.02, 0.98), label_smoothing=0.1).build(here)
    assert isinstance(term, DiMOTerm)
    with torch.no_grad():
        for p in term.critic.parameters():
            p.add_(0.05 * torch.randn(p.shape, generator=rng()))
    loss, logs = term.generator(roll)
    (g,) = torch.autograd.grad(loss, roll.logits)
    torch.autograd.backward(z, g)
    reached = {name for name, p in student.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    frozen = {name for name, _ in student.named_parameters() if name.startswith(("stem.", "mlm_layer."))}
    last = {n for n, _ in student.named_parameters() if n.endswith(("norm_k.weight", "norm_added_k.weight"))}
    assert {name for name, p in student.named_parameters() if not p.requires_grad} == frozen
    assert reached | frozen | last >= {name for name, _ in student.named_parameters() if not name.endswith("k.bias")}
    assert not reached & frozen
    assert logs["divergence"] > 0


def test_one_hot_probabilities_are_tokens():
    for mixing in ("before", "after"):
        net, x = teacher(mixing=mixing), ids(masked=False)
        hard = functional.one_hot(x, SHAPE.V).float()
        torch.testing.assert_close(net.soften(hard), net.embed(x))


def test_the_samplers_counts_are_the_published_ones():
    """Masked tokens of 64 x 64 after each of 64 steps, by the cosine."""
    committed = Sampler(steps=64).counts(CountingTeacher(TokenShape(64, 64, 1, 5)))
    left = [4096 - sum(committed[: i + 1]) for i in range(64)]
    assert left[:4] == [4094, 4091, 4084, 4076]
    assert left[-3:] == [200, 100, 0]


def test_the_sampler_tells_how_many_steps_remain_and_nobody_else_is_told():
    net, seen = teacher(), []
    net.register_forward_pre_hook(lambda _, args: seen.append(args[1].tensors.get("timestep")))
    tokens = Sampler(steps=4, guidance={"scale": 2.0}).sample(net, COND, rng())
    assert tokens.shape == (3, SHAPE.L, 1)
    assert tokens.max() < SHAPE.V
    assert [t.tolist() for t in seen] == [[float(n)] * 6 for n in (3, 2, 1, 0)]
    assert "timestep" not in COND.tensors


def test_noise_falls_from_the_first_temperature_to_the_last():
    assert [Sampler(steps=5).noise(i) for i in range(5)] == [2.0, 1.5, 1.0, 0.5, 0.0]
    single = Sampler(steps=3, choice_temperature=4.01, last_choice_temperature=0.01)
    assert [single.noise(i) for i in range(3)] == pytest.approx([4.01, 2.01, 0.01])
