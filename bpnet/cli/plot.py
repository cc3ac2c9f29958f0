"""Learning curves as a picture; it needs Matplotlib."""

from collections.abc import Sequence
from pathlib import Path

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
    curves = [("loss", "loss", "training"), ("val_loss", "loss", "held out"), ("val_accuracy", "accuracy", "held out")]
    curves = [curve for curve in curves if curve[0] in history[-1]]
    panels = list(dict.fromkeys(ylabel for _, ylabel, _ in curves))
    figure = Figure(figsize=(5.0 * len(panels), 4.0), layout="constrained")
    axes = dict(zip(panels, figure.subplots(1, len(panels), squeeze=False)[0], strict=True))
    for name, ylabel, label in curves:
        colour = "C0" if label == "training" else "C1"
        axes[ylabel].plot([r["epoch"] for r in history], [r[name] for r in history], ".-", color=colour, label=label)
    axes["loss"].set_yscale("log")
    if "accuracy" in axes:
        best = max(r["val_accuracy"] for r in history)
        axes["accuracy"].set_title(f"last {history[-1]['val_accuracy']:.2%}, best {best:.2%}")
    for ylabel, one in axes.items():
        one.set(xlabel="epoch", ylabel=ylabel)
        one.legend()
        one.grid(alpha=0.3)
        one.xaxis.get_major_locator().set_params(integer=True)
    with write_atomically(path) as file:
        figure.savefig(file, dpi=150, format=path.suffix.lower().removeprefix("."))
