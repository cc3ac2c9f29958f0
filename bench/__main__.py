"""``python -m bench``: see ``python -m bench --help``."""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench import report
from bench.contenders import ALL, floor_on, subject_on
from bench.machine import accelerator, describe
from bench.measure import Case, Plan, available_cores, contestants, measure
from bench.suites import SUITES
from bench.workloads import WORKLOADS


def parser() -> argparse.ArgumentParser:
    workloads = "; ".join(f"{key}: {workload.title}" for key, workload in WORKLOADS.items())
    top = argparse.ArgumentParser(
        prog="python -m bench",
        description="Throughput of bpnet beside its peers, each in its own process, alternating in short rounds. "
        f"Workloads: {workloads}. Contenders: {', '.join(ALL)}.",
    )
    top.add_argument(
        "--suite", choices=SUITES, default="default", help="; ".join(f"{k}: {s.about}" for k, s in SUITES.items())
    )
    top.add_argument("--quick", action="store_const", dest="suite", const="quick", help="the same as --suite quick")
    top.add_argument("--rounds", type=_count, help="rounds in which every contender has its turn")
    top.add_argument("--seconds", type=float, help="length of one contender's turn")
    _common(top)
    top.add_argument(
        "--mode",
        action="append",
        choices=("step", "predict"),
        help="full training step, or forward only; as the suite has it by default",
    )
    top.add_argument("--subject", choices=ALL, help="the contender that ratios are taken to")
    top.add_argument("--plot", type=Path, metavar="FILE", help="draw throughput against batch size")

    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="other measurements")
    profile = commands.add_parser("profile", help="where one step's time goes, by layer and by phase")
    epoch = commands.add_parser("epoch", help="an epoch through Trainer.fit against the bare steps")
    imports = commands.add_parser("import", help="time of `import bpnet` over `import numpy`")
    threads = commands.add_parser("threads", help="a step's time against the number of threads")
    written = commands.add_parser("report", help="write README's table and picture from bench/results/*.json")
    for command in (profile, epoch, threads):
        _common(command, argparse.SUPPRESS)  # what stands before the command holds too
    profile.add_argument("--steps", type=int, help="steps to take; about two seconds' worth by default")
    epoch.add_argument("--rows", type=int, help="rows of the data; 32 batches by default")
    for command in (epoch, imports, threads):
        command.add_argument("--rounds", type=_count, default=argparse.SUPPRESS, help="10 by default")
    imports.add_argument("--json", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="keep the figures")
    written.add_argument("--results", type=Path, default=report.RESULTS, help="where the JSON files are")
    written.add_argument("--readme", type=Path, default=report.README, help="the page with the markers")
    return top


def _common(command: argparse.ArgumentParser, default: Any = None) -> None:
    def add(name: str, default: Any = default, **options: Any) -> None:
        command.add_argument(name, default=default, **options)

    add("--workload", action="append", choices=WORKLOADS, help="only this one; may be repeated")
    add("--batch", action="append", type=_count, help="only this batch size; may be repeated")
    add("--dtype", choices=("float32", "float64"))
    add("--contender", action="append", choices=ALL, help="only this one; may be repeated")
    add("--device", choices=("cpu", "cupy"), help="cupy: the first CUDA device; by default both where there is one")
    threads = len(available_cores()) if default is None else default
    add("--threads", threads, type=_count, help="of every contender; all cores by default")
    add("--json", type=Path, metavar="FILE", help="keep the figures")


def _count(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def cases_of(options: argparse.Namespace) -> list[Case]:
    """The suite's cases, or the ones asked for by workload and batch."""
    suite = SUITES[options.suite]
    if options.workload is None and options.batch is None and options.dtype is None:
        cases = list(suite.cases)
    else:
        keys = options.workload or sorted({case.workload for case in suite.cases})
        dtype = options.dtype or "float32"
        batches = {key: options.batch or sorted({c.batch for c in suite.cases if c.workload == key}) for key in keys}
        cases = [Case(key, batch, dtype) for key in keys for batch in batches[key] or WORKLOADS[key].batches]
    return [replace(case, modes=tuple(options.mode)) if options.mode else case for case in cases]


def devices_of(options: argparse.Namespace) -> list[str]:
    """The CPU, and a CUDA device where there is one, unless one of them was asked for."""
    if options.device is None:
        return ["cpu", "cuda"] if accelerator() else ["cpu"]
    return ["cuda" if options.device == "cupy" else "cpu"]


def names_of(options: argparse.Namespace, device: str) -> list[str]:
    """The contenders asked for that run on the device, with the subject and the floor first."""
    wanted = options.contender or SUITES[options.suite].contenders
    names = [name for name in wanted if device in ALL[name].devices]
    first = [options.subject or subject_on(device), floor_on(device)]
    return list(dict.fromkeys([*first, *names]))


def run(options: argparse.Namespace) -> int:
    """Measure the suite, printing a table after each case and keeping the file up to date."""
    devices, suite, cases = devices_of(options), SUITES[options.suite], cases_of(options)
    result: dict[str, Any] = {"format": 1, "machine": describe(), "threads": options.threads, "cases": []}
    print(report.heading(result), flush=True)
    started = time.perf_counter()
    todo = [(device, case) for device in devices for case in cases]
    for number, (device, case) in enumerate(todo, 1):
        plan = Plan(options.threads, device, options.rounds or suite.rounds, options.seconds or suite.seconds)
        names = names_of(options, device)
        place = f"[{number}/{len(todo)}] {device} ({case.workload}) {case.dtype} batch {case.batch}"

        def say(text: str, place: str = place) -> None:
            print(f"{time.perf_counter() - started:7.0f} s  {place}: {text}", file=sys.stderr, flush=True)

        for record in measure(case, contestants(names, plan), plan, options.subject, say):
            result["cases"].append(record)
            print("\n" + report.table(record), flush=True)
            keep(result, options.json)
    print("\n" + report.overview(result), flush=True)
    out = [ALL[name].label for name in ALL if name not in names_of(options, "cpu") and "cpu" in ALL[name].devices]
    if out and "cpu" in devices:
        print(f"\nNot asked for: {', '.join(out)}; --contender NAME or --suite targets brings them.", flush=True)
    if options.plot:
        report.plot(result, options.plot)
    return 0


def keep(result: dict[str, Any], path: Path | None) -> None:
    """Write the figures so that an interrupted run leaves the last whole file."""
    if path is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".part")
    fresh.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def main(arguments: list[str] | None = None) -> int:
    commands = parser()
    options = commands.parse_args(arguments)
    if options.command is None:
        return run(options)
    if options.command == "report":
        report.write(options.results, options.readme)
        return 0
    from bench import epoch, imports, profile, scaling

    options.rounds = options.rounds or 10
    if options.command in ("profile", "epoch"):
        for name in options.contender or ():
            if ALL[name].module != "bpnet_trainer":
                commands.error(f"{options.command} looks into bpnet: {name} is none of its contenders")
    modules: dict[str, Any] = {"profile": profile, "epoch": epoch, "import": imports, "threads": scaling}
    result = modules[options.command].run(options)
    keep({"machine": describe(), options.command: result}, options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
