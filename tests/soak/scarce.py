"""Has one allocation after the other fail, and looks at what that leaves: `scarce.py WORK COMPILED EVERY FIRST`.

CPython's own tests have the means, `_testcapi.set_nomemory`; NumPy's arrays of numbers are not among what fails.  NumPy
itself may then end the process: so there is a child for some places at a time, and another one after such a place.
"""

import _testcapi
import faulthandler
import json
import os
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from interrupted import NETWORK, WIDE, bits
from support.leftovers import Leftovers

import bpnet as bp
from bpnet.backends import numpy as numpy_backend

SLICE = 400
"""Places that a child tries."""
LEAST = 50
"""Places in a row that must not be reached before the call counts as through."""


class Work:
    """A call, and what it may leave."""

    def __init__(self, name: str, compiled: bool) -> None:
        wide = "many rows" in name
        numpy_backend.ALONE = 0  # several threads update the parameters
        rng = np.random.default_rng(0)
        self.name, rows = name, 1100 if wide else 24
        self.x, self.y = rng.standard_normal((rows, 200 if wide else 4), "f4"), rng.integers(0, 3, rows)
        self.trainer = bp.Trainer(
            WIDE if wide else NETWORK, "cross_entropy", bp.AdamW(0.01), compile=compiled, threads=2
        )
        self.first = self.trainer.build(self.x).snapshot()
        self.steps = {0: bits(self.trainer)}
        for _ in range(5):
            self.trainer.step(self.x, self.y)
            self.steps[self.trainer.step_count] = bits(self.trainer)
        for _ in range(3):
            self.reset()
            self.call()

    def reset(self) -> None:
        self.trainer.restore(self.first)
        self.trainer.history = bp.History()

    def call(self) -> None:
        if self.name == "predictions":
            self.trainer.predict(self.x)
            self.trainer.evaluate(self.x, self.y)
        elif self.name == "fit":
            self.trainer.fit(self.x, self.y, batch_size=24, progress=False, shuffle=False)
        else:
            self.trainer.step(self.x, self.y)
            self.trainer.step(self.x, self.y, check=False)

    def wrong(self) -> list[str]:
        trainer, found = self.trainer, []
        if bits(trainer) != self.steps[trainer.step_count]:
            found.append(f"parameters of no step, though {trainer.step_count} are counted")
        trainer.step(self.x, self.y)
        if bits(trainer) != self.steps[trainer.step_count]:
            found.append("the next step is another")
        return found


def slice_of(work: Work, first: int, every: int, folder: Path, out: Any) -> None:
    """In a child: try places from the first one on, and write what was found of each."""
    for _ in range(3):  # with threads of its own
        work.reset()
        work.call()
    leftovers = Leftovers(folder)
    unreached = 0
    for place in range(first, first + SLICE * every, every):
        faulthandler.dump_traceback_later(60.0, exit=True)
        out.write(f"{place}\n")
        out.flush()
        work.reset()
        error: BaseException | None = None
        try:
            _testcapi.set_nomemory(place, place + 1)
            work.call()
            _testcapi.remove_mem_hooks()
        except BaseException as raised:
            _testcapi.remove_mem_hooks()
            error = raised
        name = type(error).__name__
        del error
        found = leftovers.found()
        try:
            found += work.wrong()
        except Exception as failure:
            found.append(f"not usable: {type(failure).__name__}: {failure}")
        out.writelines(f"failure {name} at {place}: {text}\n" for text in found)
        unreached = unreached + 1 if name == "NoneType" else 0
        out.write("failed\n" * (name != "NoneType") + "through\n" * (unreached * every >= LEAST))
        out.flush()
        if unreached * every >= LEAST:
            break
    os._exit(0)


def main(name: str, compiled: int, every: int, first: int) -> None:
    warnings.simplefilter("ignore")
    total: dict[str, Any] = {"cases": 0, "failed": 0, "crashed": 0, "failures": []}
    with tempfile.TemporaryDirectory() as folder:
        work, place, through = Work(name, bool(compiled)), first % every, False
        log, trace = Path(folder) / "log", Path(folder) / "trace"
        while not through:
            child = os.fork()
            if not child:
                with open(log, "w") as out, open(trace, "w") as crash:
                    faulthandler.enable(crash)
                    os.dup2(crash.fileno(), 2)
                    slice_of(work, place, every, Path(folder), out)
            status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            lines, told = log.read_text().splitlines(), trace.read_text()
            places = [int(line) for line in lines if line.isdecimal()]
            through = "through" in lines or not places
            total["cases"] += len(places)
            total["failed"] += lines.count("failed")
            total["failures"] += [line for line in lines if line.startswith("failure")]
            place = places[-1] + every if places else place
            if status:
                innermost = told.partition("(most recent call first):\n")[2].partition("\n")[0]
                if status > 0 or "/compiler/" in innermost or not places:
                    total["failures"].append(f"ended with {status} at {place - every}: {told[-2000:]}")
                else:
                    total["crashed"] += 1
    print(json.dumps(total))


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:5]))
