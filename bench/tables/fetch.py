"""Data sets of R packages: fetched once from Debian into the user's cache, and read as columns."""

from __future__ import annotations

import bz2
import lzma
import os
import shutil
import subprocess
import tempfile
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

Columns = dict[str, np.ndarray[Any, Any]]
"""Numbers are float64, missing as NaN; everything else is text, missing as ''."""


class Unavailable(RuntimeError):
    """A data set can't be had here; the message says why."""


def cache_of_user() -> Path:
    """Where data sets are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bpnet-tables"


def package(name: str, cache: Path) -> Path:
    """The data files of the R package that Debian calls ``r-cran-NAME``, downloaded where they are not kept."""
    folder = cache / name
    if folder.exists():
        return folder
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"{tool} is not here, which fetches r-cran-{name} from Debian")
    print(f"fetching r-cran-{name}", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="bench-", dir=cache) as made:
        place = Path(made)
        _run(["apt-get", "download", f"r-cran-{name}"], place)
        found = next(place.glob("*.deb"))
        _run(["dpkg-deb", "-x", found.name, "unpacked"], place)
        data = next((place / "unpacked").glob("usr/lib/R/*library/*/data"))
        data.rename(folder)
    return folder


def _run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if done.returncode != 0:
        last = done.stderr.strip().splitlines()[-1:] or ["no message"]
        raise Unavailable(f"{' '.join(command)}: {last[0]}")


def columns(folder: Path, name: str) -> Columns:
    """The columns of a data frame among a package's data files."""
    return {str(key): _column(series) for key, series in _frame(folder, name).items()}


def _frame(folder: Path, name: str) -> Any:
    try:
        import rdata
    except ModuleNotFoundError:
        raise Unavailable("rdata is not installed, which reads R's files") from None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes and attributes that it doesn't know
        for ending in (".rda", ".RData"):
            if (path := folder / f"{name}{ending}").exists():
                return rdata.read_rda(path)[name]
        return rdata.conversion.convert(rdata.parser.parse_data(_lazy(folder, name, rdata)))


def _lazy(folder: Path, name: str, rdata: Any) -> bytes:
    """An object of a package that keeps all of its data in one file, and where each lies there in another."""
    head = (folder / "Rdata.rdx").read_bytes()
    index = rdata.conversion.convert(rdata.parser.parse_data(zlib.decompress(head) if head[:1] == b"x" else head))
    start, length = (int(number) for number in index["variables"][name])
    packed = (folder / "Rdata.rdb").read_bytes()[start + 4 : start + length]  # the first four bytes: its whole length
    if packed[:1] == b"2":
        return bz2.decompress(packed[1:])
    if packed[:1] == b"Z":
        return lzma.decompress(packed[1:], lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])
    return zlib.decompress(packed)


def _column(series: Any) -> np.ndarray[Any, Any]:
    """A column of a data frame: numbers, or text (also of truth values, and of the grades of an ordered factor)."""
    if str(series.dtype) in ("category", "string", "object", "str", "boolean", "bool"):
        missing = np.asarray(series.isna(), bool)
        return np.array(["" if gone else str(v) for v, gone in zip(series, missing, strict=True)])
    return np.asarray(series.to_numpy(dtype=float, na_value=np.nan), np.float64)
