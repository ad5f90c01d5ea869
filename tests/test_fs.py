"""A share as an fsspec file system: its contract, and real readers of tables."""

from __future__ import annotations

import errno
import os
import pickle
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from tests.product.support import noise

import headrace
from headrace.engine.exchange import EXCHANGES
from headrace.fs import HeadraceFileSystem
from headrace.host.server import ShareServer

BIG = noise(3_000_000)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fs")
    for path, content in {
        "a.txt": b"hello",
        "big.bin": BIG,
        "sub/b.txt": b"b",
        "sub/deep/c.csv": b"x,y\n1,2\n",
        "sub/empty": b"",
        "\udcff odd": b"odd",
    }.items():
        where = folder / "share" / path
        where.parent.mkdir(parents=True, exist_ok=True)
        where.write_bytes(content)
    (folder / "share" / "link").symlink_to("a.txt")
    return folder


@pytest.fixture(scope="module")
def shared(place: Path) -> Iterator[ShareServer]:
    with headrace.share(place / "share", bind="127.0.0.1", home=place / "host", transports={"tcp"}) as shared:
        yield shared


@pytest.fixture(params=[8, 7], ids=["phase 8", "phase 7"])
def fs(request: pytest.FixtureRequest, shared: ShareServer, place: Path) -> Iterator[HeadraceFileSystem]:
    fs = HeadraceFileSystem(shared.target, home=place / "client", phase=request.param, skip_instance_cache=True)
    yield fs
    fs.close()


def test_names(fs: HeadraceFileSystem) -> None:
    assert fs.ls("", detail=False) == ["a.txt", "big.bin", "link", "sub", "\udcff odd"]
    assert fs.ls("/sub/", detail=False) == ["sub/b.txt", "sub/deep", "sub/empty"]
    assert fs.ls("a.txt", detail=False) == ["a.txt"]
    assert fs.find("sub") == ["sub/b.txt", "sub/deep/c.csv", "sub/empty"]
    assert fs.find("sub", maxdepth=1) == ["sub/b.txt", "sub/empty"]
    assert sorted(fs.find("sub", withdirs=True)) == ["sub", "sub/b.txt", "sub/deep", "sub/deep/c.csv", "sub/empty"]
    assert fs.glob("**/*.csv") == ["sub/deep/c.csv"]
    assert fs.glob("*.txt") == ["a.txt"]
    assert fs.exists("sub/deep")
    assert not fs.exists("sub/nothing")
    assert fs.isdir("sub")
    assert fs.isfile("a.txt")
    assert fs.du("sub") == 9


def test_what_is_told_of_an_entry(fs: HeadraceFileSystem, place: Path) -> None:
    st = (place / "share" / "a.txt").stat()
    info = fs.info("a.txt")
    assert (info["size"], info["type"], info["mtime_ns"], info["mode"]) == (5, "file", st.st_mtime_ns, st.st_mode)
    assert fs.modified("a.txt").timestamp() == pytest.approx(st.st_mtime)
    assert fs.info("sub")["type"] == "directory"
    assert fs.info("link")["destination"] == "a.txt"
    assert fs.ukey("a.txt") != fs.ukey("big.bin")


def test_bytes(fs: HeadraceFileSystem) -> None:
    assert fs.cat_file("a.txt") == b"hello"
    assert fs.cat_file("big.bin", 1_000_000, 1_000_010) == BIG[1_000_000:1_000_010]
    assert fs.cat_file("big.bin", -10) == BIG[-10:]
    assert fs.cat_file("sub/empty") == b""
    assert fs.cat(["sub/b.txt", "sub/empty"]) == {"sub/b.txt": b"b", "sub/empty": b""}
    with fs.open("big.bin") as file:
        assert file.seek(-5, os.SEEK_END) == len(BIG) - 5
        assert file.read() == BIG[-5:]
        file.seek(7)
        assert file.read(100) == BIG[7:107]
        assert file.tell() == 107
    with fs.open("big.bin") as file:
        assert file.read() == BIG
    with fs.open("sub/deep/c.csv", "r") as file:
        assert file.readlines() == ["x,y\n", "1,2\n"]


def test_many_ranges_at_once_and_those_that_cannot_be_had(fs: HeadraceFileSystem) -> None:
    starts = [number * 1000 for number in range(50)]
    ends = [start + 10 for start in starts]
    assert fs.cat_ranges(["big.bin"] * 50, starts, ends) == [
        BIG[start:end] for start, end in zip(starts, ends, strict=True)
    ]
    good, missing, folder = fs.cat_ranges(["a.txt", "nothing", "sub"], 1, 3)
    assert good == b"el"
    assert isinstance(missing, FileNotFoundError)
    assert isinstance(folder, IsADirectoryError)
    with pytest.raises(FileNotFoundError):
        fs.cat_ranges(["nothing"], 0, 1, on_error="raise")


def test_ranges_are_asked_for_at_the_same_time(fs: HeadraceFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four requests are out before any answer is read: one after the other would wait for each other for ever."""
    together = threading.Barrier(4, timeout=20)
    exchange = EXCHANGES[fs.storage_options["phase"]]
    request = exchange.request

    def meet(*asked: Any) -> None:
        request(*asked)
        together.wait()

    monkeypatch.setattr(exchange, "request", meet)
    starts = [0, 700_000, 1_400_000, 2_100_000]
    found = fs.cat_ranges(["big.bin"] * 4, starts, [start + 9 for start in starts])
    assert found == [BIG[start : start + 9] for start in starts]


def test_writing(place: Path, tmp_path: Path) -> None:
    (place / "written").mkdir()
    with headrace.share(
        place / "written", bind="127.0.0.1", home=place / "host", transports={"tcp"}, write=True
    ) as shared:
        fs = HeadraceFileSystem(shared.target, home=place / "client", skip_instance_cache=True)
        with fs.open("sub/a.txt", "w") as text:
            text.write("hello")
            assert not fs.exists("sub/a.txt")  # not before it is whole
        assert fs.cat_file("sub/a.txt") == b"hello"
        fs.pipe_file("sub/a.txt", b"replaced")
        (tmp_path / "tree" / "deep").mkdir(parents=True)
        (tmp_path / "tree" / "deep" / "b").write_bytes(b"b")
        fs.put(str(tmp_path / "tree"), "tree", recursive=True)
        with pytest.raises(FileExistsError), fs.open("sub/a.txt", "xb") as taken:
            taken.write(b"other")
        with pytest.raises(ZeroDivisionError), fs.open("sub/half", "wb") as half:
            half.write(b"half of it")
            raise ZeroDivisionError
        with pytest.raises(OSError, match="mode"):
            fs.open("sub/a.txt", "ab")
        fs.close()
    found = {str(path.relative_to(place / "written")) for path in (place / "written").rglob("*") if path.is_file()}
    assert found == {"sub/a.txt", "tree/deep/b"}
    assert (place / "written" / "sub" / "a.txt").read_bytes() == b"replaced"


def test_what_is_refused(fs: HeadraceFileSystem, shared: ShareServer, place: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        fs.info("nothing")
    with pytest.raises(ValueError, match="path in a share"):
        fs.info("../share/a.txt")
    with pytest.raises(OSError, match="read-only") as refused:
        fs.open("a.txt", "wb")
    assert refused.value.errno == errno.EROFS
    with pytest.raises(ValueError, match="target"):
        HeadraceFileSystem("")
    secret = shared.code.text.partition("-")[2]
    wrong = HeadraceFileSystem(f"2222-2222-2222@127.0.0.1:{shared.port}", home=place / "other")
    with pytest.raises(PermissionError) as no:
        wrong.ls("")
    assert secret not in str(no.value)
    wrong.close()


def test_a_file_that_changes_while_it_is_open_is_never_mixed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(noise(2_000_000))
    with headrace.share(tmp_path / "file", bind="127.0.0.1", home=tmp_path / "host", transports={"tcp"}) as shared:
        fs = HeadraceFileSystem(shared.target, home=tmp_path / "client", skip_instance_cache=True)
        with fs.open("") as file:
            assert file.read(10) == noise(2_000_000)[:10]
            (tmp_path / "file").write_bytes(noise(2_000_000, "new"))
            file.seek(1_500_000)
            with pytest.raises(OSError, match="changed|another version|version") as stale:
                file.read(10)
            assert stale.value.errno == errno.ESTALE
        assert fs.cat_file("", 0, 10) == noise(2_000_000, "new")[:10]
        fs.close()


def test_by_url(shared: ShareServer, place: Path) -> None:
    with fsspec.open(f"headrace://{shared.target}/sub/b.txt", home=place / "client") as file:
        assert file.read() == b"b"
    fs, path = fsspec.core.url_to_fs(f"headrace://{shared.target}/sub", home=place / "client")
    assert path == "sub"
    assert fs.unstrip_protocol("sub/b.txt") == f"headrace://127.0.0.1:{shared.port}/sub/b.txt"
    again = pickle.loads(pickle.dumps(fs))
    assert again.cat_file("sub/b.txt") == b"b"


def test_the_code_from_the_environment(shared: ShareServer, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEADRACE_CODE", shared.code.text)
    fs = HeadraceFileSystem(f"127.0.0.1:{shared.port}", home=place / "client", skip_instance_cache=True)
    assert fs.cat_file("a.txt") == b"hello"
    assert shared.code.text not in str(fs.to_dict())
    fs.close()


# ---- tables ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def table(place: Path) -> Path:
    """20 columns of 200,000 numbers each, in row groups of 50,000: over 24 MB."""
    import numpy
    import pyarrow
    from pyarrow import parquet

    random = numpy.random.default_rng(0)
    columns = {f"c{number}": random.integers(0, 1 << 44, 200_000) for number in range(20)}
    path = place / "share" / "table.parquet"
    parquet.write_table(pyarrow.table(columns), path, row_group_size=50_000, use_dictionary=False)
    assert path.stat().st_size > 24_000_000
    return path


def _by_pandas(url: str, fs: Any) -> int:
    import pandas

    return int(pandas.read_parquet("table.parquet", columns=["c7"], filesystem=fs)["c7"].sum())


def _by_pyarrow(url: str, fs: Any) -> int:
    from pyarrow import compute, parquet

    return int(compute.sum(parquet.read_table("table.parquet", columns=["c7"], filesystem=fs)["c7"]).as_py())


def _by_duckdb(url: str, fs: Any) -> int:
    import duckdb

    connection = duckdb.connect()
    connection.register_filesystem(fs)
    (found,) = connection.execute(f"select sum(c7) from '{url}'").fetchone() or (0,)
    return int(found)


@pytest.mark.slow
@pytest.mark.parametrize("read", [_by_pandas, _by_pyarrow, _by_duckdb])
def test_a_column_of_a_table_moves_little_more_than_that_column(
    shared: ShareServer, place: Path, table: Path, read: Any
) -> None:
    from pyarrow import compute, parquet

    fs = HeadraceFileSystem(shared.target, home=place / "client", skip_instance_cache=True)
    before = shared.registry.look().bytes_sent
    found = read(fs.unstrip_protocol("table.parquet"), fs)
    fs.close()
    moved = shared.registry.look().bytes_sent - before
    assert found == compute.sum(parquet.read_table(table, columns=["c7"])["c7"]).as_py()
    size = table.stat().st_size
    print(f"{read.__name__}: {moved:,} of {size:,} bytes, {moved / size:.1%}")
    assert moved < size * 0.07  # the column is a twentieth
