"""bpnet predict: what a model says of the rows of a data set."""

import csv
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np

from bpnet import BinaryCrossEntropy, Trainer
from bpnet.backends import Array
from bpnet.cli.dataset import read
from bpnet.cli.model import ROWS, features_for, load, location
from bpnet.cli.terminal import JSON, AsJSON, Backend, Data, Model, check_output, option, show, show_json
from bpnet.disk import write_atomically
from bpnet.errors import OptionError, plural


def predict(
    model: Model,
    data: Data,
    output: Annotated[Path | None, option("FILE", "Write to a .npy or .csv file instead.")] = None,
    backend: Backend = "numpy",
    as_json: AsJSON = False,
) -> None:
    """What MODEL says of each row of DATA, one line a row: a class by its name, or numbers."""
    if output is not None:
        if output.suffix.lower() not in (".npy", ".csv"):
            raise OptionError(f"--output is {output}: expected a .npy or .csv file")
        check_output("--output", output, MODEL=model, DATA=data)
    trainer, provenance = load(model, backend)
    x = features_for(trainer, read(data, model=provenance, labelled=False))
    began = time.perf_counter()
    found = answers(trainer.predict(x, batch_size=ROWS), trainer)
    result: JSON = {"rows": len(x), "seconds": time.perf_counter() - began, **location(trainer), "data": data}
    if output is not None:
        write(output, found, provenance.target or "prediction")
        result["output"] = str(output)
    elif as_json:
        result["predictions"] = found
    if as_json:
        show_json(result)
    elif output is not None:
        show(f"{plural(len(found), 'prediction')} written to {output}")
    else:
        show(*(",".join(map(str, answer)) if isinstance(answer, list) else str(answer) for answer in found))


def answers(output: Array, trainer: Trainer) -> list[Any]:
    """Of every row of outputs its class, by name where the model knows names, or its number or numbers."""
    loss, single = trainer.loss, output.shape[1:] == (1,)
    if loss.labels:
        which = output.argmax(axis=-1)
    elif loss.probabilities and single:
        which = (output[:, 0] > (0.5 if isinstance(loss, BinaryCrossEntropy) else 0.0)).astype(np.int64)
    else:
        values: list[Any] = (output[:, 0] if single else output).tolist()
        return values
    classes = trainer.classes
    return which.tolist() if classes is None else [classes[i] for i in which.tolist()]


def write(path: Path, found: list[Any], name: str) -> None:
    """Predictions as a .npy array, or a .csv file with a header; complete, or not there at all."""
    if path.suffix.lower() == ".npy":
        longest = max((len(answer) for answer in found if isinstance(answer, str)), default=0)
        array = np.asarray(found if longest * len(found) < 1 << 28 else None)  # NumPy pads text to the longest
        if array.dtype.kind not in "biufU":
            raise OptionError(f"--output is {path}, but a .npy file can't hold these predictions: take a .csv file")
        with write_atomically(path) as file:
            np.save(file, array, allow_pickle=False)
        return
    wide = isinstance(found[0], list)
    with write_atomically(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow([f"{name}_{i}" for i in range(len(found[0]))] if wide else [name])
        writer.writerows(found if wide else ([answer] for answer in found))
