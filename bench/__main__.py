"""``python -m bench``: see ``python -m bench --help``."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from bench import mnist, picture, readme, report, roof
from bench.contenders import ALL, floor_on, subject_on
from bench.estimators import run as fitted
from bench.machine import accelerator, describe, keep, why_no_accelerator
from bench.measure import Line, contestants, measure, record_of
from bench.plan import Case, Plan, available_cores
from bench.scaling import run as scaled
from bench.suites import SUITES
from bench.tables import run as learned
from bench.workloads import PRECISIONS, WORKLOADS

FIRST_GUESS = 6.0  # seconds that one contender takes on a GPU in one case, most of them to start


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
    top.add_argument(
        "--precision",
        action="append",
        choices=PRECISIONS,
        help="of products of float32 arrays on a GPU; may be repeated",
    )
    top.add_argument(
        "--limit", type=float, metavar="SECONDS", help="for all cases on a GPU; those that no longer fit are not begun"
    )
    top.add_argument("--subject", choices=ALL, help="the contender that ratios are taken to")
    top.add_argument("--plot", type=Path, metavar="FILE", help="draw throughput against batch size")

    commands = top.add_subparsers(dest="command", metavar="COMMAND", title="other measurements")
    profile = commands.add_parser("profile", help="where one step's time goes, by layer and by phase")
    epoch = commands.add_parser("epoch", help="an epoch through Trainer.fit against the bare steps")
    imports = commands.add_parser("import", help="time of `import bpnet` over `import numpy`")
    threads = commands.add_parser("threads", help="a step's time against the number of threads")
    scaling = commands.add_parser(
        "scaling", help="ranks of MPI against threads and PyTorch, training from files, and the model of 1,024 GPUs"
    )
    published = commands.add_parser("mnist", help="figures published for MNIST, by bpnet; fetches 11 MB once")
    catalogue = commands.add_parser("catalogue", help="a step around each entry of the catalogue, against peers")
    estimators = commands.add_parser(
        "estimators", help="fit, predict, score and memory against scikit-learn and others"
    )
    tables = commands.add_parser("tables", help="real tables learned by bpnet and by its peers; fetches 20 MB once")
    written = commands.add_parser("report", help="write README's table and picture from bench/results/*.json")
    for command in (profile, epoch, threads):
        _common(command, argparse.SUPPRESS)  # what stands before the command holds too
    profile.add_argument("--steps", type=int, help="steps to take; about two seconds' worth by default")
    epoch.add_argument("--rows", type=int, help="rows of the data; 32 batches by default")
    epoch.add_argument("--fed", action="store_true", help="the rows stream from NumPy arrays to the device")
    for command in (epoch, imports, threads):
        command.add_argument("--rounds", type=_count, default=argparse.SUPPRESS, help="10 by default")
    kinds = ("layers", "activations", "losses", "optimizers")
    catalogue.add_argument("--entry", action="append", metavar="NAME", help="only this one; may be repeated")
    catalogue.add_argument("--kind", action="append", choices=kinds, help="only these; may be repeated")
    catalogue.add_argument("--peer", action="append", choices=("torch", "compile", "jax"), help="only this one")
    catalogue.add_argument("--batch", action="append", type=_count, help="32, 512 and 8192 by default")
    catalogue.add_argument("--threads", type=_count, default=argparse.SUPPRESS, help="all cores by default")
    catalogue.add_argument("--rounds", type=_count, default=argparse.SUPPRESS, help="5 by default")
    catalogue.add_argument("--turn", type=float, default=0.03, help="seconds of one contender's turn")
    catalogue.add_argument("--seconds", type=float, default=1150.0, help="for all; entries not begun by then are told")
    catalogue.add_argument("--json", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="keep the figures")
    imports.add_argument("--json", type=Path, metavar="FILE", default=argparse.SUPPRESS, help="keep the figures")
    scaled.add_options(scaling, _count)
    mnist.add_options(published)
    learned.add_options(tables)
    fitted.add_options(estimators)
    written.add_argument("--results", type=Path, default=readme.RESULTS, help="where the JSON files are")
    written.add_argument("--readme", type=Path, default=readme.README, help="the page with the markers")
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
    add(
        "--json",
        type=Path,
        metavar="FILE",
        help="keep the figures; a whole suite on a GPU is kept in bench/results unasked",
    )


def _count(text: str) -> int:
    """A whole number from 1 up."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 up")
    return int(text)


def cases_of(options: argparse.Namespace, device: str = "cpu") -> list[Case]:
    """The suite's cases on the device, or the ones asked for by workload, batch, type and precision."""
    suite = SUITES[options.suite]
    planned = suite.cases if device == "cpu" else suite.cuda
    asked = (options.workload, options.batch, options.dtype, None if device == "cpu" else options.precision)
    if all(option is None for option in asked):
        cases = list(planned)
    else:
        keys = options.workload or list(dict.fromkeys(sorted(case.workload for case in planned)))
        dtype = options.dtype or "float32"
        precisions = options.precision or ["float32"]
        if device == "cpu" or dtype == "float64":
            precisions = ["float32"]
        batches = {key: options.batch or sorted({c.batch for c in planned if c.workload == key}) for key in keys}
        modes = Case.modes if device == "cpu" else ("step",)
        cases = [
            Case(key, batch, dtype, modes, precision)
            for key in keys
            for precision in precisions
            for batch in batches[key] or WORKLOADS[key].batches
        ]
    return [replace(case, modes=tuple(options.mode)) if options.mode else case for case in cases]


def devices_of(options: argparse.Namespace) -> list[str]:
    """The CPU, and a CUDA device where there is one, unless one of them was asked for."""
    if options.device is None:
        return ["cpu", "cuda"] if accelerator() else ["cpu"]
    return ["cuda" if options.device == "cupy" else "cpu"]


def names_of(options: argparse.Namespace, device: str, case: Case | None = None) -> list[str]:
    """The contenders asked for that run on the device, with the subject and the floor first."""
    of_case = None if case is None else case.contenders
    wanted = options.contender or of_case or SUITES[options.suite].contenders
    names = [name for name in wanted if device in ALL[name].devices]
    first = [options.subject or subject_on(device), floor_on(device)]
    return list(dict.fromkeys([*first, *names]))


def run(options: argparse.Namespace) -> int:
    """Measure the suite, printing a table after each case and keeping the file up to date."""
    result: dict[str, Any] = {"format": 1, "machine": describe(), "threads": options.threads, "cases": []}
    print(report.heading(result), flush=True)
    devices = devices_of(options)
    asked = ("workload", "batch", "dtype", "precision", "contender", "mode", "rounds", "seconds", "subject")
    whole = all(getattr(options, name) is None for name in asked)
    if options.json is None and whole and "cuda" in devices and accelerator():
        options.json = place_for(result["machine"], options.suite)
        print(f"the figures are kept in {options.json}", flush=True)
    for device in devices:
        if device == "cuda" and not accelerator():
            _absent(options, result)
        else:
            _run_on(device, options, result)
    print("\n" + report.overview(result), flush=True)
    out = [ALL[name].label for name in ALL if name not in names_of(options, "cpu") and "cpu" in ALL[name].devices]
    if out and "cpu" in devices:
        print(f"\nNot asked for: {', '.join(out)}; --contender NAME or --suite targets brings them.", flush=True)
    if options.device is None and not accelerator():
        gone = "; ".join(entry.label for entry in ALL.values() if entry.devices == ("cuda",))
        print(f"\nAbsent: {gone}: {why_no_accelerator()}.", flush=True)
    if options.plot:
        picture.plot(result, options.plot)
    return 0 if any(report.timed_names([record]) for record in result["cases"]) else 1


def place_for(machine: dict[str, Any], suite: str) -> Path:
    """Where the figures of a machine with a GPU are kept, so that a short visit to one can't lose them."""
    name = "-".join("".join(c if c.isalnum() else " " for c in machine["gpu"].lower()).split())
    first = readme.RESULTS / f"{machine['date'][:10]}-{name}-{suite}.json"
    others = (first.with_stem(f"{first.stem}-{number}") for number in itertools.count(2))
    return next(path for path in itertools.chain([first], others) if not path.exists())


def _run_on(device: str, options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Measure the cases on one device; on a GPU as many as the suite's time allows, and what was left out is kept."""
    suite, cases = SUITES[options.suite], cases_of(options, device)
    started = time.monotonic()
    limit = None if device == "cpu" else options.limit or suite.limit
    spent = weighed = 0.0  # on the cases so far, and their contenders
    if device == "cuda" and cases:
        result["roof"] = roof.measured(min(roof.PATIENCE, limit / 4) if limit else roof.PATIENCE)
        print(roof.text(result["roof"]), flush=True)
        if limit:
            result["limit_s"] = limit
            print(f"{len(cases)} cases, at most {limit:.0f} s; those that no longer fit are not begun", flush=True)
    for number, case in enumerate(cases, 1):
        names = names_of(options, device, case)
        place = f"[{number}/{len(cases)}] {device} ({case.workload}) {case.kind} batch {case.batch}"
        begun = time.monotonic()
        expected = len(names) * (spent / weighed if weighed else FIRST_GUESS)
        if limit and begun - started + expected > limit:
            left = max(0.0, limit - begun + started)
            reason = f"about {expected:.0f} s would be needed, of {limit:.0f} s are {left:.0f} left"
            result.setdefault("not_run", []).append(asdict(case) | {"device": device, "reason": reason})
            print(f"\n{place}: not run: {reason}", flush=True)
            keep(result, options.json)
            continue
        plan = Plan(
            options.threads,
            device,
            options.rounds or suite.rounds,
            options.seconds or suite.seconds,
            deadline=started + limit if limit else None,
        )

        def say(text: str, place: str = place) -> None:
            print(f"{time.monotonic() - started:7.0f} s  {place}: {text}", file=sys.stderr, flush=True)

        for record in measure(case, contestants(names, plan), plan, options.subject, say):
            result["cases"].append(record | roof.of_case(result.get("roof"), record))
            print("\n" + report.table(result["cases"][-1]), flush=True)
            keep(result, options.json)
        spent, weighed = spent + time.monotonic() - begun, weighed + len(names)
    if limit:
        result["seconds"] = round(time.monotonic() - started, 1)
        keep(result, options.json)


def _absent(options: argparse.Namespace, result: dict[str, Any]) -> None:
    """Say of every contender on a GPU that it can't take part, and keep that."""
    plan, reason = Plan(options.threads, "cuda"), why_no_accelerator()
    subject, gone = options.subject or subject_on("cuda"), dict[str, Line]()
    for case in cases_of(options, "cuda"):
        lines = {name: Line("absent", reason) for name in names_of(options, "cuda", case)}
        gone |= lines
        result["cases"] += [record_of(case, mode, plan, subject, 0, {}, lines) for mode in case.modes]
    print(
        f"\nAbsent from all {len(result['cases'])} cases: {'; '.join(map(report.label, gone))}: {reason}.", flush=True
    )
    keep(result, options.json)


def main(arguments: list[str] | None = None) -> int:
    commands = parser()
    options = commands.parse_args(arguments)
    if options.precision and devices_of(options) == ["cpu"] and set(options.precision) != {"float32"}:
        commands.error("--precision is for a CUDA device: products on a CPU are float32, or float64 by --dtype")
    if options.command is None:
        return run(options)
    if options.command == "report":
        readme.write(options.results, options.readme)
        return 0
    if options.command == "mnist":
        return mnist.run(options)
    if options.command == "tables":
        return learned.run(options)
    if options.command == "estimators":
        return fitted.run(options)
    if options.command == "catalogue":
        return run_catalogue(options)
    if options.command == "scaling":
        return scaled.run(options)
    from bench import epoch, imports, profile, threads

    options.rounds = options.rounds or 10
    if options.command in ("profile", "epoch"):
        for name in options.contender or ():
            if ALL[name].module != "bpnet_trainer":
                commands.error(f"{options.command} looks into bpnet: {name} is none of its contenders")
    modules: dict[str, Any] = {"profile": profile, "epoch": epoch, "import": imports, "threads": threads}
    result = modules[options.command].run(options)
    keep({"machine": describe(), options.command: result}, options.json)
    return 0


def run_catalogue(options: argparse.Namespace) -> int:
    """Measure the catalogue, keeping the figures of what is done."""
    from bench.catalogue.run import run as measured

    machine = describe()
    print(report.heading({"machine": machine, "threads": options.threads}), flush=True)
    options.rounds = options.rounds or 5

    def keep_all(record: dict[str, Any]) -> None:
        keep({"machine": machine, "catalogue": record}, options.json)

    keep_all(measured(options, keep_all))
    return 0


if __name__ == "__main__":
    sys.exit(main())
