"""bpnet evaluate: how well a saved model does on a data set."""

import time

import numpy as np

from bpnet.cli import terminal
from bpnet.cli.model import evaluate_rows, expect_sound, load, location, read_for, rows_from_one, scores
from bpnet.cli.options import Encoding, Library, Metrics, Missing, Predicted, Quiet, ReportTo, Sep, text_options
from bpnet.cli.reporting import check_report, figures_of, lines_of, write
from bpnet.cli.terminal import JSON, AsJSON, Data, Model
from bpnet.errors import plural
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
    """How well MODEL does on DATA: confusion or residuals, calibration, what counts.

    On the data it was trained with, only the rows that were held out are used;
    on any other, all rows.
    """
    check_report(report, MODEL=model, DATA=data)
    found, metrics = load(model, backend), list(metric or ())
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
        answers = found.target.encode(y, found.trainer.loss, like=None if host else found.trainer.theta)
    if "seen" in found.settings and held_out is None:
        with expect_sound(model):
            share, alike = seen_share(found.settings["seen"], x, answers), float(found.settings["seen"]["alike"])
        if share > alike + MARGIN:
            part = "all" if share > 0.995 else f"about {share:.0%}"
            terminal.warn(f"{part} of the rows of {data} are rows that the model was trained on: expect less of others")
    began = time.perf_counter()
    result: JSON = evaluate_rows(found, x, answers, metrics)
    result |= {"seconds": time.perf_counter() - began, **location(found.trainer), "data": data}
    result |= {"rows": frame.rows, "held_out": held_out is not None}
    which = ", all that the data has" if held_out is None else ", held out from training"
    lines = [f"{scores(result, metrics)} on {plural(frame.rows, 'row')}{which}"]
    if report is not None or not (quiet or as_json):
        figures = figures_of(found, dataset, held_out, which)
        lines = [*(lines_of(figures) if not quiet else []), *lines]
        if report is not None:
            lines.append(write(figures, report))
            result |= {"report": str(report), "figures": figures.to_dict()}
    terminal.report(result, as_json, *lines)
