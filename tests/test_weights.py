"""Public weight files: what is read, what is refused, and that each refusal is one clear error."""

import io
import pickle
import sys
import types

import pytest
import torch
from safetensors.torch import save_file

from softdimo.errors import WeightsError
from softdimo.files import save_weights
from softdimo.kinds import Context, ImageShape, TokenShape
from softdimo.weights import load_published, made_here, read_checkpoint
from softdimo_plugins.teachers.halton import Halton
from softdimo_plugins.teachers.maskgit import MaskGit
from softdimo_plugins.tokenizers.vqgan import VQGAN

SMALL = {"width": 16, "depth": 2, "heads": 2, "mlp": 24, "classes": 3}
SPEC = MaskGit(**SMALL)
CONTEXT = Context(ImageShape(3, 4, 4), ("a",), None, TokenShape(2, 2, 1, 5))


def fresh(spec=SPEC, seed=0, context=CONTEXT):
    torch.manual_seed(seed)
    return spec.build(context)


def public(net):
    """The state dict under its public names."""
    return {key.replace(".in_proj.", ".in_proj_"): t for key, t in net.state_dict().items()}


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def load(path, spec=SPEC, context=CONTEXT):
    net = fresh(spec, seed=1, context=context)
    spec.load_weights(net, path)
    return net


def refusal(path, spec=SPEC, context=CONTEXT):
    """The message of the one error; the network is left as it was."""
    net, before = fresh(spec, 1, context), fresh(spec, 1, context)
    with pytest.raises(WeightsError) as caught:
        spec.load_weights(net, path)
    assert same(net, before)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"iter": 1, "global_epoch": 2, "model_state_dict": state, "optimizer_state_dict": {"state": {}}},
        lambda state: state,
        lambda state: {"model_state_dict": {f"module.{key}": t for key, t in state.items()}},
        lambda state: {"model_state_dict": {f"module._orig_mod.{key}": t for key, t in state.items()}},
        lambda state: {key: t.half() for key, t in state.items()},
    ],
    ids=["checkpoint", "bare", "parallel", "compiled", "half"],
)
@pytest.mark.parametrize("zipped", [True, False])
def test_public_containers_are_read(wrap, zipped, tmp_path):
    net = fresh()
    for p in net.parameters():
        p.data = p.data.half().float()
    path = tmp_path / "weights.pth"
    torch.save(wrap(public(net)), path, _use_new_zipfile_serialization=zipped)
    assert same(load(path), net)


def test_safetensors_and_our_own_files_are_read(tmp_path):
    net = fresh()
    save_file(public(net), tmp_path / "public.safetensors")
    save_weights(tmp_path / "own.safetensors", net.state_dict())
    assert not made_here(tmp_path / "public.safetensors")
    assert made_here(tmp_path / "own.safetensors")
    for name in ("public", "own"):
        assert same(load(tmp_path / f"{name}.safetensors"), net)


def test_missing_and_unexpected_keys_are_named(tmp_path):
    state = public(fresh())
    del state["last_layer.2.bias"]
    torch.save(state | {"extra.weight": torch.ones(2)}, path := tmp_path / "w.pth")
    message = refusal(path)
    assert "missing: last_layer.2.bias" in message
    assert "unexpected: extra.weight" in message


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"width": 32}, "width: 16"),
        ({"depth": 3}, "depth: 2"),
        ({"mlp": 32}, "mlp: 24"),
        ({"classes": 4}, "codes + classes: 8"),
        ({"width": 8, "depth": 1, "mlp": 8}, "width: 16, depth: 2, mlp: 24"),
    ],
    ids=str,
)
def test_other_sizes_say_what_to_change(settings, names, tmp_path):
    torch.save(public(fresh()), path := tmp_path / "w.pth")
    message = refusal(path, MaskGit(**SMALL | settings))
    assert f"Change it to {names}" in message


def test_other_grids_say_so(tmp_path):
    torch.save(public(fresh()), path := tmp_path / "w.pth")
    assert "tokens: 4" in refusal(path, context=Context(ImageShape(3, 4, 4), ("a",), None, TokenShape(3, 3, 1, 5)))


def test_a_public_size_needs_its_number_of_heads(tmp_path, monkeypatch):
    """Weights do not show it; our own files are taken at their recipe's word."""
    monkeypatch.setattr(MaskGit, "public_heads", {(16, 2): 4})
    torch.save(public(fresh()), tmp_path / "w.pth")
    assert "heads: 4" in refusal(tmp_path / "w.pth")
    right = MaskGit(**SMALL | {"heads": 4})
    assert same(load(tmp_path / "w.pth", right), fresh())
    save_weights(tmp_path / "own.safetensors", fresh().state_dict())
    assert same(load(tmp_path / "own.safetensors"), fresh())


class Payload:
    """Runs when a pickle of it is read by a reader that runs code."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code was run')",)


def test_code_is_never_run(tmp_path):
    torch.save({"model_state_dict": public(fresh()), "more": Payload()}, path := tmp_path / "w.pth")
    message = refusal(path)
    assert "holds code" in message
    assert "exec" in message


def test_a_whole_module_is_code(tmp_path):
    torch.save(fresh(), path := tmp_path / "w.pth")
    assert "state dict" in refusal(path)


def written(content):
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "content",
    [b"", b"not weights at all", written({"a": torch.ones(3)})[:200], pickle.dumps({"a": 1})[:5], b"\x80\x02}q\x00."],
    ids=["empty", "text", "truncated", "truncated pickle", "empty dict"],
)
@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
def test_a_damaged_file_is_one_error(content, name, tmp_path):
    (path := tmp_path / name).write_bytes(content)
    assert refusal(path).count("\n") <= 1


@pytest.mark.parametrize("cut", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_download_is_one_error(cut, tmp_path):
    data = written({"model_state_dict": public(fresh())})
    (path := tmp_path / "w.pth").write_bytes(data[: int(cut * len(data))])
    assert "fetch it again" in refusal(path)


@pytest.mark.parametrize("content", [[1, 2], {"model_state_dict": 3}, {"epoch": 1}, {"model_state_dict": {}}], ids=str)
def test_a_file_without_weights_says_what_it_has(content, tmp_path):
    torch.save(content, path := tmp_path / "w.pth")
    assert "weights" in refusal(path)


def test_another_model_is_named(tmp_path):
    other = VQGAN(width=32, latent=8, dim=6, codebook=5, multipliers=(1, 1), blocks=1)
    torch.save(other.build(CONTEXT).state_dict(), path := tmp_path / "w.pth")
    message = refusal(path)
    assert "another model, not MaskGit-PyTorch v1.0" in message
    assert "encoder.conv_in.weight" in message
    torch.save(public(fresh()), path)
    assert "another model, not the VQGAN" in refusal(path, other)


def test_lightning_checkpoints_name_a_class_that_is_not_imported(tmp_path, monkeypatch):
    """The public VQGAN lies in one, beside the networks of its training, which are left out."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    modules = ["pytorch_lightning", "pytorch_lightning.callbacks", name]
    with monkeypatch.context() as patch:
        for module in modules:
            patch.setitem(sys.modules, module, types.ModuleType(module))
        checkpoint = type("ModelCheckpoint", (), {"__module__": name})
        sys.modules[name].ModelCheckpoint = checkpoint
        spec = VQGAN(width=32, latent=8, dim=6, codebook=5, multipliers=(1, 1), blocks=1)
        state = spec.build(CONTEXT).state_dict()
        content = {"state_dict": state | {"loss.logvar": torch.ones(1)}, "callbacks": {checkpoint: {"best": 1}}}
        torch.save(content, path := tmp_path / "last.ckpt")
    net = load(path, spec)
    assert all(torch.equal(t, state[key]) for key, t in net.state_dict().items())


def test_tied_weights_are_one_and_must_agree(tmp_path):
    spec = Halton(width=16, depth=1, heads=2, classes=3)
    net = fresh(spec)
    state = {key: t.clone() for key, t in net.state_dict().items()}
    assert torch.equal(state["head.weight"], state["tok_emb.weight"])
    without = {key: t for key, t in state.items() if key != "head.weight"}
    for content in (state, without):
        torch.save({"model_state_dict": content}, path := tmp_path / "w.pth")
        assert same(load(path, spec), net)
    state["head.weight"][0, 0] += 1
    torch.save(state, path)
    assert "`head.weight` and `tok_emb.weight` differ" in refusal(path, spec)


def test_two_keys_of_one_name_are_refused(tmp_path):
    state = public(fresh())
    torch.save(state | {"module.bias": state["bias"]}, path := tmp_path / "w.pth")
    assert "two tensors for `bias`" in refusal(path)


def test_no_file(tmp_path):
    for name in ("w.pth", "w.safetensors"):
        with pytest.raises(WeightsError, match="no weights at"):
            read_checkpoint(tmp_path / name)


def test_a_spec_that_another_reads(tmp_path):
    """`load_published` needs a module and a table alone."""
    torch.save(public(fresh()), path := tmp_path / "w.pth")
    net = fresh(seed=2)
    load_published(net, path, MaskGit.published)
    assert same(net, fresh())
