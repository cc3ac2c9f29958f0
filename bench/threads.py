"""A step's time against the number of threads: the same contender with 1, 2, 4, ... cores, alternating."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from bench.contenders import ALL
from bench.measure import measure
from bench.plan import Case, Contestant, Plan
from bench.report import columns, label, significant


def counts_up_to(most: int) -> list[int]:
    """1, 2, 4, ... and the number itself."""
    counts = [1]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    return counts if counts[-1] == most else [*counts, most]


def run(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Every contender asked for, on (a) at 2048 and 32768 unless told otherwise, with 1, 2, 4 ... threads."""
    records = []
    rows = [["workload, batch", "", "threads", "ms best", "speed-up", "(min .. max)", "efficiency"]]
    counts = counts_up_to(options.threads)
    for key in options.workload or ["a"]:
        for batch in options.batch or [2048, 32768]:
            for name in options.contender or ["bpnet", "floor"]:
                field = [Contestant(f"{name}@{count}", ALL[name], count) for count in counts]
                case = Case(key, batch, options.dtype or "float32", ("step",))
                plan = Plan(options.threads, rounds=options.rounds)
                say = lambda text: print(f"({key}) batch {batch}, {name}: {text}", file=sys.stderr, flush=True)  # noqa: B023, E731
                (record,) = measure(case, field, plan, f"{name}@1", say)
                records.append(record)
                for count in counts:
                    line = record["contenders"][f"{name}@{count}"]
                    first = [f"({key}) {batch:,}", label(name), str(count)]
                    if line["status"] != "timed" or not line["ratio"]:
                        rows.append([*first, f"{line['status']}: {line.get('reason', '')}", "", "", ""])
                        continue
                    ratio = line["ratio"]
                    speed = {"median": 1 / ratio["median"], "min": 1 / ratio["max"], "max": 1 / ratio["min"]}
                    line["speedup"] = speed
                    spread = f"({speed['min']:.2f} .. {speed['max']:.2f})"
                    efficiency = f"{speed['median'] / count:.0%}"
                    rows.append([*first, significant(line["best_ms"]), f"{speed['median']:.2f}", spread, efficiency])
    print(columns(rows))
    return records
