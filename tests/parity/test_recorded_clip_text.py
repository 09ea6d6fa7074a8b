"""CLIP's text towers as they were published: recorded outputs, and keys and shapes of the public files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers.activations import ACT2FN

from benchmarks.parity_checks.registry import find, run
from softdimo_plugins.text_encoders import clip
from softdimo_plugins.text_encoders.clip import Clip, ClipEncoder

DATA = Path(__file__).parents[1] / "data"
RECORDED = ("maskgen_text_tiny", "maskgen_text_quick_tiny")
SIZES = {"meissonic": Clip(fresh=True), "maskgen": Clip(width=768, depth=12, heads=12, fresh=True)}
MEISSONIC, MASKGEN, OPEN_CLIP = (
    json.loads((DATA / f"shapes_{name}.json").read_text())
    for name in ("meissonic_text_encoder", "maskgen_text_encoder_hf", "maskgen_text_encoder_openclip")
)


def wrong(name: str) -> list[str]:
    """The outputs of a recording that are not met."""
    path = DATA / f"{name}.json"
    check = find(path)
    assert check is not None
    return [gap.output for gap in run(path, check).gaps if not gap.ok]


@pytest.mark.parametrize("name", RECORDED)
def test_recorded_outputs_are_met(name: str) -> None:
    assert not wrong(name)


def other_activation(monkeypatch: pytest.MonkeyPatch) -> None:
    gelu, quick = ACT2FN["gelu"], ACT2FN["quick_gelu"]
    monkeypatch.setattr(type(gelu), "forward", lambda _, x: torch.nn.functional.gelu(x, approximate="tanh"))
    monkeypatch.setattr(type(quick), "forward", lambda _, x: x * torch.sigmoid(1.6 * x))


def other_order(monkeypatch: pytest.MonkeyPatch) -> None:
    chunk = torch.Tensor.chunk
    monkeypatch.setattr(torch.Tensor, "chunk", lambda t, n, dim=0: chunk(t, n, dim)[::-1])


def no_transpose(monkeypatch: pytest.MonkeyPatch) -> None:
    convert = clip.as_transformers
    monkeypatch.setattr(
        clip,
        "as_transformers",
        lambda s: {k: v.T if k == "text_projection.weight" else v for k, v in convert(s).items()},
    )


def other_end(monkeypatch: pytest.MonkeyPatch) -> None:
    build = ClipEncoder.__init__

    def late(self: ClipEncoder, spec: Clip, cut: object) -> None:
        cut.end -= 1  # type: ignore[attr-defined]
        build(self, spec, cut)  # type: ignore[arg-type]

    monkeypatch.setattr(ClipEncoder, "__init__", late)


@pytest.mark.parametrize("name", RECORDED)
@pytest.mark.parametrize("deviate", [other_activation, other_order, no_transpose, other_end])
def test_a_deviation_is_noticed(name: str, deviate, monkeypatch: pytest.MonkeyPatch) -> None:
    deviate(monkeypatch)
    assert wrong(name)


def shapes(name: str) -> tuple[Clip, dict[str, tuple[int, ...]]]:
    spec = SIZES[name]
    with torch.device("meta"):
        net = spec.build(None)  # type: ignore[arg-type]
    return spec, {key: tuple(t.shape) for key, t in net.state_dict().items()}


@pytest.mark.parametrize(("name", "public"), [("meissonic", MEISSONIC), ("maskgen", MASKGEN)])
def test_full_sizes_have_the_keys_and_shapes_of_transformers_files(name: str, public: dict) -> None:
    spec, ours = shapes(name)
    assert ours == {spec.published.rename(key): tuple(shape) for key, shape in public["shapes"].items()}
    assert sum(torch.Size(s).numel() for s in ours.values()) == public["num_elements"]
    assert len(ours) == public["num_keys"]


def test_open_clips_file_becomes_the_same() -> None:
    spec, ours = shapes("maskgen")
    public = {key: torch.empty(shape, device="meta") for key, shape in OPEN_CLIP["shapes"].items()}
    state = spec.published.state(public, Path("open_clip.bin"))
    assert {key: tuple(t.shape) for key, t in state.items()} == ours
    assert sum(t.numel() for t in state.values()) == OPEN_CLIP["num_elements"] - 1  # without logit_scale
    visual = {"visual.conv1.weight": torch.empty(3, device="meta"), "context_length": torch.tensor(77)}
    wrapped = {"state_dict": {f"module.{key}": t for key, t in (public | visual).items()}}
    again = spec.published.state(wrapped, Path("epoch_1.pt"))
    assert {key: tuple(t.shape) for key, t in again.items()} == ours
