"""The command line: train a network on a table of data, evaluate it, predict with it, and look at what is installed.

Results go to stdout, progress and errors to stderr.  What a user got wrong is one line and exit status 2.
"""

import csv
import dataclasses
import functools
import json
import math
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ParamSpec, TypeVar

import numpy as np
import typer

from bpnet import __version__, backends, files
from bpnet.about import count, describe_machine, describe_model, scores, show_machine, show_model
from bpnet.backends import Array, Backend
from bpnet.callbacks import Callback, Progress
from bpnet.errors import BpnetError, DataError, DivergedError, FileFormatError, MissingExtraError, OptionError
from bpnet.layer import Layer
from bpnet.layers.composition import Sequential
from bpnet.layers.dense import Dense
from bpnet.layers.dropout import Dropout
from bpnet.layers.flatten import Flatten
from bpnet.losses import BinaryCrossEntropy, Loss, MeanSquaredError
from bpnet.optimizers import Optimizer
from bpnet.registry import resolve
from bpnet.tables import JSON, KEY, Recipe, Source, Table, choose_loss, read, split
from bpnet.trainer import Trainer

P = ParamSpec("P")
R = TypeVar("R")
app = typer.Typer(
    help="Train a network by backpropagation, on whichever array library you choose.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def show_version(wanted: bool) -> None:
    """Print the version and leave."""
    if wanted:
        typer.echo(f"bpnet {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Show it.")] = False,
) -> None:
    """Train a network by backpropagation, on whichever array library you choose."""


# ---- reporting ------------------------------------------------------------------------------------------------------


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what the user got wrong into one line on stderr and exit status 2, and Ctrl-C into 130."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return command(*args, **kwargs)
        except BrokenPipeError:  # the reader of our output left, as `head` does
            raise
        except BpnetError as error:
            message = str(error)
        except OSError as error:
            message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
        except KeyboardInterrupt:
            typer.echo("bpnet: interrupted, nothing was saved", err=True)
            raise typer.Exit(130) from None
        typer.echo(f"bpnet: {' '.join(message.split())}", err=True)
        raise typer.Exit(2)

    return run


def print_json(result: JSON) -> None:
    """One JSON object on stdout; numbers that JSON lacks become null."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {str(k): plain(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [plain(v) for v in value]
        if isinstance(value, float) and not np.isfinite(value):
            return None
        return value

    typer.echo(json.dumps(plain(result), allow_nan=False))


class Report(Progress):
    """The trainer's progress bar, with epochs in the words of the command line and losses in the target's own units."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit

    def on_epoch_end(self, trainer: Trainer, record: JSON) -> None:
        line = f"epoch {record['epoch']:>3}/{self.epochs}  loss {record['loss'] * self.unit:.4f}"
        if "val_loss" in record:
            line += f"  held-out loss {record['val_loss'] * self.unit:.4f}"
        if "val_accuracy" in record:
            line += f"  held-out accuracy {record['val_accuracy']:.2%}"
        self._write(line + "\n")


class Interrupt(Callback):
    """While it is entered, Ctrl-C ends the training after the steps that run; a second one ends it at once."""

    before_next_step = False

    def __init__(self) -> None:
        self.pressed = False

    def __enter__(self) -> "Interrupt":
        self.before = signal.signal(signal.SIGINT, self._press)
        return self

    def __exit__(self, *error: object) -> None:
        signal.signal(signal.SIGINT, self.before)

    def _press(self, number: int, frame: FrameType | None) -> None:
        if self.pressed:
            raise KeyboardInterrupt
        self.pressed = True

    def on_step_end(self, trainer: Trainer, step: int) -> None:
        if self.pressed:
            raise KeyboardInterrupt

    def on_epoch_end(self, trainer: Trainer, record: JSON) -> None:
        trainer.stop = trainer.stop or self.pressed


def draw(history: Sequence[JSON], path: Path) -> None:
    """The learning curves as a picture: loss, and accuracy where there is one."""
    from matplotlib.figure import Figure

    epochs = [record["epoch"] for record in history]
    accuracy = [record["val_accuracy"] for record in history if record.get("val_accuracy") is not None]
    held_out = [record["val_loss"] for record in history if record.get("val_loss") is not None]
    figure = Figure(figsize=(10.0 if accuracy else 5.5, 4.0), layout="constrained")
    axes = figure.subplots(1, 2 if accuracy else 1, squeeze=False)[0]
    axes[0].plot(epochs, [record["loss"] for record in history], ".-", label="training")
    if held_out:
        axes[0].plot(epochs, held_out, ".-", label="held out")
    axes[0].set(xlabel="epoch", ylabel="loss", yscale="log")
    axes[0].legend()
    if accuracy:
        axes[1].plot(epochs, [100 * a for a in accuracy], ".-C1", label="held out")
        axes[1].set(xlabel="epoch", ylabel="accuracy, %", title=f"last {accuracy[-1]:.2%}, best {max(accuracy):.2%}")
        axes[1].legend(loc="lower right")
    for one in axes:
        one.grid(alpha=0.3)
        one.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=150)


# ---- what the commands are made of ----------------------------------------------------------------------------------

PART = 8192
"""Rows that are evaluated or predicted at a time, so that memory does not grow with the data."""


def parse_hidden(text: str) -> list[int]:
    """`256,128` as [256, 128]."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise OptionError(f"--hidden is {text!r}; expected whole numbers of at least 1 with commas between, as 256,128")
    return [int(part) for part in parts]


def check_place(option: str, path: Path) -> None:
    """Raise OptionError, before any work is done, where a file can't be written at `path`."""
    if path.exists() and not path.is_file():
        raise OptionError(
            f"{option} is {path}, which is {'a directory' if path.is_dir() else 'a device'}: expected a file"
        )
    if not path.parent.is_dir():
        raise OptionError(f"{option} is {path}, but there is no directory {path.parent}")
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".bpnet"):
            pass
    except OSError as error:
        raise OptionError(f"{option} is {path}, but nothing can be written there: {error.strerror}") from error


def check_plot(path: Path) -> None:
    """Raise MissingExtraError without Matplotlib, and OptionError where it can't draw to `path`."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("--plot", "Matplotlib", "cli") from error
    check_place("--plot", path)
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in formats:
        raise OptionError(
            f"--plot is {path}: expected a file that ends in one of {', '.join('.' + f for f in sorted(formats))}"
        )


class NoDeviceError(BpnetError, RuntimeError):
    """An array library is installed, but can't make an array here: it has no driver, or no device."""


def connect(name: str) -> Backend:
    """The backend called `name`, known to work."""
    library = backends.get(name)
    try:
        library.synchronise(library.from_host(np.zeros(1, dtype=np.float32)))
    except Exception as error:  # each library has its own error for this
        raise NoDeviceError(f"{name} is installed, but does not work here: {error}") from error
    return library


def load(model: Path, library: Backend) -> tuple[Trainer, Recipe, Source]:
    """A saved trainer in `library`, its recipe, and where its data came from: both empty if not written by `train`."""
    trainer = files.load(model, like=library.from_host(np.zeros(1, dtype=np.float32)))
    try:
        remembered = trainer.metadata.get(KEY, {})
        return trainer, Recipe(**remembered.get("recipe", {})), Source(**remembered.get("source", {}))
    except (TypeError, AttributeError) as error:
        raise FileFormatError(f"{model} is a bpnet model, but what bpnet train wrote into it is damaged") from error


def network_for(table: Table, recipe: Recipe, loss: Loss, hidden: Sequence[Layer]) -> Sequential:
    """The hidden layers, and what the table's rows need before and its target after them."""
    before = [Flatten()] if table.x.ndim > 2 else []
    units = len(recipe.classes or ()) if loss.labels else table.y[:1].size
    after = Dense(units, "sigmoid" if isinstance(loss, BinaryCrossEntropy) else "identity")
    return Sequential(*before, *hidden, after)


def subject(recipe: Recipe) -> str:
    """What a model predicts, in words."""
    return count(len(recipe.classes), "class", "classes") if recipe.classes else f"{recipe.target or 'y'} is a number"


def column(target: str | None, recipe: Recipe, data: str) -> str | None:
    """The target column that was asked for, or else the model's, where the data is a file of columns."""
    return target or (recipe.target if Path(data).suffix.lower() in (".csv", ".parquet") else None)


def features(recipe: Recipe, table: Table, trainer: Trainer) -> Array:
    """The table's features in the type of the trainer's parameters, which may have been made in Python."""
    return recipe.x(table).astype(trainer.backend.to_host(trainer.theta[:1]).dtype, copy=False)


def evaluate_rows(trainer: Trainer, recipe: Recipe, x: Array, y: Array) -> JSON:
    """Loss in the target's own units, accuracy (None for numbers), and for numbers the share of variance explained."""
    found = trainer.evaluate(x, y, batch_size=PART)
    result: JSON = {"loss": found["loss"] * recipe.unit, "accuracy": found.get("accuracy")}
    if isinstance(trainer.loss, MeanSquaredError):
        values = np.asarray(trainer.backend.to_host(y), dtype=np.float64)
        variance = float(((values - values.mean(axis=0)) ** 2).mean())
        result["r2"] = 1.0 - found["loss"] / variance if variance > 0 else None
    return result


def write_answers(path: Path, answers: Array, name: str) -> None:
    """Predictions as a .npy array, or a .csv file with a header."""
    if path.suffix.lower() == ".npy":
        np.save(path, answers)
        return
    columns = [name] if answers.ndim == 1 else [f"{name}_{i}" for i in range(answers.shape[1])]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(np.atleast_1d(answer).tolist() for answer in answers)


# ---- commands -------------------------------------------------------------------------------------------------------

Data = Annotated[str, typer.Argument(metavar="DATA", help="digits, or a .npz (x, y), .csv or .parquet file.")]
Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A file that bpnet train has written.")]
Target = Annotated[
    str | None, typer.Option(metavar="COLUMN", help="The column of a .csv or .parquet file to be learnt.")
]
BackendName = Annotated[str, typer.Option(metavar="NAME", help="The array library: numpy, cupy, torch or jax.")]
AsJSON = Annotated[bool, typer.Option("--json", help="Print the result as one JSON object.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, and no line an epoch.")]


@app.command()
@one_line_errors
def train(
    data: Data,
    target: Target = None,
    hidden: Annotated[
        str, typer.Option(metavar="N,N,...", help="Units of the hidden layers; '' for none.")
    ] = "512,256",
    activation: Annotated[str, typer.Option(metavar="NAME", help="Activation of the hidden layers.")] = "relu",
    loss: Annotated[str, typer.Option(metavar="NAME", help="auto: cross_entropy for classes, else mse.")] = "auto",
    optimizer: Annotated[str, typer.Option(metavar="NAME", help="sgd, adam or adamw.")] = "adam",
    lr: Annotated[
        float | None, typer.Option(metavar="X", help="Learning rate; the optimizer's own if not given.")
    ] = None,
    batch_size: Annotated[int, typer.Option(metavar="N", min=1, help="Rows in a step.")] = 64,
    epochs: Annotated[int, typer.Option(metavar="N", min=1, help="Passes over the rows.")] = 40,
    dropout: Annotated[
        float | None,
        typer.Option(metavar="X", help="Share of hidden values dropped in training; 0.4 for classes, 0 for numbers."),
    ] = None,
    seed: Annotated[
        int, typer.Option(metavar="N", min=0, help="Of start values, order, dropout and held-out rows.")
    ] = 0,
    backend: BackendName = "numpy",
    precision: Annotated[
        str, typer.Option(metavar="NAME", help="Of products: float32; on a GPU also tf32 or bfloat16.")
    ] = "float32",
    threads: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Processors to use on a CPU; all if not given.")
    ] = None,
    validation: Annotated[float, typer.Option(metavar="X", help="Share of the rows that is held out.")] = 0.2,
    output: Annotated[Path, typer.Option(metavar="FILE", help="Where the model goes.")] = Path("model.safetensors"),
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the learning curves: .png, .pdf, .svg.")
    ] = None,
    as_json: AsJSON = False,
    quiet: Quiet = False,
) -> None:
    """Train a network on DATA and write it to a file.

    Text, integers and booleans as a target are classes; float numbers are a quantity.  Features of a file are
    standardised.  Ctrl-C stops after the current step and saves what has been learnt.
    """
    # All that can be wrong is found out before the work begins.
    library = connect(backend)
    units = parse_hidden(hidden)
    rule = resolve(Optimizer, "optimizer", optimizer)
    if lr is not None:
        rule = dataclasses.replace(rule, lr=lr)  # type: ignore[type-var]
    if not 0 <= validation < 1:
        raise OptionError(f"--validation is {validation}; expected a share of the rows, at least 0 and less than 1")
    check_place("--output", output)
    if plot is not None:
        check_plot(plot)
    dense = [Dense(n, activation) for n in units]
    drop = None if dropout is None else Dropout(dropout)

    table = read(data, target)
    if len(table.x) < 2:
        raise DataError(f"{data} has a single row: expected at least 2")
    chosen = choose_loss(loss, table)
    rows, held_out = split(len(table.x), validation, seed)
    recipe = Recipe.of(table, chosen, rows)
    x, y = recipe.x(table), recipe.y(table, chosen)
    drop = drop or Dropout(0.4 if recipe.classes else 0.0)
    hidden_layers = [layer for one in dense for layer in ((one, drop) if drop.rate else (one,))]
    trainer = Trainer(
        network_for(table, recipe, chosen, hidden_layers),
        *(chosen, rule),
        seed=seed,
        threads=threads,
        precision=precision,
    )
    xt, yt = library.from_host(x[rows]), library.from_host(y[rows])
    judged = held_out if len(held_out) else rows
    xv, yv = library.from_host(x[judged]), library.from_host(y[judged])
    trainer.build(xt)
    device = str(library.device(xt))
    if not (quiet or as_json):
        typer.echo(
            f"{data}: {count(len(rows), 'row')} to train on, {len(held_out):,} held out; "
            f"{subject(recipe)}; {count(trainer.layout.size, 'parameter')}; {backend} on {device}"
        )
    if len(recipe.classes or ()) > max(50, len(table.x) // 5) and table.y.dtype.kind in "iu":
        hint = (
            f"{len(recipe.classes or ()):,} classes suggest that the target is a quantity: --loss mse predicts a number"
        )
        typer.echo(f"bpnet: {hint}", err=True)

    interrupt = Interrupt()
    report = [Report(recipe.unit)] if not quiet and (sys.stderr.isatty() or not as_json) else []
    began, diverged = time.perf_counter(), ""
    with interrupt:
        try:
            trainer.fit(
                xt,
                yt,
                epochs=epochs,
                batch_size=batch_size,
                validation=(xv, yv) if len(held_out) else None,
                callbacks=[*report, interrupt],
                progress=False,
            )
        except KeyboardInterrupt:
            interrupt.pressed = True
        except DivergedError as error:
            diverged = str(error)
        seconds = time.perf_counter() - began
        interrupted = interrupt.pressed and len(trainer.history) < epochs
        try:
            judgement = evaluate_rows(trainer, recipe, xv, yv)
        except DivergedError as error:  # what was kept is finite, which outputs need not be
            judgement, diverged = {"loss": math.nan, "accuracy": None}, diverged or str(error)
        result: JSON = {
            **judgement,
            "seconds": seconds,
            "backend": backend,
            "device": device,
            "precision": precision,
            "data": data,
            "training_rows": len(rows),
            "held_out_rows": len(held_out),
            "epochs": len(trainer.history),
            "steps": trainer.step_count,
            "interrupted": interrupted,
            "diverged": bool(diverged),
            "parameters": trainer.layout.size,
            "loss_function": repr(chosen),
            "optimizer": repr(rule),
            "batch_size": batch_size,
            "seed": seed,
        }
        remembered = {
            "recipe": dataclasses.asdict(recipe),
            "source": dataclasses.asdict(Source(table.fingerprint, validation, seed)),
            "training": result | {"bpnet": __version__},
        }
        trainer.save(output, {**trainer.metadata, KEY: remembered})
        result["output"] = str(output)
        history = [
            {name: value * recipe.unit if name.endswith("loss") else value for name, value in record.items()}
            for record in trainer.history
        ]
        if plot is not None and history:
            draw(history, plot)
            result["plot"] = str(plot)

    if as_json:
        print_json(result | {"history": history})
    elif not diverged:
        if interrupted:
            typer.echo(f"interrupted after {count(trainer.step_count, 'step')}; what was learnt until then is saved")
        which = "held out" if len(held_out) else "that it was trained on, as none were held out"
        typer.echo(f"{scores(result)} on {count(len(judged), 'row')} {which}; {seconds:.1f} s of training")
        typer.echo(f"model: {output}")
        if "plot" in result:
            typer.echo(f"learning curves: {plot}")
    if diverged:
        typer.echo(f"bpnet: {diverged}. They are in {output}", err=True)
        raise typer.Exit(2)
    if interrupted:
        raise typer.Exit(130)


@app.command()
@one_line_errors
def evaluate(
    model: Model,
    data: Data,
    target: Target = None,
    backend: BackendName = "numpy",
    as_json: AsJSON = False,
) -> None:
    """Loss and accuracy of MODEL on DATA.

    On the data it was trained with, only the rows that were held out are used; on any other, all rows.
    """
    library = connect(backend)
    trainer, recipe, source = load(model, library)
    table = read(data, column(target, recipe, data), features=recipe.features)
    rows = source.held_out(table)
    if rows is not None:
        table = dataclasses.replace(table, x=table.x[rows], y=table.y[rows])
    x, y = library.from_host(features(recipe, table, trainer)), library.from_host(recipe.y(table, trainer.loss))
    began = time.perf_counter()
    result = {
        **evaluate_rows(trainer, recipe, x, y),
        "seconds": time.perf_counter() - began,
        "backend": backend,
        "device": str(library.device(x)),
        "data": data,
        "rows": len(table.x),
        "held_out": rows is not None,
    }
    if as_json:
        print_json(result)
    else:
        which = "held out from training" if rows is not None else "all that the data has"
        typer.echo(f"{scores(result)} on {count(len(table.x), 'row')}, {which}")


@app.command()
@one_line_errors
def predict(
    model: Model,
    data: Data,
    output: Annotated[Path | None, typer.Option(metavar="FILE", help="Write to a .npy or .csv file instead.")] = None,
    backend: BackendName = "numpy",
    as_json: AsJSON = False,
) -> None:
    """What MODEL says of each row of DATA, one line a row: a class by its name, or numbers."""
    library = connect(backend)
    if output is not None:
        check_place("--output", output)
        if output.suffix.lower() not in (".npy", ".csv"):
            raise OptionError(f"--output is {output}: expected a .npy or .csv file")
    trainer, recipe, _ = load(model, library)
    known = recipe.target if data.lower().endswith((".csv", ".parquet")) else None
    table = read(data, known, features=recipe.features, needs_target=False)
    x = library.from_host(features(recipe, table, trainer))
    began = time.perf_counter()
    answers = recipe.answers(library.to_host(trainer.predict(x, batch_size=PART)), trainer.loss)
    result: JSON = {
        "rows": len(answers),
        "seconds": time.perf_counter() - began,
        "backend": backend,
        "device": str(library.device(x)),
        "data": data,
    }
    if output is None:
        if as_json:
            result["predictions"] = answers.tolist()
        else:
            typer.echo("\n".join(",".join(map(str, np.atleast_1d(answer).tolist())) for answer in answers))
    else:
        write_answers(output, answers, recipe.target or "prediction")
        result["output"] = str(output)
        if not as_json:
            typer.echo(f"{count(len(answers), 'prediction')} written to {output}")
    if as_json:
        print_json(result)


@app.command()
@one_line_errors
def info(
    model: Annotated[
        Path | None, typer.Argument(metavar="[MODEL]", help="A file that bpnet train has written.")
    ] = None,
    as_json: AsJSON = False,
) -> None:
    """What is installed: libraries, devices, versions, BLAS.  With MODEL: its layers and how it was trained."""
    result = describe_machine() if model is None else describe_model(model)
    if as_json:
        print_json(result)
    elif model is None:
        show_machine(result)
    else:
        show_model(result)
