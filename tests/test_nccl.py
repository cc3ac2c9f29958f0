"""Ranks with a GPU each: sums by NCCL within a captured step, CuPy's arrays through MPI, and which GPU a rank takes.

CuPy and its binding of NCCL are real; devices and NCCL are their substitutes, on which work is late: ranks are threads.
"""

import ctypes
import gc
import re
import subprocess
import threading
import time
import types
from collections.abc import Callable, Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import substitute
from support.nvrtc import ARCHITECTURES, by_nvrtc
from support.ranks import threads
from support.world import Spent, World
from test_graph import NETS, data

import bpnet as bp
from bpnet.backends.base import State
from bpnet.distributed.devices import device_of_rank, is_cuda_aware
from bpnet.distributed.nccl import NCCL, NCCLCommunicator
from bpnet.errors import DeviceError, DTypeError, MissingPackageError, OptionError, RankError

DEVICES = 3


@pytest.fixture
def gpus(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    """Three devices, and NCCL."""
    from bpnet.backends.cupy import verdicts
    from bpnet.backends.cupy.device_scalars import DeviceScalars

    monkeypatch.setattr(DeviceScalars, "retired", [])  # of devices that soon are no more
    monkeypatch.setattr(verdicts, "_off", {number: {} for number in range(DEVICES)})
    nccl, device = substitute.install_nccl(), ctypes.CDLL("libcuda.so.1")
    device.sub_devices(DEVICES)
    monkeypatch.setattr(world, "pool", world.cupy.cuda.MemoryPool())  # which asks once how many devices there are
    yield world
    nccl.sub_nccl_failing(0)
    device.sub_devices(DEVICES)
    world.synchronise()
    device.sub_devices(1)


def on_gpus(count: int, work: Callable[..., Any], *args: Any, dtype: str | None = None, timeout: float = 20.0) -> Any:
    """What work(communicator of NCCL, *args) gives in each of so many ranks, each with its own device current."""
    import cupy

    def rank(control: Any) -> Any:
        with cupy.cuda.Device(control.rank):
            ranks = NCCLCommunicator(control, dtype, timeout)
            try:
                return work(ranks, *args)
            finally:
                ranks.close()

    return threads(count, rank)


def rounded(x: Any) -> Any:
    """float32 values to 8 significant bits: to nearest, of two as near to the even one."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    even = 0x7FFF + ((bits >> 16) & 1)
    found = (((bits + even) >> 16) << 16).astype(np.uint32).view(np.float32)
    return np.where(np.isnan(x), np.float32(np.nan), found)


def parts(dtype: str, size: int = 1000) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal(size).astype(dtype) for _ in range(DEVICES)]


def array(gpus: World, value: Any) -> Any:
    return gpus.cupy.asarray(np.asarray(value, "float32"))


# ---- sums -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_rank_has_the_same_sum(dtype: str, gpus: World) -> None:
    """In the vector's own memory, on the current stream."""
    given = parts(dtype)

    def work(ranks: Any) -> Any:
        found = []
        with gpus.cuda.Stream(non_blocking=True) as stream:
            for _ in range(3):
                vector = gpus.cupy.asarray(given[ranks.rank])
                assert ranks.all_reduce(gpus.seam, vector, 2) is vector
                found.append(vector.get(stream=stream))
        return found

    for of_rank in on_gpus(DEVICES, work):
        for found in of_rank:
            np.testing.assert_array_equal(found, given[0] + given[1] + given[2])


def test_gradients_sent_as_bfloat16_are_rounded_to_even_and_nothing_else_is(gpus: World) -> None:
    """By each rank, and by NCCL after every sum of two, so that the error is at most n 2**-8 sum |g|."""
    given = parts("float32")
    given[0][:4] = [1.00390625, 1.01171875, 3e38, np.nan]  # two midpoints, and what NaN or infinity are made of
    given[1][:4] = given[2][:4] = 0.0

    def work(ranks: Any) -> Any:
        return ranks.all_reduce(gpus.seam, gpus.cupy.asarray(given[ranks.rank]), 2).get()

    expected = rounded(rounded(rounded(given[0]) + rounded(given[1])) + rounded(given[2]))
    expected[-2:] = (given[0] + given[1] + given[2])[-2:]
    for found in on_gpus(DEVICES, work, dtype="bfloat16"):
        np.testing.assert_array_equal(found, expected)
    assert expected[:2].tolist() == [1.0, 1.015625]
    exact, absolute = sum(g.astype("float64") for g in given), sum(map(np.abs, given))
    error = np.abs(expected - exact)[4:]
    assert (error <= DEVICES * 2.0**-8 * absolute[4:]).all()
    assert error.max() > 1e-3


def test_bfloat16_is_for_float32(gpus: World) -> None:
    def work(ranks: Any) -> None:
        ranks.all_reduce(gpus.seam, gpus.cupy.asarray(np.zeros(8)), 1)

    with pytest.raises(DTypeError, match="for networks of float32"):
        on_gpus(2, work, dtype="bfloat16")


def step(ranks: Any, backend: Any, carry: Any, x: Any, number: Any) -> Any:
    """Of a linear model that fits zeros: gradient, sum over ranks, update."""
    (w,) = carry
    gradient = backend.xp.sum(x * backend.xp.sum(x * w, axis=1, keepdims=True), axis=0)
    message = backend.xp.concat([gradient, gradient[:1]])
    message = backend.outside(partial(ranks.all_reduce, tail=1), message, "all-reduce over ranks", ranks.captured)
    return (w - 0.01 * message[:4],), message[4]


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_captured_step_has_the_sum_in_its_graph_and_the_host_waits_for_nothing(
    dtype: str | None, gpus: World
) -> None:
    """It gives the bits of the same step launched command by command."""
    x = np.random.default_rng(1).standard_normal((DEVICES, 6, 4)).astype("float32")
    turn, waits = threading.Barrier(2), []

    def work(ranks: Any, captures: bool) -> Any:
        compiled = gpus.seam.compile(lambda *args: step(ranks, *args), donate=True)
        compiled.captures = captures
        state, batch = State((array(gpus, np.ones(4)),), 0), array(gpus, x[ranks.rank])
        for count in range(6):
            if count in (3, 5):
                turn.wait()
                waits.append(sum(n for what, n in gpus.counts.items() if "synchronise" in what))
                turn.wait()
            gpus.seam.advance(compiled, state, (batch, count), count + 1)
        return state.now[0][0].get(), [len(t.graphs) for t in compiled.programs.values()]

    plain, captured = (on_gpus(2, work, captures, dtype=dtype) for captures in (False, True))
    for (found, graphs), (expected, none) in zip(captured, plain, strict=True):
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_array_equal(found, captured[0][0])
        assert (graphs, none) == ([1], [0])
    assert waits[0] == waits[3]
    assert waits[4] == waits[7]
    assert gpus.counts["node: all-reduce"] == 2 * (1 if dtype is None else 2)
    w = np.ones(4)
    for _ in range(6):
        w = w - 0.01 * sum(x[r].T.astype("float64") @ (x[r] @ w) for r in range(2))
    np.testing.assert_allclose(captured[0][0], w, rtol=1e-5 if dtype is None else 0.05)


def fitted(distributed: Any, array: Any) -> Any:
    """A trainer after three epochs of two steps."""
    x, y = map(array, data(30, "float64"))
    trainer = bp.Trainer(NETS["plain"], "cross_entropy", bp.SGD(0.1), clip_norm=0.5, distributed=distributed)
    trainer.fit(x, y, epochs=3, batch_size=15, progress=False)
    return trainer


def test_ranks_train_as_one_process_does_and_their_steps_are_graphs(gpus: World) -> None:
    """To 1e-12, with the same bits on all ranks."""
    expected = fitted(None, np.asarray)

    def work(ranks: Any) -> Any:
        trainer = fitted(ranks, gpus.cupy.asarray)
        return trainer.theta.get(), trainer.history["loss"]

    found = on_gpus(2, work)
    assert gpus.counts["node: all-reduce"] == 2
    for theta, losses in found:
        np.testing.assert_array_equal(theta, found[0][0])
        np.testing.assert_allclose(theta, expected.theta, rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(losses, expected.history["loss"], rtol=1e-12)


def test_a_step_whose_sum_is_the_hosts_business_is_captured_in_two_parts(gpus: World) -> None:
    """As with MPI: before the sum and after it."""
    seen = []

    class Hosts(bp.distributed.base.Communicator):
        def all_reduce(self, backend: Any, vector: Any, tail: int = 0) -> Any:
            seen.append(vector.get())
            return array(gpus, 2.0 * seen[-1])

    compiled = gpus.seam.compile(lambda *args: step(Hosts(), *args), donate=True)
    state, batch = State((array(gpus, np.ones(4)),), 0), array(gpus, np.arange(24).reshape(6, 4) / 24)
    expected = np.ones(4)
    for count in range(5):
        with Spent(gpus, "graph launch", "kernel") as spent:
            gpus.seam.advance(compiled, state, (batch, count), count + 1)
        x = batch.get().astype("float64")
        gradient = x.T @ (x @ expected)
        np.testing.assert_allclose(seen[-1][:4], gradient, rtol=1e-5)
        expected = expected - 0.01 * 2.0 * gradient
    assert len(seen) == 5
    assert spent.counts[0] == 2
    np.testing.assert_allclose(state.now[0][0].get(), expected, rtol=1e-5)


def test_a_communicator_of_nccl_outlives_all_that_use_it(gpus: World) -> None:
    """Since NCCL would wait for ever where it is destroyed before a graph; the substitute ends the process then."""

    def work(ranks: Any) -> Any:
        vector = array(gpus, np.zeros(4))
        ranks.all_reduce(gpus.seam, vector, 1)
        with gpus.cuda.Stream(non_blocking=True) as stream:
            stream.begin_capture()
            ranks.all_reduce(gpus.seam, vector, 1)
            return stream.end_capture()

    graphs = on_gpus(2, work)
    gc.collect()
    del graphs


# ---- faults ---------------------------------------------------------------------------------------------------------


def test_a_device_that_waits_for_a_rank_goes_on_when_the_time_is_over(gpus: World) -> None:
    """And what it gives is taken by nobody."""
    come = threading.Event()

    def work(ranks: Any) -> None:
        vector = array(gpus, np.ones(4))
        ranks.all_reduce(gpus.seam, vector, 1)
        if ranks.rank == 1:
            come.wait(10.0)
            return
        ranks.all_reduce(gpus.seam, vector, 1)
        begun = time.monotonic()
        gpus.cuda.get_current_stream().synchronize()
        assert 0.3 < time.monotonic() - begun < 5.0
        try:
            ranks.check()
        finally:
            come.set()

    with pytest.raises(RankError, match=r"the GPU of rank 0 has waited 0\.4 s for other ranks, after 1 sum"):
        on_gpus(2, work, timeout=0.4)


class Watch:
    """What is known of the ranks of MPI, as far as it matters here."""

    def __init__(self) -> None:
        from bpnet.distributed.verdict import Doing

        self.doing, self.failure = Doing(3, "computes", "", 0.0), None
        self.seen: list[Any] = []

    def look(self, ranks: Any) -> None:
        for _ in range(200):
            time.sleep(0.01)
            if self.doing.at == "waits":
                break
        self.seen.append((self.doing.at, self.doing.what, self.doing.number))
        self.failure = types.SimpleNamespace(text="rank 1 (host a, process 7) is gone")


def test_who_watches_the_ranks_is_told_that_a_device_waits_and_says_who_is_gone(gpus: World) -> None:
    watch, gone = Watch(), threading.Event()

    def work(control: Any) -> None:
        with gpus.cuda.Device(control.rank):
            control.watch = watch if control.rank == 0 else None
            ranks = NCCLCommunicator(control, None, 2.0)
            vector = array(gpus, np.ones(4))
            ranks.all_reduce(gpus.seam, vector, 1)
            if control.rank == 0:
                ranks.all_reduce(gpus.seam, vector, 1)
                looking = threading.Thread(target=watch.look, args=(ranks,))
                looking.start()
                gpus.cuda.get_current_stream().synchronize()
                looking.join()
                gone.set()
                assert watch.seen == [("waits", "a sum of NCCL", 3)]
                for call in (ranks.check, lambda: ranks.all_gather(1), lambda: ranks.all_reduce(gpus.seam, vector)):
                    with pytest.raises(RankError, match=re.escape("rank 1 (host a, process 7) is gone")):
                        call()
            gone.wait(10.0)

    threads(2, work)


def test_what_nccl_says_to_have_gone_wrong_ends_the_training(gpus: World) -> None:
    def work(ranks: Any) -> None:
        ranks.all_reduce(gpus.seam, array(gpus, np.ones(4)), 1)
        substitute.install_nccl().sub_nccl_failing(6)
        for _ in range(500):
            time.sleep(0.01)
            ranks.check()

    with pytest.raises(
        RankError, match=r"NCCL has failed on rank [01]: NCCL_ERROR_REMOTE_ERROR: remote process exited"
    ):
        on_gpus(2, work, timeout=2.0)


def test_two_ranks_on_one_gpu_are_told_that_nccl_wants_one_for_each(gpus: World) -> None:
    def work(control: Any) -> None:
        with gpus.cuda.Device(max(control.rank - 1, 0)):
            NCCLCommunicator(control).all_reduce(gpus.seam, array(gpus, np.ones(4)), 1)

    with pytest.raises(DeviceError, match=r"ranks 0 and 1 are both on GPU 0000:01:00.0 of host .*'mpi'") as told:
        threads(3, work)
    assert told.value.on_all_ranks  # type: ignore[attr-defined]


def test_what_nccl_refuses_is_told_with_its_own_words(gpus: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """As two ranks on one GPU where that is seen by NCCL alone."""
    from bpnet.backends.cupy import collectives

    places = iter("abc")
    monkeypatch.setattr(collectives, "place", lambda device: next(places))

    def work(control: Any) -> None:
        NCCLCommunicator(control).all_reduce(gpus.seam, array(gpus, np.ones(4)), 1)

    with pytest.raises(DeviceError, match=r"NCCL could not connect the ranks: NCCL_ERROR_INVALID_USAGE.*NCCL_DEBUG"):
        threads(2, work)


def test_arrays_of_other_libraries_are_told_where_to_go() -> None:
    def work(control: Any) -> None:
        NCCLCommunicator(control).all_reduce(bp.backends.get("numpy"), np.ones(4), 1)

    with pytest.raises(
        OptionError, match=r"these are of numpy: pass arrays of CuPy, .*device='cuda'.*distributed='mpi'"
    ):
        threads(2, work)


def test_options_are_checked_and_a_missing_library_is_named(gpus: World, monkeypatch: pytest.MonkeyPatch) -> None:
    from cupy.cuda import nccl

    for wrong, match in (({"rows": "all"}, "rows"), ({"dtype": "float16"}, "dtype"), ({"timeout": 0}, "timeout")):
        with pytest.raises(OptionError, match=match):
            NCCL(**wrong)  # type: ignore[arg-type]
    monkeypatch.setattr(nccl, "available", False)
    with pytest.raises(MissingPackageError, match="distributed='nccl' needs nvidia-nccl-cu13"):
        on_gpus(2, lambda ranks: ranks.all_reduce(gpus.seam, array(gpus, np.ones(4)), 1))


# ---- the binding ----------------------------------------------------------------------------------------------------


def test_numbers_of_types_and_sums_are_those_of_the_binding(gpus: World) -> None:
    from cupy.cuda import nccl

    from bpnet.backends.cupy.collectives import SUM, TYPES

    names = {"float32": nccl.NCCL_FLOAT32, "float64": nccl.NCCL_FLOAT64, "bfloat16": nccl.NCCL_BFLOAT16}
    assert (names, nccl.NCCL_SUM) == (TYPES, SUM)


def test_the_substitute_for_nccl_takes_what_nvidias_own_binding_passes() -> None:
    """Names, order and number of the arguments of functions, and the numbers of types, of results and of the sum."""
    spec = find_spec("nccl")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("nccl4py is not installed")
    text = (Path(next(iter(spec.submodule_search_locations))) / "bindings/cynccl.pxd").read_text()
    own = (Path(substitute.__file__).parent / "nccl.cpp").read_text()
    types_of = {"size_t": "size_t", "int": "int", "void*": "void*", "ncclUniqueId": "Id", "const void*": "const void*"}
    for name in (
        "ncclAllReduce",
        "ncclCommInitRankConfig",
        "ncclCommAbort",
        "ncclCommGetAsyncError",
        "ncclGetUniqueId",
    ):
        theirs, mine = (re.search(rf"int {name}\((.*?)\)|ncclResult_t {name}\((.*?)\)", t) for t in (text, own))
        assert theirs is not None
        assert mine is not None
        given = [re.sub(r" ?\w+$", "", a) for a in (theirs[1] or theirs[2]).split(", ")]
        taken = [re.sub(r" ?\w+$", "", a) for a in (mine[1] or mine[2]).split(", ")]
        assert len(given) == len(taken)
        for their, my in zip(given, taken, strict=True):
            assert types_of.get(their, my) == my
    for name, number in {
        "ncclFloat32": 7,
        "ncclFloat64": 8,
        "ncclBfloat16": 9,
        "ncclSum": 0,
        "ncclInProgress": 7,
    }.items():
        assert re.search(rf'\b{name} "{name}" = {number}\n', text), name


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_nvidias_compiler_takes_the_kernels(architecture: str) -> None:
    pytest.importorskip("cupy", reason="CuPy is not installed")
    from bpnet.backends.cupy.collectives import KERNELS

    by_nvrtc(KERNELS, architecture)


# ---- MPI and devices ------------------------------------------------------------------------------------------------


def test_vectors_go_to_mpi_through_pinned_memory_that_is_kept(gpus: World) -> None:
    """The device has computed them by then; and what MPI leaves there has been read when they are written to again."""
    from bpnet.backends.cupy.collectives import Staging

    staging, places = Staging(direct=False), set()
    for k in range(4):
        with gpus.cuda.Stream(non_blocking=True):
            vector = gpus.cupy.asarray(np.arange(1000.0) * k)
            own = staging.begin(vector)
            places.add(own.ctypes.data)
            np.testing.assert_array_equal(own, np.arange(1000.0) * k)
            own += 1.0
            summed = staging.end(own, vector)
            assert summed is vector
            later = summed.copy()
        if k % 2:
            np.testing.assert_array_equal(later.get(), np.arange(1000.0) * k + 1.0)
    assert len(places) == 1


def test_an_mpi_that_reads_devices_is_given_the_vector_itself(gpus: World) -> None:
    from bpnet.backends.cupy.collectives import Staging

    staging, vector = Staging(direct=True), array(gpus, np.arange(6))
    with Spent(gpus, "copy to host", "copy to device") as spent:
        own = staging.begin(vector)
        assert own is vector
        assert staging.end(own, vector) is vector
        rows = gpus.cupy.empty((4, 6), "float32")[:, 1:3]
        assert staging.begin(rows).flags.c_contiguous
    assert spent.counts == (0, 0)


def test_mpi_is_asked_whether_it_reads_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def library(text: str) -> Any:
        source, made = tmp_path / "mpi.c", tmp_path / f"mpi{len(list(tmp_path.iterdir()))}.so"
        source.write_text(text)
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", made, source], check=True)
        return types.SimpleNamespace(__file__=str(made))

    if substitute.shutil.which("gcc") is None:
        pytest.skip("there is no gcc")
    aware, other = (
        library("int MPIX_Query_cuda_support(void) { return 1; }"),
        library("int MPI_Init(void) { return 0; }"),
    )
    assert is_cuda_aware(aware)
    assert not is_cuda_aware(other)
    monkeypatch.setenv("OMPI_MCA_opal_cuda_support", "false")
    assert not is_cuda_aware(aware)


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_ranks_of_a_host_take_its_gpus_in_turn(devices: int, gpus: World) -> None:
    """Two hosts with three ranks each."""

    def of_rank(ranks: Any, device: Any) -> Any:
        ranks.local_rank = ranks.rank % 3
        return device_of_rank(ranks, device)

    ctypes.CDLL("libcuda.so.1").sub_devices(devices)
    assert threads(6, of_rank, "cuda") == [f"cuda:{rank % 3 % devices}" for rank in range(6)]
    assert threads(2, of_rank, "cuda:1") == ["cuda:1"] * 2
    assert threads(2, of_rank, None) == [None] * 2


def test_a_rank_without_a_gpu_is_told_so_and_all_are(gpus: World) -> None:
    ctypes.CDLL("libcuda.so.1").sub_devices(0)
    with pytest.raises(DeviceError, match="device is 'cuda', but CuPy finds no CUDA device on host"):
        threads(2, device_of_rank, "cuda")
