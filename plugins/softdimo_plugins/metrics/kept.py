"""Images in files: by their content while a row is measured, and in the folders that official evaluators read."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image as Pillow
from torch import Tensor

from softdimo.errors import DataError


def encoded(pixels: UInt8[Tensor, "C H W"], kind: str, **options: int) -> bytes:
    """An RGB file in memory (`PNG`, `JPEG`) of an image of 1 or 3 channels; `options` are Pillow's."""
    file = BytesIO()
    picture(pixels).save(file, kind, **options)
    return file.getvalue()


def picture(pixels: UInt8[Tensor, "C H W"]) -> Pillow.Image:
    """The same as an image of Pillow's, in RGB."""
    lines = pixels.expand(3, -1, -1).permute(1, 2, 0).contiguous().cpu().numpy()
    return Pillow.fromarray(lines)


def decoded(data: bytes) -> UInt8[np.ndarray, "H W 3"]:
    """The pixels of a file in memory."""
    with Pillow.open(BytesIO(data)) as image:
        return np.array(image.convert("RGB"))


class Store:
    """A folder of files named by what is in them, so that whoever writes one again changes nothing."""

    def __init__(self, folder: Path | None = None) -> None:
        """Without a folder, one that is gone with this object."""
        self._folder = folder

    @property
    def folder(self) -> Path:
        """Where the files are."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="softdimo-"))
            weakref.finalize(self, shutil.rmtree, self._folder, True)
        return self._folder

    def put(self, name: str, data: bytes) -> None:
        """Keep a file."""
        path = self.folder / name
        if path.exists():
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=self.folder, prefix=f".{name}.")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.replace(temporary, path)

    def lay_out(self, target: Path, files: Mapping[str, str | bytes]) -> None:
        """Make `target` a folder of exactly these files: relative path -> the name of a kept file, or what to write.

        Raises DataError where a file was never kept here.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
        try:
            for where, what in files.items():
                path = made / where
                path.parent.mkdir(parents=True, exist_ok=True)
                if isinstance(what, bytes):
                    path.write_bytes(what)
                else:
                    self._link(self.folder / what, path)
            made.chmod(0o755)
            if target.exists():
                shutil.rmtree(target)
            made.rename(target)
        finally:
            shutil.rmtree(made, ignore_errors=True)

    def _link(self, source: Path, path: Path) -> None:
        """A second name of the same file, or a copy where the file system has no such thing."""
        try:
            os.link(source, path)
        except FileNotFoundError as error:
            raise DataError(
                f"{source} is gone: the images of a row are kept in the run's folder, which all its processes must "
                "share. Measure the row again (delete the folder that ends in -parts beside eval.json)"
            ) from error
        except OSError:
            shutil.copyfile(source, path)
