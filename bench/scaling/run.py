"""``python -m bench scaling``: what is measured, what is kept of it, and what is printed."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench.machine import describe, keep
from bench.plan import available_cores
from bench.report import heading
from bench.scaling import links, page, ranks, streams, tables
from bench.workloads import WORKLOADS

PARTS = ("ranks", "streams", "links")
RESULTS = Path(__file__).resolve().parent.parent / "results"
MOST_RANKS = 16


def add_options(command: argparse.ArgumentParser, count: Callable[[str], int]) -> None:
    """The command line; `count` reads a whole number from 1 up."""
    command.add_argument(
        "part",
        nargs="*",
        choices=[[], *PARTS, "model"],
        help="ranks: epochs by ranks, threads and PyTorch; streams: epochs fed from files; links: all-reduces and "
        "steps over slow links; model: fit the model to what was kept, and write its page; the first three by default",
    )
    command.add_argument("--workload", action="append", choices=WORKLOADS, default=argparse.SUPPRESS)
    command.add_argument("--batch", action="append", type=count, default=argparse.SUPPRESS, help="may be repeated")
    command.add_argument("--ranks", type=count, help="the most; as many as there are cores, up to 16, by default")
    command.add_argument("--kind", action="append", choices=("strong", "weak"), help="only this scaling")
    command.add_argument("--only", action="append", metavar="NAME", help="only these contenders; may be repeated")
    command.add_argument("--rounds", type=count, default=argparse.SUPPRESS, help="10 of ranks, 7 of streams by default")
    command.add_argument("--seconds", type=float, default=0.3, help="length of one contender's turn, of ranks")
    command.add_argument("--rows", type=count, default=ranks.ROWS, help="of an epoch, of ranks")
    command.add_argument("--megabytes", type=count, default=200, help="of the files, of streams, up to 131,072 rows")
    command.add_argument("--hosts", action="append", type=count, help="of links: 2, 4, 8 and 16 by default")
    command.add_argument("--json", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="keep the figures")
    command.add_argument("--results", type=Path, default=RESULTS, help="of the model: where the JSON files are")
    command.add_argument("--page", type=Path, default=page.PAGE, help="of the model: the page that is written")


def run(options: argparse.Namespace) -> int:
    """Measure the parts asked for one after the other, keeping each record as it comes; then print the tables."""
    if options.part == ["model"]:
        page.write(options.results, options.page)
        print(f"wrote {options.page}")
        return 0
    began = time.monotonic()
    cores = len(available_cores())
    most = min(options.ranks or MOST_RANKS, MOST_RANKS, cores)
    result: dict[str, Any] = {"machine": describe(), "threads": cores, "scaling": {}}
    print(heading(result), flush=True)

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:7.0f} s  {text}", file=sys.stderr, flush=True)

    def keeper(part: str) -> Callable[[dict[str, Any]], None]:
        kept = result["scaling"].setdefault(part, [])

        def keep_one(record: dict[str, Any]) -> None:
            kept.append(record)
            keep(result, getattr(options, "json", None))

        return keep_one

    def cases(default: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
        keys = options.workload or list(default)
        return {key: tuple(options.batch or default.get(key, (2048,))) for key in keys}

    counts = ranks.counts_up_to(most)
    for part in options.part or PARTS:
        if part == "ranks":
            plan = ranks.Plan(
                counts=tuple(counts),
                rounds=options.rounds or 10,
                seconds=options.seconds,
                rows=options.rows,
                only=tuple(options.only or ()),
                kinds=tuple(options.kind or ("strong", "weak")),
            )
            ranks.run(cases(ranks.DEFAULT), plan, say, keeper(part))
        elif part == "streams":
            only = tuple(options.only or streams.LABELS)
            plan_of_streams = streams.Plan(cores, options.rounds or 7, options.megabytes, only)
            streams.run(cases(streams.DEFAULT), plan_of_streams, say, keeper(part))
        elif part == "links":
            chosen = links.Plan(hosts=tuple(options.hosts)) if options.hosts else links.Plan()
            links.run(chosen, counts, say, keeper(part))
    print(tables.text(result["scaling"]), flush=True)
    return 0
