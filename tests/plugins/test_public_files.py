"""Files for the networks whose weights are public: what cannot be meant is one clear error, and nothing runs."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softdimo.errors import WeightsError
from softdimo.files import save_weights
from softdimo.kinds import Context, ImageShape, TokenShape
from softdimo.spec import RecipeRef
from softdimo_plugins.public import PublicSpec, PublicTransformer
from softdimo_plugins.teachers.halton import Halton
from softdimo_plugins.teachers.maskbit import MaskBit
from softdimo_plugins.teachers.maskgen import MaskGen
from softdimo_plugins.teachers.maskgit import MaskGit
from softdimo_plugins.teachers.meissonic import Meissonic
from softdimo_plugins.text_encoders.clip import Clip
from softdimo_plugins.tokenizers.maskbit import MaskBitLFQ
from softdimo_plugins.tokenizers.meissonic import MeissonicVQ
from softdimo_plugins.tokenizers.tatitok import TATiTok, Tower
from softdimo_plugins.tokenizers.vqgan import VQGAN, LlamaGenVQ

IMAGE = ImageShape(3, 4, 4)
TOWER = Tower(width=16, depth=1, heads=2, patch=2)
CONV: dict[str, Any] = {"width": 32, "multipliers": (1, 1), "blocks": 1}


@dataclass(frozen=True)
class Public:
    """A small network of a published kind, and the tokens that it is for."""

    spec: PublicSpec
    tokens: TokenShape | None = None

    def build(self, seed: int = 0) -> nn.Module:
        torch.manual_seed(seed)
        net: nn.Module = self.spec.build(Context(IMAGE, ("a",), None, self.tokens))  # type: ignore[arg-type]
        return net


SMALL = {
    "maskgit": Public(MaskGit(width=16, depth=2, heads=2, mlp=24, classes=3), TokenShape(2, 2, 1, 8)),
    "halton": Public(Halton(width=16, depth=1, heads=2, classes=3), TokenShape(2, 2, 1, 8)),
    "maskbit": Public(MaskBit(width=16, depth=2, heads=2, mlp=24, classes=3), TokenShape(2, 2, 2, 8)),
    "maskgen": Public(MaskGen(width=16, depth=2, heads=2, text_width=10, classes=3), TokenShape(2, 2, 1, 8)),
    "tatitok": Public(TATiTok(encoder=TOWER, decoder=TOWER, tokens=4, codebook=8, dim=6, text_width=10)),
    "vqgan": Public(VQGAN(latent=8, dim=6, codebook=8, **CONV)),
    "llamagen_vq": Public(LlamaGenVQ(latent=8, dim=4, codebook=16, **CONV)),
    "maskbit_lfq": Public(MaskBitLFQ(bits=6, **CONV)),
    "clip": Public(Clip(width=16, depth=2, heads=2, fresh=True)),
    "meissonic": Public(
        Meissonic(width=16, joint=1, single=1, heads=2, axes=(2, 2, 4), text_width=8), TokenShape(2, 2, 1, 8)
    ),
    "meissonic_vq": Public(MeissonicVQ(widths=(32, 32), blocks=1, latent=8, dim=6, codebook=8)),
}
every = pytest.mark.parametrize("name", SMALL)


def refusal(name: str, path: Path) -> str:
    """The one error of reading `path` as `name`; the network keeps its weights."""
    net, before = SMALL[name].build(1), SMALL[name].build(1).state_dict()
    with pytest.raises(WeightsError) as caught:
        SMALL[name].spec.load_weights(net, path)
    assert all(torch.equal(t, before[key]) for key, t in net.state_dict().items())
    message = str(caught.value)
    assert str(path) in message
    assert len(message) < 1000 + len(str(path))
    return message


class Payload:
    """Runs when a reader that runs code meets its pickle: leaves a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return exec, (f"open({str(self.target)!r}, 'w').close()",)


@every
@pytest.mark.parametrize("container", ["zip", "legacy", "pickle 2", "pickle 4"])
def test_code_in_a_file_is_named_and_not_run(name: str, container: str, tmp_path: Path) -> None:
    path, ran = tmp_path / "w.bin", tmp_path / "ran"
    content = SMALL[name].build().state_dict() | {"more": Payload(ran)}
    bare = container.startswith("pickle")
    if bare:
        path.write_bytes(pickle.dumps(content["more"], int(container[-1])))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=container == "zip")
    message = refusal(name, path)
    assert "never run" in message or (container == "pickle 4" and "is not a file of weights" in message)
    assert not ran.exists()
    with path.open("rb") as file:  # the payload works where code does run
        pickle.load(file) if bare else torch.load(path, weights_only=False)
    assert ran.exists()


@every
@pytest.mark.parametrize("kept", [0, 0.3, 0.99])
def test_a_truncated_file(name: str, kept: float, tmp_path: Path) -> None:
    torch.save(SMALL[name].build().state_dict(), path := tmp_path / "w.bin")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data))])
    assert "fetch it again" in refusal(name, path)


@every
@pytest.mark.parametrize("other", SMALL)
def test_a_file_of_another_model(name: str, other: str, tmp_path: Path) -> None:
    if name == other:
        return
    torch.save(SMALL[other].build().state_dict(), path := tmp_path / "w.bin")
    message = refusal(name, path)
    if {name, other} == {"vqgan", "llamagen_vq"}:  # one architecture in two sizes
        assert "Change it to codebook" in message
    else:
        assert f"another model, not {SMALL[name].spec.published.model}" in message


@pytest.mark.parametrize(
    ("name", "bits", "message"),
    [
        ("maskbit", 8, "with tokenizer.bits: 8; the recipe says tokenizer.bits: 6. Change it to tokenizer.bits: 8"),
        ("maskbit_lfq", 8, "with bits: 8; the recipe says bits: 6. Change it to bits: 8"),
    ],
)
def test_another_number_of_bits(name: str, bits: int, message: str, tmp_path: Path) -> None:
    small = SMALL[name]
    other = (
        Public(small.spec, TokenShape(2, 2, 2, 2 ** (bits // 2)))
        if small.tokens
        else Public(small.spec.model_copy(update={"bits": bits}))
    )
    torch.save(other.build().state_dict(), path := tmp_path / "w.bin")
    assert message in refusal(name, path)


def sizes() -> list[tuple[type[PublicTransformer], tuple[int, int], int]]:
    return [
        (cls, size, heads) for cls in (MaskGit, Halton, MaskBit, MaskGen) for size, heads in cls.public_heads.items()
    ]


@pytest.mark.parametrize(("cls", "size", "heads"), sizes(), ids=str)
def test_another_number_of_heads(cls: type[PublicTransformer], size: tuple[int, int], heads: int) -> None:
    """The weights do not show it, so it is refused before the file is opened; the default size has the right one."""
    width, depth = size
    spec = cls(width=width, depth=depth, heads=heads // 2)
    with pytest.raises(WeightsError, match=rf"has {heads} heads, .*the recipe says heads: {heads // 2}\. Change it to"):
        spec.load_weights(nn.Identity(), Path("some.bin"))
    with pytest.raises(WeightsError, match=r"no weights at some\.bin"):
        cls(width=width, depth=depth, heads=heads).load_weights(nn.Identity(), Path("some.bin"))
    assert cls.public_heads[cls().width, cls().depth] == cls().heads


def test_our_own_files_may_have_any_number_of_heads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MaskBit, "public_heads", {(16, 2): 4})
    state: dict[str, Tensor] = SMALL["maskbit"].build().state_dict()
    torch.save(state, tmp_path / "w.bin")
    assert "heads: 4" in refusal("maskbit", tmp_path / "w.bin")
    save_weights(tmp_path / "own.safetensors", state)
    SMALL["maskbit"].spec.load_weights(SMALL["maskbit"].build(1), tmp_path / "own.safetensors")


# tiny versions


@every
def test_a_tiny_version_leaves_out_the_file_and_blocks(name: str) -> None:
    size = {"blocks": 3} if hasattr(SMALL[name].spec, "blocks") else {"depth": 5}
    spec = SMALL[name].spec.model_copy(update={**size, "fresh": False})
    shallow = {"blocks": 1} if "blocks" in size else {"depth": 2} if isinstance(spec, PublicTransformer) else {}
    public, ours = (spec.model_copy(update={"weights": w}) for w in ("hf://a/b/c.bin", RecipeRef(recipe="x.yaml")))
    assert public.smoke() == spec.model_copy(update={"fresh": True} | shallow)
    assert public.smoke().smoke() == public.smoke()
    assert ours.smoke() == ours.model_copy(update=shallow)
    assert not spec.smoke().ready(), "no weights were named, and none are made up"
