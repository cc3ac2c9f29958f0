"""One contender in a process of its own, from the side of the instrument."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from bench.plan import ROOT, Case, Contestant, Plan, available_cores

PATIENCE = 1800  # seconds after which an answer is no longer waited for


class Process:
    """A process of ``python -m module order`` that does what it is sent, and answers, both in lines of JSON."""

    def __init__(self, name: str, module: str, order: dict[str, Any], env: dict[str, str], plan: Plan) -> None:
        self.name = name
        self.plan = plan
        self.errors = open(Path(order["folder"]) / f"{name}.log", "w+", encoding="utf-8")  # noqa: SIM115
        self.process = subprocess.Popen(
            [sys.executable, "-m", module, json.dumps(order)],
            cwd=ROOT,
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            text=True,
        )

    def send(self, do: str, **arguments: Any) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):  # it has died; reading the answer will tell
            self.process.stdin.write(json.dumps({"do": do, **arguments}) + "\n")
            self.process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        patience = min(PATIENCE, max(1.0, self.plan.left()))
        ended = threading.Event()

        def end() -> None:
            ended.set()
            self.process.kill()

        timer = threading.Timer(patience, end)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            answer: dict[str, Any] = json.loads(line)
            return answer
        code = self.process.wait()
        if ended.is_set():
            return {"failed": f"gave no answer in the {patience:.0f} s that were left"}
        self.errors.seek(0)
        last = self.errors.read().strip().splitlines()[-1:] or ["no message"]
        hint = ", perhaps for want of memory" if code == -9 else ""
        return {"failed": f"the process ended with status {code}{hint}: {last[0]}"}

    def ask(self, do: str, **arguments: Any) -> dict[str, Any]:
        self.send(do, **arguments)
        return self.receive()

    def close(self) -> None:
        assert self.process.stdin is not None
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.errors.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Child(Process):
    """One contender in its own process."""

    def __init__(self, contestant: Contestant, case: Case, plan: Plan, folder: Path) -> None:
        order = {
            "entry": asdict(contestant.entry),
            "folder": str(folder),
            "workload": case.workload,
            "dtype": case.dtype,
            "batch": case.batch,
            "threads": contestant.threads,
            "device": plan.device,
            "precision": case.precision,
            "cores": available_cores()[: contestant.threads],
        }
        env = environment(contestant.threads, plan.device, case.precision)
        super().__init__(contestant.name, "bench.child", order, env, plan)


def environment(threads: int, device: str, precision: str = "float32") -> dict[str, str]:
    """The same number of threads for whatever library a child loads, and the same precision on a GPU."""
    names = (
        *("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"),
        *("NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS", "NPROC"),  # the last is XLA's
    )
    extra = {
        "JAX_PLATFORMS": "cpu" if device == "cpu" else "cuda,cpu",
        "KERAS_BACKEND": "jax",
        "TF_CPP_MIN_LOG_LEVEL": "3",
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # several contenders share the device's memory
        "CUPY_TF32": "0",
        "NVIDIA_TF32_OVERRIDE": "0",  # which no setting of a library overrules
    }
    if device == "cpu":
        extra["CUDA_VISIBLE_DEVICES"] = ""
    found = {**os.environ, **dict.fromkeys(names, str(threads)), **extra}
    if precision == "tf32":  # whoever wants it asks its library for it
        del found["NVIDIA_TF32_OVERRIDE"]
    return found
