"""The frame of the soak suite: what its tests record is the table, and what failed is never missing from it."""

from types import SimpleNamespace
from typing import Any

import pytest
from support import soak


def report(when: str = "call", *rows: tuple[str, int, int, str]) -> Any:
    properties = [("soak", dict(zip(("fault", "cases", "failures", "detail"), row, strict=True))) for row in rows]
    return SimpleNamespace(when=when, user_properties=properties, duration=2.0, nodeid="tests/soak/test_x.py::test_y")


def test_rows_are_sums_in_the_order_of_the_table() -> None:
    reports = {
        "passed": [
            report("call", ("own", 1, 0, "a"), ("resume", 2, 0, "")),
            report("call", ("kill", 5, 0, "")),
            report("call", ("own", 3, 0, "b")),
            report("setup"),
        ],
        "failed": [report("call", ("kill", 6, 2, "seen")), report("call", ("resume", 3, 0, ""))],
        "error": [report("setup")],
    }
    rows = soak.rows_of(SimpleNamespace(getreports=reports.__getitem__))
    assert [(row["fault"], row["cases"], row["failures"], row["details"], row["seconds"]) for row in rows] == [
        ("kill", 11, 2, ["seen"], 4.0),
        ("resume", 5, 0, [], 3.0),
        ("own", 4, 0, ["a", "b"], 3.0),
        ("tests/soak/test_x.py::test_y", 0, 2, ["ended early, in its call", "ended early, in its setup"], 4.0),
    ]
    assert rows[0]["title"] == soak.FAULTS["kill"]


def test_what_is_recorded_as_a_failure_fails() -> None:
    config = SimpleNamespace(option=SimpleNamespace(sample=True, soak_seed=7))
    found = soak.Soak(SimpleNamespace(config=config, user_properties=[]))  # type: ignore[arg-type]
    assert found.count(1000, 3) == 3
    found.record("kill", cases=3)
    with pytest.raises(pytest.fail.Exception, match=r"kill: 2 of 3 cases failed \(--soak-seed 7\)\nfirst\nsecond"):
        found.record("kill", cases=3, failures=["first", "second"])
    with pytest.raises(pytest.fail.Exception, match="1 of 3"):
        found.record("kill", cases=3, failures=1)
    with pytest.raises(AssertionError, match="nothing was tried"):
        found.record("kill", cases=0)
    assert [row["failures"] for _, row in found._node.user_properties] == [0, 2, 1, 0]
