from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFont

from softdimo.strips import CELL, INK, LARGEST, PAPER, _lines, cells_of, grid, png, save, strip, to_uint8


def ramp(n: int, c: int, size: int) -> torch.Tensor:
    return torch.linspace(0, 1, n * c * size * size).view(n, c, size, size)


@pytest.mark.parametrize(("size", "shown"), [(8, 88), (28, 84), (84, 84), (256, 256), (1024, LARGEST)])
def test_cells_are_whole_multiples_or_reduced(size: int, shown: int) -> None:
    (cell,) = cells_of(ramp(1, 3, size))
    assert cell.size == (shown, shown)
    assert cell.mode == "RGB"
    assert shown >= min(CELL, size)


def test_enlarging_repeats_pixels_exactly() -> None:
    images = ramp(1, 1, 28)
    cell = np.asarray(cells_of(images)[0])
    assert (cell[1::3, 1::3, 0] == to_uint8(images)[0, 0].numpy()).all()
    assert (cell[..., 0] == cell[..., 2]).all()


def test_values_are_clipped_rounded_and_never_nan() -> None:
    values = torch.tensor([-1.0, 0.0, 0.5, 1.0, 2.0, float("nan"), float("inf")])
    assert to_uint8(values).tolist() == [0, 0, 128, 255, 255, 0, 255]


def test_a_grid_is_row_major() -> None:
    images = torch.zeros(3, 1, 84, 84)
    images[2] = 1
    sheet = np.asarray(grid(images, 2))
    assert sheet.shape == (84 + 6 + 84, 84 + 6 + 84, 3)
    assert sheet[40, 40].tolist() == [0, 0, 0]
    assert sheet[130, 40].tolist() == [255, 255, 255]
    assert sheet[130, 130].tolist() == list(PAPER)
    assert grid(images, 9).size == (3 * 84 + 2 * 6, 84)


def test_a_strip_has_the_images_where_its_heads_and_labels_say(tmp_path: Path) -> None:
    rows = [("teacher", torch.zeros(2, 1, 28, 28)), ("a much longer label", torch.ones(2, 1, 28, 28))]
    path = strip(rows, tmp_path / "deep" / "s.png", ["cat", "dog"])
    with Image.open(path) as opened:
        said = opened.info["Description"]
        sheet = np.asarray(opened.convert("RGB")).astype(int)
    assert said == "columns: cat, dog; rows: teacher, a much longer label"
    black = (sheet == 0).all(-1)
    assert black.sum() == 2 * 84 * 84
    left = np.flatnonzero(black.any(0))[0]
    text = np.abs(sheet[:, : left - 2] - np.array(INK)).sum(-1) < 40
    assert text[84 // 2 : 84 * 2].any()
    heads = sheet[: np.flatnonzero(black.any(1))[0] - 2, left:]
    assert (heads < 200).any()


def test_strips_of_one_run_have_one_size(tmp_path: Path) -> None:
    sizes = []
    for value in (0.0, 0.7):
        path = strip([("EMA", torch.full((4, 3, 64, 64), value))], tmp_path / f"{value}.png", ["a", "b", "c", "d"])
        with Image.open(path) as opened:
            sizes.append(opened.size)
    assert sizes[0] == sizes[1]


def test_long_heads_are_cut_and_rows_may_be_ragged(tmp_path: Path) -> None:
    rows = [("a", torch.zeros(3, 1, 28, 28)), ("b", torch.zeros(1, 3, 16, 16))]
    with Image.open(strip(rows, tmp_path / "s.png", ["x" * 500, "", "z"])) as opened:
        assert opened.width < 400


def test_prompts_stand_in_lines_of_whole_words() -> None:
    font = ImageFont.load_default(17)
    prompt = "two birds on a wire above a wide and empty street, oil on canvas, in the style of nobody in particular"
    lines = _lines(font, prompt, 200)
    assert len(lines) == 3
    assert all(font.getlength(line) <= 200 for line in lines)
    assert " ".join(lines[:2]) == prompt[: len(" ".join(lines[:2]))]
    assert prompt[len(lines[0])] == prompt[len(" ".join(lines[:2]))] == " "
    assert lines[2].endswith("…")
    assert _lines(font, "a red cube", 200) == ["a red cube"]
    assert _lines(font, "", 200) == [""]
    (clipped,) = _lines(font, "x" * 99, 200)
    assert clipped.endswith("…")
    rest = _lines(font, f"{'x' * 99} a b", 200)
    assert (rest[0][-1], rest[1:]) == ("…", ["a b"])


def test_a_strip_has_room_for_the_lines(tmp_path: Path) -> None:
    heights = []
    for head in ("cat", "a cat that sits on a mat and looks at you"):
        with Image.open(strip([("EMA", torch.zeros(2, 1, 28, 28))], tmp_path / "s.png", [head, "dog"])) as opened:
            heights.append(opened.height)
    assert heights[1] - heights[0] == 2 * 15


@pytest.mark.parametrize("shape", [(0, 1, 8, 8), (1, 2, 8, 8), (1, 8, 8), (2, 3, 0, 8)])
def test_malformed_images_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be"):
        grid(torch.zeros(shape), 2)


def test_no_rows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one row"):
        strip([], tmp_path / "s.png")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = Image.new("RGB", (4, 4))
    path = save(picture, tmp_path / "s.png")
    before = path.read_bytes()
    monkeypatch.setattr("softdimo.strips.png", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save(picture, path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["s.png"]


def test_few_colors_become_a_palette_without_loss() -> None:
    picture = Image.new("RGB", (300, 300), (12, 34, 56))
    picture.paste((250, 1, 2), (0, 0, 100, 100))
    from io import BytesIO

    with Image.open(BytesIO(png(picture))) as opened:
        assert opened.mode == "P"
        assert (np.asarray(opened.convert("RGB")) == np.asarray(picture)).all()
