"""A pytest plugin: a line of JSON for each test as soon as it ends, and a share of the tests for one of some processes.

    python -m pytest -p bench.recorder --record FILE --share 1/8

Several processes may write to one file, and what was written before one is ended stays.
"""

from __future__ import annotations

import json
import os
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--record", metavar="FILE", help="append a line of JSON for each test")
    parser.addoption("--share", default="0/1", metavar="I/N", help="of each N tests, only the one numbered I, from 0")


def pytest_configure(config: pytest.Config) -> None:
    if path := config.getoption("--record"):
        config.pluginmanager.register(Recorder(path))


@pytest.hookimpl(trylast=True)  # after `-m` has chosen
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    number, count = map(int, config.getoption("--share").split("/"))
    items[:] = items[number::count]


class Recorder:
    def __init__(self, path: str) -> None:
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """One line a test: of its call, or where it did not come to that, of what it failed or skipped in."""
        if report.when != "call" and report.outcome == "passed":
            return
        line: dict[str, Any] = {"test": report.nodeid, "outcome": report.outcome, "seconds": round(report.duration, 3)}
        if report.user_properties:
            line["figures"] = dict(report.user_properties)
        if report.outcome != "passed":
            line["why"] = report.longreprtext[-2000:]
        os.write(self.file, (json.dumps(line, default=str) + "\n").encode())  # whole, whoever else writes

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """And one for each file that can't be read."""
        if report.outcome == "failed":
            line = {"test": report.nodeid, "outcome": "failed", "seconds": 0.0, "why": report.longreprtext[-2000:]}
            os.write(self.file, (json.dumps(line) + "\n").encode())
