"""What a text encoder makes of prompts: each computed once, in any order, in memory of a limited size."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from softdimo.errors import PluginError
from softdimo.inputs import encodings
from softdimo.inputs.encodings import Encodings, identity
from softdimo.kinds import Cond
from tests.prompted import LENGTH, WIDTH, Words, WordsNet

CPU = torch.device("cpu")


def made(cache: Path | None = None, spec: Words | None = None, **more: object) -> tuple[Encodings, WordsNet]:
    torch.manual_seed(0)
    net = WordsNet(spec)
    return Encodings(lambda: net, CPU, lambda: "0" * 64, cache=cache, limit=1e9, **more), net  # type: ignore[arg-type]


def test_rows_follow_the_prompts_and_each_is_computed_once() -> None:
    codes, net = made()
    found = codes(["a", "b", "a"])
    wanted = net.encode(["a", "b", "a"])
    assert all(torch.equal(found[k], wanted[k]) for k in ("states", "pooled"))
    assert found["states"].shape == (3, LENGTH, WIDTH)
    codes(["b", "c"])
    assert net.encoded == ["a", "b", "a", "b", "a", "c"]


def test_many_prompts_are_encoded_in_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encodings, "AT_ONCE", 3)
    codes, net = made()
    sizes: list[int] = []
    encode = net.encode
    monkeypatch.setattr(net, "encode", lambda prompts: sizes.append(len(prompts)) or encode(prompts))
    prompts = [str(i) for i in range(8)]
    assert torch.equal(codes(prompts)["pooled"], encode(prompts)["pooled"])
    assert sizes == [3, 3, 2]


def test_memory_is_limited_and_keeps_what_was_used_last(monkeypatch: pytest.MonkeyPatch) -> None:
    size = (LENGTH * WIDTH + WIDTH) * 4
    monkeypatch.setattr(encodings, "MEMORY", 3 * size)
    codes, net = made()
    codes(["a", "b", "c"])
    codes(["a"])
    codes(["d"])  # lets go of b
    net.encoded.clear()
    codes(["a", "c", "d"])
    assert net.encoded == []
    assert torch.equal(codes(["b", "a"])["pooled"], WordsNet.encode(net, ["b", "a"])["pooled"])
    assert net.encoded[0] == "b"
    assert codes._held == 3 * size == sum(t.nbytes for row in codes._memory.values() for t in row.values())


def test_a_second_process_makes_no_encoder_at_all(tmp_path: Path) -> None:
    first, net = made(tmp_path)
    a = first(["a", "b"])
    assert net.encoded == ["a", "b"]

    def never() -> WordsNet:
        raise AssertionError("the encoder was made")

    second = Encodings(never, CPU, lambda: "0" * 64, negative="b", cache=tmp_path, limit=1e9)
    assert torch.equal(second(["b", "a"])["states"], a["states"].flip(0))
    assert torch.equal(second.null["pooled"], a["pooled"][1:])
    with pytest.raises(AssertionError, match="was made"):
        second(["c"])
    assert [p.name for p in (tmp_path / "encodings").iterdir()] == ["0" * 16]


@pytest.mark.parametrize("limit", [0.0, 1e9])
def test_nothing_is_kept_where_that_is_turned_off(tmp_path: Path, limit: float) -> None:
    net = WordsNet()
    Encodings(lambda: net, CPU, cache=tmp_path if limit == 0 else None, limit=limit)(["a"])
    assert not list(tmp_path.iterdir())


def test_half_precision_is_kept_as_it_is_and_given_as_float32(tmp_path: Path) -> None:
    codes, net = made(tmp_path, Words(half=True))
    fresh = codes(["a"])["states"]
    assert fresh.dtype == torch.float32
    assert torch.equal(fresh, net.table.weight[torch.tensor([[97, 256, 256, 256, 256]])].half().float())
    again, _ = made(tmp_path, Words(half=True))
    assert torch.equal(again(["a"])["states"], fresh)
    data = next((tmp_path / "encodings" / ("0" * 16)).glob("*.data"))
    assert data.stat().st_size == (LENGTH * WIDTH + WIDTH) * 2


def test_conditions_get_encodings_and_those_of_the_unconditional_prompt() -> None:
    codes, net = made()
    cond = Cond(torch.tensor([-1, -1]), ("a", "b"), {"aesthetic": torch.ones(2)})
    ready = codes.ready(cond)
    assert ready.tensors.keys() == {"aesthetic", "states", "pooled", "null.states", "null.pooled"}
    assert torch.equal(ready.tensors["null.states"], net.encode(["ugly", "ugly"])["states"])
    assert ready.prompts == cond.prompts
    assert codes.ready(ready) is ready
    plain = Cond(torch.tensor([0, 1]))
    assert codes.ready(plain) is plain
    turned = ready[torch.tensor([1, 0])]
    assert torch.equal(turned.tensors["pooled"], ready.tensors["pooled"].flip(0))


def test_a_network_can_be_trained_with_what_was_encoded_in_inference_mode(tmp_path: Path) -> None:
    codes, _ = made(tmp_path)
    with torch.inference_mode():
        codes(["a"])
        codes.null  # noqa: B018
    ready = codes.ready(Cond(torch.tensor([-1]), ("a",)))
    weight = torch.ones(WIDTH, requires_grad=True)
    (ready.tensors["pooled"] * weight + ready.tensors["null.pooled"] * weight).sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize("wrong", [{}, {"a": torch.zeros(3, 2)}, {"a": torch.zeros(())}])
def test_an_encoder_that_gives_other_than_a_row_a_prompt_is_named(wrong: dict[str, torch.Tensor]) -> None:
    codes, net = made()
    net.encode = lambda prompts: wrong  # type: ignore[method-assign]
    with pytest.raises(PluginError, match=r"the text encoder WordsNet gives .* for 2 prompts; give tensors with one"):
        codes(["a", "b"])


def test_another_device_has_the_encoder_there() -> None:
    codes, net = made()
    codes(["a"])
    moved = codes.to(torch.device("meta"))
    assert moved(["a", "b"])["states"].device.type == "meta"
    assert next(net.parameters()).device.type == "meta"


def test_an_encoder_is_told_from_others_by_settings_weights_and_seed(tmp_path: Path) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    a.write_bytes(b"one")
    b.write_bytes(b"two")
    names = [
        identity(Words(), None, 0),
        identity(Words(), None, 1),
        identity(Words(half=True), None, 0),
        identity(Words(), a, 0),
        identity(Words(), b, 0),
    ]
    assert len(set(names)) == 5
    assert identity(Words(negative="other", use="x:words", weights=str(b)), a, 7) == identity(Words(), a, 0)
    b.write_bytes(b"one")
    assert identity(Words(), b, 0) == names[3]
