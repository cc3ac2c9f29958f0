"""Lets every estimator learn every case: a process each, in turns, every result kept as it comes."""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import field
from bench.estimators import report
from bench.estimators.cases import CASES
from bench.estimators.contenders import CONTENDERS
from bench.machine import describe, keep
from bench.report import heading
from bench.tables.fetch import Unavailable, cache_of_user


def add_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("--case", action="append", choices=CASES, help="only this one; may be repeated")
    command.add_argument("--estimator", action="append", choices=CONTENDERS, help="only this one; may be repeated")
    field.add_options(command)


def run(options: argparse.Namespace) -> int:
    """Measure what was asked for and isn't kept yet, case after case, and print what there is to say of all."""
    begun = time.monotonic()
    result: dict[str, Any] = {"machine": describe(), "threads": options.threads, "versions": {}, "estimators": []}
    if options.json and options.json.exists():
        result |= json.loads(options.json.read_text(encoding="utf-8"))
    print(heading(result), flush=True)
    done = {report.key(r) for r in result["estimators"]}
    names = options.estimator or list(CONTENDERS)
    for case in options.case or CASES:
        turns = [
            (name, seed)
            for seed in options.seed or range(5)
            for name in (names if seed % 2 == 0 else names[::-1])
            if options.again or (case, name, seed) not in done
        ]
        late = options.seconds is not None and time.monotonic() - begun > options.seconds
        if not turns or late:
            continue
        with tempfile.TemporaryDirectory(prefix="bench-") as made:
            folder = Path(made)
            try:
                parts = CASES[case].data(options.cache or cache_of_user())
            except Unavailable as reason:
                print(f"{case}: {reason}", flush=True)
                continue
            for part, values in zip(("x", "y", "x_test", "y_test"), parts, strict=True):
                np.save(folder / f"{part}.npy", values)
            with field.Field("bench.estimators.child", options.threads, folder, case=case) as learners:
                for name, seed in turns:
                    if options.seconds is not None and time.monotonic() - begun > options.seconds:
                        print("the time is over", flush=True)
                        break
                    if name in learners.absent:
                        continue
                    when = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime())
                    answer = learners.ask(name, options.patience, seed=seed)
                    if "absent" in answer:
                        print(f"{name} is absent: {answer['absent']}", flush=True)
                        continue
                    record = {"case": case, "estimator": name, "seed": seed, "threads": options.threads, "date": when}
                    record |= answer
                    others = [r for r in result["estimators"] if report.key(r) != report.key(record)]
                    result["estimators"] = [*others, record]
                    result["versions"] |= learners.versions
                    keep(result, options.json)
                    print(report.line(record), flush=True)
    print("\n" + report.text(result), flush=True)
    return 0
