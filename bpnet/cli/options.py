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
    of_columns("COLUMN", "Column to predict; repeat for several.", "--target", "-t", autocompletion=columns),
]
Predicted = Annotated[
    list[str] | None,
    of_columns("COLUMN", "The target, if the column has another name.", "--target", "-t", autocompletion=columns),
]
Features = Annotated[
    list[str] | None,
    of_columns("COLUMNS", "Use only these features: names with commas, or patterns.", autocompletion=columns),
]
Drop = Annotated[
    list[str] | None,
    of_columns("COLUMNS", "Leave these columns out.", autocompletion=columns),
]
Types = Annotated[list[str] | None, of_columns("COLUMN=KIND", f"Type of a column: {', '.join(KINDS)}.")]
Keys = Annotated[
    list[str] | None,
    option(
        "COLUMN",
        "Columns to put beside predictions: names with commas.",
        autocompletion=columns,
    ),
]
Sep = Annotated[str | None, of_text("CHAR", "Column separator; detected if not given.")]
Encoding = Annotated[
    str,
    of_text(
        "NAME",
        "Encoding: latin-1, cp1252, utf-16, ...",
        autocompletion=choices("utf-8", "latin-1", "cp1252", "utf-16"),
    ),
]
Missing = Annotated[
    list[str] | None,
    of_text("TEXT", "Also counts as a missing value, as empty fields, NA, NaN, null and ? do; may be repeated."),
]

Stream = Annotated[
    bool | None,
    typer.Option(
        "--stream/--no-stream",
        help="Read a Parquet or Arrow file block by block instead of keeping its rows in memory; by default where they "
        "would take more than half of it.",
        show_default=False,
        rich_help_panel=RUNNING,
    ),
]
BadRows = Annotated[
    str,
    of_running(
        "NAME", "Rows that can't be used, of a streamed file: error, or skip.", autocompletion=choices("error", "skip")
    ),
]

# ---- network and training -------------------------------------------------------------------------------------------

Hidden = Annotated[str | None, of_network("N,N,...", "Units of the hidden layers; '' for none.")]
Activation = Annotated[str, of_network("NAME", ACTIVATIONS, autocompletion=activations)]
Dropout = Annotated[float | None, of_network("X", "Dropout rate of the hidden layers.")]
Ensemble = Annotated[int | None, of_network("K", "Number of networks, averaged (TabM).", min=1)]
Preset = Annotated[
    str | None,
    of_network(
        "NAME",
        "strong: RealMLP's network and training; simple.",
        autocompletion=choices("strong", "simple"),
    ),
]
Loss = Annotated[str, of_training("NAME", LOSSES, autocompletion=names_of("loss", "auto"))]
Quantiles = Annotated[str | None, of_training("Q,Q,...", "Quantiles to predict, such as 0.05,0.5,0.95.")]
Optimizer = Annotated[str, of_training("NAME", OPTIMIZERS, autocompletion=names_of("optimizer"))]
Rate = Annotated[float | None, of_training("X", "Learning rate; the optimizer's default if not given.")]
Schedule = Annotated[
    str | None,
    of_training("NAME", f"Learning rate schedule: {', '.join(SCHEDULES)}.", autocompletion=choices(*SCHEDULES)),
]
WeightDecay = Annotated[float | None, of_training("X", "Weight decay.")]
ClassWeight = Annotated[
    str | None,
    of_training("NAME", "balanced: all classes count the same, however rare.", autocompletion=choices("balanced")),
]
BatchSize = Annotated[int | None, of_training("N", "Batch size: rows per step.", min=1)]
Epochs = Annotated[int | None, of_training("N", "Maximum number of epochs.", min=1)]
Patience = Annotated[int | None, of_training("N", "Stop after so many epochs without improvement; 0: never.", min=0)]
Validation = Annotated[float, of_training("X", "Share of the rows held out for validation.")]
Folds = Annotated[int | None, of_training("K", "Cross-validate in K parts, then train on all.", min=2)]
Trials = Annotated[int | None, of_training("N", "Tune the options that are not given in N trials (Optuna).", min=1)]
Seed = Annotated[int, of_training("N", "Random seed: initial values, order, dropout, held-out rows.", min=0)]

# ---- how it runs, and what comes of it ------------------------------------------------------------------------------

Library = Annotated[
    str,
    of_running("NAME", "The array library: numpy, cupy, torch or jax.", autocompletion=choices(*BACKENDS)),
]
Precision = Annotated[
    str,
    of_running(
        "NAME", "Precision of matrix products: float32; on a GPU tf32, bfloat16.", autocompletion=choices(*PRECISIONS)
    ),
]
Threads = Annotated[int | None, of_running("N", "Number of CPU threads; OMP_NUM_THREADS or all if not given.", min=1)]
Checkpoint = Annotated[Path | None, of_running("DIR", "Save checkpoints there, by default after every epoch.")]
Every = Annotated[int | None, of_running("STEPS", "Save a checkpoint every so many steps instead.", min=1)]
Resume = Annotated[bool, typer.Option("--resume", help="Resume from the latest checkpoint.", rich_help_panel=RUNNING)]
ModelTo = Annotated[Path, of_output("FILE", "Write the model to this file.", "--output", "-o")]
Metrics = Annotated[
    list[str] | None,
    of_output("NAME", f"Also report this metric; may be repeated: {METRICS}", autocompletion=names_of("metric")),
]
PlotTo = Annotated[
    str | None, of_output("[FILE]", "Plot the learning curves in FILE (.png, .svg, .pdf, .txt), or here.")
]
ReportTo = Annotated[Path | None, of_output("FILE", "Write a report with all figures and plots: .html.")]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Only the result: no progress, confusion matrix, residuals, importance.")
]


def text_options(sep: str | None, encoding: str, missing: Sequence[str] | None) -> TextOptions:
    """The three options in one; raises OptionError."""
    return TextOptions(sep, encoding, tuple(missing or ()))
