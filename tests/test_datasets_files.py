"""Where published files are looked for, how they are downloaded, and how damage is reported."""

import gzip
import hashlib
import os
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest

from pyro_causal.datasets import _files as files
from pyro_causal.datasets._files import DataFile, find_file, read_idx, read_table

CONTENT = b"strokes"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package's folder in a cache of this test, and no data folder."""
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("PYRO_CAUSAL_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache" / "pyro_causal"


@pytest.fixture
def published(tmp_path: Path) -> DataFile:
    origin = tmp_path / "origin"
    origin.write_bytes(CONTENT)
    return DataFile("letters/a.gz", origin.as_uri(), hashlib.sha256(CONTENT).hexdigest())


def put(folder: Path, file: DataFile) -> Path:
    place = folder / file.name
    place.parent.mkdir(parents=True)
    place.write_bytes(b"anything")
    return place


# --- where files are looked for -------------------------------------------------------------------


def test_the_first_folder_that_has_the_file_counts(
    tmp_path: Path, cache: Path, published: DataFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, environment = tmp_path / "given", tmp_path / "environment"
    given.mkdir()
    monkeypatch.setenv("PYRO_CAUSAL_DATA", str(environment))
    for folder in (cache, environment, given):
        place = put(folder, published)
        assert find_file(published, given) == place
    assert find_file(published) == environment / published.name


def test_a_folder_may_be_written_from_the_home(
    tmp_path: Path, cache: Path, published: DataFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    place = put(tmp_path / "data", published)
    assert find_file(published, "~/data") == place
    monkeypatch.setenv("PYRO_CAUSAL_DATA", "~/data")
    assert find_file(published) == place


def test_a_folder_that_is_not_there_is_an_error(cache: Path, published: DataFile) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"letters/a\.gz: there is no folder nowhere\. Give"
    ):
        find_file(published, "nowhere")


@pytest.mark.parametrize(
    ("platform", "variable", "default"),
    [("linux", "XDG_CACHE_HOME", ".cache"), ("win32", "LOCALAPPDATA", "AppData/Local")],
)
def test_the_cache_lies_where_the_system_wants_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, variable: str, default: str
) -> None:
    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setenv(variable, str(tmp_path / "elsewhere"))
    assert files._cache_folder() == tmp_path / "elsewhere" / "pyro_causal"
    monkeypatch.setenv(variable, "")
    assert files._cache_folder() == tmp_path / default / "pyro_causal"


# --- downloads ------------------------------------------------------------------------------------


def test_a_missing_file_is_downloaded_once(cache: Path, published: DataFile) -> None:
    place = find_file(published)
    assert place == cache / published.name
    assert place.read_bytes() == CONTENT
    assert os.listdir(place.parent) == [place.name]
    assert find_file(published._replace(url="file:///gone")) == place


def test_a_wrong_download_leaves_nothing_behind(cache: Path, published: DataFile) -> None:
    with pytest.raises(
        ValueError, match=r"letters/a\.gz: expected the SHA-256 0000 from .*, got .*\. Put the"
    ):
        find_file(published._replace(sha256="0000"))
    assert not cache.exists()


def test_a_failed_download_says_where_to_put_the_file(cache: Path, published: DataFile) -> None:
    with pytest.raises(FileNotFoundError) as error:
        find_file(published._replace(url="file:///gone"))
    message = str(error.value)
    assert str(cache / published.name) in message
    assert "letters/a.gz below a folder of yours that $PYRO_CAUSAL_DATA or `path` names" in message
    assert not cache.exists()


def test_a_failed_write_leaves_nothing_behind(
    cache: Path, published: DataFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(source: str, target: Path) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileNotFoundError, match="the disk is full"):
        find_file(published)
    assert os.listdir(cache / "letters") == []


class Server(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        missing = 100 if self.path == "/cut" else 0
        self.send_response(404 if self.path == "/gone" else 200)
        self.send_header("Content-Length", str(len(CONTENT) + missing))
        self.end_headers()
        self.wfile.write(CONTENT)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def address() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Server) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_a_file_comes_from_a_server(cache: Path, published: DataFile, address: str) -> None:
    assert find_file(published._replace(url=f"{address}/whole")).read_bytes() == CONTENT


@pytest.mark.parametrize(("page", "reason"), [("gone", "404"), ("cut", "IncompleteRead")])
def test_a_server_may_fail(
    cache: Path, published: DataFile, address: str, page: str, reason: str
) -> None:
    with pytest.raises(FileNotFoundError, match=rf"download from .*/{page} failed: .*{reason}"):
        find_file(published._replace(url=f"{address}/{page}"))
    assert not cache.exists()


# --- formats --------------------------------------------------------------------------------------

HEADER = b"\0\0\x08\x02" + b"\0\0\0\x02" + b"\0\0\0\x03"


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_idx_is_read_row_by_row(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gz", gzip.compress(HEADER + bytes([1, 2, 3, 4, 5, 255])))
    assert read_idx(path, (2, 3)).tolist() == [[1, 2, 3], [4, 5, 255]]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        HEADER + bytes(5),
        HEADER + bytes(7),
        HEADER[:8],
        b"\0\0\x0d" + HEADER[3:] + bytes(6),
        b"\0\0\x08\x01" + b"\0\0\0\x06" + bytes(6),
        HEADER[:4] + b"\0\0\0\x03" + b"\0\0\0\x02" + bytes(6),
    ],
)
def test_idx_of_another_kind_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.gz", gzip.compress(content))
    with pytest.raises(
        ValueError, match=rf"a\.gz: expected an IDX file of 6 bytes.*got {len(content)} bytes.*Put"
    ):
        read_idx(path, (2, 3))


CUT = gzip.compress(HEADER + bytes(6), mtime=0)[:-9]  # without the time, which names the test


@pytest.mark.parametrize("content", [b"<html>", CUT, b""], ids=["a page", "cut", "empty"])
def test_idx_that_is_no_whole_gzip_file_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = write(tmp_path / "a.gz", content)
    with pytest.raises(ValueError, match=r"a\.gz: expected (a whole gzip|an IDX) file.*"):
        read_idx(path, (2, 3))


def test_a_table_is_read_as_float32(tmp_path: Path) -> None:
    table = read_table(write(tmp_path / "a.csv", b"n,t\n0,1.5\n1,2.25\n"), ("n", "t"), 2)
    assert table.dtype == np.float32
    assert table.tolist() == [[0.0, 1.5], [1.0, 2.25]]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"a\.csv: expected 2 rows below the header n,t, got a table of shape \[0\] below ''"),
        (b"n,t\n0,1\n", r"got a table of shape \[1, 2\] below 'n,t'\. Put the published file"),
        (b"n,i\n0,1\n1,2\n", r"got a table of shape \[2, 2\] below 'n,i'"),
        (b"n,t\n0,1\n1,x\n", r"a\.csv: expected numbers: .*'x'.*Fetch the file again"),
        (b"n,t\n0,1\n1\n", r"a\.csv: expected numbers: .*Fetch the file again"),
    ],
)
def test_another_table_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path / "a.csv", content), ("n", "t"), 2)
