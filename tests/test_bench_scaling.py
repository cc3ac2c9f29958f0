"""The instrument for ranks: groups in turns, a network as slow as asked, and a model that finds what made the data."""

import json
import math
import os
import socket
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # bench is no part of the installed package

from bench import __main__ as command  # noqa: E402
from bench.scaling import gpus, links, model, page, ranks, tables  # noqa: E402
from bench.scaling.group import Failed, Group, mpiexec  # noqa: E402
from bench.scaling.network import Network, why_not  # noqa: E402
from bench.scaling.relay import Relay, address_of  # noqa: E402

NO_MPI = "there is no MPI: pip install mpi4py mpich"


# ---- the model ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", links.ALGORITHMS)
def test_no_all_reduce_sends_less_than_the_least(algorithm: str) -> None:
    for n in range(1, 70):
        messages, sent, added = model.terms(algorithm, n, 1e6)
        assert sent >= model.least_bytes(n, 1e6) * (1 - 1e-12)
        assert messages >= math.ceil(math.log2(n))
        assert added >= (n - 1) / n * 1e6 * (1 - 1e-12)
        if algorithm == "ring" or (algorithm == "Rabenseifner" and n & (n - 1) == 0):
            assert sent == pytest.approx(model.least_bytes(n, 1e6))
    assert model.terms(algorithm, 1, 1e6) == (0.0, 0.0, 0.0)


def test_the_fit_finds_the_coefficients_that_made_the_data() -> None:
    x = [(1.0, rows) for rows in (10, 100, 1000, 10000)]
    noisy = [(2e-3 + 3e-5 * rows) * (1 + 0.01 * (-1) ** i) for i, (_, rows) in enumerate(x)]
    found = model.fit(("c", "s"), x, noisy)
    assert found["c"] == pytest.approx(2e-3, rel=0.1)
    assert found["s"] == pytest.approx(3e-5, rel=0.05)
    low, high = found.interval("s")
    assert low <= found["s"] <= high
    # a time can't be negative, and what is known is not fitted again
    falling = model.fit(("c", "s"), x, [3e-5 * rows - 1e-4 for _, rows in x])
    assert falling["c"] == 0.0
    known = model.fit(("s",), [(rows,) for _, rows in x], [1.0 + 3e-5 * rows for _, rows in x], [1.0] * len(x))
    assert known["s"] == pytest.approx(3e-5)


def planted(tmp_path: Path) -> Path:
    """Runs as they would be if the model were right: c, s, o, h and gamma known."""
    c, s, o, h, gamma, alpha, beta = 1e-3, 2e-6, 3e-4, 0.02, 1e-9, 5e-6, 4e-10
    parameters = 669706

    def line(seconds: float) -> dict[str, Any]:
        return {"seconds": [seconds] * 3, "step_ms": dict.fromkeys(("median", "min", "max"), 1e3 * seconds)}

    of_ranks = []
    for kind in ("strong", "weak"):
        for batch in (512, 2048, 8192):
            rows = batch / 2 if kind == "strong" else batch
            two = line(c + s * rows + alpha + beta * model.least_bytes(2, 4 * parameters))
            two |= {"communication": ranks.spread([0.1]), "bytes": 4.0 * parameters, "least_bytes": 4.0 * parameters}
            two |= {"efficiency": ranks.spread([0.9])}
            both = {"threads@1": line(c + s * batch), "threads@2": line(c + s * rows), "ranks@2": two}
            record = {"kind": kind, "workload": "a", "batch": batch, "rows": batch, "parameters": parameters}
            of_ranks.append(record | {"rounds": 3, "contenders": both})
    of_links: list[dict[str, Any]] = [
        {"kind": "shared", "through": "bpnet", "ranks": 2, "bytes": m, "seconds": [alpha + beta * m]}
        for m in (64, 4096, 2678824)
    ]
    for algorithm in links.ALGORITHMS:
        for n in (2, 4, 8, 16):
            for delay, rate in links.Plan().links:
                for m in links.Plan().sizes:
                    a, b, r = model.terms(algorithm, n, m)
                    seconds = a * (delay + o) + b / rate * (1 + h) + r * gamma
                    of_links.append(
                        {"kind": "all_reduce", "algorithm": algorithm, "ranks": n, "delay": delay, "rate": rate}
                        | {"bytes": m, "seconds": [seconds], "sent": b}
                    )
    a, b, r = model.terms("Rabenseifner", 2, 4 * parameters)
    seconds = c + s * 1024 + (a + 1) * (2e-3 + o) + b / 25e6 * (1 + h) + r * gamma
    of_links.append(
        {"kind": "training", "workload": "a", "batch": 2048, "ranks": 2, "delay": 2e-3, "rate": 25e6, "sent": b}
        | {"parameters": parameters, "least_bytes": b, "seconds": [seconds], "step_ms": ranks.spread([1e3 * seconds])}
    )
    speed = {"memory": {"seconds": [1.0], "speed_over_memory": ranks.spread([1.0])}}
    streams = [{"workload": "a", "batch": 512, "rows": 4096, "contenders": speed}]
    machine = {"date": "2026-11-29 18:00 UTC", "cpu": "a processor", "cores": 2, "python": "3.11", "system": "Linux"}
    result = {"machine": machine, "threads": 2, "scaling": {"ranks": of_ranks, "streams": streams, "links": of_links}}
    (tmp_path / "run.json").write_text(json.dumps(result), encoding="utf-8")
    older = {"machine": machine | {"date": "2026-11-28 18:00 UTC"}, "threads": 2}
    wrong = [record | {"contenders": {"threads@1": line(9.0)}} for record in of_ranks]
    (tmp_path / "older.json").write_text(json.dumps(older | {"scaling": {"ranks": wrong}}), encoding="utf-8")
    return tmp_path


def test_the_page_is_made_of_the_runs_and_predicts_what_the_model_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpus, "SAMPLES", 10)
    monkeypatch.setattr(model, "RESAMPLED", 10)
    folder = planted(tmp_path)
    found = page.Found(folder)
    assert found.overheads is not None
    assert found.overheads["o"] == pytest.approx(3e-4)
    assert found.overheads["h"] == pytest.approx(0.02)
    assert found.overheads["gamma"] == pytest.approx(1e-9)
    assert {name for name in found.groups if name != "fitted"} == {
        "held out: more hosts",
        "held out: other links",
        "held out: more hosts and other links",
    }
    for name, pairs in found.pairs().items():
        assert model.Errors.of(pairs).worst < 1e-6, name
    assert len(found.steps) == 6
    (training,) = found.trainings
    assert training[1] == pytest.approx(training[2])
    written = tmp_path / "page.md"
    written.write_text((ROOT / "bench" / "scaling.md").read_text(encoding="utf-8"), encoding="utf-8")
    page.write(folder, written)
    text = written.read_text(encoding="utf-8")
    assert f"| o, of a message | us | 300 | 300 .. 300 | {found.overheads.count} |" in text
    assert "1,024 GPUs" in text
    monkeypatch.setattr(page, "draw", lambda *_: None)
    monkeypatch.setattr(page, "draw_check", lambda *_: None)
    page.write(folder, written)  # and once more: only what is between the markers changes
    assert written.read_text(encoding="utf-8") == text
    assert {path.name for path in folder.glob("*.svg")} in (set(), {"scaling-model.svg", "scaling-check.svg"})
    shown = tables.page(folder)
    assert "| (a) weak, 512 a rank | 2 |" in shown
    assert "bp.data" not in shown
    with pytest.raises(SystemExit, match="errors:begin"):
        page.filled("", {"errors": ""})
    with pytest.raises(SystemExit, match="bench scaling --json"):
        page.write(tmp_path / "nowhere", written)


@pytest.mark.parametrize("weak", [True, False])
def test_predicted_efficiency_falls_within_its_band(weak: bool) -> None:
    counts = [1, 2, 8, 16, 64, 1024]
    found = gpus.band(gpus.Cluster(), "g", 8192, counts, weak, 0.2)
    typical, low, high = found.T
    assert typical[0] == low[0] == high[0] == 1.0
    assert all(a > b > 0 for a, b in pairwise(typical))
    assert (low <= typical).all()
    assert (typical <= high).all()
    fewer = gpus.band(gpus.Cluster(nics=1), "g", 8192, [1024], weak, 0.2)
    assert fewer[0, 0] < typical[-1]


def test_no_predicted_all_reduce_is_faster_than_its_bytes() -> None:
    cluster = gpus.Cluster()
    for n in (2, 8, 16, 1024):
        for m in (256.0, 1e5, 1e7, 1e9):
            seconds, how = cluster.nccl(n, m)
            assert seconds > model.least_bytes(n, m) / cluster.bus(-(-n // cluster.gpus))
            assert how.split(",")[0] in ("ring", "tree")
            assert cluster.two_level(n, m) > 0
    assert cluster.nccl(1024, 1e3)[1].startswith("tree")  # whose latency grows with the logarithm
    assert cluster.nccl(8, 1e9)[1] == "ring, Simple"


# ---- what measures --------------------------------------------------------------------------------------------------


def test_a_relay_holds_packets_for_the_delay_and_the_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = [socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET) for _ in range(2)]
    for ours, theirs in pairs:
        ours.setblocking(False)
        theirs.setblocking(False)
    relay = Relay([ours.fileno() for ours, _ in pairs])
    relay.delay, relay.rate = 0.5, 1000.0
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    packet = bytes([0x45]) + bytes(15) + bytes(map(int, address_of(1).split("."))) + bytes(80)
    for _ in range(2):
        pairs[0][1].send(packet)
    relay.take(0)
    assert relay.give() == pytest.approx(0.5 + 0.1)  # of 100 bytes at 1000 a second
    now += 0.61
    assert relay.give() == pytest.approx(0.09)  # the second follows when the first has left
    assert pairs[1][1].recv(1000) == packet
    with pytest.raises(BlockingIOError):
        pairs[1][1].recv(1000)
    now += 0.1
    assert relay.give() is None
    assert pairs[1][1].recv(1000) == packet
    relay.loss = 1.1
    pairs[0][1].send(packet)
    relay.take(0)
    assert relay.give() is None
    for pair in pairs:
        for one in pair:
            one.close()


@pytest.mark.skipif(why_not() is not None or mpiexec() is None, reason=why_not() or NO_MPI)
def test_all_reduces_over_a_slow_link_take_what_they_must() -> None:
    kept: list[dict[str, Any]] = []
    plan = links.Plan((2,), ((5e-3, 12.5e6),), (125000,), algorithms=("Rabenseifner",), count=1, rounds=1)
    links.all_reduces(plan, lambda text: None, kept.append)
    (record,) = kept
    a, b, _ = model.terms("Rabenseifner", 2, 125000)
    assert record["seconds"][0] > 0.7 * (a * 5e-3 + b / 12.5e6)
    assert 1.0 <= record["sent"] / b < 1.1


@pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
def test_a_network_leaves_nothing_behind() -> None:
    with Network(1) as net:
        assert net.sent(0) >= 0
        name = net.inside(0)[-1]
        assert os.path.exists(f"/run/netns/{name}")
    assert not os.path.exists(f"/run/netns/{name}")


def test_ranks_and_files_are_measured_in_turns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("mpi4py", reason=NO_MPI)
    kept = tmp_path / "kept.json"
    arguments = "scaling ranks --workload d --batch 32 --ranks 2 --rounds 2 --seconds 0.001 --rows 128 --only ranks"
    assert command.main([*arguments.split(), "--json", str(kept)]) == 0
    result = json.loads(kept.read_text(encoding="utf-8"))
    strong, weak = result["scaling"]["ranks"]
    assert not strong["absent"]
    for record in (strong, weak):
        line = record["contenders"]["ranks@2"]
        assert len(line["seconds"]) == 2
        assert line["efficiency"]["median"] > 0
        assert 0 < line["communication"]["median"] <= 1
        assert line["least_bytes"] == 4 * record["parameters"]
        assert line["bytes"] >= line["least_bytes"]
    assert "(d) weak, 32 a rank" in capsys.readouterr().out
    arguments = "scaling streams --workload d --batch 256 --rounds 1 --megabytes 1 --only memory --only stream-npy"
    assert command.main([*arguments.split(), "--json", str(kept)]) == 0
    (record,) = json.loads(kept.read_text(encoding="utf-8"))["scaling"]["streams"]
    assert not record["absent"]
    assert record["contenders"]["stream-npy"]["speed_over_memory"]["median"] > 0


def test_a_group_that_fails_says_why(tmp_path: Path) -> None:
    order = {"kind": "fit", "workload": "d", "batch": 4, "threads": 1, "cores": [0], "folder": str(tmp_path)}
    with Group("lost", order, 1) as group, pytest.raises(Failed, match="lost: FileNotFoundError"):
        group.ask("prepare", batch=4, rows=8)


def test_contenders_that_compute_something_else_are_left_out(tmp_path: Path) -> None:
    for name, value in (("right", 1.0), ("other", 1.001)):
        np.savez(tmp_path / f"{name}.npz", parameter_0=np.full(4, value))
    assert ranks.apart(tmp_path, "other", "right") == pytest.approx(1e-3)
