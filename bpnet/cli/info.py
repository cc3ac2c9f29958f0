"""bpnet info: what is installed here, or what a model file holds."""

import importlib
import inspect
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.console import Console
from rich.table import Table

from bpnet import (
    Activation,
    Callback,
    Composite,
    Layer,
    Loss,
    Optimizer,
    Penalty,
    Schedule,
    __version__,
    backends,
    initializers,
    metrics,
)
from bpnet.callbacks.base import NAMES as CALLBACKS
from bpnet.cli.folding import summary
from bpnet.cli.model import expect_sound, load, scores
from bpnet.cli.terminal import JSON, AsJSON, printable, report, show
from bpnet.errors import OptionError, plural
from bpnet.files.model import plain_shape
from bpnet.layer import InShape
from bpnet.layout import Layout
from bpnet.registry import Registered, own_catalogue
from bpnet.report.words import brief

MISSED = dict.fromkeys(("llvmlite", "scikit-learn", "pyarrow", "matplotlib"), "") | {
    "nvmath-python": "; on a GPU, cuBLASLt, CUDA graphs, tf32 and bfloat16 need it"
}
"""Packages that bpnet can use beside array libraries, and what is missed without one."""
MISSED_RANKS = {
    "MPI": "; training by several processes needs mpi4py and mpich: the extra mpi",
    "NCCL": "; on several GPUs it is faster than MPI alone: the extra nccl",
}


def info(
    model: Annotated[
        Path | None, typer.Argument(metavar="MODEL", help="A file that bpnet train, or save in Python, has written.")
    ] = None,
    catalogue: Annotated[
        bool, typer.Option("--catalogue", help="List layers, losses, optimizers and the like.")
    ] = False,
    as_json: AsJSON = False,
) -> None:
    """What is installed: libraries, devices, versions, BLAS.  With MODEL: its layers and how it was trained."""
    if catalogue:
        if model is not None:
            raise OptionError(f"--catalogue lists what bpnet has, not what {model} holds: leave one of them out")
        result = describe_catalogue()
    else:
        result = describe_machine() if model is None else describe_model(model)
    if as_json:
        report(result, as_json)
    elif catalogue:
        show_catalogue(result)
    elif model is None:
        show_machine(result)
    else:
        show_model(result)


FAMILIES: dict[str, type[Registered]] = {
    "layers": Layer, "activations": Activation, "initializers": initializers.Initializer, "losses": Loss,
    "penalties": Penalty, "optimizers": Optimizer, "schedules": Schedule, "metrics": metrics.Metric,
}  # fmt: skip
"""What the catalogue lists, and the base of each."""


PAPERS = re.compile(r"\(([^()]*[A-Z][^()]* (?:19|20)\d\d[^()]*)\)")
"""What stands in parentheses and has authors and a year."""
PAPER = re.compile(r"(?:van )?[A-Z][^;]*? (?:19|20)\d\d")
"""One of these."""
ITEM = re.compile(r"^- `([^`]+)`: (.+?)(?=\n-|\n\n|\Z)", flags=re.MULTILINE | re.DOTALL)
"""What a class says of one of its names, or of those of a pattern."""


def describe_catalogue() -> JSON:
    """By family and name: the class, its options as they are by default, what it says, and the paper.

    The options are those that the name stands for; one without a default is a name alone.
    """
    result: JSON = {}
    for family, base in FAMILIES.items():
        found = own_catalogue(base)
        if base is Layer:
            found = {name: entry for name, entry in found.items() if not issubclass(entry[0], Activation)}
        result[family] = {
            name: describe_entry(name, cls, options)
            for name, (cls, options) in sorted(found.items(), key=lambda item: item[0].lower())
        }
    return result | {"callbacks": {name: describe_entry(name, cls, {}) for name, cls in every_callback()}}


def every_callback() -> Iterator[tuple[str, type[Callback]]]:
    """bpnet's own, each with its name, which is that of the class where options have no defaults."""
    package, named = importlib.import_module("bpnet"), {cls: name for name, cls in CALLBACKS.items()}
    found = {named.get(name, name): getattr(package, name) for name in package.__all__}
    for name, cls in sorted(found.items(), key=lambda item: item[0].lower()):
        if isinstance(cls, type) and issubclass(cls, Callback) and cls is not Callback:
            yield name, cls


def describe_entry(name: str, cls: type[Any], options: Mapping[str, Any]) -> JSON:
    """Class, options, first paragraph and paper of one name."""
    text, given = inspect.getdoc(cls) or "", inspect.signature(cls).parameters.values()
    shown = [p.replace(annotation=p.empty, default=options.get(p.name, p.default)) for p in given]
    own = next((" ".join(item.split()) for names, item in ITEM.findall(text) if fnmatchcase(name, names)), "")
    papers = PAPERS.search(own or " ".join(text.split()))
    return {
        "class": cls.__name__,
        "options": ", ".join(str(p).replace(" = ", "=") for p in shown),
        "says": own or " ".join(text.partition("\n\n")[0].split()),
        "paper": "; ".join(PAPER.findall(papers[1])) if papers else "",
    }


def show_catalogue(result: JSON) -> None:
    """`describe_catalogue` as tables."""
    for family, entries in result.items():
        show(f"{family}:")
        show_grid((f"  {name}", entry["says"]) for name, entry in entries.items())


def describe_machine() -> JSON:
    """Versions and devices of all that bpnet can use here."""
    from threadpoolctl import threadpool_info

    keys = {"name": "internal_api", "version": "version", "kernels": "architecture", "threads": "num_threads"}
    blas = [  # before other libraries bring a BLAS of their own
        {key: pool.get(own) for key, own in keys.items()} for pool in threadpool_info() if pool["user_api"] == "blas"
    ]
    if not blas:
        built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        blas = [{**dict.fromkeys(keys), "name": built.get("name"), "version": built.get("version")}]
    return {
        "bpnet": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "blas": blas,
        "backends": {name: describe_library(name) for name in backends.NAMES},
        "mpi": describe_mpi(),
        "nccl": describe_nccl(),
        "extras": {name: next((d.version for d in metadata.distributions(name=name)), None) for name in MISSED},
    }


def describe_mpi() -> JSON:
    """mpi4py and the MPI that it has found, for training by several processes."""
    result: JSON = {"mpi4py": None, "library": None}
    try:
        mpi4py = importlib.import_module("mpi4py")
        result["mpi4py"] = mpi4py.__version__
        mpi4py.rc.initialize = False  # what is asked here needs no other process
        library = importlib.import_module("mpi4py.MPI").Get_library_version()
        result["library"] = " ".join(library.replace("\0", "").split("\n")[0].replace("Version:", "").split())
    except ModuleNotFoundError:
        pass
    except Exception as error:  # no library of MPI, or one that is broken
        result["problem"] = " ".join(str(error).split())
    return result


def describe_nccl() -> JSON:
    """NVIDIA's library for training by several GPUs, as CuPy finds it."""
    result: JSON = {"version": None}
    with warnings.catch_warnings(action="ignore"):  # CuPy warns where the library is not there, which is no news here
        try:
            number = importlib.import_module("cupy.cuda.nccl").get_version()
            result["version"] = f"{number // 10_000}.{number // 100 % 100}.{number % 100}"
        except (ModuleNotFoundError, AttributeError):  # no CuPy, or nothing behind its module
            pass
        except Exception as error:
            result["problem"] = " ".join(str(error).split())
    return result


def describe_library(name: str) -> JSON:
    """Version and devices of an array library; None and none where it is missing, and why where it does not work."""
    result: JSON = {"version": None, "devices": []}
    try:
        library = importlib.import_module(name)
        result["version"] = library.__version__
        result["devices"] = list(DEVICES[name](library))
        result["precisions"] = list(backends.get(name).precisions(None))
        if name == "cupy":
            from bpnet.backends.cupy import cublaslt

            result |= {"without_cublaslt": why} if isinstance(why := cublaslt.bindings(), str) else {}
    except ModuleNotFoundError:
        pass
    except Exception as error:  # no driver, no device, a broken installation: each library has its own errors
        result["problem"] = " ".join(str(error).split())
    return result


def torch_devices(torch: Any) -> Iterable[str]:
    gpus = [f"cuda:{i} {torch.cuda.get_device_name(i)}" for i in range(torch.cuda.device_count())]
    return ["cpu", *gpus, *["mps"] * torch.backends.mps.is_available()]


def cuda_devices(runtime: Any) -> Iterable[str]:
    return [f"cuda:{i} {runtime.getDeviceProperties(i)['name'].decode()}" for i in range(runtime.getDeviceCount())]


DEVICES: dict[str, Callable[[Any], Iterable[str]]] = {
    "numpy": lambda numpy: ["cpu"],
    "cupy": lambda cupy: cuda_devices(cupy.cuda.runtime),
    "torch": torch_devices,
    "jax": lambda jax: [f"{d.platform}:{d.id} {d.device_kind}" for d in jax.devices()],
}


def show_grid(rows: Iterable[Iterable[str]], *headings: str) -> None:
    """Columns of text, numbers in the last of several with headings."""
    grid = Table(*headings, box=None, show_header=bool(headings), pad_edge=False)
    for row in rows:
        grid.add_row(*map(printable, row))
    if headings:
        grid.columns[-1].justify = "right"
    Console(width=None if sys.stdout.isatty() else 200).print(grid, highlight=False, markup=False)


def in_words(value: Any) -> str:
    """A value of the result as text; what is None or empty is left out."""
    if isinstance(value, dict):
        return ", ".join(f"{name.replace('_', ' ')} {in_words(v)}" for name, v in value.items() if v not in (None, []))
    return ", ".join(map(in_words, value)) if isinstance(value, list) else str(value)


def show_machine(result: JSON) -> None:
    """`describe_machine` as a table."""
    several = {**result["backends"], **{name: known and {"version": known} for name, known in result["extras"].items()}}
    rows = [(name, in_words(value)) for name, value in result.items() if not isinstance(value, dict | list)]
    rows += [("BLAS", in_words(blas)) for blas in result["blas"]]
    for name, known in (("MPI", result["mpi"]), ("NCCL", result["nccl"])):
        rows.append((name, in_words(known) or f"not installed{MISSED_RANKS[name]}"))
    rows += [(name, in_words(known or {}) or f"not installed{MISSED.get(name, '')}") for name, known in several.items()]
    show_grid(rows)
    for known in result["backends"].values():
        if "without_cublaslt" in known:
            missed = f"cuBLASLt can't be used, {known['without_cublaslt']}: CUDA graphs, tf32 and bfloat16 need it"
            Console().print(printable(missed), style="red", highlight=False, markup=False)


def describe_layers(layout: Layout, layer: Layer, in_shape: InShape, path: str = "") -> Iterator[JSON]:
    """Path, layer, output shape and number of parameters of every layer that is not made of others."""
    if not isinstance(layer, Composite):
        size = sum(slot.size for slot in layout.parameters if slot.name.startswith(f"{path}." if path else ""))
        yield {"name": path, "layer": repr(layer), "out_shape": list(layer.out_shape(in_shape)), "parameters": size}
        return
    for (name, child), shape in zip(layer.children, layer.child_shapes(in_shape), strict=True):
        yield from describe_layers(layout, child, shape, f"{path}.{name}" if path else name)


def describe_model(model: Path) -> JSON:
    """Layers, number of parameters and training record of a saved model."""
    found = load(model, "numpy")
    trainer = found.trainer
    layout, history = trainer.layout, trainer.history.epochs
    with expect_sound(model):
        training = found.settings.get("training")
        if training is not None:
            how_trained(training)
    return {
        "model": str(model),
        "in_shape": plain_shape(layout.in_shape),
        "out_shape": list(layout.out_shape),
        "parameters": layout.size,
        "dtype": str(trainer.theta.dtype),
        "layers": list(describe_layers(layout, trainer.network, layout.in_shape)),
        "loss_function": repr(trainer.loss),
        "optimizer": repr(trainer.optimizer),
        "steps": trainer.step_count,
        "epochs": len(history),
        "precision": str(history[-1].get("matmul_precision", "float32")) if history else trainer.precision,
        "last_epoch": history[-1] if history else None,
        "classes": trainer.classes,
        "features": list(found.schema.names) if found.schema.named else None,
        "kinds": {feature.name: feature.kind for feature in found.schema.features} if found.schema.named else None,
        "target": found.target_name,
        "training": training,
    }


def how_trained(training: JSON) -> list[str]:
    """What `bpnet train` noted, in words."""
    where = f"{training['data']}, {plural(training['training_rows'], 'row')}, {training['held_out_rows']:,} held out"
    found = summary(training["folds"]) if "folds" in training else scores(training)
    if "folds" not in training:
        found += " on the rows held out" if training["held_out_rows"] else " on the rows that it was trained on"
    return [
        f"trained on {where}, with bpnet {training['bpnet']} and {training['backend']}",
        f"{found}; {training['seconds']:.1f} s",
    ]


def show_model(result: JSON) -> None:
    """`describe_model` as a table."""
    rows = [
        (layer["name"], layer["layer"], " x ".join(map(str, layer["out_shape"])), f"{layer['parameters']:,}")
        for layer in result["layers"]
    ]
    show_grid([*rows, ("", "", "", f"{result['parameters']:,}")], "", "layer", "output", "parameters")
    training = result["training"] or {}
    steps, best = plural(result["steps"], "step"), training.get("best_epoch")
    trained = f"{plural(result['epochs'], 'epoch')}, {steps}"
    if best is not None and best < result["epochs"]:
        trained = f"{plural(result['epochs'], 'epoch')}, of which the best, {best}, is kept ({steps})"
    show(
        f"{brief(result['loss_function'])}, {brief(result['optimizer'])}",
        f"{trained}, products in {result['precision']}",
    )
    if result["training"] is not None:
        show(*how_trained(result["training"]))
