"""bpnet train: a network for a data set, its training, and the file that keeps it."""

import dataclasses
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from bpnet import __version__
from bpnet.backends import check_device
from bpnet.cli.dataset import Provenance, read, split
from bpnet.cli.model import location
from bpnet.cli.network import build_network, check_memory, in_unit, parse_hidden
from bpnet.cli.options import AsJSON, Backend, Data, Target
from bpnet.cli.preprocessing import choose_loss, features_of, preprocess, targets_of
from bpnet.cli.terminal import JSON, check_output, show, signals_handled, warn
from bpnet.cli.training import Interrupt, draw, fit, judge, save, tell
from bpnet.errors import DataError, DivergedError, MissingExtraError, OptionError, plural
from bpnet.layers.dense import Dense
from bpnet.layers.dropout import Dropout
from bpnet.optimizers import Optimizer
from bpnet.options import number
from bpnet.registry import resolve
from bpnet.trainer import Trainer


def check_plot(plot: Path, **inputs: str | Path) -> None:
    """Raise MissingExtraError without Matplotlib, and OptionError where it can't draw to `plot`."""
    try:
        from bpnet.cli.plot import check_format
    except ModuleNotFoundError as error:
        raise MissingExtraError("--plot", "Matplotlib", "cli") from error
    check_format(plot)
    check_output("--plot", plot, **inputs)


def train(
    data: Data,
    target: Target = None,
    drop: Annotated[
        list[str] | None,
        typer.Option(metavar="COLUMN", help="A column of a .csv or .parquet file to leave out; may be given again."),
    ] = None,
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
    backend: Backend = "numpy",
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
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar, and no line an epoch.")] = False,
) -> None:
    """Train a network on DATA and write it to a file.

    Text, integers and booleans as a target are classes; floats are a quantity.
    The network itself standardizes them and the features, so that the model
    takes and gives numbers in their own units, in Python too.

    Ctrl-C, SIGTERM and SIGHUP stop after the current step and save.
    """
    # All that can be wrong is found out before the work begins.
    check_device(backend)
    hidden_layers = [Dense(n, activation) for n in parse_hidden(hidden)]
    dropped = None if dropout is None else Dropout(dropout)
    rule = resolve(Optimizer, "optimizer", optimizer)
    if lr is not None:
        rule = dataclasses.replace(rule, lr=lr)  # type: ignore[type-var]
    number("--validation", validation, 0.0, 1.0, closed="left")
    check_output("--output", output, DATA=data)
    if plot is not None:
        check_plot(plot, DATA=data, **{"--output": output})

    dataset = read(data, target, drop=drop or ())
    if len(dataset.x) < 2:
        raise DataError(f"{data} has a single row: expected at least 2")
    chosen = choose_loss(loss, dataset)
    rows, held_out = split(len(dataset.x), validation, seed)
    prep = preprocess(dataset, chosen, rows)
    if prep.needs_float64 and precision != "float32":
        raise OptionError(f"--precision is {precision}, but {prep.needs_float64} needs float64")
    dropped = dropped or Dropout(0.4 if prep.classes else 0.0)
    layers = [layer for one in hidden_layers for layer in ((one, dropped) if dropped.rate else (one,))]
    network = build_network(dataset, prep, chosen, layers)
    check_memory(network, dataset.x.shape[1:])
    trainer = Trainer(
        network, chosen, in_unit(rule, prep.unit), seed=seed, threads=threads, precision=precision, device=backend
    )
    trainer.classes = prep.classes
    x, y = features_of(dataset, prep.dtype), targets_of(dataset, chosen, prep.classes, prep.dtype)
    judged = held_out if len(held_out) else rows
    x_train, y_train, x_judged, y_judged = x[rows], y[rows], x[judged], y[judged]
    trainer.build(x_train)
    facts: JSON = {
        **location(trainer),
        "precision": "float64" if prep.needs_float64 else precision,
        "data": data,
        "training_rows": len(rows),
        "held_out_rows": len(held_out),
        "parameters": trainer.layout.size,
        "loss_function": repr(chosen),
        "optimizer": repr(rule),
        "batch_size": batch_size,
        "seed": seed,
        "bpnet": __version__,
    }
    classes = len(prep.classes or ())
    if not (quiet or as_json):
        subject = plural(classes, "class") if classes else f"{dataset.target or 'y'} is a number"
        wide = f", in float64 because of {prep.needs_float64}" if prep.needs_float64 else ""
        show(
            f"{data}: {plural(len(rows), 'row')} to train on, {len(held_out):,} held out; {subject}; "
            f"{plural(trainer.layout.size, 'parameter')}; {facts['backend']} on {facts['device']}{wide}"
        )
    if classes > max(50, len(x) // 5) and dataset.y.dtype.kind in "iu":
        warn(f"{classes:,} classes suggest that the target is a quantity: --loss mse predicts a number")

    interrupt, began = Interrupt(), time.perf_counter()
    with signals_handled(interrupt.receive):
        problems = fit(
            trainer,
            x_train,
            y_train,
            interrupt,
            progress=not quiet and (sys.stderr.isatty() or not as_json),
            epochs=epochs,
            batch_size=min(batch_size, len(rows)),
            validation=(x_judged, y_judged) if len(held_out) else None,
        )
        seconds = time.perf_counter() - began
        result: JSON = {
            **judge(trainer, x_judged, y_judged, problems),
            "seconds": seconds,
            "epochs": len(trainer.history),
            "steps": trainer.step_count,
            "interrupted": interrupt.number > 0 and len(trainer.history) < epochs,
            "diverged": any(isinstance(problem, DivergedError) for problem in problems),
            **facts,
        }
        provenance = Provenance(dataset.fingerprint, validation, seed, dataset.features, dataset.target)
        outcome = save(trainer, output, dataclasses.asdict(provenance), result)
        if plot is not None:
            draw(trainer, plot, result, problems)
        tell(result, trainer.history.epochs, interrupt, as_json)
        if problems:
            warn(f"{problems[0]}. {outcome}")
            raise typer.Exit(2)
        if result["interrupted"]:
            raise typer.Exit(128 + interrupt.number)
