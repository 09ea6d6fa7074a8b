"""Grids and labeled strips of images, written as PNG. One look for 28 x 28 gray and 256 px RGB."""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image as PILImage
from PIL import ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from softdimo.files import atomic
from softdimo.shapes import Image

CELL = 84
"""Small images are enlarged by a whole factor to at least this many pixels (28 -> 84)."""
LARGEST = 256
"""Images above this size are reduced to it."""
PAPER, INK, MUTED, FRAME = (255, 255, 255), (28, 30, 36), (106, 110, 120), (222, 224, 230)
_GAP, _MARGIN = 6, 14
HEADED = 8
"""Columns that stand side by side under their heads."""


def grid(images: Image, columns: int) -> PILImage.Image:
    """Images [B C H W] in [0, 1] in rows of `columns`, row-major, without text.

    Raises ValueError for an empty batch, or one that is not [B C H W] with C = 1 or 3.
    """
    cells = cells_of(images)
    columns = max(1, min(columns, len(cells)))
    rows = -(-len(cells) // columns)
    w, h = cells[0].size
    sheet = PILImage.new("RGB", (columns * (w + _GAP) - _GAP, rows * (h + _GAP) - _GAP), PAPER)
    for i, cell in enumerate(cells):
        sheet.paste(cell, ((i % columns) * (w + _GAP), (i // columns) * (h + _GAP)))
    return sheet


def strip(
    rows: Sequence[tuple[str, Image]], path: str | os.PathLike[str], heads: Sequence[str] = (), title: str = ""
) -> Path:
    """Write one labeled row of images per entry to `path` (PNG, atomically) and return the path.

    `rows` are (label, images [B C H W] in [0, 1]); `heads` names the columns (class names, or prompts in up to three
    lines). The size of the picture depends on labels, heads and shapes only, so the strips of one run can be leafed
    through.
    Raises ValueError where there is no row, or a row's images are malformed.
    """
    if not rows:
        raise ValueError("a strip needs at least one row of images")
    cells = [cells_of(images) for _, images in rows]
    w, h = (max(row[0].size[axis] for row in cells) for axis in (0, 1))
    columns = max(len(row) for row in cells)
    point = 13 if w <= 128 else 18
    label_font, head_font = _font(point), _font(point - 1)
    label_width = max((_width(label_font, label) for label, _ in rows), default=0)
    left = _MARGIN + (label_width + _MARGIN if label_width else 0)
    title_height = 2 * point if title else 0
    written = [_lines(head_font, head, w) for head in heads[:columns]]
    head_height = (point + 2) * max(map(len, written)) + 6 if any(heads) else 0
    top = _MARGIN + title_height + head_height
    size = (left + columns * (w + _GAP) - _GAP + _MARGIN, top + len(rows) * (h + _GAP) - _GAP + _MARGIN)
    if title:
        size = (max(size[0], 2 * _MARGIN + _width(label_font, title)), size[1])
    sheet = PILImage.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(sheet)
    if title:
        draw.text((_MARGIN, _MARGIN - 2), title, fill=INK, font=label_font)
    for j, lines in enumerate(written):
        x = left + j * (w + _GAP) + w / 2
        for k, line in enumerate(reversed(lines)):
            draw.text((x, top - 5 - k * (point + 2)), line, fill=MUTED, font=head_font, anchor="ms")
    for i, ((label, _), row) in enumerate(zip(rows, cells, strict=True)):
        y = top + i * (h + _GAP)
        draw.text((_MARGIN, y + h / 2), label, fill=INK, font=label_font, anchor="lm")
        for j, cell in enumerate(row):
            x = left + j * (w + _GAP)
            sheet.paste(cell, (x + (w - cell.width) // 2, y + (h - cell.height) // 2))
            draw.rectangle((x - 1, y - 1, x + w, y + h), outline=FRAME)
    said = "; ".join(
        [*([f"columns: {', '.join(heads)}"] if any(heads) else []), f"rows: {', '.join(r[0] for r in rows)}"]
    )
    return save(sheet, path, said)


def save(picture: PILImage.Image, path: str | os.PathLike[str], description: str = "") -> Path:
    """Write a PNG so that a reader sees the old file or the new one; `description` goes inside as text."""
    target = Path(path)
    with atomic(target) as temporary:
        temporary.write_bytes(png(picture, description))
    return target


def png(picture: PILImage.Image, description: str = "") -> bytes:
    """The bytes of an optimized PNG; few-colored pictures (silhouettes with text) get a palette."""
    if picture.mode == "RGB" and (colors := picture.getcolors(256)) is not None and len(colors) <= 256:
        picture = picture.quantize(len(colors), dither=PILImage.Dither.NONE)
    buffer, said = io.BytesIO(), PngInfo()
    if description:
        said.add_itxt("Description", description)
    picture.save(buffer, "PNG", optimize=True, pnginfo=said)
    return buffer.getvalue()


def cells_of(images: Image) -> list[PILImage.Image]:
    """[B C H W] in [0, 1] -> RGB pictures of one size: nearest neighbor up to `CELL`, Lanczos down to `LARGEST`."""
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"images must be [B C H W] with C = 1 or 3 and B > 0, not {list(images.shape)}")
    bytes_ = to_uint8(images).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous().numpy()
    h, w = images.shape[-2:]
    factor = max(1, -(-CELL // max(h, w)))
    shrink = max(1.0, max(h, w) / LARGEST)
    size = (round(w * factor / shrink), round(h * factor / shrink))
    how = PILImage.Resampling.NEAREST if shrink == 1.0 else PILImage.Resampling.LANCZOS
    return [PILImage.fromarray(row).resize(size, how) for row in bytes_]


def to_uint8(images: Tensor) -> Tensor:
    """Values in [0, 1] -> bytes on the CPU; clipped, NaN is black."""
    return (torch.nan_to_num(images.detach().float(), nan=0.0).clamp(0, 1) * 255).round().to(torch.uint8).cpu()


def _font(size: int) -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def _width(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str) -> int:
    return int(font.getlength(text) + 0.999)


def _lines(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str, width: int, most: int = 3) -> list[str]:
    """`text` in lines of whole words that fit `width` pixels, `most` of them; what does not fit is clipped."""
    lines, words = [""], text.split()
    while words:
        longer = f"{lines[-1]} {words[0]}".strip()
        if lines[-1] and font.getlength(longer) > width:
            if len(lines) == most:
                lines[-1] = " ".join([lines[-1], *words])
                break
            lines.append("")
            continue
        lines[-1] = longer
        del words[0]
    return [_clip(font, line, width) for line in lines]


def _clip(font: ImageFont.ImageFont | ImageFont.FreeTypeFont, text: str, width: int) -> str:
    """`text`, shortened with an ellipsis until it fits `width` pixels."""
    if font.getlength(text) <= width:
        return text
    while text and font.getlength(text + "…") > width:
        text = text[:-1]
    return text.rstrip() + "…" if text else ""
