"""Options of the commands: what they are called, what their help says, and what a shell offers for them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from bpnet.cli.completion import activations, choices, columns, names_of
from bpnet.cli.sources import TextOptions
from bpnet.cli.terminal import option
from bpnet.tabular.options import SCHEDULES

COLUMNS, TEXT, NETWORK, TRAINING, RUNNING, OUTPUT = (
    "Columns", "Text files", "Network", "Training", "Running", "Output",
)  # fmt: skip
"""The panels of the help in which options are shown."""
KINDS = ("number", "category", "text", "boolean", "date")
BACKENDS, PRECISIONS = ("numpy", "cupy", "torch", "jax"), ("float32", "tf32", "bfloat16")
ACTIVATIONS = "relu, gelu, silu, mish, selu, elu, leaky_relu, tanh, sine, identity, ..."
LOSSES = (
    "auto: cross_entropy for classes, else mse. Of classes also focal; of two, binary_cross_entropy_with_logits, "
    "binary_focal, hinge; of numbers mae, huber, log_cosh, quantile, poisson, gamma, tweedie, gaussian_nll."
)
OPTIMIZERS = "adam, adamw, nadam, radam, adabelief, sgd, lion, rmsprop, adagrad, lamb, muon, prodigy, lbfgs, ..."
METRICS = "f1, balanced_accuracy, precision, recall, roc_auc, log_loss, brier, mae, rmse, mape, r2, ..."

of_columns, of_text, of_network, of_training, of_running, of_output = (
    partial(option, rich_help_panel=panel) for panel in (COLUMNS, TEXT, NETWORK, TRAINING, RUNNING, OUTPUT)
)

# ---- columns and how they are written -------------------------------------------------------------------------------

Learnt = Annotated[
    list[str] | None,
    of_columns("COLUMN", "What is to be learnt; again for more.", "--target", "-t", autocompletion=columns),
]
Predicted = Annotated[
    list[str] | None,
    of_columns("COLUMN", "What is predicted, where it is called otherwise.", "--target", "-t", autocompletion=columns),
]
Features = Annotated[
    list[str] | None,
    of_columns("COLUMNS", "Learn from these alone: names with commas, or patterns.", autocompletion=columns),
]
Drop = Annotated[list[str] | None, of_columns("COLUMNS", "Leave these out.", autocompletion=columns)]
Types = Annotated[list[str] | None, of_columns("COLUMN=KIND", f"What a column is: {', '.join(KINDS)}.")]
Keys = Annotated[
    list[str] | None,
    option("COLUMN", "Put a column of DATA beside predictions; may be given again.", autocompletion=columns),
]
Sep = Annotated[str | None, of_text("CHAR", "What parts columns; found out if not given.")]
Encoding = Annotated[
    str,
    of_text("NAME", "Such as latin-1, cp1252, utf-16.", autocompletion=choices("utf-8", "latin-1", "cp1252", "utf-16")),
]
Missing = Annotated[
    list[str] | None,
    of_text("TEXT", "Stands for a missing value, as empty fields, NA, NaN, null and ? do; may be given again."),
]

# ---- network and training -------------------------------------------------------------------------------------------

Hidden = Annotated[str | None, of_network("N,N,...", "Units of the hidden layers; '' for none.")]
Activation = Annotated[str, of_network("NAME", ACTIVATIONS, autocompletion=activations)]
Dropout = Annotated[float | None, of_network("X", "Share of hidden values dropped in training.")]
Ensemble = Annotated[int | None, of_network("K", "So many networks in one, averaged (TabM).", min=1)]
Preset = Annotated[
    str | None,
    of_network("NAME", "strong: RealMLP's network and training; simple.", autocompletion=choices("strong", "simple")),
]
Loss = Annotated[str, of_training("NAME", LOSSES, autocompletion=names_of("loss", "auto"))]
Optimizer = Annotated[str, of_training("NAME", OPTIMIZERS, autocompletion=names_of("optimizer"))]
Rate = Annotated[float | None, of_training("X", "Learning rate; the optimizer's own if not given.")]
Schedule = Annotated[
    str | None,
    of_training("NAME", f"Of the learning rate: {', '.join(SCHEDULES)}.", autocompletion=choices(*SCHEDULES)),
]
WeightDecay = Annotated[float | None, of_training("X", "Of weights, at each step.")]
ClassWeight = Annotated[
    str | None,
    of_training("NAME", "balanced: rare classes count as much.", autocompletion=choices("balanced")),
]
BatchSize = Annotated[int | None, of_training("N", "Rows in a step.", min=1)]
Epochs = Annotated[int | None, of_training("N", "Most passes over the rows.", min=1)]
Patience = Annotated[int | None, of_training("N", "Epochs without a gain until it stops; 0: never.", min=0)]
Validation = Annotated[float, of_training("X", "Share of the rows that is held out.")]
Folds = Annotated[int | None, of_training("K", "Cross-validate in K parts, then train on all.", min=2)]
Trials = Annotated[int | None, of_training("N", "Try N choices of the options that are not given (Optuna).", min=1)]
Seed = Annotated[int, of_training("N", "Of start values, order, dropout, held-out rows.", min=0)]

# ---- how it runs, and what comes of it ------------------------------------------------------------------------------

Library = Annotated[
    str,
    of_running("NAME", "The array library: numpy, cupy, torch or jax.", autocompletion=choices(*BACKENDS)),
]
Precision = Annotated[
    str,
    of_running("NAME", "Of products: float32; on a GPU tf32, bfloat16.", autocompletion=choices(*PRECISIONS)),
]
Threads = Annotated[int | None, of_running("N", "Processors to use on a CPU; all if not given.", min=1)]
Checkpoint = Annotated[Path | None, of_running("DIR", "Save there after every epoch.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the newest there.", rich_help_panel=RUNNING)]
ModelTo = Annotated[Path, of_output("FILE", "Where the model goes.", "--output", "-o")]
Metrics = Annotated[
    list[str] | None,
    of_output("NAME", f"Give it too, more than once: {METRICS}", autocompletion=names_of("metric")),
]
PlotTo = Annotated[Path | None, of_output("FILE", "Draw the learning curves: .png, .pdf, .svg.")]
ReportTo = Annotated[Path | None, of_output("FILE", "Write a page with all figures and plots: .html.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only the result: no progress, confusion, residuals, importance.")
]


def text_options(sep: str | None, encoding: str, missing: Sequence[str] | None) -> TextOptions:
    """The three options in one; raises OptionError."""
    return TextOptions(sep, encoding, tuple(missing or ()))
