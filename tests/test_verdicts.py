"""What is wrong or refused on a CUDA device is switched off there, at its first use: it costs speed, and no result."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import SUBSTITUTED

import bpnet as bp
from bpnet.backends.techniques import Finding
from bpnet.compiler import verify
from bpnet.errors import BpnetWarning

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not SUBSTITUTED, reason="no substitute for a device")]


@pytest.fixture
def anew(monkeypatch: pytest.MonkeyPatch, tmp_path: Any, library: Any) -> Iterator[Callable[[], None]]:
    """As in a process in which no device has been used, on a machine where none has been checked; call it for another
    process there."""
    monkeypatch.setenv("BPNET_CACHE_DIR", str(tmp_path / "cache"))
    pytest.importorskip("nvmath.bindings.cublasLt", reason="nvmath-python is not installed")
    library("cupy")
    from bpnet.backends.cupy import cublaslt, verdicts

    monkeypatch.setattr(cublaslt, "refused", set())
    monkeypatch.setattr(verdicts, "_off", {})
    yield lambda: monkeypatch.setattr(verdicts, "_off", {})
    cublaslt._plan.cache_clear()


def trains(said: str | None = None) -> Any:
    """A few steps on the device, which equal those on the host; `said` is what is warned of."""
    import cupy

    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((24, 8), "float32"), rng.integers(0, 3, 24)
    trainers = [
        bp.Trainer(bp.Sequential(bp.Dense(16, "relu"), bp.Dense(3)), "cross_entropy", bp.SGD(0.1)) for _ in "ab"
    ]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(4):
            trainers[0].step(cupy.asarray(x), cupy.asarray(y))
            trainers[1].step(x, y)
    np.testing.assert_allclose(trainers[0].theta.get(), trainers[1].theta, rtol=1e-4, atol=1e-6)
    texts = [str(w.message) for w in caught if issubclass(w.category, BpnetWarning)]
    if said is None:
        assert texts == []
    else:
        assert len(texts) == 1, texts
        assert said in texts[0]
    return trainers[0]


def test_what_is_right_is_checked_once(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bpnet.backends.cupy import techniques, verdicts

    trains()
    assert verdicts.off() == {}
    anew()
    monkeypatch.setattr(techniques, "quick", lambda: pytest.fail("it has been checked"))
    trains()


def test_a_wrong_kernel_is_switched_off(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the processes that follow, until a check finds it right."""
    from bpnet.backends.cupy import program, techniques, verdicts

    function = program.function
    with monkeypatch.context() as patch:
        patch.setattr(program, "function", lambda code, name: function(code.replace("exp(", "exp2("), name))
        step = trains("fused kernels, wrong by 0.")._engine.step
        assert step.programs == {}
        anew()
        patch.setattr(techniques, "quick", lambda: pytest.fail("it has been checked"))
        trains("fused kernels, wrong by 0.")
    assert "wrong by" in step.explain((step.carry,))
    small = [*techniques.kernels([techniques.FORMS], [(33, 12)], ["float32"])]
    verdicts.switch_off(small)
    assert verdicts.usable(verdicts.KERNELS)
    trains()


def test_a_check_tries_what_is_switched_off(anew: Any) -> None:
    from bpnet.backends.cupy import techniques, verdicts

    with pytest.warns(BpnetWarning, match="fused kernels, wrong"):
        verdicts.switch_off([Finding(verdicts.KERNELS, "", "planted", 1.0, 0.0)])
    with verdicts.everything_on():
        (found,) = techniques.kernels([techniques.FORMS], [(33, 12)], ["float32"])
    assert found.ok
    assert not verdicts.usable(verdicts.KERNELS)


def test_a_product_that_is_refused(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the heuristic: its epilogue becomes a kernel, and steps are captured all the same."""
    from bpnet.backends.cupy import cublaslt

    find = cublaslt.Plan.find
    monkeypatch.setattr(
        cublaslt.Plan, "find", lambda self, aligned: self.problem.epilogue != "RELU_BIAS" and find(self, aligned)
    )
    cublaslt._plan.cache_clear()
    assert has_graphs(trains("product float32 RELU_BIAS, refused (24 x 32 x 16: the library has none)"))


def test_a_product_that_is_refused_when_it_is_to_be_computed(
    anew: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As with some shape that no check has tried: it is done by other means, and not tried again."""
    from bpnet.backends.cupy import cublaslt

    trains()
    anew()
    run, tried = cublaslt.Plan.run, []

    def refusing(self: Any, addresses: Any, workspace: int) -> None:
        if self.problem.rows == 24 and self.problem.epilogue == "RELU_BIAS":
            tried.append(self.problem)
            raise self.lt.cuBLASLtError(15)
        run(self, addresses, workspace)

    monkeypatch.setattr(cublaslt.Plan, "run", refusing)
    assert has_graphs(trains())
    assert len(tried) == 1
    assert "cuBLASLt refuses a product that it had planned" in caplog.text


def test_a_product_that_is_refused_only_while_it_is_captured(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    from bpnet.backends.cupy import cublaslt

    trains()
    anew()
    run, tried = cublaslt.Plan.run, []

    def refusing(self: Any, addresses: Any, workspace: int) -> None:
        if self.problem.epilogue == "RELU_BIAS" and cupy.cuda.get_current_stream().is_capturing():
            tried.append(self.problem)
            raise self.lt.cuBLASLtError(15)
        run(self, addresses, workspace)

    monkeypatch.setattr(cublaslt.Plan, "run", refusing)
    assert has_graphs(trains())
    assert len(tried) == 1


def test_graphs_that_can_not_be_captured(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    def begin_capture(*_: Any) -> None:
        raise RuntimeError("no graphs here")

    monkeypatch.setattr(cupy.cuda, "Stream", type("Stream", (cupy.cuda.Stream,), {"begin_capture": begin_capture}))
    said = "captured graphs, refused (a kernel and a product: no graphs here): instead every command launched by itself"
    assert not has_graphs(trains(said))


def test_a_precision_that_is_wrong_is_not_offered(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    from bpnet.backends.cupy import cublaslt

    run = cublaslt.Plan.run
    monkeypatch.setattr(cublaslt.Plan, "run", lambda self, *args: self.problem.precision != "tf32" and run(self, *args))
    with pytest.warns(BpnetWarning, match="product tf32 DEFAULT, wrong by"):
        assert bp.backends.get("cupy").precisions(None) == ("float32", "bfloat16")
    trainer = bp.Trainer(bp.Dense(3), "mse", precision="tf32")
    with pytest.raises(bp.errors.OptionError, match="tf32"):
        trainer.build(cupy.zeros((2, 2), "float32"))


def test_streams_that_mix_batches_up(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bpnet.backends.cupy import prefetch

    monkeypatch.setattr(prefetch.PinnedPrefetcher, "send", lambda self, rows, write: (self.buffers[0].arrays[0],))
    trains("streaming through pinned memory, wrong by")
    found = bp.backends.get("cupy").prefetcher([((5,), np.dtype("float32"))], 7, 2)
    assert type(found) is bp.backends.base.Prefetcher


def test_without_nvmath(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """One warning, which says what to install."""
    from bpnet.backends.cupy import cublaslt, techniques

    monkeypatch.setattr(cublaslt, "bindings", lambda: "No module named 'nvmath'")
    assert not has_graphs(trains("cuBLASLt can't be used (No module named 'nvmath')"))
    (found,) = techniques.products([(24, 32, 16)])
    assert found.refused == "No module named 'nvmath': install nvmath-python"


def test_no_memory_is_no_verdict(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from bpnet.backends.cupy import techniques, verdicts

    def quick() -> list[Finding]:
        raise MemoryError

    monkeypatch.setattr(techniques, "quick", quick)
    trains()
    assert verdicts.off() == {}


def test_a_kernel_that_does_not_compile_costs_speed_alone(
    anew: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from bpnet.backends.cupy import program

    trains()
    function = program.function
    monkeypatch.setattr(verify, "STRICT", False)
    monkeypatch.setattr(program, "function", lambda code, name: function(code.replace("exp(", "unknown("), name))
    assert not has_graphs(trains())
    assert "does not compile" in caplog.text


def test_a_check_says_what_does_not_compile(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a training would go on without a word."""
    from bpnet.backends.cupy import program, techniques, verdicts

    function = program.function
    monkeypatch.setattr(verify, "STRICT", False)
    monkeypatch.setattr(program, "function", lambda code, name: function(code.replace("exp(", "unknown("), name))
    with verdicts.everything_on():
        (found,) = techniques.kernels([techniques.FORMS], [(33, 12)], ["float32"])
    assert found.refused
    assert verdicts.faults([found]).keys() == {verdicts.KERNELS}


@pytest.mark.parametrize("what", ["product", "capture"])
def test_a_check_goes_on_where_steps_are_refused(what: str, anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import cupy

    from bpnet import checking
    from bpnet.backends.cupy import cublaslt, verdicts

    trains()

    def refuses(*_: Any) -> None:
        raise RuntimeError("no graphs here")

    if what == "product":
        plan = cublaslt.plan
        monkeypatch.setattr(cublaslt, "plan", lambda p, at: None if (p.rows, p.columns) == (33, 3) else plan(p, at))
    else:
        monkeypatch.setattr(cupy.cuda, "Stream", type("Stream", (cupy.cuda.Stream,), {"begin_capture": refuses}))
    seam = bp.backends.get("cupy")
    with seam.session(), verdicts.everything_on(), warnings.catch_warnings():
        warnings.simplefilter("error", BpnetWarning)
        found = [*checking._steps(checking._Place(seam, cupy.cuda.Device()), "float32")]
    assert [f.ok for f in found] == [True, False, False]
    assert "launched command by command" in found[1].refused
    assert verdicts.faults(found) == {}


def test_whole_steps_count_where_nothing_smaller_is_wrong() -> None:
    from bpnet.backends.cupy import verdicts

    step, right = Finding(verdicts.CAPTURE, "training steps", "", 1.0, 0.0), Finding(verdicts.KERNELS, "", "", 0.0, 0.0)
    wrong = Finding("product tf32 BIAS", "", "", 1.0, 0.0)
    assert verdicts.faults([right, step]).keys() == {verdicts.CAPTURE}
    assert verdicts.faults([wrong, step]).keys() == {"product tf32 BIAS"}


def test_what_is_switched_off_is_not_used_by_what_was_compiled_before(anew: Any) -> None:
    import cupy

    from bpnet.backends.cupy import verdicts

    trainer = trains()
    assert has_graphs(trainer)
    with pytest.warns(BpnetWarning, match="planted"):
        verdicts.switch_off([Finding("product float32 RELU_BIAS", "", "planted", 1.0, 0.0)])
    trainer.step(cupy.zeros((24, 8), "float32"), cupy.zeros(24, "int32"))
    assert not has_graphs(trainer)


def test_a_check_is_of_its_thread_alone(anew: Any) -> None:
    from threading import Thread

    from bpnet.backends.cupy import verdicts

    with pytest.warns(BpnetWarning, match="planted"):
        verdicts.switch_off([Finding(verdicts.KERNELS, "", "planted", 1.0, 0.0)])
    found: list[bool] = []
    with verdicts.everything_on():
        other = Thread(target=lambda: found.append(verdicts.usable(verdicts.KERNELS)))
        other.start()
        other.join()
        found.append(verdicts.usable(verdicts.KERNELS))
    assert found == [False, True]


def test_what_was_refused_is_tried_again_by_other_processes(anew: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been for want of memory."""
    from bpnet.backends.cupy import cublaslt

    with monkeypatch.context() as patch:
        find = cublaslt.Plan.find
        patch.setattr(cublaslt.Plan, "find", lambda self, at: self.problem.epilogue != "BIAS" and find(self, at))
        cublaslt.forget()
        trains("product float32 BIAS, refused")
    anew()
    trains()


def test_within_a_capture_of_the_users_own(anew: Any) -> None:
    import cupy

    trainer = bp.Trainer(bp.Dense(3), "mse")
    x = cupy.ones((2, 2), "float32")
    trainer.step(x, cupy.ones((2, 3), "float32"))
    with cupy.cuda.Stream(non_blocking=True) as stream:
        stream.begin_capture()
        with pytest.raises(bp.errors.DeviceError, match="is being captured"):
            trainer.predict(x, check=False)
        stream.end_capture()


def has_graphs(trainer: Any) -> bool:
    return any(found is not None and found.graphs for found in trainer._engine.step.programs.values())
