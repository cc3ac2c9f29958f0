"""bpnet train: a network for a data set, its training, and the file that keeps it."""

import dataclasses
import math
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Annotated, Any, cast

import typer

import bpnet as bp
from bpnet.backends import Array, check_device
from bpnet.cli import terminal
from bpnet.cli.dataset import Dataset, Provenance, read, split
from bpnet.cli.model import KEY, evaluate_rows, location, scores
from bpnet.cli.preprocessing import Preprocessing, choose_loss, convert, preprocess, targets_of
from bpnet.cli.terminal import JSON, AsJSON, Backend, Data, Target, device_of, option
from bpnet.errors import BpnetError, DataError, DivergedError, OptionError, plural, shown
from bpnet.options import number
from bpnet.registry import resolve
from bpnet.typing import ActivationName, Precision


def train(
    data: Data,
    target: Target = None,
    drop: Annotated[
        list[str] | None, option("COLUMN", "A column of a .csv or .parquet file to leave out; may be given again.")
    ] = None,
    hidden: Annotated[str, option("N,N,...", "Units of the hidden layers; '' for none.")] = "512,256",
    activation: Annotated[str, option("NAME", "Activation of the hidden layers.")] = "relu",
    loss: Annotated[str, option("NAME", "auto: cross_entropy for classes, else mse.")] = "auto",
    optimizer: Annotated[str, option("NAME", "adam, adamw, sgd, lion, ...: any name that Trainer takes.")] = "adam",
    lr: Annotated[float | None, option("X", "Learning rate; the optimizer's own if not given.")] = None,
    batch_size: Annotated[int, option("N", "Rows in a step.", min=1)] = 64,
    epochs: Annotated[int, option("N", "Passes over the rows.", min=1)] = 40,
    dropout: Annotated[
        float | None, option("X", "Share of hidden values dropped in training; 0.4 for classes, 0 for numbers.")
    ] = None,
    seed: Annotated[int, option("N", "Of start values, order, dropout and held-out rows.", min=0)] = 0,
    backend: Backend = "numpy",
    precision: Annotated[str, option("NAME", "Of products: float32; on a GPU also tf32 or bfloat16.")] = "float32",
    threads: Annotated[int | None, option("N", "Processors to use on a CPU; all if not given.", min=1)] = None,
    validation: Annotated[float, option("X", "Share of the rows that is held out.")] = 0.2,
    output: Annotated[Path, option("FILE", "Where the model goes.")] = Path("model.safetensors"),
    plot: Annotated[Path | None, option("FILE", "Draw the learning curves: .png, .pdf, .svg.")] = None,
    as_json: AsJSON = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, and no line an epoch.")] = False,
) -> None:
    """Train a network on DATA and write it to a file.

    Text, integers and booleans as a target are classes; floats are a quantity.
    The network itself standardizes them and the features, so that the model
    takes and gives numbers in their own units, in Python too.

    Ctrl-C, SIGTERM and SIGHUP stop after the current step and save.
    """
    # All that can be wrong is found out before the work begins.
    device = check_device(device_of(backend))
    dense = [bp.Dense(n, cast(ActivationName, activation)) for n in parse_hidden(hidden)]
    dropped = None if dropout is None else bp.Dropout(dropout)
    rule = resolve(bp.Optimizer, "optimizer", optimizer)
    if lr is not None:
        rule = with_rate(rule, lr)
    number("--validation", validation, 0.0, 1.0, closed="left")
    terminal.check_output("--output", output, DATA=data)
    if plot is not None:
        curves = terminal.load_extra("bpnet.cli.plot", "--plot", "Matplotlib")
        curves.check_format(plot)
        terminal.check_output("--plot", plot, DATA=data, **{"--output": output})

    dataset = read(data, target, drop=drop or ())
    if len(dataset.x) < 2:
        raise DataError(f"{data} has a single row: expected at least 2")
    objective = choose_loss(loss, dataset)
    rows, held_out = split(len(dataset.x), validation, seed)
    prep = preprocess(dataset, objective, rows)
    if prep.needs_float64 and precision != "float32":
        raise OptionError(f"--precision is {precision}, but {prep.needs_float64} needs float64")
    dropped = dropped or bp.Dropout(0.4 if prep.classes else 0.0)
    layers = [layer for one in dense for layer in ((one, dropped) if dropped.rate else (one,))]
    network = build_network(dataset, prep, objective, layers)
    own = in_unit(rule, prep.outputs)
    trainer = bp.Trainer(
        network, objective, own, seed=seed, threads=threads, precision=cast(Precision, precision), device=device
    )
    trainer.classes = prep.classes
    x = convert(dataset.x, prep.dtype, f"{data} has a feature")
    y = targets_of(dataset, objective, prep.classes, prep.dtype)
    seen = x[rows], y[rows]
    unseen = (x[held_out], y[held_out]) if len(held_out) else None
    trainer.build(seen[0])
    if not (quiet or as_json):
        announce(dataset, prep, trainer, len(rows))
    classes = len(prep.classes or ())
    if classes > max(50, len(x) // 5) and dataset.y.dtype.kind in "iu":
        terminal.warn(f"{classes:,} classes suggest that the target is a quantity: --loss mse predicts a number")

    interrupt, began = Interrupt(), time.perf_counter()
    with terminal.signals_handled(interrupt.receive):
        callbacks = [Report(), interrupt] if not quiet and (sys.stderr.isatty() or not as_json) else [interrupt]
        each = {"epochs": epochs, "batch_size": min(batch_size, len(rows)), "validation": unseen}
        problems = fit(trainer, *seen, interrupt, callbacks=callbacks, **each)
        seconds = time.perf_counter() - began
        result: JSON = {
            **judge(trainer, *(unseen or seen), problems),
            "seconds": seconds,
            **location(trainer),
            "precision": "float64" if prep.needs_float64 else precision,
            "data": data,
            "training_rows": len(rows),
            "held_out_rows": len(held_out),
            "epochs": len(trainer.history),
            "steps": trainer.step_count,
            "interrupted": interrupt.number > 0 and len(trainer.history) < epochs,
            "diverged": any(isinstance(problem, DivergedError) for problem in problems),
            "parameters": trainer.layout.size,
            "loss_function": repr(objective),
            "optimizer": repr(rule),
            "batch_size": batch_size,
            "seed": seed,
            "bpnet": bp.__version__,
        }
        provenance = Provenance(dataset.fingerprint, validation, seed, dataset.features, dataset.target)
        outcome = save(trainer, output, dataclasses.asdict(provenance), result)
        if plot is not None and len(trainer.history):
            try:
                curves.draw(trainer.history.epochs, plot)
                result["plot"] = str(plot)
            except Exception as error:  # Matplotlib writes many formats, by other programs too
                problems.append(OptionError(f"--plot is {plot}, but that can't be drawn: {terminal.reason(error)}"))
        with suppress(OSError) if result["interrupted"] else nullcontext():  # the terminal may be what has gone
            terminal.report(result | {"history": trainer.history.epochs}, as_json, *in_words(result, interrupt.number))
        if problems:
            terminal.warn(f"{problems[0]}. {outcome}")
            raise typer.Exit(2)
        if result["interrupted"]:
            raise typer.Exit(128 + interrupt.number)


def parse_hidden(text: str) -> list[int]:
    """`256,128` as [256, 128]."""
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(re.fullmatch("0*[1-9][0-9]{0,8}", part) for part in parts):
        raise OptionError(
            f"--hidden is {shown(text)}; expected whole numbers of at least 1 and less than a billion, with commas "
            "between, as 256,128"
        )
    return list(map(int, parts))


def build_network(dataset: Dataset, prep: Preprocessing, loss: bp.Loss, hidden: Sequence[bp.Layer]) -> bp.Sequential:
    """The hidden layers, and what the rows need before and the target after them.

    Raises OptionError where the network, and what it takes to train it, is more than the memory.
    """
    units = len(prep.classes or ()) if loss.labels else dataset.y[:1].size
    last = bp.Dense(units, "sigmoid" if isinstance(loss, bp.BinaryCrossEntropy) else "identity")
    flatten = [bp.Flatten()] if dataset.x.ndim > 2 else []
    network = bp.Sequential(*flatten, prep.inputs, *hidden, last, *([] if prep.outputs is None else [prep.outputs]))
    size = bp.layout_of(network, dataset.x.shape[1:]).size
    try:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # the system does not say
        return network
    holds = memory // 32  # start values, parameters, gradient, the optimizer's state, and something to work with
    if size > holds:
        raise OptionError(f"--hidden makes a network of {size:,} parameters; this machine has memory for {holds:,}")
    return network


def with_rate(optimizer: bp.Optimizer, lr: float) -> bp.Optimizer:
    """`optimizer` with another learning rate."""
    base = getattr(optimizer, "base", None)  # as that of SAM
    changed: Any = {"lr": lr} if base is None else {"base": with_rate(base, lr)}
    return dataclasses.replace(optimizer, **changed)  # type: ignore[type-var]


def in_unit(optimizer: bp.Optimizer, outputs: bp.Standardize | None) -> bp.Optimizer:
    """`optimizer` for a target in its own unit, whose squared error has a gradient unit**2 times as large.

    Its steps are those that it would take for the standardized target, so the network that is saved, which answers in
    the target's unit, is the one that was trained, and can be trained on.
    """
    unit = 1.0 if outputs is None else outputs.scale
    assert isinstance(unit, float)
    if isinstance(optimizer, bp.SAM):
        return dataclasses.replace(optimizer, base=in_unit(optimizer.base, outputs))
    # whose epsilon is added to the size of gradients
    over_roots = bp.Adam, bp.NAdam, bp.RAdam, bp.Adamax, bp.LAMB, bp.RMSprop, bp.Adagrad, bp.ScheduleFreeAdamW
    if isinstance(optimizer, over_roots):
        return dataclasses.replace(optimizer, epsilon=optimizer.epsilon * unit**2)
    if isinstance(optimizer, bp.SGD) and isinstance(optimizer.lr, float):
        return dataclasses.replace(optimizer, lr=optimizer.lr / unit**2)
    return optimizer


def announce(dataset: Dataset, prep: Preprocessing, trainer: bp.Trainer, rows: int) -> None:
    """What is to be trained on what, in a line."""
    where, held_out = location(trainer), len(dataset.x) - rows
    subject = plural(len(prep.classes), "class") if prep.classes else f"{dataset.target or 'y'} is a number"
    wide = f", in float64 because of {prep.needs_float64}" if prep.needs_float64 else ""
    terminal.show(
        f"{dataset.name}: {plural(rows, 'row')} to train on, {held_out:,} held out; {subject}; "
        f"{plural(trainer.layout.size, 'parameter')}; {where['backend']} on {where['device']}{wide}"
    )


class Report(bp.Progress):
    """The trainer's progress bar, with epochs in the words of the command line."""

    def on_epoch_end(self, trainer: bp.Trainer, record: JSON) -> None:
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


class Interrupt(bp.Callback):
    """A signal ends the training after the steps that run; Ctrl-C after it ends it at once.

    Others come in numbers, as from a terminal that closes, and mean no more than the first.
    """

    before_next_step = False
    number = 0
    """Of the signal that came first."""

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.number and number == signal.SIGINT:
            terminal.stop(number)
        self.number = self.number or number

    def on_step_end(self, trainer: bp.Trainer, step: int) -> None:
        if self.number:
            terminal.stop(self.number)

    def on_epoch_end(self, trainer: bp.Trainer, record: JSON) -> None:
        trainer.stop = trainer.stop or self.number > 0


def fit(trainer: bp.Trainer, x: Array, y: Array, interrupt: Interrupt, **options: Any) -> list[BpnetError]:
    """Train to the end, a signal or an error; one that comes after the first step is returned in a list."""
    try:
        trainer.fit(x, y, progress=False, **options)
    except KeyboardInterrupt as error:
        interrupt.number = interrupt.number or terminal.signal_of(error)
    except BpnetError as error:
        if trainer.step_count == 0:
            raise
        return [error]
    return []


def judge(trainer: bp.Trainer, x: Array, y: Array, problems: list[BpnetError]) -> JSON:
    """The figures for some rows; adds to the problems where the loss is not finite."""
    figures: JSON = {"loss": math.nan, "accuracy": None}
    try:
        figures = evaluate_rows(trainer, x, y)
        if not problems and not math.isfinite(figures["loss"]):
            raise DivergedError(f"the loss of {plural(len(x), 'row')} is not finite: try a smaller --lr")
    except BpnetError as error:  # what was learnt may be worth keeping nevertheless
        problems.append(error)
    return figures


def save(trainer: bp.Trainer, output: Path, provenance: JSON, result: JSON) -> str:
    """Write the model, and say so; but leave an existing file alone where training diverged.

    There, a model that can't be evaluated is not written at all.
    """
    if result["diverged"] and output.exists():
        return f"{output} is left as it was"
    if result["diverged"] and not math.isfinite(result["loss"]):
        return "No model was written: none with a finite loss is left"
    trainer.save(output, {**trainer.metadata, KEY: {"provenance": provenance, "training": result}})
    result["output"] = str(output)
    return f"The model after {plural(trainer.step_count, 'step')} is in {output}"


def in_words(result: JSON, number: int) -> list[str]:
    """The result for people, which says nothing where training diverged; `number` is of the signal that ended it."""
    if result["diverged"] or not math.isfinite(result["loss"]):
        return []
    lines = []
    if result["interrupted"]:
        word = terminal.STOP_SIGNALS[signal.Signals(number)]
        lines.append(f"{word} after {plural(result['steps'], 'step')}; what was learnt until then is saved")
    rows = plural(result["held_out_rows"] or result["training_rows"], "row")
    which = "held out" if result["held_out_rows"] else "that it was trained on, as none were held out"
    lines.append(f"{scores(result)} on {rows} {which}; {result['seconds']:.1f} s of training")
    lines.append(f"model: {result['output']}")
    if "plot" in result:
        lines.append(f"learning curves: {result['plot']}")
    return lines
