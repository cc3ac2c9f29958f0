"""bpnet evaluate: how well a saved model does on a data set."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

import bpnet as bp
from bpnet.backends import Array
from bpnet.cli import terminal
from bpnet.cli.dataset import Dataset
from bpnet.cli.model import (
    check_metric_names,
    evaluate_rows,
    expect_sound,
    load,
    location,
    read_for,
    request_for,
    rows_from_one,
    scores,
    warn_of_useless,
)
from bpnet.cli.options import Encoding, Library, Metrics, Missing, Predicted, Quiet, ReportTo, Sep, Stream, text_options
from bpnet.cli.reporting import check_report, figures_of, lines_of, write
from bpnet.cli.streamed import Evaluated, file_of
from bpnet.cli.terminal import JSON, AsJSON, Data, Model
from bpnet.errors import DataError, DTypeError, plural
from bpnet.metrics.base import check_metrics
from bpnet.tabular.goals import rows_of
from bpnet.tabular.leaks import seen_share
from bpnet.tabular.training import held_out_rows

MARGIN = 0.1
"""A share of rows that the model was trained on, beyond that of rows which are alike anyhow, that is told of."""


def evaluate(
    model: Model,
    data: Data,
    target: Predicted = None,
    metric: Metrics = None,
    sep: Sep = None,
    encoding: Encoding = "utf-8",
    missing: Missing = None,
    backend: Library = "numpy",
    stream: Stream = None,
    report: ReportTo = None,
    as_json: AsJSON = False,
    quiet: Quiet = False,
) -> None:
    """Evaluate MODEL on DATA: confusion matrix or residuals, calibration, importance.

    On the data it was trained with, only the rows that were held out are used;
    on any other, all rows.
    """
    check_report(report, MODEL=model, DATA=data)
    found, metrics = load(model, backend), list(metric or ())
    check_metric_names(metrics)
    check_metrics(metrics, found.trainer.loss, found.trainer.layout.out_shape)
    options = text_options(sep, encoding, missing)
    file, began = file_of(data, stream), time.perf_counter()
    y: Any = None
    if file is not None:
        with rows_from_one():
            some = Evaluated(found, file, request_for(found, options, target=target))
            result: JSON = evaluate_rows(found, some.source.stream(), None, metrics)
        rows, is_held_out, dataset, held_out = some.rows, some.held_out, None, None
    else:
        dataset = read_for(found, data, options, target=target)
        held_out, rows, x, answers, y = rows_to_judge(found, model, dataset)
        began, is_held_out = time.perf_counter(), held_out is not None
        result = evaluate_rows(found, x, answers, metrics)
    result |= {"seconds": time.perf_counter() - began, **location(found.trainer), "data": data}
    result |= {"rows": rows, "held_out": is_held_out}
    which = ", held out from training" if is_held_out else ""
    lines = [f"{scores(result, metrics)} on {'' if is_held_out else 'all '}{plural(rows, 'row')}{which}"]
    if report is not None or not (quiet or as_json):
        if dataset is None:
            with rows_from_one():
                dataset = some.sample()
            y, part = dataset.y, f" of {rows:,}" if dataset.frame.rows < rows else ""
            figures = figures_of(found, dataset, None, part + which)
        else:
            figures = figures_of(found, dataset, held_out, which)
        lines = [*(lines_of(figures) if not quiet else []), *lines]
        if report is not None:
            lines.append(write(figures, report))
            result |= {"report": str(report), "figures": figures.to_dict()}
    terminal.report(result, as_json, *lines)
    if y is not None:
        warn_of_useless(found, result, y)


def rows_to_judge(found: bp.TableModel, model: Path, dataset: Dataset) -> tuple[Array | None, int, Any, Any, Any]:
    """The numbers of the rows held out where a model was trained with this data set, None where all count.

    Then how many there are, as network and loss take them, and their target as it came.
    """
    frame, y, held_out = dataset.frame, dataset.y, None
    with expect_sound(model):
        same = bool(found.settings) and found.settings.get("fingerprint", "") == dataset.fingerprint
    if same:
        with expect_sound(model):
            numbers = None if dataset.numbers is None else dataset.numbers - 1
            held_out = held_out_rows(found, frame.rows, y, numbers)
        if held_out is not None:
            frame, y = frame.take(held_out), rows_of(y, held_out)
    with rows_from_one():
        x = found.inputs(frame)
        host = isinstance(next(iter(x.values())) if isinstance(x, dict) else x, np.ndarray)
        with target_named(dataset):
            answers = found.target.encode(y, found.trainer.loss, like=None if host else found.trainer.theta)
    if "seen" in found.settings and held_out is None:
        with expect_sound(model):
            share, alike = seen_share(found.settings["seen"], x, answers), float(found.settings["seen"]["alike"])
        if share > alike + MARGIN:
            part = "all" if share > 0.995 else f"about {share:.0%}"
            terminal.warn(
                f"{part} of the rows of {dataset.name} were in the training data: expect worse results on others"
            )
    return held_out, frame.rows, x, answers, y


@contextmanager
def target_named(dataset: Dataset) -> Iterator[None]:
    """Errors about the target name its column, which is "y" where it has no name."""
    try:
        yield
    except (DataError, DTypeError) as error:
        if len(dataset.targets) != 1 or not str(error).startswith("y "):
            raise
        raise type(error)(f"column {dataset.targets[0]!r} of {dataset.name} {str(error)[2:]}") from None
