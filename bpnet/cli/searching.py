"""The search for options in `bpnet train --search N`."""

from collections.abc import Callable, Mapping
from typing import Any

import typer

from bpnet.cli import terminal
from bpnet.cli.progress import Interrupt
from bpnet.errors import OptionError
from bpnet.tabular.fitting import TableTraining
from bpnet.tabular.options import TrainingOptions
from bpnet.tabular.search import SEARCHED, Search, Trial, search


def check_search(**others: Any) -> None:
    """Raise OptionError where another option does not go with a search, MissingExtraError without Optuna."""
    for name, value in others.items():
        if value:
            raise OptionError(f"--search compares trainings on the rows held out: leave out --{name}")
    terminal.load_extra("optuna", "--search", "Optuna", extra="search")


def find_options(
    make: Callable[[TrainingOptions], TableTraining],
    options: TrainingOptions,
    trials: int,
    context: typer.Context,
    interrupt: Interrupt,
    shows: bool,
) -> Search:
    """The best of so many trainings, with a line for each on stderr if it `shows` them."""
    sources = {name: context.get_parameter_source(name) for name in SEARCHED}
    given = {name for name, source in sources.items() if source is not None and source.name != "DEFAULT"}

    def say(trial: Trial, found: Search) -> None:
        if shows:
            best = "  best so far" if found.best_trial is trial else f"  {trial.state}" * (trial.state != "complete")
            terminal.note(
                f"trial {trial.number:>3}/{trials}  held-out loss {trial.loss:#.4g}  {in_words(trial.options)}{best}"
            )

    return search(
        make, options, trials, given=given, on_trial=say, callbacks=[interrupt], stopped=lambda: interrupt.number > 0
    )


def best_of(found: dict[str, Any]) -> list[str]:
    """What came of a search, as `Search.describe` has it."""
    trials, best = found["trials"], found["trials"][found["best"] - 1]
    chosen = f"trial {found['best']} of {len(trials)} is kept: {in_words(best['options'])}"
    flattered = "the rows held out chose it among trials, so expect slightly worse results on others"
    return [chosen, flattered] if len(trials) > 1 else [chosen]


def in_words(options: Mapping[str, Any]) -> str:
    """What was chosen for a trial."""
    words = {"hidden": "", "activation": "", "weight_decay": "weight decay ", "batch_size": "batch "}
    parts = []
    for name, value in options.items():
        shown = ",".join(map(str, value)) if name == "hidden" else f"{value:.3g}" if isinstance(value, float) else value
        parts.append(f"{words.get(name, f'{name} ')}{shown}")
    return "  ".join(parts) or "as without a search"
