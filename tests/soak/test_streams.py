"""Data that are larger than memory, and files that are cut off or written to while they are read."""

import os
import random
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.children import added, children
from support.soak import Soak

import bpnet as bp

HERE = Path(__file__).parent
LIMIT = 1024
"""Megabytes of address space, with all that Python and its packages take."""


def sparse(folder: Path, gigabytes: float) -> tuple[str, str]:
    """An array of so many gigabytes and its labels, all 0 and hardly any of it on the disk."""
    rows = int(gigabytes * 2**30) // (512 * 4)
    for name, shape, dtype in (("x", (rows, 512), "<f4"), ("y", (rows,), "|u1")):
        with open(folder / f"{name}.npy", "wb") as file:
            np.lib.format.write_array_header_1_0(file, {"descr": dtype, "fortran_order": False, "shape": shape})
            file.truncate(file.tell() + int(np.prod(shape)) * np.dtype(dtype).itemsize)
    return str(folder / "x.npy"), str(folder / "y.npy")


def parquet(folder: Path, gigabytes: float) -> tuple[str, str]:
    """A table that takes so many gigabytes once it is decoded, in row groups of 1.2 GB."""
    pa, writer = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    chunk, group = 100_000, 600_000
    some = pa.array(np.random.default_rng(0).integers(0, 4096, chunk).astype("f4"))
    count = max(1, round(gigabytes * 2**30 / (group * 512 * 4)))
    whole = pa.chunked_array([some] * (group // chunk))
    labels = pa.chunked_array([pa.array(np.zeros(chunk, "i4"))] * (group // chunk))
    table = pa.table([whole] * 512 + [labels], names=[*(f"c{i}" for i in range(512)), "y"])
    with writer.ParquetWriter(folder / "t.parquet", table.schema) as file:
        for _ in range(count):
            file.write_table(table, row_group_size=group)
    return str(folder / "t.parquet"), "y"


@pytest.mark.skipif(sys.platform != "linux", reason="RLIMIT_AS is Linux's")
def test_data_that_are_larger_than_memory(soak: Soak, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1"}.items():
        monkeypatch.setenv(name, value)  # what allocators reserve of addresses and never use is no memory
    sizes = soak.count(20, 2), soak.count(5, 1)
    each = [(*make(tmp_path, size), LIMIT) for make, size in zip((sparse, parquet), sizes, strict=True)]
    found = added(children(HERE / "streamed.py", each, timeout=1800))
    detail = f".npy of {sizes[0]} GB and Parquet of {sizes[1]} GB: {max(found['peak']):.0f} MB resident at most"
    soak.record("streams", found["cases"], found["failures"], detail)


def test_files_that_are_cut_or_written_to(soak: Soak, tmp_path: Path) -> None:
    """At any moment of a training, of a map too: an error that names the file, or an end that came before it."""
    pytest.importorskip("pyarrow")
    rng, failures, cases, told = random.Random(soak.seed), [], soak.count(400, 24), 0
    x, y = np.random.default_rng(0).standard_normal((20_000, 16)).astype("f4"), np.zeros(20_000, "i4")
    trainer = bp.Trainer(bp.Dense(2), "cross_entropy", compile=False).build(x[:2])
    for case in range(cases):
        rows, path = _opened(tmp_path, x, y, kind=("npy", "map", "parquet")[case % 3])
        size, way = os.path.getsize(path), rng.choice(["cut", "write", "remove"])

        def change(path: Path = path, size: int = size, way: str = way) -> None:
            if way == "cut":
                os.truncate(path, rng.randrange(size))
            elif way == "write":
                with open(path, "r+b") as file:
                    file.seek(rng.randrange(size))
                    file.write(b"\xff" * 64)
            else:
                path.unlink()

        timer = threading.Timer(rng.random() * 0.15, change)
        timer.start()
        try:
            trainer.fit(rows, epochs=4, batch_size=256, progress=False)
        except (bp.errors.PathError, bp.errors.DataError) as error:
            told += 1
            if path.name not in str(error):
                failures.append(f"{way} of {path.name}: the error does not name it: {error}")
        except BaseException as error:
            failures.append(f"{way} of {path.name}: {type(error).__name__}: {error}")
        timer.join()
    soak.record("streams", cases, failures, f"{told} of {cases} changed files were noticed before the training's end")


def _opened(folder: Path, x: Any, y: Any, kind: str) -> tuple[bp.data.Stream, Path]:
    """A stream of a file that was just written, and the file."""
    options: dict[str, Any] = {"buffer": 2**17, "block": 100}
    if kind == "parquet":
        import pyarrow as pa
        from pyarrow import parquet

        path = folder / "x.parquet"
        parquet.write_table(pa.table([*x.T, y], names=[*map(str, range(16)), "y"]), path, row_group_size=900)
        return bp.data.stream(path, "y", **options), path
    path = folder / "x.npy"
    path.unlink(missing_ok=True)
    np.save(path, x)
    return bp.data.stream(path if kind == "npy" else np.load(path, mmap_mode="r"), y, **options), path
