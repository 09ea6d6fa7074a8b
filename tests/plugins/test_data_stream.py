"""Images that are decoded when asked for: the same ones as those in memory; tar files; ADM's crop."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softdimo.errors import DataError
from softdimo.kinds import Context, Data, ImageShape
from softdimo_plugins.data import pictures
from softdimo_plugins.data.folder import Folder
from softdimo_plugins.data.webdataset import WebDataset

BLANK = Context(ImageShape(1, 1, 1), (), print)
N, SHAPE = 30, ImageShape(3, 16, 16)


def picture(i: int) -> Image.Image:
    rng = np.random.RandomState(i)
    return Image.fromarray(rng.randint(0, 256, (rng.randint(16, 70), rng.randint(16, 70), 3), np.uint8))


def encoded(i: int, suffix: str) -> bytes:
    buffer = io.BytesIO()
    picture(i).save(buffer, {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[suffix])
    return buffer.getvalue()


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for i in range(N):
        path = tmp_path / "set" / "abc"[i % 3] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(i, "jpg"))
    return tmp_path / "set"


def folder(path: Path, **settings: object) -> Folder:
    return Folder.model_validate({"path": str(path), "size": 16, **settings})


def assert_same(one: Data, other: Data) -> None:
    assert (one.classes, one.image) == (other.classes, other.image)
    for split in ("train", "held_out"):
        index = torch.randperm(len(one.source(split)))
        a, b = one.source(split).get(index), other.source(split).get(index)
        assert len(one.source(split)) == len(other.source(split))
        assert torch.equal(a.images, b.images)  # type: ignore[arg-type]
        assert torch.equal(a.cond.labels, b.cond.labels)
    assert len(one.reference()) == len(other.reference())
    streams = one.stream(4, 7), other.stream(4, 7)
    for _ in range(15):
        a, b = (next(stream) for stream in streams)
        assert torch.equal(a.images, b.images)  # type: ignore[arg-type]


@pytest.mark.parametrize("settings", [{}, {"mirror": True, "crop": "center"}, {"channels": 1, "seed": 3}])
def test_a_streamed_folder_is_the_one_in_memory(tree: Path, settings: dict[str, object]) -> None:
    kept, streamed = (folder(tree, in_memory=k, **settings).build(BLANK) for k in (True, False))
    assert_same(kept, streamed)
    assert streamed.fingerprint() != kept.fingerprint()


def test_what_does_not_fit_is_streamed_unless_it_must_not_be(tree: Path) -> None:
    streamed = folder(tree, memory_gb=1e-6).build(BLANK)
    assert isinstance(streamed, pictures.StreamData)
    assert streamed.fingerprint() == folder(tree, in_memory=False).build(BLANK).fingerprint()
    with pytest.raises(DataError, match=r"take 2.3e-05 GB, more than memory_gb: 1e-06; .*or set in_memory: false"):
        folder(tree, memory_gb=1e-6, in_memory=True).build(BLANK)


def test_labels_are_had_without_decoding(tree: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = folder(tree, in_memory=False).build(BLANK).source("train")
    monkeypatch.setattr(pictures, "decode", lambda *a: pytest.fail("decoded"))
    index = torch.arange(len(source))
    assert isinstance(source, pictures.StreamSource)
    assert torch.bincount(source.cond(index).labels).tolist() == [9, 9, 9]


def test_identity_of_a_streamed_folder(tree: Path) -> None:
    spec = folder(tree, in_memory=False)
    content, prints = spec.content(), {spec.build(BLANK).fingerprint()}
    assert content != folder(tree).content()
    for change in ({"crop": "center"}, {"size": 12}, {"seed": 1}, {"mirror": True}, {"channels": 1}):
        prints.add(folder(tree, **{"in_memory": False, **change}).build(BLANK).fingerprint())
    (tree / "a" / "00.jpg").rename(tree / "a" / "01.jpg")
    assert spec.content() != content
    prints.add(spec.build(BLANK).fingerprint())
    assert len(prints) == 7


def test_a_bad_file_stops_a_stream_where_it_is_met_or_is_left_out(tree: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tree / "b" / "bad.jpg").write_bytes(encoded(0, "jpg")[:100])
    source = folder(tree, in_memory=False).build(BLANK).source("train")
    with pytest.raises(DataError, match=r"bad\.jpg cannot be decoded \(.*\); mend or delete it, or set data\.skip_bad"):
        source.get(torch.arange(len(source)))
    assert_same(*(folder(tree, in_memory=k, skip_bad=True).build(BLANK) for k in (True, False)))
    assert "1 of 31 images were left out" in caplog.text


# The crop


def test_center_is_the_rule_of_adm() -> None:
    """Worked out by hand for 70 x 35 -> 8: halved to 35 x 17, to 17 x 8, resized to 17 x 8, cut from column 4."""
    values = np.arange(35 * 70, dtype=np.float64).reshape(35, 70) * (255 / (35 * 70))
    image = Image.fromarray(values.astype(np.uint8))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    got = pictures.decode(io.BytesIO(buffer.getvalue()), ImageShape(1, 8, 8), "center")
    half = image.resize((35, 17), Image.Resampling.BOX).resize((17, 8), Image.Resampling.BOX)
    expected = np.asarray(half)[:, 4:12]
    np.testing.assert_array_equal(got[0], expected)
    assert not np.array_equal(got, pictures.decode(io.BytesIO(buffer.getvalue()), ImageShape(1, 8, 8), "fit"))


@pytest.mark.parametrize(("w", "h"), [(8, 8), (9, 31), (15, 16), (400, 33), (5, 7)])
def test_center_gives_the_size_whatever_comes(w: int, h: int) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (w, h), (10, 20, 30)).save(buffer, "PNG")
    got = pictures.decode(io.BytesIO(buffer.getvalue()), ImageShape(3, 8, 8), "center")
    assert got.shape == (3, 8, 8)
    assert (got == np.array([10, 20, 30], np.uint8)[:, None, None]).all()


# Tar files


def tar(path: Path, files: list[tuple[str, bytes]], mode: str = "w") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as out:  # type: ignore[call-overload]
        for name, content in files:
            member = tarfile.TarInfo(name)
            member.size = len(content)
            member.type = tarfile.DIRTYPE if name.endswith("/") else tarfile.REGTYPE
            out.addfile(member, io.BytesIO(content))


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """The pictures of `tree` in three tars, with suffixes of all sorts and files that do not matter."""
    for part in range(3):
        files = []
        for i in range(part, N, 3):
            suffix = ("png", "PNG", "webp")[part]
            both = [(f"{i:02}.{suffix}", encoded(i, suffix.lower())), (f"{i:02}.cls", b"%d\n" % (i % 3))]
            files += [(f"x/{i:02}.json", b"{}"), *(both if i % 2 else both[::-1])]
        tar(tmp_path / "tars" / f"{part}.tar", [("x/", b""), *((f"x/{n.removeprefix('x/')}", c) for n, c in files)])
    return tmp_path / "tars"


def webdataset(path: Path, **settings: object) -> WebDataset:
    return WebDataset.model_validate({"path": str(path), "size": 16, "held_out": 0.2, **settings})


def test_tars_give_their_images_and_classes(tars: Path) -> None:
    data = webdataset(tars, crop="fit").build(BLANK)
    assert (data.classes, data.image) == (("0", "1", "2"), SHAPE)
    assert (len(data.source("train")), len(data.source("held_out"))) == (24, 6)
    order = [i for part in range(3) for i in range(part, N, 3)]
    for split in ("train", "held_out"):
        source = data.source(split)
        batch = source.get(torch.arange(len(source)))
        assert batch.images is not None
        for image, label, row in zip(batch.images, batch.cond.labels.tolist(), source.rows.tolist(), strict=True):
            i, suffix = order[row], "webp" if order[row] % 3 == 2 else "png"
            expected = pictures.decode(io.BytesIO(encoded(i, suffix)), SHAPE, "fit")
            assert label == i % 3
            assert torch.equal((image * 255).round().byte(), torch.from_numpy(expected.copy()))


def test_identity_of_tars(tars: Path) -> None:
    one, other = webdataset(tars).build(BLANK), webdataset(tars, crop="fit").build(BLANK)
    assert one.fingerprint() != other.fingerprint()
    assert webdataset(tars, classes=["a", "b", "c"]).build(BLANK).classes == ("a", "b", "c")


GOOD = [("a.png", encoded(0, "png")), ("a.cls", b"0"), ("b.png", encoded(1, "png")), ("b.cls", b"1")]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([*GOOD, ("c.png", b"x")], r"0\.tar: c has no class \(cls\)"),
        ([*GOOD, ("c.cls", b"1"), ("c.txt", b"x")], r"0\.tar: c has no image \(jpg, jpeg, png, webp\)"),
        ([("a.png", b"x"), ("b.png", b"x"), ("a.cls", b"0"), ("b.cls", b"0")], r"0\.tar: a has no class"),
        ([*GOOD, ("c.png", b"x"), ("c.cls", b"cat")], r"0\.tar: c\.cls is 'cat', and a class is a whole number"),
        ([*GOOD, ("c.png", b"x"), ("c.cls", b"-1")], r"c\.cls is '-1'"),
        (GOOD[:2], r"has 1 sample\(s\), and both splits need at least one"),
    ],
)
def test_samples_that_are_wrong_are_named(tmp_path: Path, files: list[tuple[str, bytes]], message: str) -> None:
    tar(tmp_path / "0.tar", files)
    with pytest.raises(DataError, match=message):
        webdataset(tmp_path).build(BLANK)


def test_tars_that_are_wrong_are_named(tars: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere is not a folder; set data\.path"):
        webdataset(tmp_path / "nowhere").build(BLANK)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty has no \.tar files"):
        webdataset(tmp_path / "empty").build(BLANK)
    with pytest.raises(DataError, match=r"has the class 2, and there are 2; see data\.classes"):
        webdataset(tars, classes=2).build(BLANK)
    raw = (tars / "1.tar").read_bytes()
    (tars / "1.tar").write_bytes(raw[: len(raw) // 2 + 100])
    with pytest.raises(DataError, match=r"1\.tar is not a whole, uncompressed tar file"):
        webdataset(tars).build(BLANK)
    tar(tars / "1.tar", GOOD, "w:gz")
    with pytest.raises(DataError, match=r"1\.tar is not a whole, uncompressed tar file"):
        webdataset(tars).build(BLANK)


def test_an_image_that_is_none_is_named(tmp_path: Path) -> None:
    tar(tmp_path / "0.tar", [*GOOD, ("c.png", b"no image"), ("c.cls", b"1")])
    data = webdataset(tmp_path).build(BLANK)
    place = [r for split in ("train", "held_out") for r in data.source(split).rows.tolist()].index(2)
    source = data.source("train" if place < len(data.source("train")) else "held_out")
    with pytest.raises(DataError, match=r"0\.tar: c cannot be decoded \(cannot identify"):
        source.get(torch.arange(len(source)))
