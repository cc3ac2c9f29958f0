"""Learning curves as a picture; it needs Matplotlib."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bpnet.cli.terminal import JSON
from bpnet.disk import write_atomically
from bpnet.errors import OptionError


def check_format(path: Path) -> None:
    """Raise OptionError where Matplotlib does not write files of that ending."""
    formats = Figure().canvas.get_supported_filetypes()
    if path.suffix.lower().removeprefix(".") not in formats:
        endings = ", ".join(f".{name}" for name in sorted(formats))
        raise OptionError(f"--plot is {path}: expected a file that ends in one of {endings}")


def draw(history: Sequence[JSON], path: Path) -> None:
    """The loss of every epoch, and the accuracy where there is one."""
    epochs = [record["epoch"] for record in history]
    curves: dict[str, list[Any]] = {
        name: [record.get(name) for record in history] for name in ("loss", "val_loss", "val_accuracy")
    }
    has_accuracy = curves["val_accuracy"][-1] is not None
    figure = Figure(figsize=(10.0 if has_accuracy else 5.5, 4.0), layout="constrained")
    axes = figure.subplots(1, 2 if has_accuracy else 1, squeeze=False)[0]
    axes[0].plot(epochs, curves["loss"], ".-", label="training")
    if curves["val_loss"][-1] is not None:
        axes[0].plot(epochs, curves["val_loss"], ".-", label="held out")
    axes[0].set(ylabel="loss", yscale="log")
    if has_accuracy:
        percent = [100.0 * value for value in curves["val_accuracy"]]
        axes[1].plot(epochs, percent, ".-C1", label="held out")
        axes[1].set(ylabel="accuracy, %", title=f"last {percent[-1]:.2f}%, best {max(percent):.2f}%")
    for one in axes:
        one.set(xlabel="epoch")
        one.legend()
        one.grid(alpha=0.3)
        one.xaxis.get_major_locator().set_params(integer=True)
    with write_atomically(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix.lower().removeprefix("."))
