"""The soak suite, `tests/soak`: every fault of a table again and again, with the figures in the summary.

    python -m pytest -m soak                 all of it, which takes hours: -n and a choice by -k help
    python -m pytest -m soak --sample        some of each row, two minutes on two cores
    ... --soak-results FILE.json             keeps the figures; `python -m bench report` makes README's table of those
                                             in bench/results
    ... --soak-seed N                        other moments, files and networks than those of seed 0

Without `-m soak` none of its files is imported, and with it no other test is.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parent.parent / "soak"

FAULTS = {
    "kill": "kill -9 while saving and checkpointing",
    "power loss": "power loss: what was not synced is lost, in every combination",
    "file system": "ENOSPC, EIO, short writes, folders read-only or gone, two writers, files cut while read",
    "cache": "the cache of machine code: damaged, planted by others, full, read-only, missing",
    "resume": "a training resumed from its checkpoint",
    "damage": "truncation at every byte, every single-bit flip",
    "hostile files": "hostile files, and mutations by a coverage-guided fuzzer",
    "bad input": "bad input of 49 classes, for every argument of every public name",
    "divergence": "divergence, and NaN planted in a layer",
    "interrupt": "Ctrl-C at any moment",
    "memory": "a batch that needs more memory than there is (RLIMIT_AS), and again by the parts that the error names",
    "streams": "streams: 20 GB within 1 GB of memory (RLIMIT_AS), and files cut or written to while they are read",
    "growth": "memory over 1,000 epochs, and over 1,000 batch sizes",
    "ranks with a gpu": "one of several ranks with a GPU each is lost (substitutes for GPUs and NCCL)",
    "threads": "threads, several fits at once, fork, spawn, loky, exit",
    "processes": "20 processes, 10 hash seeds",
    "ranks": "ranks that are killed, stopped, hang or fail; a network that is slow, loses packets or is gone",
}
"""Rows of the table in their order; a row of another name comes after these, under that name."""


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("soak", "the soak suite (-m soak)")
    group.addoption("--sample", action="store_true", help="some cases of each fault, two minutes in all")
    group.addoption("--soak-results", metavar="FILE", type=Path, help="keep the table's figures as JSON")
    group.addoption("--soak-seed", metavar="N", type=int, default=0, help="what is random in it (0)")


def asked(config: pytest.Config) -> bool:
    return "soak" in config.option.markexpr.replace("not soak", "")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Of tests/soak nothing unless it is asked for; and nothing else where only that is."""
    if collection_path == FOLDER or FOLDER in collection_path.parents:
        return None if asked(config) else True
    return True if config.option.markexpr == "soak" and collection_path.is_file() else None


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FOLDER in item.path.parents:
            item.add_marker("soak")


class Soak:
    """How much of a fault a test is to try, and what came of it."""

    def __init__(self, node: pytest.Item) -> None:
        self.sample: bool = node.config.option.sample
        self.seed: int = node.config.option.soak_seed
        self._node = node

    def count(self, full: int, sample: int) -> int:
        """How many cases to try."""
        return sample if self.sample else full

    def record(self, fault: str, cases: int, failures: int | Collection[str] = (), detail: str = "") -> None:
        """Enter figures in the row `fault` of the table, to which several tests may add; fails where anything failed.

        `failures` is how many cases, or a text for each of them; `detail` figures that the row is to show.
        """
        told = [] if isinstance(failures, int) else [str(failure) for failure in failures]
        failed = failures if isinstance(failures, int) else len(told)
        row = {"fault": fault, "cases": int(cases), "failures": int(failed), "detail": detail}
        self._node.user_properties.append(("soak", row))
        if failed:
            shown = "\n".join(told[:20])
            pytest.fail(f"{fault}: {failed} of {cases} cases failed (--soak-seed {self.seed})\n{shown}", pytrace=False)
        assert cases > 0, f"{fault}: nothing was tried"


@pytest.fixture
def soak(request: pytest.FixtureRequest) -> Soak:
    return Soak(request.node)


def rows_of(reporter: Any) -> list[dict[str, Any]]:
    """The table's rows, each the sum of what tests have recorded; of what failed before that, a row of its own."""
    rows: dict[str, dict[str, Any]] = {}

    def add(fault: str, cases: int, failures: int, detail: str, seconds: float) -> None:
        row = rows.setdefault(fault, {"fault": fault, "cases": 0, "failures": 0, "details": [], "seconds": 0.0})
        row["cases"] += cases
        row["failures"] += failures
        row["seconds"] += seconds
        row["details"] += [detail] if detail and detail not in row["details"] else []

    for kind in ("passed", "failed", "error"):
        for report in reporter.getreports(kind):
            found = [value for name, value in report.user_properties if name == "soak"]
            if report.when == "call":
                for value in found:
                    add(**value, seconds=report.duration / len(found))
            if kind != "passed" and not any(value["failures"] for value in found):
                add(report.nodeid, 0, 1, f"ended early, in its {report.when}", report.duration)
    for name, row in rows.items():
        row["title"] = FAULTS.get(name, name)
        row["place"] = list(FAULTS).index(name) if name in FAULTS else len(FAULTS)
    return sorted(rows.values(), key=lambda row: (row["place"], row["fault"]))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    if not asked(config) or config.option.collectonly:
        return
    rows = rows_of(terminalreporter)
    terminalreporter.section(f"faults: {'a sample' if config.option.sample else 'all'}, seed {config.option.soak_seed}")
    terminalreporter.line(f"{'cases':>9} {'failures':>8} {'seconds':>8}  fault")
    for row in rows:
        terminalreporter.line(f"{row['cases']:>9,} {row['failures']:>8,} {row['seconds']:>8.1f}  {row['title']}")
        for detail in row["details"]:
            terminalreporter.line(f"{'':29}{detail}")
    if path := config.option.soak_results:
        from bench.machine import describe

        machine = describe()
        for name in ("gpu", "environment"):  # the substitute, and what tests set
            machine.pop(name, None)
        result = {"machine": machine, "sample": config.option.sample, "seed": config.option.soak_seed, "soak": rows}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
