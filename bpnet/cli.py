"""The command line: train a network on a table of data, evaluate it, predict with it, and look at what is installed.

Results go to stdout, progress and errors to stderr.  What a user got wrong is one line and exit status 2.
"""

import csv
import dataclasses
import functools
import itertools
import json
import math
import os
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, ParamSpec, TypeVar, cast

import numpy as np
import typer

from bpnet import __version__, backends, files
from bpnet.about import (
    count,
    damage_told,
    describe_machine,
    describe_model,
    printable,
    scores,
    show_machine,
    show_model,
)
from bpnet.backends import Array, Backend
from bpnet.callbacks import Callback, Progress
from bpnet.disk import write_atomically
from bpnet.errors import BpnetError, DataError, DivergedError, MissingExtraError, OptionError, ShapeError, shown
from bpnet.layer import Layer
from bpnet.layers.composition import Sequential
from bpnet.layers.dense import Dense
from bpnet.layers.dropout import Dropout
from bpnet.layers.flatten import Flatten
from bpnet.losses import BinaryCrossEntropy, Loss, MeanSquaredError
from bpnet.optimizers import SGD, Adam, Optimizer
from bpnet.registry import resolve
from bpnet.tables import (
    JSON,
    KEY,
    Preprocessing,
    Source,
    Table,
    answers,
    choose_loss,
    features_of,
    read,
    reason,
    split,
    target_of,
)
from bpnet.trainer import Trainer
from bpnet.typing import ActivationName, Precision

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


STOPS = {
    getattr(signal, name): word
    for name, word in (("SIGINT", "interrupted"), ("SIGTERM", "terminated"), ("SIGHUP", "hung up"))
    if hasattr(signal, name)
}
"""The signals that ask a command to end, each with the word for it; the exit status is 128 and its number."""


class Stopped(KeyboardInterrupt):
    """A signal has asked the command to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextmanager
def on_stop(handler: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Have `handler` called on any of STOPS, but on none that whoever started the command has switched off."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard = [s for s in STOPS if s == signal.SIGINT or signal.getsignal(s) is not signal.SIG_IGN]
    before = [signal.signal(number, handler) for number in heard]
    try:
        yield
    finally:
        for number, own in zip(heard, before, strict=True):
            signal.signal(number, own)


def stop_at_once(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def say(message: str) -> None:
    """One line on stderr, where anybody can still read it: what is done does not depend on that."""
    with suppress(OSError):
        typer.echo(printable(f"bpnet: {' '.join(message.split())}"), err=True)


def one_line_errors(command: Callable[P, R]) -> Callable[P, R]:
    """Turn what the user got wrong into one line on stderr and exit status 2, and a signal into its own status."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with on_stop(stop_at_once):
                return command(*args, **kwargs)
        except BrokenPipeError:  # the reader of our output left, as `head` does
            raise
        except (BpnetError, UnicodeError) as error:
            message = str(error)
        except OSError as error:
            where = error.filename or "reading or writing"
            message = f"{where}: {error.strerror}" if error.strerror else str(error)
        except MemoryError as error:
            message = f"there is not enough memory: {error}"
        except KeyboardInterrupt as error:
            number = error.number if isinstance(error, Stopped) else signal.SIGINT
            say(f"{STOPS[signal.Signals(number)]}, nothing was saved")
            raise typer.Exit(128 + number) from None
        say(message)
        raise typer.Exit(2)

    return run


def show(text: str) -> None:
    """A line on stdout."""
    typer.echo(printable(text))


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
    """The trainer's progress bar, with epochs in the words of the command line."""

    def on_epoch_end(self, trainer: Trainer, record: JSON) -> None:
        line = f"epoch {record['epoch']:>3}/{self.epochs}  loss {record['loss']:#.4g}"
        if "val_loss" in record:
            line += f"  held-out loss {record['val_loss']:#.4g}"
        if "val_accuracy" in record:
            line += f"  held-out accuracy {record['val_accuracy']:.2%}"
        self._write(line + "\n")

    def _write(self, text: str) -> None:
        try:
            super()._write(text)
        except OSError:  # nobody reads any more, which is no reason to lose the training
            self.stream = None


class Interrupt(Callback):
    """A signal ends the training after the steps that run; Ctrl-C after it ends it at once.

    Others come in numbers, as from a terminal that closes, and mean no more than the first.
    """

    before_next_step = False

    def __init__(self) -> None:
        self.number = 0
        """Of the signal that came first."""

    def press(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            raise Stopped(number)
        self.number = self.number or number

    def on_step_end(self, trainer: Trainer, step: int) -> None:
        if self.number:
            raise Stopped(self.number)

    def on_epoch_end(self, trainer: Trainer, record: JSON) -> None:
        trainer.stop = trainer.stop or self.number > 0


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
    with write_atomically(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix.lower().removeprefix("."))


# ---- what the commands are made of ----------------------------------------------------------------------------------

PART = 8192
"""Rows that are evaluated or predicted at a time, so that memory does not grow with the data."""


def parse_hidden(text: str) -> list[int]:
    """`256,128` as [256, 128]."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdigit() and part.strip("0") for part in parts):
        raise OptionError(f"--hidden is {text!r}; expected whole numbers of at least 1 with commas between, as 256,128")
    long = [part for part in parts if len(part.lstrip("0")) > 15 or int(part) >= 2**31]
    if long:
        raise OptionError(f"--hidden asks for {shown(int(long[0][:100]))} units in a layer, which no memory holds")
    return [int(part) for part in parts]


def check_place(option: str, path: Path, **others: str | Path | None) -> None:
    """Raise OptionError, before any work is done, where a file can't be written at `path` or is one of the `others`."""
    if path.exists() and not path.is_file():
        kind = "a directory" if path.is_dir() else "no ordinary file"
        raise OptionError(f"{option} is {path}, which is {kind}: expected the name of a file")
    target = Path(os.path.realpath(path))
    for what, other in others.items():
        if other is not None and Path(os.path.realpath(other)) == target:
            raise OptionError(f"{option} is {path}, and so is {what}: expected another file")
    if not target.parent.is_dir():
        folder = target.parent if path.is_symlink() else path.parent
        raise OptionError(f"{option} is {path}, but there is no directory {folder}")
    if target.exists() and not os.access(target, os.W_OK):
        raise OptionError(f"{option} is {path}, which is write-protected")
    try:
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=".bpnet"):
            pass
    except OSError as error:
        raise OptionError(f"{option} is {path}, but nothing can be written there: {error.strerror}") from error


def check_plot(path: Path, **others: str | Path | None) -> None:
    """Raise MissingExtraError without Matplotlib, and OptionError where it can't draw to `path`."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError as error:
        raise MissingExtraError("--plot", "Matplotlib", "cli") from error
    check_place("--plot", path, **others)
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


def load(model: Path, library: Backend) -> tuple[Trainer, Source]:
    """A saved trainer in `library`, and what it was trained on: nothing where `train` did not write it."""
    with warnings.catch_warnings(action="ignore"):  # a library that lacks float64 says so in an error, too
        trainer = files.load(model, like=library.from_host(np.zeros(1, dtype=np.float32)))
    with damage_told(model):
        return trainer, Source(**trainer.metadata.get(KEY, {}).get("source", {}))


def place(library: Backend, values: Array) -> Array:
    """`values` in `library`; raises OptionError where it makes float32 of float64 there."""
    array = library.from_host(values)
    if values.dtype == np.float64 and array.dtype != library.xp.float64:
        raise OptionError(
            f"the numbers need float64, which {library.name} does not have here; JAX has it with JAX_ENABLE_X64=1 set"
        )
    return array


def network_for(table: Table, made: Preprocessing, loss: Loss, hidden: Sequence[Layer]) -> Sequential:
    """The hidden layers, and what the table's rows need before and its target after them."""
    before = [Flatten()] if table.x.ndim > 2 else []
    units = len(made.classes or ()) if loss.labels else table.y[:1].size
    after = [Dense(units, "sigmoid" if isinstance(loss, BinaryCrossEntropy) else "identity")]
    return Sequential(*(layer for layer in (*before, made.inputs, *hidden, *after, made.outputs) if layer is not None))


def check_size(in_shape: Sequence[int], hidden: Sequence[int], outputs: int) -> None:
    """Raise OptionError where a network of these widths, and what it takes to train it, is more than the memory."""
    widths = [math.prod(in_shape), *hidden, outputs]
    needed = sum((a + 1) * b for a, b in itertools.pairwise(widths))
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the system does not tell
        return
    holds = memory // 32  # start values, parameters, gradient, the optimizer's two vectors, and something to work with
    if needed > holds:
        raise OptionError(f"--hidden makes a network of {needed:,} parameters; this machine has memory for {holds:,}")


def in_unit(optimizer: Optimizer, unit: float) -> Optimizer:
    """`optimizer` for a target in its own unit, whose squared error has a gradient unit**2 times as large.

    Its steps are those that it would take for the standardised target, so the network that is saved, which answers in
    the target's unit, is the one that was trained, and can be trained on.
    """
    if isinstance(optimizer, Adam):
        return dataclasses.replace(optimizer, epsilon=optimizer.epsilon * unit**2)
    if isinstance(optimizer, SGD) and isinstance(optimizer.lr, float):
        return dataclasses.replace(optimizer, lr=optimizer.lr / unit**2)
    return optimizer


def subject(made: Preprocessing, table: Table) -> str:
    """What a model predicts, in words."""
    return count(len(made.classes), "class", "classes") if made.classes else f"{table.target or 'y'} is a number"


def column(target: str | None, source: Source, data: str) -> str | None:
    """The target column that was asked for, or else the model's, where the data is a file of columns."""
    return target or (source.target if Path(data).suffix.lower() in (".csv", ".parquet") else None)


def features(table: Table, trainer: Trainer) -> Array:
    """The table's features in the type of the trainer's parameters."""
    in_shape = trainer.layout.in_shape
    if table.x.shape[1:] != in_shape:
        raise ShapeError(f"{table.name} has rows of the shape {table.x.shape[1:]}; the model was trained on {in_shape}")
    return features_of(table, dtype_of(trainer))


def dtype_of(trainer: Trainer) -> Any:
    """The type of the trainer's parameters, as NumPy's."""
    return trainer.backend.to_host(trainer.theta[:1]).dtype


def evaluate_rows(trainer: Trainer, x: Array, y: Array) -> JSON:
    """Loss in the target's own unit, accuracy (None for numbers), and for numbers the share of variance explained."""
    found = trainer.evaluate(x, y, batch_size=PART)
    result: JSON = {"loss": found["loss"], "accuracy": found.get("accuracy")}
    if isinstance(trainer.loss, MeanSquaredError):
        values = np.asarray(trainer.backend.to_host(y), dtype=np.float64)
        with np.errstate(over="ignore"):
            variance = float(((values - values.mean(axis=0)) ** 2).mean())
        result["r2"] = 1.0 - found["loss"] / variance if 0 < variance < np.inf else None
    return result


def write_answers(path: Path, found: list[Any], name: str) -> None:
    """Predictions as a .npy array, or a .csv file with a header; complete, or not there at all."""
    if path.suffix.lower() == ".npy":
        longest = max((len(answer) for answer in found if isinstance(answer, str)), default=0)
        array = np.asarray(found) if longest * len(found) < 1 << 28 else None
        if array is None or array.dtype.kind not in "biufU":
            raise OptionError(f"--output is {path}, but a .npy file can't hold these predictions: take a .csv file")
        with write_atomically(path) as file:
            np.save(file, array, allow_pickle=False)
        return
    wide = isinstance(found[0], list)
    columns = [f"{name}_{i}" for i in range(len(found[0]))] if wide else [name]
    with write_atomically(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(found if wide else ([answer] for answer in found))


# ---- commands -------------------------------------------------------------------------------------------------------

Data = Annotated[str, typer.Argument(metavar="DATA", help="digits, or a .npz (x, y), .csv or .parquet file.")]
Drop = Annotated[
    list[str] | None,
    typer.Option(metavar="COLUMN", help="A column of a .csv or .parquet file to leave out; may be given again."),
]
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
    drop: Drop = None,
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

    Text, integers and booleans as a target are classes; floats are a quantity.
    The network itself standardises them and the features, so that the model
    takes and gives numbers in their own units, in Python too.

    Ctrl-C, SIGTERM and SIGHUP stop after the current step and save.
    """
    # All that can be wrong is found out before the work begins.
    library = connect(backend)
    units = parse_hidden(hidden)
    rule = resolve(Optimizer, "optimizer", optimizer)
    if lr is not None:
        rule = dataclasses.replace(rule, lr=lr)  # type: ignore[type-var]
    if not 0 <= validation < 1:
        raise OptionError(f"--validation is {validation}; expected a share of the rows, at least 0 and less than 1")
    check_place("--output", output, DATA=data)
    if plot is not None:
        check_plot(plot, DATA=data, **{"--output": output})
    dense = [Dense(n, cast(ActivationName, activation)) for n in units]
    dropped = None if dropout is None else Dropout(dropout)

    table = read(data, target, drop=drop or ())
    if len(table.x) < 2:
        raise DataError(f"{data} has a single row: expected at least 2")
    for remark in table.remarks:
        say(remark)
    chosen = choose_loss(loss, table)
    rows, held_out = split(len(table.x), validation, seed)
    made = Preprocessing.of(table, chosen, rows)
    if made.needs_float64 and precision != "float32":
        raise OptionError(f"--precision is {precision}, but {made.needs_float64} needs float64")
    x, y = features_of(table, made.dtype), target_of(table, chosen, made.classes, made.dtype)
    dropped = dropped or Dropout(0.4 if made.classes else 0.0)
    hidden_layers = [layer for one in dense for layer in ((one, dropped) if dropped.rate else (one,))]
    network = network_for(table, made, chosen, hidden_layers)
    check_size(x.shape[1:], units, len(made.classes or ()) or y[:1].size)
    products = cast(Precision, precision)
    trainer = Trainer(network, chosen, in_unit(rule, made.unit), seed=seed, threads=threads, precision=products)
    trainer.classes = made.classes
    xt, yt = place(library, x[rows]), place(library, y[rows])
    judged = held_out if len(held_out) else rows
    xv, yv = place(library, x[judged]), place(library, y[judged])
    trainer.build(xt)
    device = str(library.device(xt))
    if not (quiet or as_json):
        wide = f", in float64 because of {made.needs_float64}" if made.needs_float64 else ""
        show(
            f"{data}: {count(len(rows), 'row')} to train on, {len(held_out):,} held out; {subject(made, table)}; "
            f"{count(trainer.layout.size, 'parameter')}; {backend} on {device}{wide}"
        )
    if len(made.classes or ()) > max(50, len(table.x) // 5) and table.y.dtype.kind in "iu":
        say(f"{len(made.classes or ()):,} classes suggest that the target is a quantity: --loss mse predicts a number")

    interrupt = Interrupt()
    report = [Report()] if not quiet and (sys.stderr.isatty() or not as_json) else []
    began, trouble = time.perf_counter(), []
    with on_stop(interrupt.press):
        try:
            trainer.fit(
                xt,
                yt,
                epochs=epochs,
                batch_size=min(batch_size, len(rows)),
                validation=(xv, yv) if len(held_out) else None,
                callbacks=[*report, interrupt],
                progress=False,
            )
        except KeyboardInterrupt as error:
            interrupt.number = interrupt.number or getattr(error, "number", signal.SIGINT)
        except BpnetError as error:
            if trainer.step_count == 0:
                raise
            trouble.append(error)
        seconds = time.perf_counter() - began
        interrupted = interrupt.number > 0 and len(trainer.history) < epochs
        figures: JSON = {"loss": math.nan, "accuracy": None}
        try:
            figures = evaluate_rows(trainer, xv, yv)
        except BpnetError as error:  # what was learnt is worth keeping nevertheless
            trouble.append(error)
        result: JSON = {
            **figures,
            "seconds": seconds,
            "backend": backend,
            "device": device,
            "precision": "float64" if made.needs_float64 else precision,
            "data": data,
            "training_rows": len(rows),
            "held_out_rows": len(held_out),
            "epochs": len(trainer.history),
            "steps": trainer.step_count,
            "interrupted": interrupted,
            "diverged": any(isinstance(error, DivergedError) for error in trouble),
            "parameters": trainer.layout.size,
            "loss_function": repr(chosen),
            "optimizer": repr(rule),
            "batch_size": batch_size,
            "seed": seed,
        }
        remembered = {
            "source": dataclasses.asdict(Source(table.fingerprint, validation, seed, table.features, table.target)),
            "training": result | {"bpnet": __version__},
        }
        trainer.save(output, {**trainer.metadata, KEY: remembered})
        result["output"] = str(output)
        history = list(trainer.history)
        if plot is not None and history:
            try:
                draw(history, plot)
                result["plot"] = str(plot)
            except Exception as error:  # Matplotlib writes many formats, by other programs too
                trouble.append(OptionError(f"--plot is {plot}, but that can't be drawn: {reason(error)}"))
        with suppress(OSError) if interrupted else nullcontext():  # the terminal may be what has gone
            if as_json:
                print_json(result | {"history": history})
            elif math.isfinite(result["loss"]) and not result["diverged"]:
                if interrupted:
                    word = STOPS[signal.Signals(interrupt.number)]
                    show(f"{word} after {count(trainer.step_count, 'step')}; what was learnt until then is saved")
                which = "held out" if len(held_out) else "that it was trained on, as none were held out"
                show(f"{scores(result)} on {count(len(judged), 'row')} {which}; {seconds:.1f} s of training")
                show(f"model: {output}")
                if "plot" in result:
                    show(f"learning curves: {plot}")
        if not trouble and not math.isfinite(result["loss"]):
            trouble.append(DataError(f"the loss of {count(len(judged), 'row')} is not finite: try a smaller --lr"))
        if trouble:
            say(f"{trouble[0]}. The model after {count(trainer.step_count, 'step')} is in {output}")
            raise typer.Exit(2)
        if interrupted:
            raise typer.Exit(128 + interrupt.number)


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
    trainer, source = load(model, library)
    table = read(data, column(target, source, data), features=source.features)
    for remark in table.remarks:
        say(remark)
    rows = source.held_out(table)
    if rows is not None:
        table = dataclasses.replace(table, x=table.x[rows], y=table.y[rows])
    x = place(library, features(table, trainer))
    y = place(library, target_of(table, trainer.loss, trainer.classes, dtype_of(trainer)))
    began = time.perf_counter()
    result = {
        **evaluate_rows(trainer, x, y),
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
        show(f"{scores(result)} on {count(len(table.x), 'row')}, {which}")


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
        check_place("--output", output, MODEL=model, DATA=data)
        if output.suffix.lower() not in (".npy", ".csv"):
            raise OptionError(f"--output is {output}: expected a .npy or .csv file")
    trainer, source = load(model, library)
    table = read(data, column(None, source, data), features=source.features, needs_target=False)
    for remark in table.remarks:
        say(remark)
    x = place(library, features(table, trainer))
    began = time.perf_counter()
    found = answers(library.to_host(trainer.predict(x, batch_size=PART)), trainer)
    result: JSON = {
        "rows": len(found),
        "seconds": time.perf_counter() - began,
        "backend": backend,
        "device": str(library.device(x)),
        "data": data,
    }
    if output is None:
        if as_json:
            result["predictions"] = found
        else:
            lines = (",".join(map(str, answer)) if isinstance(answer, list) else str(answer) for answer in found)
            typer.echo("\n".join(map(printable, lines)))
    else:
        write_answers(output, found, source.target or "prediction")
        result["output"] = str(output)
        if not as_json:
            show(f"{count(len(found), 'prediction')} written to {output}")
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
