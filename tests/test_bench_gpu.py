"""The instrument on a GPU, as far as it can be proven without one: contenders of NumPy stand in for those of CUDA."""

import importlib.util
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import conftest
import numpy as np
import pytest
from support.world import World

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import __main__ as command  # noqa: E402
from bench import device, epoch, measure, memory, picture, readme, report, roof  # noqa: E402
from bench.contenders import ALL, Entry  # noqa: E402
from bench.plan import Case, Contestant, Plan  # noqa: E402
from bench.process import environment  # noqa: E402
from bench.suites import SUITES  # noqa: E402
from bench.workloads import WORKLOADS, Task, pool, start_values  # noqa: E402

TINY = Plan(threads=1, rounds=3, seconds=0.001)
ON_CUDA = Plan(threads=1, device="cuda", rounds=3, seconds=0.001)

STANDING_IN = """
from bench.contenders.numpy_plain import PlainNumPy
import numpy as np
import time

class StandingIn(PlainNumPy):
    def __init__(self, task, error=0.0, sleep=0.0, together=1):
        assert task.device == "cuda"
        super().__init__(task, np)
        self.error, self.sleep, self.together = error, sleep, together

    def step(self, x, y):
        time.sleep(self.sleep)
        return super().step(x, y) * (1 + self.error)

    def several(self, x, y):
        return [self.step(*batch) for batch in zip(x, y)]

make = StandingIn
"""


@pytest.fixture
def standing_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """entry(**options): a contender on "cuda" that computes with NumPy."""
    package = tmp_path / "planted"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "standing_in.py").write_text(STANDING_IN)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(memory, "free_device_memory", lambda: 80e9)
    return lambda **options: Entry("stands in", "planted.standing_in", options, ("cuda",))


def test_contenders_on_a_gpu_are_checked_and_timed(standing_in: Any) -> None:
    entries = {"own": standing_in(), "several": standing_in(together=4), "wrong": standing_in(error=0.005)}
    field = [Contestant(name, entry, 1) for name, entry in entries.items()]
    for precision, status in (("tf32", "disagrees"), ("bfloat16", "timed")):
        (record,) = measure.measure(Case("d", 8, modes=("step",), precision=precision), field, ON_CUDA, subject="own")
        lines = record["contenders"]
        assert {name: line["status"] for name, line in lines.items()} == {
            "own": "timed",
            "several": "timed",
            "wrong": status,
        }
        assert record["precision"] == precision
        assert lines["own"]["agreement"]["way"] == 0.0
        assert 0 < lines["own"]["host_us"] <= lines["own"]["median_ms"] * 1e5  # or units are mixed up
        assert "host us" in report.table(record)
        assert precision in report.table(record)
        assert lines["several"]["agreement"]["loss"] == 0.0


def test_rows_of_the_check_are_not_those_of_the_batch() -> None:
    assert measure.checked_rows(Case("a", 128), "cpu") == 128
    assert measure.checked_rows(Case("a", 128), "cuda") == 96
    assert measure.checked_rows(Case("a", 1), "cuda") == 1
    assert measure.checked_rows(Case("a", 262144), "cuda") == measure.CUDA_CHECK_ROWS
    assert 100 < measure.checked_rows(Case("g", 8192), "cuda") < 1000


def test_the_precision_is_pinned_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    for precision, override in (("float32", "0"), ("bfloat16", "0"), ("tf32", None)):
        found = environment(1, "cuda", precision)
        assert found.get("NVIDIA_TF32_OVERRIDE") == override
        assert found["CUPY_TF32"] == "0"  # those who want TF32 ask for it themselves


def test_the_device_has_memory_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    case, field = Case("g", 8192), measure.contestants(["bpnet-cupy", "floor-cupy", "torch", "jax"], ON_CUDA)
    anchors, peers = field[:2], field[2:]
    need = {c.name: memory.needs(c.entry, case, "cuda") for c in field}
    parameters = WORKLOADS["g"].parameter_count()
    assert parameters == 8 * 4096 * 4097 + 4097 * 10
    assert all(device_bytes > 6 * 4 * parameters for _, device_bytes in need.values())
    monkeypatch.setattr(memory, "free_memory", lambda: 1e15)
    monkeypatch.setattr(memory, "free_device_memory", lambda: 1e15)
    assert memory.groups(peers, anchors, case, ON_CUDA) == [peers]
    room = (need["bpnet-cupy"][1] + need["floor-cupy"][1] + 1.1 * need["torch"][1]) / ON_CUDA.memory
    monkeypatch.setattr(memory, "free_device_memory", lambda: room)
    assert memory.groups(peers, anchors, case, ON_CUDA) == [peers[:1], peers[1:]]
    monkeypatch.setattr(memory, "free_device_memory", lambda: 1e9)
    assert memory.groups(peers, anchors, case, ON_CUDA) == []
    half = memory.device_memory_needed(ALL["torch"], WORKLOADS["g"], Case("g", 8192, precision="bfloat16"))
    assert half < need["torch"][1]
    assert len(memory.needs(ALL["torch"], case, "cpu")) == 1


def test_the_short_suite_fits_an_h100() -> None:
    for case in SUITES["short"].cuda:
        names = [*(case.contenders or ()), "floor-cupy"]
        total = sum(memory.needs(ALL[name], case, "cuda")[1] for name in names if name != "floor-cupy")
        assert total + memory.needs(ALL["floor-cupy"], case, "cuda")[1] < 0.8 * 80e9, case
    assert (SUITES["short"].limit or 0) <= 460  # of 480, so that there is time to write and draw


@pytest.fixture
def fake_gpu(standing_in: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m bench` on a machine that seems to have a GPU."""
    for name in ("bpnet-cupy", "floor-cupy", "torch"):
        monkeypatch.setitem(ALL, name, standing_in())
    found = {"copy_gb_per_second": 2900.0, "tflops": {"float32": 50.0, "tf32": 400.0, "bfloat16": 700.0}}
    monkeypatch.setattr(roof, "measured", lambda patience: found)
    monkeypatch.setattr(command, "accelerator", lambda: "Some GPU")


def bench(arguments: str) -> int:
    return command.main([*arguments.split(), "--threads", "1", "--rounds", "3", "--seconds", "0.001"])


@pytest.mark.usefixtures("fake_gpu")
def test_cases_are_measured_until_the_time_is_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "run.json"
    arguments = "--device cupy --workload d --precision tf32 --precision bfloat16 --batch 4 --contender torch"
    assert bench(f"{arguments} --json {kept} --limit 300") == 0
    result = json.loads(kept.read_text())
    assert [(case["precision"], case["rounds"]) for case in result["cases"]] == [("tf32", 3), ("bfloat16", 3)]
    assert result["roof"]["copy_gb_per_second"] == 2900.0
    assert result["limit_s"] == 300
    assert 0 < result["seconds"] < 300
    assert "not_run" not in result
    first = result["cases"][0]
    flops, size = WORKLOADS["d"].product_flops(4), WORKLOADS["d"].parameter_count()
    assert first["roof_products_ms"] == pytest.approx(flops / 400e12 * 1e3)
    assert first["roof_update_ms"] == pytest.approx(28 * size / 2900e9 * 1e3)
    shown = capsys.readouterr().out
    assert "400 TFLOP/s in tf32" in shown
    assert "at most 300 s" in shown
    assert "(d) 4 tf32" in shown
    assert bench(f"{arguments} --json {kept} --limit 2") == 1
    result = json.loads(kept.read_text())
    assert result["cases"] == []
    assert [(case["workload"], case["precision"]) for case in result["not_run"]] == [("d", "tf32"), ("d", "bfloat16")]
    assert "not run: about" in capsys.readouterr().out


def test_who_is_late_is_ended(standing_in: Any) -> None:
    plan = Plan(threads=1, device="cuda", rounds=3, seconds=0.001, deadline=time.monotonic() + 3)
    field = [Contestant("own", standing_in(), 1), Contestant("late", standing_in(sleep=30.0), 1)]
    (record,) = measure.measure(Case("d", 4, modes=("step",)), field, plan, subject="own")
    late = record["contenders"]["late"]
    assert late["status"] == "failed"
    assert "gave no answer" in late["reason"]
    assert record["contenders"]["own"]["status"] in ("timed", "not run")


def test_without_a_device_everybody_is_absent_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "accelerator", lambda: None)
    monkeypatch.setattr(command, "why_no_accelerator", lambda: "there is none")
    kept = tmp_path / "run.json"
    assert bench(f"--suite short --device cupy --json {kept}") == 1
    result = json.loads(kept.read_text())
    assert len(result["cases"]) == len(SUITES["short"].cuda)
    for case in result["cases"]:
        assert {"bpnet-cupy", "floor-cupy"} <= case["contenders"].keys()
        for line in case["contenders"].values():
            assert (line["status"], line["reason"]) == ("absent", "there is none")
    assert "PyTorch, CUDA graph" in capsys.readouterr().out


def test_contenders_for_a_gpu_compute_the_same_on_the_cpu() -> None:
    """All but the capture: what would be captured is then done step by step."""
    pytest.importorskip("torch", reason="PyTorch is not installed")
    names = ["torch", "torch-graph", "jax-steps"]
    case = Case("d", 96, modes=("step",), precision="bfloat16")
    for record in measure.measure(case, measure.contestants(names, TINY), TINY, subject="torch-graph"):
        for name, line in record["contenders"].items():
            assert line["status"] in ("timed", "absent"), f"{name}: {line}"
        assert record["contenders"]["torch-graph"]["status"] == "timed"


@pytest.mark.parametrize("key", ["c", "d"])
def test_capturing_a_step_of_pytorch_leaves_no_trace(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps before and while capturing train the network, which must be as before when the first step is asked for.

    In the graph's place stands one that runs the work at once and again at each launch.
    """
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    from bench.contenders.numpy_plain import PlainNumPy
    from bench.contenders.pytorch_graph import GraphedPyTorch

    launched: list[str] = []
    stream = SimpleNamespace(wait_stream=lambda other: launched.append("wait"))
    contender_of: list[Any] = []

    class Graph:
        def replay(self) -> None:
            launched.append("replay")
            contender_of[0]._train() if launched.count("train") else contender_of[0]._infer()
            self.result.copy_(contender_of[0].result)  # a graph writes where it wrote while it was captured

    @contextmanager
    def capturing(graph: Any) -> Iterator[None]:
        yield
        graph.result = contender_of[0].result

    monkeypatch.setattr(torch.cuda, "Stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capturing)
    workload = WORKLOADS[key]
    task = Task(workload, "float32", 32, 1, "cpu", workload.checking, start_values(workload, "float32"))
    x, y = pool(workload, 32, "float32")
    contender, plain = GraphedPyTorch(task), PlainNumPy(task, np)
    contender.captures = True
    contender_of.append(contender)
    np.testing.assert_allclose(contender.host(contender.predict(contender.put(x[0]))), plain.predict(x[0]), atol=1e-5)
    launched.append("train")
    for i in range(3):
        loss = contender.step(contender.put(x[i]), contender.put(y[i]))
        np.testing.assert_allclose(contender.loss(loss), plain.step(x[i], y[i]), rtol=1e-4)
    assert launched == ["wait", "wait", "replay", "train", "wait", "wait", *["replay"] * 3]
    for ours, theirs in zip(contender.parameters(), plain.parameters(), strict=True):
        assert np.linalg.norm(ours - theirs) < 1e-4 * np.linalg.norm(theirs)
    steps = [state["step"] for state in contender.optimizer.state.values()]
    assert {float(step) for step in steps} == {3.0}


def test_several_steps_of_bpnet_are_its_steps(world: World) -> None:
    """By one launch from the third call on."""
    from bench.contenders.bpnet_trainer import Bpnet

    workload = WORKLOADS["d"]
    task = Task(workload, "float32", 8, 1, "cuda", workload.checking, start_values(workload, "float32"))
    x, y = pool(workload, 8, "float32")
    x, y = (np.concatenate([a, a])[:4] for a in (x, y))
    single, several = Bpnet(task, "cupy"), Bpnet(task, **ALL["bpnet-cupy-steps"].options)
    assert several.together > single.together == 1
    stack = several.put(x), several.put(y)
    launches = []
    for _ in range(4):
        expected = [single.loss(single.step(single.put(a), single.put(b))) for a, b in zip(x, y, strict=True)]
        before = world.counts["graph launch"]
        losses = several.several(*stack)
        launches.append(world.counts["graph launch"] - before)
        several.wait(losses)
        np.testing.assert_allclose(several.losses(losses), expected, rtol=1e-5)
    assert launches[-1] == 1
    for ours, theirs in zip(several.parameters(), single.parameters(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)


def test_a_run_with_a_gpu_keeps_its_figures_unasked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    machine = command.describe() | {"date": "2026-12-01 10:00 UTC", "gpu": "NVIDIA H100 80GB HBM3"}
    first = command.place_for(machine, "short")
    assert first == tmp_path / "2026-12-01-nvidia-h100-80gb-hbm3-short.json"
    first.touch()
    assert command.place_for(machine, "short").name.endswith("-short-2.json")
    monkeypatch.setattr(command, "accelerator", lambda: "Some GPU")
    monkeypatch.setattr(command, "describe", lambda: machine)
    monkeypatch.setattr(command, "_run_on", lambda device, options, result: command.keep(result, options.json))
    for arguments, count in (
        (["--device", "cpu"], 1),
        (["--device", "cupy", "--suite", "crossing"], 2),
        (["--device", "cupy", "--suite", "short", "--batch", "8"], 2),  # a part is a trial
    ):
        command.main(arguments)
        assert len(list(tmp_path.iterdir())) == count
    assert command.main(["--json", str(tmp_path / "own.json")]) == 1  # as nothing was timed
    assert (tmp_path / "own.json").exists()


@pytest.mark.parametrize("there", [True, False])
def test_a_device_without_cublaslt_fails_its_tests(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    monkeypatch.setattr(conftest, "has_device", lambda: there)
    monkeypatch.setattr("bpnet.backends.cupy.cublaslt.bindings", lambda: "no module named nvmath")
    if not there:
        assert "no module named nvmath" in conftest.without_cublaslt()
        return
    with pytest.raises(pytest.fail.Exception, match="there is a CUDA device, but no cuBLASLt"):
        conftest.without_cublaslt()


@pytest.mark.parametrize("update", [False, True])
def test_the_roof_is_products_and_copies(update: bool) -> None:
    from bench.contenders.floor import Floor

    workload = WORKLOADS["d"]
    task = Task(workload, "float32", 8, 1, "cpu", workload.timing, start_values(workload, "float32"))
    floor = Floor(task, np, update)
    x = floor.put(np.ones((8, 64), np.float32))
    floor.step(x, None)
    np.testing.assert_allclose(floor.outputs[10], floor.activations[100] @ task.start[2], rtol=1e-5)
    moved = sum(2 * to.nbytes for to, _ in (floor.copies[:1] * 3 + floor.copies[1:] if update else ()))
    assert moved == pytest.approx(28 * workload.parameter_count() if update else 0, rel=1e-3)


def test_rates_of_the_roof() -> None:
    found = roof.rates(1e-3, {"float32": 20e-3})
    assert found["copy_gb_per_second"] == pytest.approx(2 * 2**30 / 1e6)
    assert found["tflops"]["float32"] == pytest.approx(2 * 8192**3 / 20e-3 / 1e12)
    assert "absent" in roof.text({"absent": "no device"}) or "no device" in roof.text({"absent": "no device"})
    assert roof.of_case({"absent": "no device"}, {"device": "cuda", "mode": "step", "dtype": "float32"}) == {}


def test_memory_of_a_device_is_asked_of_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of CuPy are found, though nobody but their owner knows of them."""
    cupy = pytest.importorskip("cupy", reason="CuPy is not installed")
    pool = cupy.cuda.MemoryPool()
    assert any(other is pool for other in device._pools())
    for name in ("cupy", "torch", "jax"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    device.release()
    assert device.peak() is None
    standing = SimpleNamespace(get_default_memory_pool=lambda: SimpleNamespace(total_bytes=lambda: 7))
    monkeypatch.setitem(sys.modules, "cupy", standing)
    assert device.peak() == 7  # what a pool for graphs has was taken from the default one, and counts once


def run_of(machine: str, batch: int, speed: float) -> dict[str, Any]:
    subject = "bpnet" if machine == "cpu" else "bpnet-cupy"
    spread = {"median": 1.0, "min": 1.0, "max": 1.0}
    line = {"status": "timed", "best_ms": 1.0, "median_ms": 1.0, "rows_per_second": speed, "ratio": spread}
    line |= {"over_floor": None, "products_share": None, "memory": {}}
    case = {"workload": "d", "title": "a title", "dtype": "float32", "batch": batch, "mode": "step", "threads": 1}
    case |= {"device": machine, "subject": subject, "rounds": 3, "versions": {}, "contenders": {subject: line}}
    return case | ({"precision": "float32"} if machine == "cuda" else {})


@pytest.mark.parametrize(
    ("speeds", "words"),
    [
        ([(1, 8.0, 2.0), (16, 8.0, 32.0), (64, 8.0, 64.0)], "at about 4 rows"),
        ([(1, 1.0, 2.0), (16, 1.0, 2.0)], "at every batch measured, the smallest being 1"),
        ([(1, 2.0, 1.0), (16, 2.0, 1.0)], "at no batch measured, the largest being 16"),
    ],
)
def test_where_the_gpu_overtakes_the_cpu(speeds: Any, words: str, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    records = [run_of("cpu", batch, cpu) for batch, cpu, _ in speeds]
    records += [run_of("cuda", batch, gpu) for batch, _, gpu in speeds]
    result = {"cases": [*records, run_of("cuda", 4096, 1e6) | {"precision": "tf32"}]}
    assert report.crossings(result["cases"]) == {("d", "float32", "step"): words}
    assert words in report.overview(result)
    picture.plot(result, tmp_path / "both.svg")
    assert (tmp_path / "both.svg").stat().st_size > 1000
    assert len(picture.families(result["cases"])) == 2


def test_an_epoch_whose_rows_stream_to_a_device(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    loader: Any = importlib.import_module("bpnet.data.loader")
    monkeypatch.setattr(loader, "CACHED_SHARE", loader.CACHED_SHARE)  # which it changes
    found = epoch.epoch("d", 16, "float32", 1, 64, 2, "bpnet-cupy", fed=True)
    assert found["fed"]
    assert 0 < found["ratio"]["min"] <= found["ratio"]["max"]


def test_a_machine_with_a_gpu_has_a_part_of_readme_of_its_own(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    results, page = tmp_path / "results", tmp_path / "README.md"
    results.mkdir()
    page.write_text(f"before\n{readme.BEGIN}\nold\n{readme.END}\nafter\n")
    machine = {"date": "2026-01-01", "cpu": "A processor", "cores": 2, "system": "Linux", "python": "3.13"}
    alone = {"machine": machine, "threads": 2, "cases": [run_of("cpu", 4, 8.0), run_of("cpu", 64, 9.0)]}
    both = [run_of(where, batch, speed) for where, batch, speed in (("cpu", 1, 8.0), ("cuda", 1, 2.0))]
    both += [run_of(where, batch, speed) for where, batch, speed in (("cpu", 16, 8.0), ("cuda", 16, 32.0))]
    with_gpu = {"machine": machine | {"date": "2026-01-02", "gpu": "Some GPU"}, "threads": 2, "cases": both}
    (results / "2026-01-02-some-gpu").mkdir()  # a visit
    for name, run in (("alone", alone), ("2026-01-02-some-gpu/short", with_gpu)):
        (results / f"{name}.json").write_text(json.dumps(run))
    readme.write(results, page)
    text = page.read_text()
    assert text.index("results/headline.svg") < text.index("Some GPU") < text.index("results/headline-gpu.svg")
    assert "the GPU overtakes the CPU at about 4 rows." in text
    assert all((results / name).exists() for name in ("throughput.svg", "throughput-gpu.svg"))
