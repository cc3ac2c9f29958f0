"""bpnet train: a network for a data set, its training, and the file that keeps it."""

import math
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from functools import partial
from pathlib import Path
from typing import Any, cast

import typer

import bpnet as bp
from bpnet.backends import check_device
from bpnet.cli import options as of
from bpnet.cli import terminal
from bpnet.cli.dataset import Dataset, Request, read
from bpnet.cli.folding import after_folds, cross_validate, figures_over, summary
from bpnet.cli.model import check_metric_names, evaluate_rows, location, rows_from_one, scores, warn_of_useless
from bpnet.cli.options import text_options
from bpnet.cli.parsing import in_options, options_named, parse_hidden, parse_types, quantile_loss
from bpnet.cli.plotting import TERMINAL, check_plot, draw
from bpnet.cli.progress import Interrupt, Reading, Report, Resumed
from bpnet.cli.ranks import Ranks
from bpnet.cli.reporting import check_report, figures_of, lines_of
from bpnet.cli.searching import best_of, check_search, find_options
from bpnet.cli.streamed import file_of, in_bytes, judged, prepared, unfit
from bpnet.cli.terminal import JSON, AsJSON, Data, device_of
from bpnet.errors import BpnetError, DivergedError, OptionError, PathError, plural
from bpnet.files.folder import Folder
from bpnet.options import choice
from bpnet.tabular.files import TableFile
from bpnet.tabular.fitting import TableTraining
from bpnet.tabular.leaks import remembered
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.training import prepare


def train(
    context: typer.Context,
    data: Data,
    target: of.Learnt = None,
    features: of.Features = None,
    drop: of.Drop = None,
    types: of.Types = None,
    sep: of.Sep = None,
    encoding: of.Encoding = "utf-8",
    missing: of.Missing = None,
    hidden: of.Hidden = None,
    activation: of.Activation = "relu",
    dropout: of.Dropout = None,
    ensemble: of.Ensemble = None,
    preset: of.Preset = None,
    loss: of.Loss = "auto",
    quantiles: of.Quantiles = None,
    optimizer: of.Optimizer = "adam",
    lr: of.Rate = None,
    schedule: of.Schedule = None,
    weight_decay: of.WeightDecay = None,
    class_weight: of.ClassWeight = None,
    batch_size: of.BatchSize = None,
    epochs: of.Epochs = None,
    patience: of.Patience = None,
    validation: of.Validation = 0.2,
    folds: of.Folds = None,
    search: of.Trials = None,
    seed: of.Seed = 0,
    backend: of.Library = "numpy",
    precision: of.Precision = "float32",
    threads: of.Threads = None,
    stream: of.Stream = None,
    bad_rows: of.BadRows = "error",
    checkpoint: of.Checkpoint = None,
    every: of.Every = None,
    resumed: of.Resume = False,
    output: of.ModelTo = Path("model.safetensors"),
    metric: of.Metrics = None,
    plot: of.PlotTo = None,
    report: of.ReportTo = None,
    as_json: AsJSON = False,
    quiet: of.Quiet = False,
) -> None:
    """Train a network on DATA and write it to a file.

    A target of text, booleans or few different whole numbers is a class, one of
    other numbers a quantity.  Features may be text, numbers and dates, and have
    missing values: the model contains the preprocessing, so that it takes tables
    as they are, in Python too.  By default, the size of the network and the
    length of the training depend on the number of rows.

    Ctrl-C, SIGTERM and SIGHUP stop after the current step and save; with
    --checkpoint DIR, the same command and --resume then go on from there.
    """
    # All that can be wrong is found out before the work begins.
    ranks: Ranks = context.obj
    with ranks.agreeing():
        check_metric_names(metric)
        with options_named():
            options = TrainingOptions(
                hidden=None if hidden is None else parse_hidden(hidden),
                activation=cast(Any, activation),
                dropout=dropout,
                loss=cast(Any, loss if quantiles is None else quantile_loss(loss, quantiles)),
                optimizer=cast(Any, optimizer),
                lr=lr,
                weight_decay=weight_decay,
                schedule=schedule,
                epochs=epochs,
                batch_size=batch_size,
                validation=validation,
                early_stopping=True if patience is None else patience,
                class_weight=class_weight,
                ensemble=ensemble,
                preset=preset,
                types={name: "category" if kind == "text" else kind for name, kind in parse_types(types).items()},
                metrics=cast(Any, list(metric or ())),
                seed=seed,
                device=check_device(device_of(backend)),
                precision=cast(Any, precision),
                threads=threads,
                distributed=ranks.options,
            )
        if checkpoint is None and (resumed or every is not None):
            raise OptionError(f"{'--resume' if resumed else '--every'} needs --checkpoint DIR: give that too")
        if folds and (checkpoint or plot):
            raise OptionError(
                f"--folds trains {folds + 1} networks: leave out {'--checkpoint' if checkpoint else '--plot'}"
            )
        if search:
            check_search(folds=folds, checkpoint=checkpoint, preset=preset, validation=not validation)
        if ranks.count > 1 and (search or data == "-"):
            what = "--search tries out options" if search else "standard input is read"
            raise OptionError(
                f"{what} in one process: start it without mpiexec, or {'leave it out' if search else 'give a file'}"
            )
        request = Request(
            targets=target or (),
            features=features or (),
            drop=drop or (),
            types=parse_types(types),
            text=text_options(sep, encoding, missing),
        )
        choice("--bad-rows", bad_rows, ("error", "skip"))
    folder = None if checkpoint is None else Folder(checkpoint)
    ranks.by_first(check_places, data, checkpoint, resumed, output, report, plot)
    with ranks.agreeing():
        file = file_of(data, stream)
        if file is not None:
            unfit(file, stream, folds=folds, search=search)
        elif bad_rows == "skip":
            raise OptionError(
                f"--bad-rows skip is for files that are streamed, and {data} is read at once: give --stream"
            )
        dataset = None if file is not None else read(data, request)
    table, goal = (None, None) if dataset is None else table_of(dataset)
    interrupt, began = Interrupt(), time.perf_counter()
    shows = not quiet and (sys.stderr.isatty() or not as_json)
    with terminal.signals_handled(interrupt.receive):
        rates: JSON = {}
        out_of_fold = None
        if folds:
            with options_named():
                rates, out_of_fold = cross_validate(table, goal, options, folds, interrupt, shows)
        with options_named(), rows_from_one():
            final = options if not folds else after_folds(options, rates)
            training: TableTraining
            if file is not None:
                reading = Reading(file.name, interrupt, shows)
                training, dataset = prepared(file, request, final, bad_rows, reading)
            else:
                training = prepare(table, goal, final)
        assert dataset is not None
        for text in training.warnings(lambda names: " ".join(f"--drop {name!r}" for name in names)):
            terminal.warn(in_options(text))
        if not (quiet or as_json):
            announce(dataset, training, search, file, ranks.count)
        found = None
        if search:
            make = partial(prepare, table, goal)
            found = find_options(make, options, search, context, interrupt, shows)
            assert found.best is not None
            training = found.best
        trainer = training.model.trainer
        callbacks: list[Any] = [interrupt]
        if shows:
            callbacks.insert(0, Report(balanced=class_weight is not None))
        if resumed and not (quiet or as_json):
            callbacks.append(Resumed(str(checkpoint)))
        saving: JSON = {} if folder is None else {"checkpoint": folder.path, "every": every, "resume": resumed}
        interrupt.saves = folder is not None or ranks.count > 1
        problems = fit(training, interrupt, callbacks, **saving) if found is None else []
        if not ranks.first:  # what is left to do is for one
            stopped = 128 + interrupt.number if interrupt.number else 0
            raise typer.Exit(2 if problems else stopped)
        seconds = time.perf_counter() - began
        figured = judge(training, metric or (), problems)
        if folds and not problems:  # of the rows that it was trained on nothing can be learnt about others
            figured = figures_over(rates)
        result: JSON = {
            **figured,
            "seconds": seconds,
            **location(trainer),
            "precision": "float64" if training.wide else precision,
            "data": data,
            "target": dataset.targets[0] if len(dataset.targets) == 1 else list(dataset.targets) or None,
            "training_rows": len(training.rows),
            "held_out_rows": len(training.held_out),
            "epochs": len(trainer.history),
            "best_epoch": training.best_epoch,
            "steps": trainer.step_count,
            "interrupted": interrupt.number > 0 and (bool(search) or len(trainer.history) < training.size.epochs),
            "diverged": any(isinstance(problem, DivergedError) for problem in problems),
            "parameters": trainer.layout.size,
            "loss_function": repr(trainer.loss),
            "optimizer": repr(training.options.rule(training.size.epochs)),
            "hidden": list(training.size.hidden),
            "dropout": training.size.dropout,
            "batch_size": batch_size or training.size.batch_size,
            "seed": seed,
            "bpnet": bp.__version__,
            **({"folds": rates} if folds else {}),
            **({} if found is None else {"search": found.describe()}),
        }
        outcome = save(training, output, dataset.fingerprint, result)
        if folder is not None and (numbers := folder.numbers()):
            result["checkpoint"] = folder.file(numbers[-1])
        curves = partial(draw, trainer.history.epochs, training.best_epoch, plot, as_json, problems)
        if plot != TERMINAL and curves():
            result["plot"] = plot
        shown: list[str] = []
        if not problems and (report is not None or not (quiet or as_json or result["interrupted"])):
            if out_of_fold is not None:
                figures = out_of_fold.figures(dataset, training.model, rates)
            else:
                rows = training.held_out if len(training.held_out) and file is None else None
                figures = figures_of(training.model, dataset, rows, judged(training))
            shown = [] if quiet else lines_of(figures)
            if report is not None:
                figures.html(report)
                result |= {"report": str(report), "figures": figures.to_dict()}
        with suppress(OSError) if result["interrupted"] else nullcontext():  # the terminal may be what has gone
            lines = [*shown, *in_words(result, interrupt.number, metric or ())]
            terminal.report(result | {"history": trainer.history.epochs}, as_json, *lines)
            if plot == TERMINAL:
                curves()
        if not problems and not result["interrupted"] and class_weight is None:
            warn_of_useless(training.model, result, training.judged_y)
        if problems:
            terminal.warn(f"{problems[0]}. {outcome}")
            raise typer.Exit(2)
        if result["interrupted"]:
            raise typer.Exit(128 + interrupt.number)


def check_places(
    data: str, checkpoint: Path | None, resumed: bool, output: Path, report: Path | None, plot: str | None
) -> None:
    """Raise OptionError where something can't be written where it is to go."""
    if checkpoint is not None and not resumed and Folder(checkpoint).used():
        raise OptionError(
            f"--checkpoint is {checkpoint}, which holds a training already: go on with that by --resume, or choose "
            "another folder"
        )
    terminal.check_output("--output", output, DATA=data)
    check_report(report, DATA=data, **{"--output": output})
    check_plot(plot, DATA=data, **{"--output": output})


# ---- training -------------------------------------------------------------------------------------------------------


def table_of(dataset: Dataset) -> tuple[Any, Any]:
    """What `prepare` takes: the table, and the names of its targets or their values."""
    names, table = dataset.targets, dataset.frame
    if not names:
        return table, dataset.y
    for name in names:
        table = table.with_column(name, dataset.y if len(names) == 1 else dataset.y.coded(name))
    return table, names


def announce(
    dataset: Dataset, training: TableTraining, trials: int | None, file: TableFile | None, processes: int
) -> None:
    """What is to be trained on what, in a line; of so many trials each has a network of its own."""
    model, trainer = training.model, training.model.trainer
    where, target = location(trainer), model.target
    kinds = {"class": plural(len(target.classes), "class"), "multilabel": plural(target.columns, "label")}
    names = dataset.targets or ("y",)
    subject = kinds.get(target.kind, f"{' and '.join(names)} {'are numbers' if len(names) > 1 else 'is a number'}")
    wide = f", in float64 because of {training.wide}" if training.wide else ""
    size = plural(trials, "trial") if trials else plural(trainer.layout.size, "parameter")
    several = f", by {processes} processes" if processes > 1 else ""
    streamed = "" if file is None else f"; streamed, as all rows would take {in_bytes(file.size)} or more"
    terminal.show(
        f"{dataset.name}: {plural(len(training.rows), 'row')} to train on, {len(training.held_out):,} held out; "
        f"{subject}; {size}; {where['backend']} on {where['device']}{several}{wide}{streamed}"
    )


def fit(training: TableTraining, interrupt: Interrupt, callbacks: Sequence[Any], **saving: Any) -> list[BpnetError]:
    """Train to the end, a signal or an error; one that comes after the first step is returned in a list."""
    try:
        with options_named():
            training.fit(callbacks, progress=False, **saving)
    except (KeyboardInterrupt, SystemExit) as error:
        interrupt.number = interrupt.number or terminal.signal_of(error)
    except BpnetError as error:
        if training.model.trainer.step_count == 0:
            raise
        return [error]
    finally:
        interrupt.at_once = False
    return []


def judge(training: TableTraining, metrics: Sequence[str], problems: list[BpnetError]) -> JSON:
    """The figures of the rows held out, or of all; adds to the problems where the loss is not finite."""
    figures: JSON = {"loss": math.nan, "accuracy": None}
    x, y = training.judged[:2]
    try:
        figures = evaluate_rows(training.model, x, y, metrics)
        if not problems and not math.isfinite(figures["loss"]):
            raise DivergedError(f"the loss of {plural(len(y), 'row')} is not finite: try a smaller --lr")
    except BpnetError as error:  # what was learnt may be worth keeping nevertheless
        problems.append(error)
    return figures


def save(training: TableTraining, output: Path, fingerprint: str, result: JSON) -> str:
    """Write the model, and say so; but leave an existing file alone where training diverged.

    There, a model that can't be evaluated is not written at all.
    """
    model = training.model
    if result["diverged"] and output.exists():
        return f"{output} is left as it was"
    if result["diverged"] and not math.isfinite(result["loss"]):
        return "No model was written: none with a finite loss is left"
    unseen = training.unseen and training.unseen[:2]
    seen = {} if len(training.seen) < 2 else {"seen": remembered(training.seen[0], training.seen[1], unseen)}
    model.settings = {**model.settings, "fingerprint": fingerprint, **seen, "training": result}
    try:
        model.save(output)
    except PathError as error:
        raise _rescued(model, output, error) from error
    result["output"] = str(output)
    return f"The model after {plural(model.trainer.step_count, 'step')} is in {output}"


def _rescued(model: bp.TableModel, output: Path, error: PathError) -> PathError:
    """`error`, which kept a model from being written to `output`, once it is in a temporary folder, if it can be."""
    folder = None
    try:
        folder = tempfile.mkdtemp(prefix="bpnet-")
        model.save(os.path.join(folder, output.name))
    except OSError:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
        return error
    return type(error)(f"{error}. The model is in {os.path.join(folder, output.name)} instead")


def in_words(result: JSON, number: int, metrics: Sequence[str]) -> list[str]:
    """The result for people, which says nothing where training diverged; `number` is of the signal that ended it."""
    if result["diverged"] or not math.isfinite(result["loss"]):
        return []
    lines = []
    if result["interrupted"]:
        word = terminal.STOP_SIGNALS[signal.Signals(number)]
        tried = result.get("search")
        after = plural(len(tried["trials"]), "trial") if tried else plural(result["steps"], "step")
        lines.append(f"{word} after {after}; {'the best' if tried else 'what was learnt'} until then is saved")
        if "checkpoint" in result:
            lines.append(f"checkpoint: {result['checkpoint']}; --resume goes on from there")
    if folds := result.get("folds"):
        lines.append(summary(folds, metrics))
        lines.append(
            f"the model is trained on all {plural(result['training_rows'], 'row')}, {plural(result['epochs'], 'epoch')}"
            f"; {result['seconds']:.1f} s in all"
        )
    else:
        rows = plural(result["held_out_rows"] or result["training_rows"], "row")
        which = "held out" if result["held_out_rows"] else "that it was trained on, as none were held out"
        lines.append(f"{scores(result, metrics)} on {rows} {which}; {result['seconds']:.1f} s of training")
    if result["best_epoch"] is not None and result["best_epoch"] < result["epochs"]:
        lines.append(f"epoch {result['best_epoch']} of {result['epochs']} was the best and is kept")
    if tried := result.get("search"):
        lines += best_of(tried)
    lines.append(f"model: {result['output']}")
    if "plot" in result:
        lines.append(f"learning curves: {result['plot']}")
    if "report" in result:
        lines.append(f"report: {result['report']}")
    return lines
