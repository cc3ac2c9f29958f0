"""Trains on a file within 1 GiB of address space: `streamed.py X Y MEGABYTES`."""

import faulthandler
import json
import resource
import sys

import bpnet as bp


def main(x: str, y: str, megabytes: float) -> None:
    faulthandler.dump_traceback_later(1800.0, exit=True)
    limit = int(megabytes * 2**20)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))  # before anything is read, or a package for it imported
    trainer = bp.Trainer(bp.Sequential(bp.Dense(8, "relu"), bp.Dense(4)), "cross_entropy", bp.Adam(0.01))
    rows = bp.data.stream(x, y, buffer=2**27)
    failures = []
    try:
        trainer.fit(rows, batch_size=4096, validation=bp.data.stream(x, y, buffer=2**26), progress=False)
    except MemoryError as error:
        failures.append(f"{x}: {type(error).__name__}: {error}")
    else:
        record = trainer.history.epochs[-1]
        if trainer.step_count != -(-rows.count // 4096) or record["val_accuracy"] != 1.0:
            failures.append(f"{x}: {trainer.step_count} steps, {record}")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    print(json.dumps({"cases": 1, "failures": failures, "peak": [peak]}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]))
