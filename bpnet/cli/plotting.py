"""--plot: the learning curves, in a file or with characters."""

import sys
from collections.abc import Sequence
from pathlib import Path

from bpnet.cli import terminal
from bpnet.cli.terminal import JSON
from bpnet.errors import BpnetError, OptionError
from bpnet.plots import to_text
from bpnet.plots.curves import panels
from bpnet.plots.terminal import Lines, put

TERMINAL = "terminal"


def check_plot(plot: str | None, **inputs: str | Path) -> None:
    """Raise, before any work is done, where the picture could not be drawn or written."""
    if plot is None or plot == TERMINAL:
        return
    if not to_text(plot):
        figures = terminal.load_extra("bpnet.plots.figures", "--plot", "Matplotlib")
        figures.check_format(plot, "--plot", (TERMINAL,))
    terminal.check_output("--plot", Path(plot), **inputs)


def draw(
    history: Sequence[JSON], best_epoch: int | None, plot: str | None, as_json: bool, problems: list[BpnetError]
) -> bool:
    """Draw the curves, if there are any, and say whether they are; what went wrong is added to the problems.

    Those of the terminal go where they are not in the way of JSON.
    """
    if not history or plot is None:
        return False
    best = next((i for i, record in enumerate(history) if record["epoch"] == best_epoch), None)
    made = Lines(panels(history, best=best))
    try:
        if plot == TERMINAL:
            put(made, stream=sys.stderr if as_json else sys.stdout)
        elif to_text(plot):
            put(made, plot)
        else:
            figures = terminal.load_extra("bpnet.plots.figures", "--plot", "Matplotlib")
            figures.save(figures.draw(made.panels), plot)
    except Exception as error:  # Matplotlib writes many formats, by other programs too
        problems.append(OptionError(f"--plot is {plot}, but that can't be drawn: {terminal.reason(error)}"))
        return False
    return True
