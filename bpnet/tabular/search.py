"""Options of the training on a table, searched for by Optuna (Akiba et al. 2019): the extra `search`.

A trial is a training; what counts is the smallest loss on the rows that are held out, the same ones in all trials.  The
first has the options as they are without a search, so that what comes of it is no worse; those after it are proposed
by the tree-structured Parzen estimator (Bergstra et al. 2011) and end early where half of the trials before them were
better after as many epochs.  The rows that are held out have chosen among trials, and flatter the one that is chosen.
"""

import importlib
import math
import time
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bpnet.callbacks.base import Callback, Record
from bpnet.errors import BpnetWarning, DataError, DivergedError, MissingExtraError, OptionError, plural, users_line
from bpnet.options import number, whole
from bpnet.tabular.fitting import TableTraining
from bpnet.tabular.model import TableModel
from bpnet.tabular.options import TrainingOptions, with_option
from bpnet.tabular.training import prepare

SEARCHED = ("hidden", "activation", "dropout", "lr", "weight_decay", "batch_size")
"""The options that are chosen, unless they are given."""
OWN = ("trials", "seconds", "on_trial", "callbacks")
"""Options of the search itself."""
ACTIVATIONS = ("relu", "silu", "gelu", "tanh")
WIDTHS, DEPTHS, BATCH_SIZES = (16, 32, 64, 128, 256, 512), (1, 4), (16, 32, 64, 128, 256, 512, 1024)
DROPOUT, WEIGHT_DECAY = (0.0, 0.5), (1e-5, 0.5)
RATE = (0.1, 30.0)
"""Times the optimizer's own learning rate."""
STEPS = 4
"""So many steps an epoch must have, or rows in a step are fewer."""
WIDER = 4
"""Times the width that the number of rows suggests, but no wider."""


@dataclass(frozen=True)
class Trial:
    """A training that was tried: what was chosen for it, and the held-out `loss` that came of it.

    `state` is "complete", "pruned" where it was ended early, "diverged", or "interrupted"; `loss` is NaN where there
    is none.
    """

    number: int
    options: dict[str, Any]
    loss: float
    epochs: int
    seconds: float
    state: str


@dataclass
class Search:
    """What was tried, the training of the first trial, and the one that is best so far."""

    trials: list[Trial] = field(default_factory=list)
    first: TableTraining | None = None
    best: TableTraining | None = None
    best_trial: Trial | None = None
    interrupted: bool = False

    def add(self, training: TableTraining, chosen: dict[str, Any], outcome: str, seconds: float) -> Trial:
        """The trial that a training was."""
        records = training.model.trainer.history.epochs
        loss = math.nan if outcome == "diverged" else loss_of(records, bool(training.options.early_stopping))
        one = Trial(len(self.trials) + 1, chosen, loss, len(records), seconds, outcome)
        self.trials.append(one)
        self.interrupted = outcome == "interrupted"
        if math.isfinite(loss) and (self.best_trial is None or loss < self.best_trial.loss):
            self.best, self.best_trial = training, one
        return one

    def describe(self) -> dict[str, Any]:
        """As JSON has it."""
        listed = [asdict(one) | {"loss": one.loss if math.isfinite(one.loss) else None} for one in self.trials]
        assert self.best_trial is not None
        return {"trials": listed, "best": self.best_trial.number, "interrupted": self.interrupted}


class Prune(Callback):
    """Tell a trial of Optuna the held-out loss of every epoch; stop where it is to be pruned."""

    def __init__(self, trial: Any) -> None:
        self.trial, self.pruned = trial, False

    def on_epoch_end(self, trainer: Any, record: Record) -> None:
        self.trial.report(record["val_loss"], record["epoch"])
        if self.trial.should_prune():
            self.pruned = trainer.stop = True


def search_table(
    table: Any,
    target: Any,
    *,
    trials: int = 20,
    seconds: float | None = None,
    on_trial: Callable[[Trial, Search], Any] | None = None,
    callbacks: Sequence[Callback] = (),
    **options: Any,
) -> TableModel:
    """The best of several models for a table, each trained as by `train_table` with other options.

    Searched are the hidden layers' width and number, dropout, learning rate, weight decay, rows in a step and
    activation; what is given in `options` is not.  The model's `settings["search"]` says what was tried.

    Parameters
    ----------
    table, target, options : as of `train_table`; `seed` decides which options are tried, too
    trials : how many trainings there are to be
    seconds : how long after the start the last one may begin
    on_trial : called with each `Trial` after it, and the `Search` so far
    callbacks : told of every training

    An interrupt (Ctrl-C) ends the search, with the best model so far and a warning.  Raises MissingExtraError without
    Optuna, and what `train_table` raises.
    """
    said: set[str] = set()

    def make(chosen: TrainingOptions) -> TableTraining:
        training = prepare(table, target, chosen)
        for text in training.warnings():
            if text not in said:
                warnings.warn(text, BpnetWarning, stacklevel=users_line())
                said.add(text)
        return training

    found = search(
        make, TrainingOptions.named(options, OWN), trials, given=set(options), seconds=seconds, on_trial=on_trial,
        callbacks=callbacks,
    )  # fmt: skip
    assert found.best is not None
    if found.interrupted:
        warnings.warn(
            f"the search was interrupted after {plural(len(found.trials), 'trial')}; the best so far is kept",
            BpnetWarning,
            stacklevel=users_line(),
        )
    model = found.best.model
    model.settings = {**model.settings, "search": found.describe()}
    return model


def search(
    make: Callable[[TrainingOptions], TableTraining],
    options: TrainingOptions,
    trials: int,
    *,
    given: Collection[str] = (),
    seconds: float | None = None,
    on_trial: Callable[[Trial, Search], Any] | None = None,
    callbacks: Sequence[Callback] = (),
    stopped: Callable[[], bool] = lambda: False,
) -> Search:
    """The search itself: `make` makes a training of options, which is fitted here; those that are `given` stay.

    It ends after so many trials, after `seconds`, in which the last one begins, on an interrupt, and where `stopped`
    says so.  Raises KeyboardInterrupt where there is nothing to keep, DivergedError where all trials diverged.
    """
    whole("trials", trials, 1)
    if seconds is not None:
        number("seconds", seconds, 0.0, math.inf)
    if options.preset is not None:
        raise OptionError(f"preset is {options.preset!r}, which brings options of its own: search without it")
    if options.validation == 0:
        raise OptionError("validation is 0, but a search needs rows that are held out, on which trials are compared")
    found, began, free = Search(), time.monotonic(), set(SEARCHED) - set(given)
    with quiet_study(options.seed) as (study, state):
        try:
            while len(found.trials) < trials and not found.interrupted:
                if found.trials and seconds is not None and time.monotonic() - began > seconds:
                    break
                asked, begin = study.ask(), time.monotonic()
                chosen = {} if found.first is None else suggest(asked, options, free, found.first)
                training = make(replace(options, **chosen))
                if not len(training.held_out):
                    raise DataError("no row can be held out, on which trials are compared")
                found.first = found.first or training
                outcome = fit(training, asked, callbacks, stopped)
                one = found.add(training, chosen, outcome, time.monotonic() - begin)
                study.tell(asked, one.loss if outcome == "complete" else None, state=state(outcome))
                if on_trial is not None:
                    on_trial(one, found)
        except KeyboardInterrupt:
            found.interrupted = True
            if found.best is None:
                raise
    if found.best is None:
        raise DivergedError(f"training diverged in {plural(len(found.trials), 'trial')} of as many: try a smaller lr")
    return found


def fit(training: TableTraining, asked: Any, callbacks: Sequence[Callback], stopped: Callable[[], bool]) -> str:
    """Train for a trial of Optuna; what became of it, which `Trial` lists.

    Raises KeyboardInterrupt where that came before the end of an epoch.
    """
    prune = Prune(asked)
    try:
        training.fit([prune, *callbacks], progress=False)
    except DivergedError:
        return "diverged"
    except KeyboardInterrupt:
        if not len(training.model.trainer.history):
            raise
        return "interrupted"
    return "interrupted" if stopped() else "pruned" if prune.pruned else "complete"


@contextmanager
def quiet_study(seed: int) -> Iterator[tuple[Any, Callable[[str], Any]]]:
    """A study of Optuna that prints nothing, and what it calls the outcome of a trial."""
    try:
        optuna = importlib.import_module("optuna")
    except ModuleNotFoundError as error:
        raise MissingExtraError("a search", "Optuna", "search") from error
    states = optuna.trial.TrialState
    ends = {"complete": states.COMPLETE, "pruned": states.PRUNED}
    level = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        sampler = optuna.samplers.TPESampler(seed=seed, n_startup_trials=5)
        pruner = optuna.pruners.MedianPruner(n_startup_trials=3, n_warmup_steps=5)
        study = optuna.create_study(direction="minimize", sampler=sampler, pruner=pruner)
        yield study, lambda outcome: ends.get(outcome, states.FAIL)
    finally:
        optuna.logging.set_verbosity(level)


def suggest(trial: Any, options: TrainingOptions, free: Collection[str], first: TableTraining) -> dict[str, Any]:
    """What a trial of Optuna proposes for the options that are `free`; `first` is the training without it."""
    chosen: dict[str, Any] = {}
    if "hidden" in free:
        widest = WIDER * max(first.size.hidden, default=WIDTHS[0])
        width = trial.suggest_categorical("width", [width for width in WIDTHS if width <= widest])
        chosen["hidden"] = (width,) * trial.suggest_int("depth", *DEPTHS)
    if "activation" in free:
        chosen["activation"] = trial.suggest_categorical("activation", ACTIVATIONS)
    if "dropout" in free:
        chosen["dropout"] = trial.suggest_float("dropout", *DROPOUT)
    rule = options.rule(1)
    own = getattr(getattr(rule, "base", rule), "lr", None)
    if "lr" in free and isinstance(own, float) and own > 0:
        chosen["lr"] = trial.suggest_float("lr", RATE[0] * own, RATE[1] * own, log=True)
    if "weight_decay" in free and takes_weight_decay(rule):
        chosen["weight_decay"] = trial.suggest_float("weight_decay", *WEIGHT_DECAY, log=True)
    if "batch_size" in free:
        sizes = [size for size in BATCH_SIZES if size * STEPS <= len(first.rows)] or BATCH_SIZES[:1]
        chosen["batch_size"] = trial.suggest_categorical("batch_size", sizes)
    return chosen


def takes_weight_decay(rule: Any) -> bool:
    """Whether an optimizer can be given one."""
    try:
        with_option(rule, "weight_decay", 0.1)
    except OptionError:
        return False
    return True


def loss_of(records: Sequence[Record], best_kept: bool) -> float:
    """The held-out loss of the network that a training ended with: of its best epoch, or of its last."""
    losses = [float(record["val_loss"]) for record in records if math.isfinite(record.get("val_loss", math.nan))]
    if not losses:
        return math.nan
    return min(losses) if best_kept else losses[-1]
