"""An epoch fed from files against one from memory, in alternating rounds: same network, same batch, files in the page
cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.plan import available_cores
from bench.scaling.group import Failed, Group
from bench.scaling.ranks import Say, alternate, make_data, spread
from bench.workloads import WORKLOADS

Record = dict[str, Any]

LABELS = {
    "memory": "fit, arrays in memory",
    "memory-steps": "a step for each batch, arrays in memory",
    "mapped": "fit, np.memmap",
    "stream-npy": "bp.data.stream, .npy",
    "stream-exact": "bp.data.stream, .npy, exact shuffle",
    "stream-parquet": "bp.data.stream, Parquet",
    "torch-npy": "PyTorch DataLoader, .npy",
    "torch-npy-worker": "PyTorch DataLoader, .npy, 1 worker",
    "torch-parquet": "PyTorch DataLoader, Parquet, 1 worker",
    "grain-rows": "grain, .npy, row by row",
    "grain-batches": "grain, .npy, batch by batch",
    "grain-parquet": "grain, Parquet, row by row",
}
SLOW = ("grain-rows", "grain-parquet")
"""Who takes Python a row: these have a turn in the first rounds only."""
SLOW_ROUNDS = 3
DEFAULT = {"a": (512, 2048), "c": (2048, 8192), "d": (2048,)}
ROW_GROUP = 16384
MOST_ROWS = 131072


@dataclass(frozen=True)
class Plan:
    threads: int
    rounds: int = 7
    megabytes: int = 200  # of the rows, up to MOST_ROWS; the window that is shuffled holds a quarter of them
    only: tuple[str, ...] = tuple(LABELS)


def make_files(key: str, rows: int, folder: Path) -> None:
    """x.npy, y.npy, and where pyarrow is installed table.parquet, a column a feature, uncompressed by its numbers."""
    make_data(WORKLOADS[key], rows, folder)
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError:
        return
    x, y = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in "xy")
    names = [f"x{i}" for i in range(x.shape[1])]
    writer = None
    for start in range(0, rows, ROW_GROUP):
        part = slice(start, start + ROW_GROUP)
        columns = {name: np.ascontiguousarray(x[part, i]) for i, name in enumerate(names)} | {"y": y[part]}
        table = pa.table(columns)
        if writer is None:
            writer = parquet.ParquetWriter(folder / "table.parquet", table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def run(cases: dict[str, tuple[int, ...]], plan: Plan, say: Say, keep: Callable[[Record], None]) -> list[Record]:
    """Measure every workload at its batches; `keep` is told each record as it is there."""
    records = []
    for key, batches in cases.items():
        workload = WORKLOADS[key]
        rows = max(4 * max(batches), min(MOST_ROWS, int(plan.megabytes * 1e6) // (4 * workload.inputs)))
        with tempfile.TemporaryDirectory(prefix="bench-") as made:
            folder = Path(made)
            make_files(key, rows, folder)
            for batch in batches:
                record = _case(key, batch, rows, folder, plan, say)
                records.append(record)
                keep(record)
    return records


def _case(key: str, batch: int, rows: int, folder: Path, plan: Plan, say: Say) -> Record:
    workload = WORKLOADS[key]
    say(f"({key}) batch {batch}, {rows:,} rows")
    order = {"kind": "feed", "workload": key, "batch": batch, "folder": str(folder), "threads": plan.threads}
    order |= {"cores": available_cores()[: plan.threads], "buffer": rows * workload.inputs * 4 // 4}
    absent: dict[str, str] = {}
    with ExitStack() as stack:
        groups: dict[str, Group] = {}
        for name in plan.only:
            try:
                group = stack.enter_context(Group(name, order | {"name": name}, 1))
                group.ask("prepare", batch=batch, rows=rows)
                groups[name] = group
            except Failed as reason:
                say(f"({key}) left out: {reason}")
                absent[name] = str(reason)
        once = dict.fromkeys(groups, 1)
        slow = min(SLOW_ROUNDS, plan.rounds)
        found = alternate(groups, once, slow)
        quick = {name: group for name, group in groups.items() if name not in SLOW}
        for name, answers in alternate(quick, once, plan.rounds - slow).items():
            found[name] += answers
    lines: dict[str, Any] = {}
    for name, answers in found.items():
        seconds = [answer["seconds"] for answer in answers]
        lines[name] = {"seconds": seconds}
        if "memory" in found:
            speed = [m["seconds"] / own for m, own in zip(found["memory"], seconds, strict=False)]
            lines[name]["speed_over_memory"] = spread(speed)
    record: Record = {"workload": key, "title": workload.title, "batch": batch, "rows": rows, "threads": plan.threads}
    return record | {"bytes": rows * workload.inputs * 4, "contenders": lines, "absent": absent}
