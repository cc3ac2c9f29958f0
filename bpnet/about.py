"""What the command line tells: scores in words, what is installed here, and what a model file holds."""

import importlib
import importlib.metadata
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table as Grid

from bpnet import __version__, backends, files
from bpnet.errors import BpnetError, FileFormatError
from bpnet.layer import Composite, Layer
from bpnet.layers.composition import Sequential
from bpnet.tables import JSON, KEY, Source
from bpnet.trainer import Trainer


def count(n: int, noun: str, plural: str | None = None) -> str:
    """`3 rows`, `1 row`, `1,797 rows`."""
    return f"{n:,} {noun if n == 1 else plural or noun + 's'}"


_CONTROLS = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
"""What makes a terminal do something instead of showing it: controls, turns of the writing's direction, half signs."""


def printable(text: str) -> str:
    """`text` with what would steer the terminal written out, as `\\x1b`; it may come out of a stranger's file."""
    return _CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


@contextmanager
def damage_told(model: Path) -> Iterator[None]:
    """Raise FileFormatError where what `bpnet train` writes into a model is not what it has written."""
    try:
        yield
    except (BpnetError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise FileFormatError(f"{model} is a bpnet model, but what bpnet train wrote into it is damaged") from error


def scores(result: JSON) -> str:
    """The figures of an evaluation in words."""
    parts = [f"loss {result['loss']:.4g}"]
    if result["accuracy"] is not None:
        parts.insert(0, f"accuracy {result['accuracy']:.2%}")
    if result.get("r2") is not None:
        parts.append(f"R2 {result['r2']:.3f}")
    return ", ".join(parts)


def describe_machine() -> JSON:
    """Versions and devices of all that bpnet can use here."""
    from threadpoolctl import threadpool_info

    blas = [  # before other libraries bring a BLAS of their own
        {
            "name": pool["internal_api"],
            "version": pool["version"],
            "kernels": pool.get("architecture"),
            "threads": pool["num_threads"],
        }
        for pool in threadpool_info()
        if pool["user_api"] == "blas"
    ]
    if not blas:
        built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        blas = [{"name": built.get("name"), "version": built.get("version"), "kernels": None, "threads": None}]
    return {
        "bpnet": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "blas": blas,
        "backends": {name: describe_library(name) for name in backends.NAMES},
        "extras": {
            name: version(name)
            for name in ("llvmlite", "scikit-learn", "pyarrow", "matplotlib", "onnx", "mpi4py", "nvmath-python")
        },
    }


def version(distribution: str) -> str | None:
    """The installed version of a distribution, None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe_library(name: str) -> JSON:
    """Version and devices of an array library; None and none where it is missing, and why where it does not work."""
    try:
        library = importlib.import_module(name)
    except ModuleNotFoundError:
        return {"version": None, "devices": []}
    except Exception as error:  # an installation can be broken in any way; the others are still to be told
        return {"version": None, "devices": [], "problem": " ".join(str(error).split())}
    try:
        devices = list(DEVICES[name](library))
    except Exception as error:  # no driver, no device: each library has its own error for that
        return {"version": library.__version__, "devices": [], "problem": " ".join(str(error).split())}
    result = {"version": library.__version__, "devices": devices}
    result["precisions"] = list(backends.get(name).precisions(None)) if devices else []
    if name == "cupy" and devices:
        from bpnet.backends.cupy import cublaslt

        result |= {"without_cublaslt": why} if (why := cublaslt.why_not()) else {}
    return result


def cupy_devices(cupy: Any) -> Iterator[str]:
    for i in range(cupy.cuda.runtime.getDeviceCount()):
        yield f"cuda:{i} {cupy.cuda.runtime.getDeviceProperties(i)['name'].decode()}"


def torch_devices(torch: Any) -> Iterator[str]:
    yield "cpu"
    for i in range(torch.cuda.device_count()):
        yield f"cuda:{i} {torch.cuda.get_device_name(i)}"
    if torch.backends.mps.is_available():
        yield "mps"


DEVICES: dict[str, Callable[[Any], Iterator[str]]] = {
    "numpy": lambda numpy: iter(["cpu"]),
    "cupy": cupy_devices,
    "torch": torch_devices,
    "jax": lambda jax: (f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()),
}


MISSED = {"nvmath-python": "; on a GPU, cuBLASLt, CUDA graphs, tf32 and bfloat16 need it"}
"""What is missed without a package."""


def show_machine(result: JSON) -> None:
    """`describe_machine` as a table."""
    grid = Grid(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="bold")
    grid.add_row("bpnet", result["bpnet"])
    grid.add_row("python", f"{result['python']} on {result['platform']}, {count(result['processors'], 'processor')}")
    for blas in result["blas"]:
        threads = "" if blas["threads"] is None else f", {count(blas['threads'], 'thread')}"
        kernels = f", kernels for {blas['kernels']}" if blas["kernels"] else ""
        grid.add_row("BLAS", f"{blas['name']} {blas['version'] or ''}{kernels}{threads}")
    for name, library in result["backends"].items():
        if "problem" in library:
            state = f"{library['version'] or 'broken'}, no device: {library['problem']}"
        else:
            state = (
                f"{library['version']} on {', '.join(library['devices'])}" if library["version"] else "not installed"
            )
            if "without_cublaslt" in library:
                state += f", products by CuPy since cuBLASLt can't be used: {library['without_cublaslt']}"
            if len(library.get("precisions", ())) > 1:
                state += f", products in {', '.join(library['precisions'])}"
        grid.add_row(name, state)
    for name, installed in result["extras"].items():
        grid.add_row(name, installed or f"not installed{MISSED.get(name, '')}")
    Console(width=None if sys.stdout.isatty() else 200).print(grid, highlight=False, markup=False)


def describe_model(model: Path) -> JSON:
    """Layers, number of parameters and training record of a saved model."""
    trainer = files.load(model)
    layout = trainer.layout
    layers: list[JSON] = []

    def add(layer: Layer, path: tuple[str, ...], in_shape: tuple[int, ...]) -> None:
        out_shape = layer.out_shape(in_shape)
        if isinstance(layer, Composite):
            for name, child in layer.children:
                add(child, (*path, name), in_shape)
                in_shape = child.out_shape(in_shape) if isinstance(layer, Sequential) else in_shape
        else:
            size = sum(slot.size for slot in layout.parameters if slot.path[: len(path)] == path)
            layers.append(
                {"name": ".".join(path), "layer": repr(layer), "out_shape": list(out_shape), "parameters": size}
            )

    add(trainer.network, (), layout.in_shape)
    with damage_told(model):
        remembered = trainer.metadata.get(KEY, {})
        source, training = Source(**remembered.get("source", {})), remembered.get("training")
        if training is not None:
            how_trained(training)
    return {
        "model": str(model),
        "in_shape": list(layout.in_shape),
        "out_shape": list(layout.out_shape),
        "parameters": layout.size,
        "dtype": str(trainer.theta.dtype),
        "layers": layers,
        "loss_function": repr(trainer.loss),
        "optimizer": repr(trainer.optimizer),
        "steps": trainer.step_count,
        "epochs": len(trainer.history),
        "precision": trained_precision(trainer),
        "last_epoch": trainer.history.epochs[-1] if len(trainer.history) else None,
        "classes": trainer.classes,
        "features": source.features,
        "target": source.target,
        "training": training,
    }


def how_trained(training: JSON) -> list[str]:
    """What `train` noted, in words."""
    where = f"{training['data']}, {count(training['training_rows'], 'row')}, {training['held_out_rows']:,} held out"
    return [
        f"trained on {where}, with bpnet {training['bpnet']} and {training['backend']}",
        f"{scores(training)}, {training['seconds']:.1f} s",
    ]


def trained_precision(trainer: Trainer) -> str:
    """The precision of the products in the last epoch, which need not be one that there is on this machine."""
    record = trainer.history.epochs[-1] if len(trainer.history) else {}
    return str(record.get("precision", trainer.precision))


def show_model(result: JSON) -> None:
    """`describe_model` as a table."""
    console = Console(width=None if sys.stdout.isatty() else 200)
    grid = Grid(box=None, pad_edge=False)
    for name in ("", "layer", "output", "parameters"):
        grid.add_column(name, justify="right" if name == "parameters" else "left")
    for layer in result["layers"]:
        shape = " x ".join(map(str, layer["out_shape"]))
        grid.add_row(printable(layer["name"]), printable(layer["layer"]), shape, f"{layer['parameters']:,}")
    grid.add_row("", "", "", f"{result['parameters']:,}", style="bold")
    console.print(grid, highlight=False, markup=False)
    lines = [f"{result['loss_function']}, {result['optimizer']}"]
    trained = f"{count(result['epochs'], 'epoch')}, {count(result['steps'], 'step')}"
    lines.append(f"{trained}, products in {result['precision']}")
    lines += how_trained(result["training"]) if result["training"] is not None else []
    print("\n".join(map(printable, lines)))
