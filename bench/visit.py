"""What a visit to a machine with a CUDA device asks (`visit.sh`), and the page about what was found and what was not.

Whatever was not run is said to be so.  `python -m bench report` writes the tables between the page's markers.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from bench import mnist
from bench.catalogue import report as catalogue
from bench.estimators import report as estimators
from bench.plan import Case
from bench.report import MODES, Record, case_name, crossings, kind_of, label, markdown, processor, significant
from bench.scaling import tables as scaling
from bench.suites import SUITES
from bench.tables import report as tables
from bpnet.errors import plural

NOT_RUN = "not run"
STAGES = {
    "machine": "the device, its driver, and the libraries",
    "check": "`bpnet check`: every kernel against its definition",
    "first-minute": "30 steps against NumPy, every product of cuBLASLt, microseconds of steps",
    "ranks": "NCCL with one rank, in a captured step too; two ranks of a training",
    "graph": "tests of captured steps and of streaming",
    "waits": "tests that a step neither waits nor copies",
    "rest": "all other tests for a device",
    "short": "the benchmark's short suite beside PyTorch and JAX",
    "racecheck": "compute-sanitizer: races in shared memory",
    "memcheck": "compute-sanitizer: accesses out of bounds",
    "crossing": "where the GPU overtakes the CPU",
}
"""In the order of their worth, as `visit.sh` takes them."""

EQUAL_STEPS = 30
LIMITS = {"float64": 1e-9, "float32": 1e-4, "tf32": 0.2, "bfloat16": 0.4}
"""How far the parameters may be from NumPy's after so many steps: |difference| / |the way from the start|.

The first two are rounding, of which steps make more; the others are those of the benchmark's check (`measure.py`).
"""
SHAPES = ((128, 784, 512), (128, 512, 512), (128, 512, 10), (8192, 784, 512), (8192, 4096, 4096))
"""Rows, inputs and units of the dense layers whose products are timed."""
PRODUCTS = (
    *(f"forward {epilogue}" for epilogue in ("DEFAULT", "BIAS", "RELU", "RELU_BIAS", "GELU_BIAS")),
    *("dx", "dw", "dw BGRADA", "forward RELU_BIAS to bfloat16"),
)
STEPS = (
    ("a", 128, "float32"),
    ("a", 128, "tf32"),
    ("a", 128, "bfloat16"),
    ("c", 2048, "float32"),
    ("a", 8192, "tf32"),
    ("a", 65536, "bfloat16"),
    ("g", 8192, "bfloat16"),
    ("g", 8192, "tf32"),
)
"""Workloads, rows of a batch and precisions of the steps that are timed."""
PEERS = ("torch", "torch-compile", "torch-graph", "jax", "jax-steps")

Facts = list[dict[str, Any]]


def lines_of(path: Path) -> Facts:
    """A file of JSON lines, of which the last may be cut off; none where there is no file."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def latest(folder: Path) -> Path | None:
    """The folder of the latest visit, by its name."""
    return max((path.parent for path in folder.glob("*/stages.jsonl")), default=None)


def runs(folder: Path) -> str:
    """A table of the benchmark's runs."""
    rows = [["run", "machine", "what"]]
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        machine = result["machine"]
        where = ", ".join(filter(None, (processor(result), machine.get("gpu"), f"{machine['cores']} cores")))
        rows.append([f"[{path.stem}]({path.name})", where, _contents(result)])
    return _left(rows)


def _contents(result: Record) -> str:
    if "soak" in result:
        return "`python -m pytest -m soak`"
    if "cases" not in result:
        about = {"machine", "versions", "sets"}  # and where it isn't what was measured, the number of threads
        return next(f"`python -m bench {k}`" for k, v in result.items() if k not in about and not isinstance(v, int))
    parts = []
    for key in dict.fromkeys((r["device"], r["workload"], kind_of(r), r["mode"]) for r in result["cases"]):
        records = [r for r in result["cases"] if (r["device"], r["workload"], kind_of(r), r["mode"]) == key]
        device, workload, kind, mode = key
        batches = sorted({r["batch"] for r in records})
        ends = dict.fromkeys((f"{batches[0]:,}", f"{batches[-1]:,}"))
        of = "" if kind == "float32" else f" {kind}"
        timed = max(sum(line["status"] == "timed" for line in r["contenders"].values()) for r in records)
        place = "" if device == "cpu" else " on the GPU"
        parts.append(f"({workload}){of} {' to '.join(ends)} rows{place}, {MODES[mode]}, {timed} contenders")
    return "; ".join(parts)


def _left(rows: list[list[str]]) -> str:
    """Rows as a Markdown table of text."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|---" * len(rows[0]) + "|", *body])


def gpu(folder: Path) -> str:
    """What the latest visit found; every figure that it lacks is not run."""
    visit = latest(folder)
    place = visit or folder / "no visit"
    facts = lines_of(place / "first-minute.jsonl")
    short, crossing = (_result(place / f"{name}.json") for name in ("short", "crossing"))
    way = f"Parameters after {EQUAL_STEPS} steps, how far from NumPy's as a share of their way from the start:"
    times = "Microseconds of a training step: of the device alone, of each of eight in one launch, and of the host:"
    none = "Microseconds of cuBLASLt's products, rows x inputs x units (none: it has no such product on this device):"
    tried = "Problems on which each technique was tried, against its definition:"
    checked = ["`bpnet check`", "right", "refused", "wrong", "largest difference that is right"]
    tables = {
        tried: [checked, *_checked(place / "check.json")],
        way: [["precision", "apart", "allowed", "graphs"], *_equal(facts)],
        times: [["workload, rows", "device", "of eight, on an eighth of the rows", "host"], *_steps(facts)],
        none: [["precision, shape", *PRODUCTS], *_products(facts)],
        "Sums over one rank by NCCL, microseconds by themselves and captured; and two ranks against one process:": [
            ["what is sent", "elements", "right", "by itself", "captured"],
            *_sums(facts),
        ],
        "Tests for a device:": [["", "passed", "failed", "skipped"], *_tests(lines_of(place / "tests.jsonl"))],
        "A training step's time over bpnet's, median of rounds (above 1, bpnet is faster):": [
            ["workload, batch", "bpnet, ms", *map(label, PEERS)],
            *_short(short),
        ],
    }
    parts = [_machine(visit, facts), _left([["stage", "what", "result"], *_stages(lines_of(place / "stages.jsonl"))])]
    for title, rows in tables.items():
        parts += [title, markdown(rows)]
    parts.append(f"Where the GPU overtakes the CPU: {'; '.join(_crossing(crossing)) or NOT_RUN}.")
    said = [fact for fact in facts if fact["what"] in ("failed", "warning")]
    if said:
        parts += ["What it said:", "\n".join(f"- {fact.get('error') or fact.get('text')}" for fact in said)]
    return "\n\n".join(parts)


def _result(path: Path) -> Record:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"cases": []}


def _machine(visit: Path | None, facts: Facts) -> str:
    if visit is None:
        return "**No figure here comes from a GPU: no machine with one has been visited yet.**"
    about = next((fact for fact in facts if fact["what"] == "machine"), None)
    if about is None:
        return f"The visit kept in [{visit.name}]({visit.name}) did not say to what machine."
    names = ("gpu", "driver", "runtime", "cublaslt", "cupy", "numpy", "bpnet")
    return f"[{visit.name}]({visit.name}): " + ", ".join(f"{name} {about[name]}" for name in names) + "."


def _stages(found: Facts) -> list[list[str]]:
    last = {line["stage"]: line for line in found}
    rows = []
    for name, what in STAGES.items():
        line = last.get(name, {})
        status = line.get("status", NOT_RUN)
        words = {0: "well", 124: "its time was over", 137: "its time was over", NOT_RUN: NOT_RUN}
        seconds = f", {line['seconds']} s" if status != NOT_RUN else ""
        rows.append([name, what, words.get(status, f"ended with status {status}") + seconds])
    return rows


def _cell(value: float | None, digits: int = 3) -> str:
    return NOT_RUN if value is None else significant(value, digits)


def _equal(facts: Facts) -> list[list[str]]:
    found = {fact["kind"]: fact for fact in facts if fact["what"] == "equal"}
    rows = []
    for kind, allowed in LIMITS.items():
        fact = found.get(kind)
        apart = f"{fact['apart']:.1e}{'' if fact['ok'] else ' **too far**'}" if fact else NOT_RUN
        rows.append([kind, apart, f"{allowed:g}", str(fact["graphs"]) if fact else NOT_RUN])
    return rows


def _steps(facts: Facts) -> list[list[str]]:
    found = {(f["workload"], f["rows"], f["precision"]): f for f in facts if f["what"] == "step"}
    names = ("device_us", "device_us_of_eight", "host_us")
    return [
        [f"({key}) {rows:,} {precision}", *(_cell(found.get((key, rows, precision), {}).get(name)) for name in names)]
        for key, rows, precision in dict.fromkeys([*STEPS, *found])
    ]


def _sums(facts: Facts) -> list[list[str]]:
    rows = []
    for fact in (f for f in facts if f["what"] == "sum"):
        times = (_cell(fact[name]) for name in ("us", "captured_us"))
        rows.append([fact["sent"], f"{fact['size']:,}", "yes" if fact["right"] else "**no**", *times])
    rows = rows or [["float32 or bfloat16", *[NOT_RUN] * 4]]
    both = next((f for f in facts if f["what"] == "two ranks" and "apart" in f), None)
    found = f"apart by {both['apart']:.1e} of the way{'' if both['ok'] else ', **too far**'}" if both else NOT_RUN
    how = f"by {both['how']} on {plural(both['devices'], 'device')}" if both else ""
    return [*rows, ["two ranks", how, found, "", ""]]


def _products(facts: Facts) -> list[list[str]]:
    found = {(f["precision"], *f["shape"]): f["us"] for f in facts if f["what"] == "product"}
    planned = [(p, *shape) for p in LIMITS for shape in SHAPES if p != "float64" or shape[0] <= 128]
    rows = []
    for key in dict.fromkeys([*planned, *found]):
        precision, *shape = key
        cells = []
        for name in PRODUCTS:
            if name.endswith("to bfloat16") and precision != "bfloat16":
                cells.append("")
            elif name in found.get(key, {}):
                value = found[key][name]
                cells.append("none" if value is None else significant(value))
            else:
                cells.append(NOT_RUN)
        rows.append([f"{precision} {' x '.join(map(str, shape))}", *cells])
    return rows


def _checked(path: Path) -> list[list[str]]:
    """What `bpnet check` found of each technique."""
    try:
        findings = json.loads(path.read_text(encoding="utf-8"))["findings"]
    except (OSError, ValueError, KeyError):  # it was cut off, or has not been run
        return [["every technique", *[NOT_RUN] * 4]]
    rows = []
    for name in dict.fromkeys(f["name"] for f in findings):
        some = [f for f in findings if f["name"] == name]
        right, refused = [f for f in some if f["ok"]], [f for f in some if f["refused"]]
        largest = f"{max(f['error'] for f in right):.1e}" if right else ""
        counts = len(right), len(refused), len(some) - len(right) - len(refused)
        rows.append([name, *map(str, counts), largest])
    return rows


def _tests(found: Facts) -> list[list[str]]:
    kinds = {"tests/test_graph.py": "captured steps", "tests/test_loader.py": "streaming", "tests/test_gpu.py": "waits"}
    counted: dict[str, Counter[str]] = {name: Counter() for name in (*kinds.values(), "the rest")}
    for line in found:
        counted[kinds.get(line["test"].partition("::")[0], "the rest")][line["outcome"]] += 1
    outcomes = ("passed", "failed", "skipped")
    return [[n, *(str(c[outcome]) if c else NOT_RUN for outcome in outcomes)] for n, c in counted.items()]


def _short(result: Record) -> list[list[str]]:
    found = {_key(record): record for record in result["cases"]}
    planned = {(c.workload, c.kind, c.batch): c for c in SUITES["short"].cuda}
    rows = []
    for key in dict.fromkeys([*planned, *found]):
        record, case = found.get(key), planned.get(key)
        if record is None:
            assert case is not None
            rows.append([_name(case), NOT_RUN, *(NOT_RUN if n in (case.contenders or ()) else "" for n in PEERS)])
            continue
        lines = record["contenders"]
        own = lines.get(record["subject"], {})
        time = significant(own["best_ms"]) if own.get("status") == "timed" else own.get("status", NOT_RUN)
        rows.append([case_name(record), time, *(_ratio(lines.get(name)) for name in PEERS)])
    return rows


def _ratio(line: Record | None) -> str:
    """Of a contender, which may not have met the others in this case, or have failed."""
    if line is None:
        return ""
    ratio = line.get("ratio")
    return f"{ratio['median']:.2f}" if ratio else str(line["status"])


def _key(record: Record) -> tuple[str, str, int]:
    return record["workload"], kind_of(record), record["batch"]


def _name(case: Case) -> str:
    return f"({case.workload}) {case.batch:,}" + ("" if case.kind == "float32" else f" {case.kind}")


def _crossing(result: Record) -> list[str]:
    return [f"({key}), {dtype}: {where}" for (key, dtype, _), where in crossings(result["cases"]).items()]


def filled(text: str, folder: Path) -> str:
    """The page with the tables between its markers."""
    for name, made in (
        ("runs", runs(folder)),
        ("mnist", mnist.page(folder)),
        ("catalogue", catalogue.page(folder)),
        ("estimators", estimators.page(folder)),
        ("tables", tables.page(folder)),
        ("scaling", scaling.page(folder)),
        ("gpu", gpu(folder)),
    ):
        begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise SystemExit(f"the page in {folder} needs the lines {begin} and {end}, once each and in this order")
        text = f"{text.split(begin)[0]}{begin}\n\n{made}\n\n{end}{text.split(end)[1]}"
    return text
