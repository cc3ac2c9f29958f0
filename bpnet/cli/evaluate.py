"""bpnet evaluate: how well a saved model does on a data set."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from bpnet.cli import terminal
from bpnet.cli.dataset import Dataset
from bpnet.cli.model import (
    check_metric_names,
    evaluate_rows,
    expect_sound,
    load,
    location,
    read_for,
    rows_from_one,
    scores,
    warn_of_useless,
)
from bpnet.cli.options import Encoding, Library, Metrics, Missing, Predicted, Quiet, ReportTo, Sep, text_options
from bpnet.cli.reporting import check_report, figures_of, lines_of, write
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
    dataset = read_for(found, data, text_options(sep, encoding, missing), target=target)
    frame, y, held_out = dataset.frame, dataset.y, None
    with expect_sound(model):
        same = bool(found.settings) and found.settings.get("fingerprint", "") == dataset.fingerprint
    if same:
        with expect_sound(model):
            held_out = held_out_rows(found, frame.rows, y)
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
            terminal.warn(f"{part} of the rows of {data} were in the training data: expect worse results on others")
    began = time.perf_counter()
    result: JSON = evaluate_rows(found, x, answers, metrics)
    result |= {"seconds": time.perf_counter() - began, **location(found.trainer), "data": data}
    result |= {"rows": frame.rows, "held_out": held_out is not None}
    which = "" if held_out is None else ", held out from training"
    lines = [f"{scores(result, metrics)} on {'all ' if held_out is None else ''}{plural(frame.rows, 'row')}{which}"]
    if report is not None or not (quiet or as_json):
        figures = figures_of(found, dataset, held_out, which)
        lines = [*(lines_of(figures) if not quiet else []), *lines]
        if report is not None:
            lines.append(write(figures, report))
            result |= {"report": str(report), "figures": figures.to_dict()}
    terminal.report(result, as_json, *lines)
    warn_of_useless(found, result, y)


@contextmanager
def target_named(dataset: Dataset) -> Iterator[None]:
    """Errors about the target name its column, which is "y" where it has no name."""
    try:
        yield
    except (DataError, DTypeError) as error:
        if len(dataset.targets) != 1 or not str(error).startswith("y "):
            raise
        raise type(error)(f"column {dataset.targets[0]!r} of {dataset.name} {str(error)[2:]}") from None
