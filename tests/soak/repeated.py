"""Trains once, and prints hashes of all that comes of it: `repeated.py FOLDER`, for processes of other hash seeds."""

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

import bpnet as bp


def digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(array).tobytes() for array in arrays)).hexdigest()


def main(folder: Path) -> None:
    rng, found = np.random.default_rng(0), {}
    x, y = rng.standard_normal((600, 8), "f4"), rng.integers(0, 3, 600)
    network = bp.Sequential(bp.Dense(30, "relu"), bp.BatchNorm(), bp.Dropout(0.3), bp.Dense(3))
    for compiled in (False, True):
        trainer = bp.Trainer(network, "cross_entropy", bp.AdamW(0.01), seed=3, compile=compiled)
        trainer.fit(x, y, epochs=3, batch_size=64, validation=(x[:50], y[:50]), metrics=["f1"], progress=False)
        found[f"fit, compiled={compiled}"] = digest(trainer.theta, trainer.buffers, *trainer.state, trainer.predict(x))
        for record in trainer.history.epochs:
            record["seconds"] = 0.0  # the one thing that may differ
        trainer.save(folder / f"model-{compiled}.safetensors", metadata={"b": 1, "a": {"z": 1, "y": 2}})
    table = {f"x{i}": x[:, i] for i in range(4)}
    table |= {"city": np.array(["Rome", "Oslo", "Bern"])[rng.integers(0, 3, 600)], "y": np.array(["no", "yes"])[y % 2]}
    model = bp.train_table(table, target="y", epochs=3, progress=False, seed=1)
    found["table"] = digest(model.predict_proba(table))
    for record in model.trainer.history.epochs:
        record["seconds"] = 0.0
    model.save(folder / "table.safetensors")
    estimator = bp.MLPRegressor(hidden_layer_sizes=(10,), max_iter=5, random_state=0).fit(x, x[:, 0])
    found["estimator"] = digest(estimator.predict(x), *estimator.coefs_)
    for path in sorted(folder.iterdir()):
        found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
    print(json.dumps({"cases": 1, "found": [found], "failures": []}))


if __name__ == "__main__":
    import warnings

    warnings.simplefilter("ignore")
    main(Path(sys.argv[1]))
