"""Numpy arrays as bytes, without pickle: what models of arrays keep in a bundle."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import numpy as np
import numpy.typing as npt

from prediction.bundle import Bundle
from prediction.errors import BundleError

Array = npt.NDArray[Any]


def pack(**arrays: Array) -> bytes:
    """An .npz file."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def unpack(bundle: Bundle, name: str, *keys: str) -> dict[str, Array]:
    """The arrays of these names. BundleError: no such file, no .npz, an array missing, or one that is not of finite numbers."""
    data = bundle.files.get(name)
    where = f"model {bundle.manifest.model_id}"
    if data is None:
        raise BundleError(f"{where} has no {name}")
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as file:
            found = {key: file[key] for key in keys if key in file}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise BundleError(f"{where}: {name}: {error}") from None
    for key in keys:
        if key not in found:
            raise BundleError(f"{where}: {name} has no array {key!r}")
        if found[key].dtype.kind not in "if" or not np.all(np.isfinite(found[key])):
            raise BundleError(f"{where}: {name}: {key!r} is not of finite numbers")
    return found
