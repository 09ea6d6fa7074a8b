"""MaskGen: encodings in, the tied head, the aesthetic score, public files, and the sampler's schedules."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from softdimo.engine.recompute import recompute
from softdimo.errors import PluginError, RecipeError, WeightsError
from softdimo.kinds import Cond, Context, ImageShape, TokenShape
from softdimo.math.init import Init
from softdimo.math.rollout import rollout
from softdimo.testing import encoded
from softdimo_plugins.lora import Lora, LoraTeacher
from softdimo_plugins.losses.dimo import DiMO, DiMOTerm
from softdimo_plugins.samplers.maskgen import MaskGen as Sampler
from softdimo_plugins.teachers.maskgen import MaskGen, score_code
from tests.helpers import CountingTeacher, rng

DATA = Path(__file__).parents[1] / "data"
SIZES = {"width": 32, "depth": 3, "heads": 2, "text_width": 24, "score_width": 16, "classes": 5}
SHAPE = TokenShape(1, 12, 1, 64)
"""The sizes of the recorded network."""
COND = encoded(3, states=(7, 24), pooled=(24,))


def teacher(shape=SHAPE, **settings):
    torch.manual_seed(0)
    net = MaskGen(**SIZES | settings).build(Context(ImageShape(3, 8, 8), ("",) * 9, None, shape)).eval()
    for p in net.parameters():  # nothing is zero, so that nothing is untested
        p.data += 0.1 * torch.randn(p.shape)
    return net


def ids(n=3, masked=True):
    return torch.randint(SHAPE.V + masked, (n, SHAPE.L, 1), generator=rng())


def logits(net, cond=COND):
    return net(net.embed(ids()), cond).logits


def changed(name, cond=COND, **more):
    return Cond(cond.labels, tensors={**cond.tensors, name: cond.tensors[name] + 1, **more})


@pytest.mark.parametrize("name", ["states", "pooled"])
def test_both_encodings_count_and_must_be_there(name):
    net = teacher()
    assert not torch.allclose(logits(net), logits(net, changed(name)))
    rest = {key: t for key, t in COND.tensors.items() if key != name}
    with pytest.raises(RecipeError, match=f"`maskgen` reads `{name}`, an encoding of the prompts.*`text_encoder:`"):
        logits(net, Cond(COND.labels, tensors=rest))


def test_encodings_of_another_size_are_refused():
    wide = encoded(3, states=(7, 20), pooled=(24,))
    with pytest.raises(RecipeError, match=r"takes `states` of shape \[B any 24\], and .* gives \[3, 7, 20\]"):
        logits(teacher(), wide)
    with pytest.raises(RecipeError, match=r"takes `pooled` of shape \[B 24\], and .* gives \[3, 1, 24\]"):
        logits(teacher(), Cond(COND.labels, tensors={**COND.tensors, "pooled": COND.tensors["pooled"][:, None]}))


def test_the_unconditional_branch_is_the_unconditional_prompt():
    net = teacher()
    null = net.null(COND)
    assert torch.equal(null.tensors["states"], COND.tensors["null.states"])
    assert torch.equal(logits(net, null), logits(net, net.null(changed("states"))))
    assert not torch.allclose(logits(net, null), logits(net))
    rest = {key: t for key, t in COND.tensors.items() if key != "null.pooled"}
    with pytest.raises(RecipeError, match=r"reads `null\.pooled`"):
        net.null(Cond(COND.labels, tensors=rest))


def test_labels_are_not_read():
    assert torch.equal(logits(teacher()), logits(teacher(), Cond(torch.tensor([5, 6, 700]), tensors=COND.tensors)))


def test_the_aesthetic_score_is_a_setting():
    assert not torch.allclose(logits(teacher()), logits(teacher(aesthetic=3.0)))
    off = [logits(teacher(score_width=0, aesthetic=a)) for a in (3.0, 6.5)]
    assert torch.equal(*off)


def test_the_code_of_a_score():
    """Sines before cosines, 100 times the score, periods up to 1000."""
    code = score_code(torch.tensor([0.0, 0.05]), 4)
    assert code[0].tolist() == [0, 0, 1, 1]
    angle = torch.tensor([5.0, 5.0 / 1000**0.5])
    torch.testing.assert_close(code[1], torch.cat([angle.sin(), angle.cos()]))


@pytest.mark.parametrize("tied", [True, False])
def test_what_the_table_does(tied):
    net = teacher(tied=tied)
    before, rms = logits(net), net.table_rms()
    net.tok_emb.weight.data[SHAPE.V + 1 :] += 1  # classes
    assert torch.equal(logits(net), before)
    assert torch.equal(net.table_rms(), rms)
    e = net.embed(ids())
    net.tok_emb.weight.data[4] += 1
    moved = (net(e, COND).logits != before).flatten(0, 2).any(0)  # the same input embedding
    assert moved.nonzero().flatten().tolist() == ([4] if tied else [])


@pytest.mark.parametrize(
    ("tied", "names"),
    [
        (True, ["pos_embed", "tok_emb.weight"]),
        (False, ["lm_head.bias", "lm_head.weight", "pos_embed", "tok_emb.weight"]),
    ],
)
def test_frozen_are_the_table_the_head_and_the_positions(tied, names):
    net = teacher(tied=tied)
    assert sorted(n for n, _ in net.named_parameters() if n.startswith(net.frozen())) == names
    assert net.layers() == tuple(net.blocks)


def test_a_student_trains_on_prompts():
    """One iteration of Di[M]O: gradients for what is not frozen, none for the rest."""
    net = teacher().requires_grad_(False)
    context = Context(ImageShape(3, 8, 8), (), None, SHAPE, net)
    student, psi = context.copy_teacher(), context.copy_teacher()
    roll, z = rollout(student, COND, Init(), rng())
    term = DiMOTerm(DiMO(guidance={"scale": 5.0}), net, psi, "arccos")
    loss, _ = term.generator(roll)
    z.backward(*torch.autograd.grad(loss, roll.logits))
    term.critic_loss(roll.detach(), None)[0].backward()
    dead = {f"blocks.{net.depth - 1}.attn.add_q_proj.{part}" for part in ("weight", "bias")}  # asks for text that ends
    for trained in (student, psi):
        moved = {name for name, p in trained.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
        free = {name for name, _ in trained.named_parameters() if not name.startswith(net.frozen())}
        assert free - moved == dead
        assert moved <= free


def test_recomputed_layers_have_the_same_gradients():
    plain, again = teacher(), teacher()
    recompute(again)
    for net in (plain, again):
        logits(net).square().sum().backward()
    for (name, a), b in zip(plain.named_parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)


def test_adapters_reach_every_linear_layer_of_a_block():
    net = teacher().requires_grad_(False)
    adapted = LoraTeacher(net, Lora(use="lora", rank=2)).eval()
    inside = [name for name in adapted.adapters if name.startswith("blocks/0/")]
    assert len(inside) == sum(p.ndim == 2 for p in net.layers()[0].parameters())
    assert torch.equal(logits(adapted), logits(net))


def test_precision():
    net, exact = teacher(), logits(teacher())
    with torch.autocast("cpu", torch.bfloat16):
        rough = logits(net)
        probs = torch.rand(3, SHAPE.L, 1, SHAPE.V, generator=rng())
        assert torch.equal(net.soften(probs), teacher().soften(probs))
    assert rough.dtype == torch.float32
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1 * exact.std().item())
    half = teacher().bfloat16()
    assert logits(half).dtype == torch.float32


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        (None, {}, "`maskgen` needs a tokenizer"),
        (TokenShape(1, 12, 2, 8), {}, "one class per token, but the tokenizer gives 2 groups"),
        (SHAPE, {"heads": 5}, "heads: 5 does not divide width: 32"),
    ],
)
def test_impossible_settings(shape, settings, message):
    with pytest.raises(RecipeError, match=message):
        teacher(shape, **settings)


def test_without_diffusers(monkeypatch):
    for name in ("diffusers", "diffusers.models.attention"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(PluginError, match=r"pip install 'softdimo\[text\]'"):
        teacher()


def test_the_small_version():
    small = MaskGen(weights="hf://a/b/c.bin").smoke()
    assert small == MaskGen(fresh=True, depth=2)


@pytest.fixture
def state():
    return load_file(DATA / "maskgen_tiny.safetensors")


def load(path, shape=SHAPE, **settings):
    spec = MaskGen(**SIZES | settings)
    net = spec.build(Context(ImageShape(3, 8, 8), (), None, shape))
    spec.load_weights(net, path)
    return net


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("suffix", [".bin", ".safetensors"])
def test_public_files_are_read_with_and_without_the_tied_head(suffix, head, state, tmp_path):
    if not head:
        del state["lm_head.weight"]
    path = tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    net = load(path)
    assert torch.equal(net.tok_emb.weight, state["embeddings.weight"])
    assert net.lm_head.weight is net.tok_emb.weight


def test_a_tied_head_that_differs_is_refused(state, tmp_path):
    torch.save(state | {"lm_head.weight": state["lm_head.weight"] + 1}, path := tmp_path / "w.bin")
    with pytest.raises(WeightsError, match=r"`lm_head\.weight` and `tok_emb\.weight` differ"):
        load(path)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        (SHAPE, {"width": 40}, "MaskGen VQ with width: 32; the recipe says width: 40"),
        (SHAPE, {"depth": 2}, "with depth: 3; the recipe says depth: 2"),
        (SHAPE, {"text_width": 16}, "with text_width: 24; the recipe says text_width: 16"),
        (SHAPE, {"score_width": 0}, "with score_width: 16; the recipe says score_width: 0"),
        (SHAPE, {"classes": 4}, r"with codes \+ classes: 69; the recipe says codes \+ classes: 68"),
        (SHAPE, {"tied": False}, "with tied: True; the recipe says tied: False"),
        (TokenShape(1, 11, 1, 64), {}, "with tokens: 12; the recipe says tokens: 11"),
    ],
)
def test_other_sizes_name_the_setting(shape, settings, message, tmp_path, state):
    torch.save(state, path := tmp_path / "w.bin")
    with pytest.raises(WeightsError, match=message):
        load(path, shape, **settings)


def test_the_config_beside_a_file_tells_the_heads(state, tmp_path):
    save_file(state, path := tmp_path / "model.safetensors")
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"model": {"maskgen": {"decoder_num_heads": 4}}}))
    with pytest.raises(WeightsError, match=r"has 4 heads, .*the recipe says heads: 2\. Change it to heads: 4"):
        load(path)
    assert load(path, heads=4)
    for other in ("{", "[]", '{"model": null}', '{"model": {"maskgen": {"decoder_num_heads": "many"}}}'):
        config.write_text(other)
        assert load(path)


MASKED = [128, 122, 117, 112, 107, 102, 96, 91, 85, 79, 72, 66, 58, 50, 41, 28]


def test_schedules_of_the_sampler():
    """The published counts and guidance of 16 steps, and what falls to 0 at the last one."""
    sampler, steps = Sampler(), range(16)
    counts = sampler.counts(CountingTeacher(TokenShape(1, 128, 1, 4)))
    assert [128 - sum(counts[:i]) for i in steps] == MASKED
    assert sum(counts) == 128
    g = torch.tensor([sampler.scale(i) - 1 for i in steps])
    torch.testing.assert_close(
        g[[0, 1, 2, 14, 15]], torch.tensor([1.106, 1.419, 1.927, 11.894, 12.0]), rtol=0, atol=1e-3
    )
    assert sampler.passes() == 32
    assert sampler.noise(0) == 2 * 15 / 16
    assert sampler.noise(15) == 0
    assert [sampler.tau(i) for i in (0, 15)] == [1.25, 0.5]
    assert Sampler(annealing=False).tau(3) == Sampler().noise(3)
    assert Sampler(steps=1).counts(CountingTeacher(TokenShape(1, 128, 1, 4))) == [128]


def test_more_steps_than_units_leave_some_idle():
    net = CountingTeacher(TokenShape(1, 4, 1, 5))
    sampler = Sampler(steps=9, guidance={"scale": 1.0, "ramp": "constant"})
    assert sampler.counts(net) == [1, 1, 1, 0, 0, 0, 0, 0, 1]
    assert net.calls == 0
    tokens = sampler.sample(net, Cond(torch.zeros(6, dtype=torch.long)), rng())
    assert net.calls == 4
    assert int(tokens.max()) < 5


def test_confidence_is_the_logit_and_not_the_probability():
    """Two masked units: a flat one with large logits is kept before a sharp one with small ones."""
    z = torch.tensor([[[9.0, 9.0, 9.0], [5.0, -5.0, -5.0]]])
    drawn = torch.zeros(1, 2, dtype=torch.long)
    assert Sampler(choice_temperature=0.0).choose(z, drawn, 1, 0, rng()).tolist() == [[0]]
    quiet, noisy = (Sampler(choice_temperature=50.0, score_noise=noise) for noise in (False, True))
    kept = [[int(s.choose(z, drawn, 1, 0, rng(i))) for i in range(40)] for s in (quiet, noisy)]
    assert set(kept[0]) == {0}
    assert set(kept[1]) == {0, 1}


def test_tokens_are_drawn_with_the_noise_of_the_step():
    """At noise 1 they are drawn from the softmax, at the last step the most probable ones are taken."""
    z = torch.tensor([0.0, 1.0, 2.0]).expand(1, 20_000, 3)
    sampler = Sampler(steps=2, choice_temperature=2.0)
    drawn = torch.bincount(sampler.draw(z, 0, rng()).flatten(), minlength=3) / 20_000
    assert (drawn - z[0, 0].softmax(-1)).abs().max() < 0.015
    assert (sampler.draw(z, 1, rng()) == 2).all()
