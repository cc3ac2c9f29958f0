"""The figures of a model on some rows, as commands print and write them."""

import warnings
from pathlib import Path

import numpy as np

from bpnet import TableModel
from bpnet.backends import Array
from bpnet.cli import terminal
from bpnet.cli.dataset import Dataset
from bpnet.errors import OptionError, plural
from bpnet.report import Figures, figures
from bpnet.tabular.goals import rows_of


def check_report(path: Path | None, **inputs: str | Path) -> None:
    """Raise OptionError, before any work is done, where no page can be written there."""
    if path is not None:
        if path.suffix.lower() not in (".html", ".htm"):
            raise OptionError(f"--report is {path}: expected a file that ends in .html")
        terminal.check_output("--report", path, **inputs)


def figures_of(model: TableModel, dataset: Dataset, rows: Array | None, which: str) -> Figures:
    """The figures of some rows of a data set, by their numbers from 0; None stands for all.

    `which` follows how many there are.
    """
    frame, y, numbers = dataset.frame, dataset.y, dataset.numbers
    numbers = np.arange(1, frame.rows + 1) if numbers is None else numbers
    if rows is not None:
        frame, y, numbers = frame.take(rows), rows_of(y, rows), numbers[rows]
    with warnings.catch_warnings(action="ignore"):  # what there is to say of the columns was said of the data
        return figures(
            model, frame, y, rows=numbers, title=dataset.name, which=f"{plural(frame.rows, 'row')}{which}",
            facts=facts_of(model), seed=model.trainer.seed,
        )  # fmt: skip


def facts_of(model: TableModel) -> dict[str, str]:
    """What stands above the figures of a model on its page."""
    trainer, training = model.trainer, model.settings.get("training", {})
    found = {"target": ", ".join(model.target.names) or "y", "columns": f"{model.n_features_in_:,}"}
    if isinstance(training, dict) and "training_rows" in training:
        found["trained on"] = f"{training['training_rows']:,} rows of {training.get('data')}"
    network = f"{plural(trainer.layout.size, 'parameter')}"
    if isinstance(training, dict) and training.get("hidden"):
        network = f"hidden layers of {', '.join(map(str, training['hidden']))} units, {network}"
    return found | {"network": network, "optimizer": str(trainer.optimizer), "seed": str(trainer.seed)}


def lines_of(found: Figures) -> list[str]:
    """The figures as lines of text, with an empty one after them."""
    return [*found.text(history=False).splitlines(), ""]


def write(found: Figures, path: Path) -> str:
    """Write the page; a line that says so."""
    found.html(path)
    return f"report: {path}"
