"""A folder of the user's images: order, classes, decoding, and each way in which it can be wrong."""

import logging
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import ValidationError

from softdimo.errors import DataError
from softdimo.kinds import Context, ImageShape
from softdimo_plugins.data.folder import Folder

BLANK = Context(ImageShape(1, 1, 1), (), print)


def save(path, value=128, size=(20, 20), mode="L"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)


@pytest.fixture
def tree(tmp_path):
    for k, name in enumerate(("cats", "dogs")):
        for i in range(10):
            save(tmp_path / "set" / name / f"{i:02}.png", 100 * k + 10 * i)
    return tmp_path / "set"


def build(path, **settings):
    return Folder(path=str(path), **({"size": 8, "channels": 1} | settings)).build(BLANK)


def values(data):
    """Gray value -> label of every image."""
    pairs = {}
    for split in "train", "held_out":
        batch = data.source(split).get(torch.arange(len(data.source(split))))
        pairs |= dict(
            zip((batch.images.mean((1, 2, 3)) * 255).round().int().tolist(), batch.cond.labels.tolist(), strict=True)
        )
    return pairs


def test_subfolders_are_classes(tree):
    data = build(tree, held_out=0.2)
    assert data.classes == ("cats", "dogs")
    assert data.image == (1, 8, 8)
    assert (len(data.source("train")), len(data.source("held_out"))) == (16, 4)
    assert values(data) == {100 * k + 10 * i: k for k in range(2) for i in range(10)}


def test_a_flat_folder_is_one_class(tree):
    assert build(tree / "dogs").classes == ("dogs",)
    assert len(build(tree / "dogs", held_out=0.01).source("held_out")) == 1


def test_order_does_not_depend_on_the_file_system(tree, tmp_path):
    copy = tmp_path / "copy"
    for file in sorted(tree.rglob("*.png"), reverse=True):
        target = copy / file.relative_to(tree)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    assert build(tree).fingerprint() == build(copy).fingerprint()
    assert build(tree).fingerprint() != build(tree, seed=1).fingerprint()


def test_what_is_passed_over(tree):
    before = build(tree).fingerprint()
    save(tree / "cats" / ".hidden.png")
    save(tree / ".trash" / "x.png")
    save(tree / "__MACOSX" / "x.png")
    (tree / "readme.txt").write_text("not an image")
    (tree / "cats" / "notes.csv").write_text("not an image")
    assert build(tree).fingerprint() == before


def test_content_follows_the_images_and_nothing_else(tree, tmp_path, monkeypatch):
    def content(path, **settings):
        return Folder(path=str(path), **settings).content()

    mine, first = content(tree), tree / "cats" / "00.png"
    assert content(shutil.copytree(tree, tmp_path / "copy")) == mine
    (tree / "readme.txt").write_text("not an image")
    os.utime(first, (0, 0))
    assert content(tree, size=64) == mine
    raw = first.read_bytes()
    seen = {mine}
    for change in (
        lambda: save(tree / "cats" / "new.png"),
        lambda: (tree / "cats" / "new.png").rename(tree / "dogs" / "new.png"),
        lambda: (tree / "dogs" / "new.png").rename(tree / "dogs" / "other.png"),
        lambda: first.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1])),  # of the same size
    ):
        change()
        assert content(tree) not in seen
        seen.add(content(tree))
    monkeypatch.setattr("pathlib.Path.read_bytes", lambda path: pytest.fail("read again"))
    assert content(tree) in seen
    with pytest.raises(DataError, match="does not exist"):
        content(tree / "absent")


def test_nested_folders_and_links(tree, tmp_path):
    save(tmp_path / "elsewhere" / "far.png", 77)
    save(tree / "cats" / "deep" / "deeper" / "x.JPG", 55)
    (tree / "dogs" / "link").symlink_to(tmp_path / "elsewhere")
    (tree / "dogs" / "loop").symlink_to(tree / "dogs")
    (tree / "dogs" / "z.png").symlink_to(tree / "dogs" / "00.png")
    data = build(tree)
    assert values(data)[55] == 0
    assert values(data)[77] == 1
    assert len(data.source("train")) + len(data.source("held_out")) == 23


def test_resize_and_crop_keep_the_center(tmp_path):
    wide = np.zeros((10, 30), np.uint8)
    wide[:, 10:20] = 255
    for i in range(2):
        (tmp_path / "x").mkdir(exist_ok=True)
        Image.fromarray(wide).save(tmp_path / "x" / f"{i}.png")
    image = build(tmp_path, size=10).source("train").get(torch.tensor([0])).images
    assert image.shape == (1, 1, 10, 10)
    assert image.min() == 1


@pytest.mark.parametrize(
    ("mode", "fill", "expected"),
    [
        ("RGB", (255, 0, 0), (1, 0, 0)),
        ("RGBA", (255, 0, 0, 0), (1, 1, 1)),
        ("LA", (0, 255), (0, 0, 0)),
        ("1", 1, (1, 1, 1)),
        ("P", 0, (0, 0, 0)),
        ("I;16", 65535, (1, 1, 1)),
        ("I;16", 257 * 128, (128 / 255,) * 3),
    ],
)
def test_modes(tmp_path, mode, fill, expected):
    for i in range(2):
        save(tmp_path / f"{i}.png", fill, mode=mode)
    image = build(tmp_path, channels=3).source("train").get(torch.tensor([0])).images
    torch.testing.assert_close(image[0, :, 4, 4], torch.tensor(expected, dtype=torch.float32))


def test_orientation_tag_is_followed(tmp_path):
    picture = np.zeros((8, 8), np.uint8)
    picture[0] = 255  # bright on top as stored
    exif = Image.Exif()
    exif[0x0112] = 6  # stored rotated by 90 degrees
    for i in range(2):
        Image.fromarray(picture).save(tmp_path / f"{i}.png", exif=exif)
    image = build(tmp_path).source("train").get(torch.tensor([0])).images[0, 0]
    assert image[:, -1].min() == 1
    assert image[:, 0].max() == 0


def test_bad_files_are_named_and_counted(tree):
    for i in range(12):
        (tree / "cats" / f"bad{i:02}.png").write_bytes(b"no image")
    png = (tree / "dogs" / "03.png").read_bytes()
    (tree / "dogs" / "03.png").write_bytes(png[: len(png) // 2])
    (tree / "dogs" / "broken.png").symlink_to(tree / "nowhere.png")
    with pytest.raises(DataError) as error:
        build(tree)
    assert "14 of 33 images cannot be decoded" in str(error.value)
    assert "skip_bad: true" in str(error.value)
    assert "bad09.png" in str(error.value)
    assert "... and 4 more" in str(error.value)


def test_skipping_bad_files_says_which(tree, caplog):
    (tree / "cats" / "bad.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        data = build(tree, skip_bad=True)
    assert len(values(data)) == 20
    assert "1 of 21 images were left out" in caplog.text
    assert "bad.png" in caplog.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_unreadable_files_are_bad_files(tree):
    (tree / "cats" / "00.png").chmod(0)
    with pytest.raises(DataError, match="1 of 20 images cannot be decoded"):
        build(tree)


def test_folders_that_cannot_be_listed(tree, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr("pathlib.Path.iterdir", refuse)
    with pytest.raises(DataError, match=r"cannot list .*set: Permission denied"):
        build(tree)


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match=r"nowhere does not exist; set data\.path"):
        build(tmp_path / "nowhere")


def test_a_file_is_not_a_folder(tree):
    with pytest.raises(DataError, match="is not a folder"):
        build(tree / "cats" / "00.png")


def test_empty_folder(tmp_path):
    with pytest.raises(DataError, match=r"has no images \(\.bmp, .*\) and no subfolders"):
        build(tmp_path)


def test_empty_class(tree):
    (tree / "birds").mkdir()
    with pytest.raises(DataError, match=r"no images in the subfolder\(s\) birds"):
        build(tree)


def test_images_beside_subfolders(tree):
    save(tree / "stray.png")
    with pytest.raises(DataError, match=r"1 images beside the subfolder\(s\) cats, dogs"):
        build(tree)


def test_too_few_images(tree):
    save(tree / "birds" / "only.png")
    with pytest.raises(DataError, match=r"class 'birds' has 1 usable image\(s\), at least 2"):
        build(tree)


def test_too_much_memory(tree):
    with pytest.raises(DataError, match=r"20 images of 3 x 64 x 64 take 0.000246 GB, more than memory_gb: 0.0001"):
        build(tree, size=64, channels=3, memory_gb=1e-4, in_memory=True)


@pytest.mark.parametrize("wrong", [{"channels": 2}, {"held_out": 0}, {"held_out": 1.0}, {"size": 0}, {"sizes": 8}])
def test_wrong_settings_are_refused(tree, wrong):
    with pytest.raises(ValidationError):
        build(tree, **wrong)
