"""Interrupts the import of bpnet and a first training: `importing.py SEED`."""

import faulthandler
import json
import random
import signal
import sys
import traceback
from typing import Any

SECONDS = 1.2
"""About how long the imports take."""


def main(seed: int) -> None:
    armed = True

    def interrupt(*_: Any) -> None:
        if armed:
            raise KeyboardInterrupt

    def work() -> Any:
        import numpy as np

        import bpnet as bp

        x, y = np.linspace(-1.0, 1.0, 48).reshape(12, 4), np.arange(12) % 3
        trainer = bp.Trainer(bp.Sequential(bp.Dense(5, "relu"), bp.Dense(3)), "cross_entropy", compile=bool(seed % 2))
        trainer.fit(x, y, batch_size=6, progress=False)
        estimator = bp.MLPClassifier(hidden_layer_sizes=(4,), max_iter=2, random_state=0).fit(x, y)
        return trainer.theta.tobytes(), estimator.predict_proba(x).tobytes()

    import warnings

    import numpy as np

    warnings.simplefilter("ignore")
    faulthandler.dump_traceback_later(60.0, exit=True)
    signal.signal(signal.SIGALRM, interrupt)
    came, others, failures = 0, 0, []
    before = np.geterr()
    signal.setitimer(signal.ITIMER_REAL, random.Random(seed).uniform(0.001, SECONDS))
    try:
        work()
    except KeyboardInterrupt:
        came = 1
    armed = False
    signal.setitimer(signal.ITIMER_REAL, 0.0)
    try:
        if work() != work():
            failures.append("two trainings differ")
    except Exception as error:
        frames = [frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)]
        own = [i for i, code in enumerate(frames) if "/bpnet/" in code.co_filename.replace("\\", "/")]
        if any(code.co_name == "<module>" for code in frames[own[-1] + 1 if own else 2 :]):
            others = 1  # Python itself can't import every package again: asyncio, for one
        else:
            failures.append(f"not usable: {type(error).__name__}: {error}")
    if np.geterr() != before:
        failures.append("NumPy's error state")
    print(json.dumps({"cases": 1, "came": came, "others": others, "failures": failures}))


if __name__ == "__main__":
    main(int(sys.argv[1]))
