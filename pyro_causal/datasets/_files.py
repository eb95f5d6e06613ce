"""Files of published data: where they lie, how they are had, and the formats that they are in."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import sys
import tempfile
import urllib.request
import zlib
from http.client import HTTPException
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

__all__ = ["DataFile", "Folder", "find_file", "read_idx", "read_table"]

LOGGER = logging.getLogger(__name__)
TIMEOUT = 60.0  # seconds that a server may stay silent

Folder = str | os.PathLike[str]


class DataFile(NamedTuple):
    """A published file: its name below a data folder, its origin, and its SHA-256."""

    name: str
    url: str
    sha256: str


def find_file(file: DataFile, path: Folder | None = None) -> Path:
    """Where a published file lies: below ``path``, $PYRO_CAUSAL_DATA or the user's cache.

    The first that has it counts. If none has, it is downloaded to the cache.

    **Raises** ``FileNotFoundError``: there is no folder ``path``, or the file is nowhere and cannot
    be downloaded. ``ValueError``: the download is not the published file.
    """
    if path is not None and not Path(path).expanduser().is_dir():
        raise FileNotFoundError(
            f"{file.name}: there is no folder {path}. Give the folder that holds "
            f"{file.name}, or no path to search $PYRO_CAUSAL_DATA and the cache."
        )
    cache = _cache_folder()
    for folder in (path, os.environ.get("PYRO_CAUSAL_DATA"), cache):
        if folder and (found := Path(folder).expanduser() / file.name).is_file():
            return found
    _download(file, cache / file.name)
    return cache / file.name


def _cache_folder() -> Path:
    """This package's folder in the user's cache, by the conventions of the operating system."""
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local"
    else:
        base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "pyro_causal"


def _download(file: DataFile, target: Path) -> None:
    """Fetch a file, and put it in place if it is whole and right; else leave nothing behind."""
    LOGGER.info("downloading %s to %s", file.url, target)
    try:
        with urllib.request.urlopen(file.url, timeout=TIMEOUT) as response:
            content = response.read()
        digest = hashlib.sha256(content).hexdigest()
        if digest == file.sha256:
            target.parent.mkdir(parents=True, exist_ok=True)
            _write(content, target)
            return
    except (OSError, HTTPException) as error:
        raise FileNotFoundError(
            f"{file.name}: it is in no data folder, and the download from {file.url} failed: "
            f"{error}. Put the file at {target}, or at {file.name} below a folder of yours that "
            "$PYRO_CAUSAL_DATA or `path` names."
        ) from None
    raise ValueError(
        f"{file.name}: expected the SHA-256 {file.sha256} from {file.url}, got {digest}: the "
        f"download is broken or the file has changed. Put the published one at {target}."
    )


def _write(content: bytes, target: Path) -> None:
    """Write beside the target and rename, so that no reader meets half a file."""
    with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as part:
        try:
            part.write(content)
            part.close()
            os.replace(part.name, target)
        finally:
            Path(part.name).unlink(missing_ok=True)


def read_idx(path: Path, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Read bytes of a known shape in MNIST's gzipped IDX format.

    **Raises** ``ValueError``: it is not such a file, or not a whole one.
    """
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: expected a whole gzip file: {error}. Fetch it again.") from error
    header = b"\0\0\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()
    if not content.startswith(header) or len(content) != len(header) + prod(shape):
        raise ValueError(
            f"{path}: expected an IDX file of {prod(shape)} bytes of shape {list(shape)}, got "
            f"{len(content)} bytes that begin with {content[: len(header)].hex(' ')}. "
            "Put the published file there."
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(shape)


def read_table(
    path: Path, columns: tuple[str, ...], rows: int, *, separator: str = ","
) -> NDArray[Any]:
    """Read a table of numbers with a known header, as float32 of shape ``[rows, columns]``.

    **Raises** ``ValueError``: it is not such a table, or not a whole one.
    """
    header, *lines = path.read_text().splitlines() or [""]
    try:
        table = np.array([line.split(separator) for line in lines], np.float32)
    except ValueError as error:
        raise ValueError(f"{path}: expected numbers: {error}. Fetch the file again.") from error
    expected = separator.join(columns)
    if header != expected or table.shape != (rows, len(columns)):
        raise ValueError(
            f"{path}: expected {rows} rows below the header {expected}, got a table of "
            f"shape {list(table.shape)} below {header!r}. Put the published file there."
        )
    return table
