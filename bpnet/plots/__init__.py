"""Pictures of a training, a network, and what a trainer has learnt.

    history.plot()                                  # a figure of Matplotlib, which a notebook shows
    history.plot("curves.png")                      # or .svg, .pdf, ...; .txt has it as text
    history.plot(terminal=True)                     # in the terminal, as also where Matplotlib is not installed

Figures don't come from pyplot: no window opens, and none has to be closed.  To show one of pyplot's, draw in it:
`history.plot(figure=plt.figure()); plt.show()`.
"""

import importlib
import os
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

from bpnet.callbacks.history import History
from bpnet.disk import checked_path
from bpnet.errors import ArgumentError, DataError, MissingExtraError, OptionError, kind_of
from bpnet.layer import Layer, check_layer
from bpnet.options import flag
from bpnet.plots.curves import panels
from bpnet.trainer import Trainer
from bpnet.typing import AnyArray, AnyInput

__all__ = ["confusion_matrix", "decision_boundary", "history", "network", "predictions", "weights"]


def __dir__() -> list[str]:
    return __all__


def history(
    history: History,
    path: str | os.PathLike[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    monitor: str | None = None,
    terminal: bool = False,
    figure: Any = None,
) -> Any:
    """Draw a history, as `history.plot()`: the loss, each metric, the learning rate where it changes, and norms.

    Each has its axes, on which the training's curve is a solid line, and that of the validation data a dashed one.  The
    best epoch is marked.  An axis is logarithmic where values differ by orders of magnitude, but linear around zero
    where some are negative, as a log-likelihood's may be.  What is not finite leaves a gap.

    Parameters
    ----------
    path : a file to write, as a whole or not at all: .png, .svg, .pdf and others of Matplotlib's, or .txt
    names : which quantities to draw, such as ["loss", "f1"]; None for all
    monitor : by which quantity an epoch is the best; None for "val_loss", or where there is none "loss"
    terminal : draw with characters on standard output, as is done where Matplotlib is not installed
    figure : a figure of Matplotlib to draw in, after it is cleared

    Returns the figure, or None where it is drawn with characters.  Raises DataError where there are no epochs,
    RecordError where a quantity was not recorded, OptionError where files can't be of that kind, MissingExtraError
    where a picture needs Matplotlib and that is not installed, and PathError where nothing can be written.
    """
    if not isinstance(history, History):
        raise ArgumentError(f"history is {kind_of(history)}; expected a bpnet History, as trainer.history is")
    if not len(history):
        raise DataError("the history has no epochs, so there is nothing to draw: fit first")
    made = panels(history.epochs, names, monitor)
    if not made:
        raise DataError("the history has no numbers that could be drawn")
    path, as_text = target(path, terminal, figure)
    if as_text:
        text = importlib.import_module("bpnet.plots.terminal")
        return text.put(text.Lines(made), path)
    return drawn("figures", "draw", made, figure, path=path)


def network(
    network: Layer,
    x: AnyInput | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    terminal: bool = False,
    figure: Any = None,
) -> Any:
    """Draw a network, or any layer, as `net.plot(x)`: its layers as boxes, data flowing downwards.

    For rows like those of `x` each box says the shape of an output row and how many parameters there are; without `x`,
    which a network does not know, it says neither.  Branches stand side by side, a residual's input goes past it to the
    sum, a layer that is shared says under which name, and layers that come several times over are drawn once.

    Parameters
    ----------
    x : data as `net.summary(x)` takes them; values do not matter
    path : a file to write, as a whole or not at all: .png, .svg, .pdf and others of Matplotlib's, or .txt
    terminal : draw with characters on standard output, as is done where Matplotlib is not installed
    figure : a figure of Matplotlib to draw in, after it is cleared

    Returns the figure, or None where it is drawn with characters.  Raises what `net.summary` raises on unfit data, and
    OptionError, MissingExtraError and PathError as `history` does.
    """
    check_layer("network", network)
    path, as_text = target(path, terminal, figure)
    diagram = importlib.import_module("bpnet.plots.diagram")
    made = diagram.described(network, x)
    if as_text:
        return importlib.import_module("bpnet.plots.terminal").put(made.lines, path, width=10**6)
    return drawn("figures", "draw_network", made.block, made.title, figure, path=path)


def decision_boundary(
    trainer: Trainer,
    x: AnyArray,
    y: AnyArray | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
) -> Any:
    """Draw what a trainer says of every point of a plane, for a network of two features.

    Classes: each region has its class's colour, the stronger the surer the network is, and lines are where two classes
    are as likely; `trainer.classes` names them.  A quantity: shades of the prediction.  The rows of x, (rows, 2), say
    which part of the plane is drawn, and with their targets `y` are drawn as points.

    Returns the figure, or where `axes` of Matplotlib are given to draw on, theirs.  Raises ShapeError, DataError and
    OptionError on what can't be drawn, and otherwise as `history` does.
    """
    check_trainer(trainer)
    return drawn("learnt", "decision_boundary", trainer, x, y, axes, path=path)


def weights(
    trainer: Trainer,
    shape: Sequence[int] | None = None,
    path: str | os.PathLike[str] | None = None,
    *,
    axes: Any = None,
) -> Any:
    """Draw the weights of the first layer as images, one for each of its units, 64 at most.

    `shape` is that of the image that a row of x is, (height, width) or (height, width, 3); None stands for a square.
    Zero has no colour, and all images have the same scale.  Raises and returns as `decision_boundary` does.
    """
    check_trainer(trainer)
    return drawn("learnt", "weights", trainer, shape, axes, path=path)


def confusion_matrix(
    y: Any,
    predicted: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    axes: Any = None,
) -> Any:
    """Draw how many rows of each class are predicted as which; a row of shades adds up to 1.

    y, predicted : a class a row, numbers or texts; or (rows, classes), of which the largest counts, as outputs are
    names : what the classes 0, 1, ... are called; or all texts that are classes, in the order in which they are drawn

    Raises and returns as `decision_boundary` does.
    """
    return drawn("learnt", "confusion_matrix", y, predicted, names, axes, path=path)


def predictions(
    y: Any,
    predicted: Any,
    path: str | os.PathLike[str] | None = None,
    *,
    names: Sequence[str] | None = None,
    axes: Any = None,
) -> Any:
    """Draw true against predicted quantities, (rows,) or (rows, k) of k quantities, which `names` calls something.

    On the dashed line both are equal.  Of many rows 5,000 are drawn, and the scores are of all.  Raises and returns as
    `decision_boundary` does.
    """
    return drawn("learnt", "predictions", y, predicted, names, axes, path=path)


def check_trainer(trainer: Any) -> None:
    """Raise ArgumentError unless it is a trainer, and NotBuiltError unless it has parameters."""
    if not isinstance(trainer, Trainer):
        hint = (
            ": model.trainer of a model of a table, estimator.model_.trainer of an estimator"
            if hasattr(trainer, "predict")
            else ""
        )
        raise ArgumentError(f"trainer is {kind_of(trainer)}; expected a bpnet Trainer{hint}")
    trainer.layout  # noqa: B018 - raises


def target(path: Any, terminal: Any, figure: Any = None) -> tuple[str | None, bool]:
    """Where a picture goes, None being no file, and whether it is made of characters; raises OptionError."""
    path = None if path is None else checked_path(path)
    as_text = path is not None and to_text(path)
    if flag("terminal", terminal):
        if path is not None or figure is not None:
            raise OptionError(f"terminal is True, but there is a {'path' if path else 'figure'} too: leave one out")
        return None, True
    if as_text and figure is not None:
        raise OptionError(f"path is {path}, a file of text, but there is a figure too: leave one out")
    return path, as_text or (path is None and figure is None and find_spec("matplotlib") is None)


def to_text(path: str) -> bool:
    """Whether a file is one of text."""
    return path.lower().endswith(".txt")


def drawn(module: str, function: str, *args: Any, path: Any = None) -> Any:
    """What a function of a module makes with Matplotlib, written to a file where there is a path."""
    try:
        figures = importlib.import_module("bpnet.plots.figures")
    except ModuleNotFoundError as error:
        raise MissingExtraError("drawing", "Matplotlib", "plot") from error
    path = None if path is None else checked_path(path)
    if path is not None:
        figures.check_format(path)
    made = getattr(importlib.import_module(f"bpnet.plots.{module}"), function)(*args)
    if path is not None:
        figures.save(made, path)
    return made
