"""Files are whole or absent, and weights fit exactly or are refused."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from softdimo.errors import WeightsError
from softdimo.files import atomic, load_strict, read_weights, save_weights, sha256, write_json, write_text


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_reader_sees_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.txt"
    write_text(path, "old")
    with atomic(path) as temporary:
        temporary.write_text("half of", encoding="utf-8")
        assert path.read_text(encoding="utf-8") == "old"
        temporary.write_text("new", encoding="utf-8")
    assert path.read_text(encoding="utf-8") == "new"
    assert names(path.parent) == ["a.txt"]


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, {"n": 1})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(path, {"n": float("nan")})

    def interrupted() -> None:
        with atomic(path) as temporary:
            temporary.write_text("half of", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert json.loads(path.read_text(encoding="utf-8")) == {"n": 1}
    assert names(tmp_path) == ["a.json"]


def test_sha256_is_that_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_weights_come_back_as_they_were(tmp_path: Path) -> None:
    base = torch.arange(6.0).view(2, 3)
    state = {"tied": base, "also": base, "turned": base.T, "half": base.half(), "count": torch.tensor(3)}
    save_weights(tmp_path / "w.safetensors", state, {"note": "x"})
    back = read_weights(tmp_path / "w.safetensors")
    assert back.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(back[name], value)
        assert back[name].dtype == value.dtype


# Files that are no weights


@pytest.fixture
def net() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def saved(net: nn.Module, folder: Path) -> Path:
    path = folder / "w.safetensors"
    save_weights(path, net.state_dict())
    return path


@pytest.mark.parametrize("keep", [0, 4, 40, -1])
def test_a_truncated_file_is_refused(net: nn.Module, tmp_path: Path, keep: int) -> None:
    path = saved(net, tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(WeightsError, match=r"w\.safetensors is not a readable safetensors file"):
        read_weights(path)


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # type: ignore[return-value]


@pytest.mark.parametrize("kind", ["pickle", "torch", "text", "folder", "absent"])
def test_other_files_are_refused_and_never_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "w.safetensors"
    if kind == "pickle":
        path.write_bytes(pickle.dumps(Bomb()))
    elif kind == "torch":
        torch.save({"a": torch.zeros(1), "bomb": Bomb()}, path)
    elif kind == "text":
        path.write_text("version https://git-lfs.github.com/spec/v1\n", encoding="utf-8")
    elif kind == "folder":
        path.mkdir()
    with pytest.raises(WeightsError, match=r"w\.safetensors"):
        read_weights(path)
    assert not (tmp_path / "exploded").exists()


# Weights that do not fit


def test_every_kind_of_misfit_is_named_and_nothing_is_loaded(net: nn.Module, tmp_path: Path) -> None:
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {k: torch.ones_like(v) for k, v in net.state_dict().items()}
    del state["0.bias"]
    state["2.weight"] = torch.ones(1)
    state["1.weight"] = torch.ones(1, 4)
    with pytest.raises(WeightsError) as caught:
        load_strict(net, state, tmp_path / "w.safetensors")
    assert str(caught.value).splitlines()[1:] == [
        "  missing: 0.bias",
        "  unexpected: 2.weight",
        "  shape of 1.weight: (1, 4) in the file, (1, 3) in the recipe's network",
    ]
    assert "w.safetensors does not fit Sequential" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())


def test_long_lists_of_misfits_are_shortened(net: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"\.\.\. and 12 more") as caught:
        load_strict(net, {f"k{i}": torch.zeros(1) for i in range(16)}, tmp_path)
    assert len(str(caught.value).splitlines()) == 10


def test_fitting_weights_are_loaded(net: nn.Module, tmp_path: Path) -> None:
    other = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    path = saved(other, tmp_path)
    load_strict(net, read_weights(path), path)
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in net.state_dict().items())
