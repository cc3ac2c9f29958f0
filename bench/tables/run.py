"""Lets every method learn every table: a process each, in turns, every result kept as it comes."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import field
from bench.machine import describe, keep
from bench.report import heading
from bench.tables import report
from bench.tables.fetch import Unavailable, cache_of_user
from bench.tables.methods import METHODS
from bench.tables.sets import SETS, load


def add_options(command: argparse.ArgumentParser) -> None:
    usual = ", ".join(name for name, source in SETS.items() if not source.large)
    command.add_argument("--method", action="append", choices=METHODS, help="only this one; may be repeated")
    command.add_argument("--set", action="append", choices=SETS, help=f"may be repeated; by default {usual}")
    field.add_options(command)


def run(options: argparse.Namespace) -> int:
    """Learn what was asked for and isn't kept yet, seed after seed, and print what there is to say of all."""
    begun = time.monotonic()
    result: dict[str, Any] = {"machine": describe(), "threads": options.threads, "versions": {}, "sets": {}}
    result["tables"] = []
    if options.json and options.json.exists():
        result |= json.loads(options.json.read_text(encoding="utf-8"))
    print(heading(result), flush=True)
    names = options.set or [name for name, source in SETS.items() if not source.large]
    methods, done = options.method or list(METHODS), {report.key(r) for r in result["tables"]}
    ready: dict[str, bool] = {}
    with (
        tempfile.TemporaryDirectory(prefix="bench-") as folder,
        field.Field("bench.tables.child", options.threads, Path(folder)) as learners,
    ):
        turns = [
            (name, method, seed)
            for seed in options.seed or range(5)
            for place, name in enumerate(names)
            for method in (methods if (seed + place) % 2 == 0 else methods[::-1])
            if options.again or (name, method, seed) not in done
        ]
        for name, method, seed in turns:
            if options.seconds is not None and time.monotonic() - begun > options.seconds:
                print("the time is over", flush=True)
                break
            if name not in ready:
                ready[name] = _ready(name, options.cache or cache_of_user(), Path(folder), result)
            if not ready[name] or method in learners.absent:
                continue
            when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
            answer = learners.ask(method, options.patience, table=name, seed=seed)
            if "absent" in answer:
                print(f"{method} is absent: {answer['absent']}", flush=True)
                continue
            record = {"set": name, "method": method, "seed": seed, "threads": options.threads, "date": when} | answer
            result["tables"] = [r for r in result["tables"] if report.key(r) != report.key(record)] + [record]
            result["versions"] |= learners.versions
            keep(result, options.json)
            print(report.line(record), flush=True)
    print("\n" + report.text(result), flush=True)
    return 0


def _ready(name: str, cache: Path, folder: Path, result: dict[str, Any]) -> bool:
    """Put a set where all processes find it; False, and the reason printed, where it can't be had."""
    try:
        table = load(name, cache)
    except Unavailable as reason:
        print(f"{name}: {reason}", flush=True)
        return False
    table.save(folder / f"{name}.npz")
    result["sets"][name] = table.about()
    return True
