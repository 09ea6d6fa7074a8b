"""Reference statistics and reference images from npz files, as others publish them; nothing in one can run code."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from softdimo.errors import DataError

BATCH = 100
"""Images that are read at a time."""
UNSTATED = "unstated"
"""How many images statistics are of, where their file does not say."""


class Statistics(NamedTuple):
    """A Gaussian in feature space."""

    mu: Float[Tensor, "F"]
    sigma: Float[Tensor, "F F"]
    n: int | None
    """Images that it was fitted to, where the file says."""
    about: dict[str, Any]
    """What the file says that they depend on: the fingerprint of the metric that wrote it; empty for others' files."""


def existing(path: str | None) -> Path | None:
    """The path of a reference that a recipe names, if it names one. DataError where there is no such file."""
    if path is None:
        return None
    try:
        Path(path).expanduser().open("rb").close()
    except OSError as error:
        raise _missing(Path(path), error) from error
    return Path(path).expanduser()


def digest(path: Path) -> str:
    """SHA-256 of a file, read again only when its size or time has changed. DataError where it cannot be read."""
    try:
        found = path.stat()
        return _digest(path, found.st_size, found.st_mtime_ns)
    except OSError as error:
        raise _missing(path, error) from error


@lru_cache(maxsize=8)
def _digest(path: Path, size: int, time: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_statistics(path: Path, width: int) -> Statistics:
    """`mu` [width] and `sigma` [width width] of an npz: of guided-diffusion, clean-fid, pytorch-fid, or our own.

    Raises DataError where the file, a key, a shape or a value is wrong.
    """
    with _opened(path, ("mu", "sigma")) as arrays:
        mu, sigma = (np.asarray(arrays[key], np.float64) for key in ("mu", "sigma"))
        n = int(arrays["n"]) if "n" in arrays else None
        about = json.loads(str(arrays["provenance"])) if "provenance" in arrays else {}
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        raise DataError(f"{path}: mu {list(mu.shape)} and sigma {list(sigma.shape)} are no mean and covariance")
    if len(mu) != width:
        raise DataError(
            f"{path} has statistics of {len(mu)} features, but the metric's network has {width}; "
            "give statistics made with that network (`softdimo statistics`)"
        )
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all() and np.allclose(sigma, sigma.T, atol=1e-6)):
        raise DataError(f"{path}: mu or sigma has values that are not finite, or sigma is not symmetric")
    return Statistics(torch.from_numpy(mu), torch.from_numpy(sigma), n, about)


def count_images(path: Path) -> int:
    """How many images `arr_0` of an npz holds: uint8 [N H W C], C 1 or 3. DataError where it is anything else."""
    with _images(path) as (_, shape):
        return shape[0]


def read_images(path: Path) -> Iterator[UInt8[Tensor, "B C H W"]]:
    """Those images in their order, a batch at a time, so that memory does not grow with the file."""
    with _images(path) as (file, (n, *image)):
        size = int(np.prod(image))
        for first in range(0, n, BATCH):
            rows = min(BATCH, n - first)
            try:
                data = file.read(rows * size)
            except (OSError, zipfile.BadZipFile, EOFError) as error:
                raise DataError(f"{path} is damaged ({error}); fetch it again") from error
            if len(data) != rows * size:
                raise DataError(f"{path} ends after {first} of {n} images; fetch it again")
            pixels = torch.frombuffer(bytearray(data), dtype=torch.uint8).view(rows, *image)
            yield pixels.permute(0, 3, 1, 2).contiguous()


@contextmanager
def _images(path: Path) -> Iterator[tuple[IO[bytes], tuple[int, ...]]]:
    """The member `arr_0`, open behind its header, and its shape."""
    with _opened(path, ("arr_0",)), zipfile.ZipFile(path) as archive, archive.open("arr_0.npy") as file:
        try:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, kind = header(file)
        except ValueError as error:
            raise DataError(f"{path} is damaged ({error}); fetch it again") from error
        if kind != np.uint8 or len(shape) != 4 or shape[3] not in (1, 3) or fortran or not shape[0]:
            raise DataError(
                f"{path}: arr_0 must hold images, uint8 [N, height, width, 1 or 3], but is {kind} {list(shape)}; "
                "precision, recall, density and coverage need images, not statistics"
            )
        yield file, shape


@contextmanager
def _opened(path: Path, keys: tuple[str, ...]) -> Iterator[np.lib.npyio.NpzFile]:
    """An npz with these keys; DataError where it is something else."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise _missing(path, error) from error
    with file:
        if not zipfile.is_zipfile(file):
            raise DataError(f"{path} is not an npz file, or it is damaged; fetch it again")
        file.seek(0)
        arrays = np.load(file, allow_pickle=False)
        if missing := [key for key in keys if key not in arrays]:
            held = ", ".join(arrays.files[:8]) or "nothing"
            raise DataError(f"{path} has no {' and no '.join(missing)}, which this metric needs; it holds {held}")
        try:
            yield arrays
        except (ValueError, zipfile.BadZipFile, EOFError) as error:  # pickled objects, damaged members
            raise DataError(f"{path} cannot be read ({error}); fetch it again") from error


def _missing(path: Path, error: OSError) -> DataError:
    return DataError(
        f"cannot read the reference {path}: {error.strerror or error}. Fetch it there (for ImageNet 256, "
        "VIRTUAL_imagenet256_labeled.npz of guided-diffusion's evaluations), or make one with `softdimo statistics`"
    )
