"""A visit to a machine with a GPU: its stages and their limits, what its first minute says, and the page about it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support import substitute

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import child, visit  # noqa: E402

SCRIPT = ROOT / "bench" / "visit.sh"

STANDING_IN = """#!/bin/bash
echo "$@" >>"$out/calls"
case "$*" in
*$LATE*) sleep 60 ;;
*$WRONG*) exit 3 ;;
esac
"""
"""In the place of Python: it notes what it is asked."""


def visited(tmp_path: Path, seconds: int, late: str = "nothing", wrong: str = "nothing") -> tuple[int, Any, str]:
    """Exit status, the stages by name, and what Python was asked, of a visit where one thing is late and one wrong."""
    python, out = tmp_path / "python", tmp_path / "out"
    python.write_text(STANDING_IN)
    python.chmod(0o755)
    environment = os.environ | {"PYTHON": str(python), "LATE": late, "WRONG": wrong}
    environment.pop("REHEARSE", None)
    done = subprocess.run(["bash", str(SCRIPT), str(out), str(seconds), str(tmp_path)], env=environment, timeout=60)
    return done.returncode, {s["stage"]: s for s in visit.lines_of(out / "stages.jsonl")}, (out / "calls").read_text()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a visit is to a machine with Linux")
class TestStages:
    def test_every_stage_has_its_turn(self, tmp_path: Path) -> None:
        status, stages, calls = visited(tmp_path, 100)
        assert status == 0
        assert [name for name in visit.STAGES if name in stages] == [*stages]
        assert {*visit.STAGES} - {*stages} <= {"racecheck", "memcheck"}  # where compute-sanitizer is missing
        assert {stage["status"] for stage in stages.values()} == {0}
        assert calls.count("--share 7/8") == 2
        assert "check --device cuda:0 --json" in calls
        assert re.search(r"--suite short --limit 8\d ", calls)  # so that it ends by itself in time

    def test_what_fails_or_is_late_does_not_end_it(self, tmp_path: Path) -> None:
        status, stages, _ = visited(tmp_path, 6, late="tests/test_graph.py", wrong="bpnet check")
        assert status == 1
        assert stages["check"]["status"] == 3
        assert stages["first-minute"]["status"] == 0
        assert stages["graph"]["status"] == 124
        assert stages["waits"] == {"stage": "waits", "status": "not run", "seconds": 0}
        assert sum(stage["seconds"] for stage in stages.values()) <= 6

    def test_its_page_names_its_stages(self) -> None:
        named = re.findall(r"^ *stage ([\w$-]+) \d+", SCRIPT.read_text(), flags=re.MULTILINE)
        expected = [name for name in visit.STAGES if name not in ("racecheck", "memcheck")]
        assert [name for name in named if name not in ("wheels", "$tool")] == expected


def test_tests_are_recorded_one_by_one(tmp_path: Path) -> None:
    """By processes that share them; also of a file that can't be read."""
    (tmp_path / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(record_property): record_property('host us', 7.5)\n"
        "def test_bad(): assert 1 == 2\n"
        "def test_left_out(): pytest.skip('no device')\n"
        "@pytest.fixture\ndef broken(): raise OSError('no such thing')\n"
        "def test_broken(broken): ...\n"
    )
    (tmp_path / "test_unreadable.py").write_text("import a_module_that_is_not_there\n")
    record = tmp_path / "tests.jsonl"
    (tmp_path / "empty.ini").touch()
    options = "-c empty.ini --rootdir . -p bench.recorder -p no:cacheprovider --continue-on-collection-errors -q"
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "pytest", *options.split(), "--record", record, "--share", f"{number}/2"],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            stdout=subprocess.DEVNULL,
        )
        for number in range(2)
    ]
    for process in started:
        process.wait(60)
    found = {line["test"]: line for line in visit.lines_of(record)}
    outcomes = {name.partition("::")[2] or name: line["outcome"] for name, line in found.items()}
    assert outcomes == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_left_out": "skipped",
        "test_broken": "failed",
        "test_unreadable.py": "failed",
    }
    assert found["test_some.py::test_good"]["figures"] == {"host us": 7.5}
    assert "no such thing" in found["test_some.py::test_broken"]["why"]
    assert "a_module_that_is_not_there" in found["test_unreadable.py"]["why"]
    assert "no device" in found["test_some.py::test_left_out"]["why"]


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["machine", "equal", "products", "steps"])
def test_a_part_of_the_first_minute(part: str, library: Any) -> None:
    library("cupy")
    from bench import first_minute

    said: list[dict[str, Any]] = []
    first_minute.PARTS[part](lambda what, **facts: said.append({"what": what, **facts}), small=True)
    facts = json.loads(json.dumps(said))
    if part == "machine":
        assert facts[0]["gpu"]
    elif part == "equal":
        assert {fact["kind"] for fact in facts} == {*visit.LIMITS}
        assert all(fact["ok"] and fact["graphs"] for fact in facts)
    elif part == "products":
        assert {fact["precision"] for fact in facts} == {*visit.LIMITS}
        assert {name for fact in facts for name in fact["us"]} == {*visit.PRODUCTS}
    else:
        assert [(f["workload"], f["rows"], f["precision"]) for f in facts] == [*first_minute.SMALL_STEPS]
        assert all(fact["captured"] and fact["device_us_of_eight"] > 0 for fact in facts)


@pytest.mark.gpu
@pytest.mark.parametrize("part", ["sums", "step"])
def test_what_a_visit_asks_about_ranks(part: str, library: Any) -> None:
    library("cupy")
    from bench import first_ranks

    if substitute.missing() == "":
        substitute.install_nccl()
    said: list[dict[str, Any]] = []
    first_ranks.PARTS[part](lambda what, **facts: said.append({"what": what, **facts}), small=True)
    if part == "sums":
        assert [(fact["sent"], fact["right"], fact["error"]) for fact in said] == [
            ("float32", True, None),
            ("bfloat16", True, None),
        ]
        assert all(fact["counted"][0] == fact["counted"][1] > 2 for fact in said)
    else:
        assert said == [{"what": "step with a sum", "equal": True, "graphs": 1}]


# ---- the page -------------------------------------------------------------------------------------------------------


def test_the_page_is_what_is_made_of_the_runs() -> None:
    """`python -m bench report` writes it."""
    page = ROOT / "bench" / "results" / "README.md"
    text = page.read_text(encoding="utf-8")
    assert visit.filled(text, page.parent) == text
    with pytest.raises(SystemExit, match="gpu:begin"):
        visit.filled(text.replace("<!-- gpu:begin -->", ""), page.parent)


def test_without_a_visit_nothing_is_claimed(tmp_path: Path) -> None:
    told = visit.gpu(tmp_path)
    assert "No figure here comes from a GPU" in told
    for name in visit.STAGES:
        assert re.search(rf"^\| {name} \| .* \| not run \|$", told, flags=re.MULTILINE)
    assert "| (a) 128 float32 | not run | not run | not run |" in told
    assert not re.search(r"\| \d", told.partition("Microseconds")[2])


def test_what_a_visit_found_is_shown_and_the_rest_not_run(tmp_path: Path) -> None:
    """Of the latest visit, though it was cut off in the midst of a line."""
    (tmp_path / "2026-11-30-old").mkdir()
    (tmp_path / "2026-11-30-old" / "stages.jsonl").touch()
    folder = tmp_path / "2026-12-01-h200"
    folder.mkdir()
    of_case = {
        "workload": "a",
        "dtype": "float32",
        "precision": "tf32",
        "batch": 8192,
        "mode": "step",
        "device": "cuda",
    }
    timed = {"status": "timed", "best_ms": 0.5, "ratio": {"median": 1.0}}
    lines = {"bpnet-cupy": timed, "torch": timed | {"ratio": {"median": 2.5}}, "jax": {"status": "failed"}}
    files: dict[str, Any] = {
        "stages.jsonl": [
            {"stage": "machine", "status": 0, "seconds": 3},
            {"stage": "check", "status": 1, "seconds": 20},
            {"stage": "waits", "status": 124, "seconds": 60},
            {"stage": "crossing", "status": "not run", "seconds": 0},
        ],
        "first-minute.jsonl": [
            {"what": "warning", "text": "a step can't be captured"},
            {"what": "equal", "kind": "float32", "apart": 3e-3, "ok": False, "graphs": 2},
            {"what": "product", "precision": "tf32", "shape": [128, 512, 10], "us": {"dx": 7.25, "dw BGRADA": None}},
            {"what": "step", "workload": "a", "rows": 128, "precision": "float32", "device_us": 91.0, "host_us": 18.0},
            {"what": "sum", "sent": "bfloat16", "size": 675000, "right": False, "us": 12.5, "captured_us": None},
            {"what": "two ranks", "how": "mpi", "devices": 1, "apart": 2e-3, "ok": False},
        ],
        "tests.jsonl": [
            {"test": "tests/test_graph.py::test_a", "outcome": "passed"},
            {"test": "tests/test_graph.py::test_b", "outcome": "failed"},
            {"test": "tests/test_layers.py::test_c", "outcome": "skipped"},
        ],
        "check.json": [
            {
                "findings": [
                    {"name": "product tf32 BIAS", "ok": True, "refused": "", "error": 3e-4},
                    {"name": "product tf32 BIAS", "ok": False, "refused": "the library has none", "error": None},
                    {"name": "fused kernels", "ok": False, "refused": "", "error": 0.5},
                ]
            }
        ],
        "short.json": [{"cases": [of_case | {"subject": "bpnet-cupy", "contenders": lines}]}],
    }
    for name, values in files.items():
        (folder / name).write_text("".join(json.dumps(value) + "\n" for value in values))
    with open(folder / "first-minute.jsonl", "a") as file:
        file.write('{"what": "step", "work')
    told = visit.gpu(tmp_path)
    for row in (
        "| machine | the device, its driver, and the libraries | well, 3 s |",
        "ended with status 1, 20 s |",
        "its time was over, 60 s |",
        "| product tf32 BIAS | 1 | 1 | 0 | 3.0e-04 |",
        "| fused kernels | 0 | 0 | 1 |  |",
        "| float32 | 3.0e-03 **too far** | 0.0001 | 2 |",
        "| (a) 128 float32 | 91.0 | not run | 18.0 |",
        "| not run | 7.25 | not run | none |  |",
        "| bfloat16 | 675,000 | **no** | 12.5 | not run |",
        "| two ranks | by mpi on 1 device | apart by 2.0e-03 of the way, **too far** |",
        "| captured steps | 1 | 1 | 0 |",
        "| the rest | 0 | 0 | 1 |",
        "| streaming | not run | not run | not run |",
        "| (a) 8,192 tf32 | 0.500 | 2.50 |  |  | failed |  |",
        "| (a) 128 | not run | not run |  | not run |",
        "the GPU overtakes the CPU: not run.",
        "- a step can't be captured",
    ):
        assert row in told
    assert "2026-12-01-h200" in told


# ---- how long a step takes ------------------------------------------------------------------------------------------


def test_a_step_is_estimated_when_its_first_calls_are_over() -> None:
    """The first 64 are slow, the next 64 slower still; what is fast from then on is what counts."""
    done = 0

    def run(steps: int) -> float:
        nonlocal done
        cost = [600e-6 if i < 64 else 900e-6 if i < 128 else 30e-6 for i in range(done, done + steps)]
        done += steps
        return sum(cost)

    assert child.estimate(run, 64, 0.01) == pytest.approx(30e-6)
    assert done < 2000
    done = 10**6
    assert child.estimate(run, 64, 0.5) == pytest.approx(30e-6)


def test_slow_steps_are_estimated_by_few() -> None:
    asked: list[int] = []

    def run(steps: int) -> float:
        asked.append(steps)
        return 3.0 if len(asked) == 1 else 2.0 * steps

    assert child.estimate(run, 64, 0.1) == 2.0
    assert asked == [1, 2]
