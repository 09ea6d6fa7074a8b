"""Encodings on the disk: found again, by others too; what is damaged, full or of another version is made anew."""

from __future__ import annotations

import json
import logging
import multiprocessing
from pathlib import Path

import pytest
import torch

from softdimo.inputs.store import Layout, Store

BIG = 1e9


def row(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {"states": torch.randn(5, 4, generator=rng).to(dtype), "pooled": torch.randn(3, generator=rng).to(dtype)}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) and a[k].dtype == b[k].dtype for k in a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_entries_are_found_again_bit_by_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    first = Store(tmp_path / "e", BIG)
    rows = {prompt: row(i, dtype) for i, prompt in enumerate(("", "a", "naïve 北京", "lone \ud800"))}
    first.put(rows)
    for store in (first, Store(tmp_path / "e", BIG)):
        found = store.get([*rows, "another"])
        assert found.keys() == rows.keys()
        assert all(equal(found[p], rows[p]) for p in rows)
    said = json.loads((tmp_path / "e" / "about.json").read_text())
    assert said["tensors"]["states"] == {"dtype": str(dtype).removeprefix("torch."), "shape": [5, 4]}
    assert said["bytes"] == 23 * dtype.itemsize
    assert sum(p.stat().st_size for p in (tmp_path / "e").glob("*.data")) == 4 * said["bytes"]


def test_scalars_whole_numbers_and_nothing_have_entries_too(tmp_path: Path) -> None:
    rows = {"a": {"n": torch.tensor(3), "mask": torch.tensor([True, False]), "none": torch.zeros(0, 7)}}
    Store(tmp_path, BIG).put(rows)
    assert equal(Store(tmp_path, BIG).get(["a"])["a"], rows["a"])


def _write(folder: Path, seed: int) -> None:
    store = Store(folder, BIG)
    for i in range(40):
        store.put({f"{seed} {i}": row(100 * seed + i), f"both {i}": row(i)})


def test_processes_write_at_once_and_see_each_other(tmp_path: Path) -> None:
    watching = Store(tmp_path, BIG)
    spawn = multiprocessing.get_context("spawn")
    writers = [spawn.Process(target=_write, args=(tmp_path, seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(120)
        assert writer.exitcode == 0
    wanted = {f"{seed} {i}": row(100 * seed + i) for seed in (1, 2) for i in range(40)}
    wanted |= {f"both {i}": row(i) for i in range(40)}
    found = watching.get(list(wanted))
    assert found.keys() == wanted.keys()
    assert all(equal(found[p], wanted[p]) for p in wanted)
    assert len(list(tmp_path.iterdir())) == 5  # two files a process


def one(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def test_a_damaged_entry_is_told_and_made_anew_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Store(tmp_path, BIG).put({p: row(i) for i, p in enumerate("abc")})
    data = one(tmp_path, "*.data")
    raw = bytearray(data.read_bytes())
    raw[23 * 4 + 5] ^= 1
    data.write_bytes(raw)
    store = Store(tmp_path, BIG)
    assert store.get(list("abc")).keys() == {"a", "c"}
    assert [r.levelname for r in caplog.records] == ["WARNING"]
    assert f"{data}: entry 1 is damaged; its prompt is encoded anew" in caplog.text
    store.put({"b": row(1)})
    caplog.clear()
    for again in (store, Store(tmp_path, BIG)):
        assert equal(again.get(list("abc"))["b"], row(1))
    assert not caplog.records


@pytest.mark.parametrize("cut", [1, 39, 40, 41])
def test_a_writer_that_was_killed_leaves_what_was_whole(tmp_path: Path, cut: int) -> None:
    Store(tmp_path, BIG).put({p: row(i) for i, p in enumerate("abc")})
    keys = one(tmp_path, "*.keys")
    keys.write_bytes(keys.read_bytes()[:-cut])
    left = Store(tmp_path, BIG).get(list("abc"))
    assert left.keys() == ({"a", "b"} if cut <= 40 else {"a"})
    data = one(tmp_path, "*.data")
    data.write_bytes(data.read_bytes()[:-1])
    assert all(equal(found, row("abc".index(p))) for p, found in Store(tmp_path, BIG).get(list("abc")).items())


def test_entries_without_their_file_are_made_anew(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Store(tmp_path, BIG).put({"a": row(0)})
    one(tmp_path, "*.data").unlink()
    assert not Store(tmp_path, BIG).get(["a"])
    assert "is damaged" in caplog.text


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"tensors": {"a": {"dtype": "what", "shape": [1]}}}'])
def test_a_damaged_description_is_written_anew(tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture) -> None:
    Store(tmp_path, BIG).put({"a": row(0)})
    (tmp_path / "about.json").write_text(content)
    store = Store(tmp_path, BIG)
    assert "about.json is damaged" in caplog.text
    assert not store.get(["a"])
    store.put({"b": row(1)})
    assert equal(Store(tmp_path, BIG).get(["a"])["a"], row(0))


def test_another_version_of_the_encoder_replaces_everything(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Store(tmp_path, BIG).put({"a": row(0), "b": row(1)})
    store = Store(tmp_path, BIG)
    store.put({"a": row(2, torch.float16)})
    assert "another version of the encoder" in caplog.text
    found = Store(tmp_path, BIG).get(["a", "b"])
    assert found.keys() == {"a"}
    assert equal(found["a"], row(2, torch.float16))
    assert len(list(tmp_path.iterdir())) == 3
    store.put({"a": row(3)})  # and back, in one process
    store.put({"b": row(4)})
    assert equal(store.get(["b"])["b"], row(4))
    assert equal(Store(tmp_path, BIG).get(["a"])["a"], row(3))


def test_a_full_cache_is_read_and_not_added_to(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    size = Layout.of(row(0)).size
    store = Store(tmp_path, 2.5 * size)
    for i, prompt in enumerate("abcd"):
        store.put({prompt: row(i)})
    assert len([r for r in caplog.records if "are full" in r.message]) == 1
    assert store.get(list("abcd")).keys() == {"a", "b"}
    other = Store(tmp_path, 2.5 * size)
    other.put({"e": row(9)})
    assert sum(p.stat().st_size for p in tmp_path.glob("*.data")) == 2 * size


@pytest.mark.parametrize("what", ["folder", "file"])
def test_a_folder_that_cannot_be_written_is_told_and_stops_nothing(
    tmp_path: Path, what: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = tmp_path / "e"
    if what == "file":
        place.write_text("not a folder")
    else:
        (tmp_path / "e" / "about.json").mkdir(parents=True)
    store = Store(place, BIG)
    store.put({"a": row(0)})
    store.put({"a": row(0)})
    told = [r for r in caplog.records if "no more encodings of prompts are kept" in r.message]
    assert [r.levelno for r in told] == [logging.WARNING]
    assert not store.get(["a"])
