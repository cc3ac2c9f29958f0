"""The search for the options of a training on a table: what it tries, and what it keeps."""

import sys

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import BpnetWarning, DataError, DivergedError, MissingExtraError, OptionError
from bpnet.tabular.search import ACTIVATIONS, Prune

pytest.importorskip("optuna", reason="a search needs Optuna (the search extra)")


@pytest.fixture
def rings():
    """Two classes, one around the other."""
    rng = np.random.default_rng(0)
    angle, outer = rng.uniform(0.0, 2.0 * np.pi, 120), rng.integers(0, 2, 120)
    radius = 1.0 + outer + 0.2 * rng.normal(size=120)
    return {"x": radius * np.cos(angle), "y": radius * np.sin(angle), "ring": np.array(["inner", "outer"])[outer]}


def tried(table, target="ring", **options):
    """The model of a short search, and what it says of its trials."""
    model = bp.search_table(table, target, **{"trials": 6, "epochs": 7, "compile": False} | options)
    return model, model.settings["search"]


def test_the_best_of_the_trials_is_kept(rings):
    seen = []
    model, found = tried(rings, on_trial=lambda trial, search: seen.append((trial.loss, search.best_trial.loss)))
    trials = found["trials"]
    assert len(trials) == len(seen) == 6
    assert trials[0]["options"] == {}
    best = min(trial["loss"] for trial in trials)
    assert trials[found["best"] - 1]["loss"] == best == seen[-1][1] <= trials[0]["loss"]
    assert min(model.trainer.history["val_loss"]) == best
    assert len(model.predict(rings)) == 120
    for trial in trials[1:]:
        options = trial["options"]
        assert set(options) == {"hidden", "activation", "dropout", "lr", "weight_decay", "batch_size"}
        assert 1 <= len(options["hidden"]) <= 4
        assert options["activation"] in ACTIVATIONS
        assert 0.0001 <= options["lr"] <= 0.03
        assert options["batch_size"] * 4 <= 96


def test_a_search_is_of_its_seed(rings):
    def options(seed):
        return [(trial["options"], trial["loss"]) for trial in tried(rings, seed=seed, trials=4)[1]["trials"]]

    assert options(1) == options(1) != options(2)


def test_what_is_given_is_not_searched(rings):
    _, found = tried(rings, trials=3, hidden=(8,), dropout=0.1, optimizer="sgd", lr=0.2)
    assert set(found["trials"][2]["options"]) == {"activation", "weight_decay", "batch_size"}
    _, found = tried(rings, trials=2, optimizer="prodigy")
    assert "lr" in found["trials"][1]["options"]
    assert found["trials"][1]["options"]["lr"] >= 0.1


class Interrupt(bp.Callback):
    """Ctrl-C after so many epochs of all trainings."""

    def __init__(self, epochs):
        self.left = epochs

    def on_epoch_end(self, trainer, record):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("epochs", "trials"), [(9, 2), (3, 1)])
def test_an_interrupt_keeps_the_best_so_far(rings, epochs, trials):
    with pytest.warns(BpnetWarning, match=f"interrupted after {trials} trial"):
        model, found = tried(rings, callbacks=[Interrupt(epochs)])
    assert found["interrupted"] is True
    assert [trial["state"] for trial in found["trials"]] == ["complete", "interrupted"][2 - trials :]
    assert found["best"] in (1, 2)
    assert len(model.predict(rings)) == 120


def test_an_interrupt_before_anything_was_learnt_is_one(rings):
    class AtOnce(bp.Callback):
        def on_step_end(self, trainer, step):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tried(rings, callbacks=[AtOnce()])


class Diverge(bp.Callback):
    """In these trainings, counted from 1."""

    def __init__(self, *numbers):
        self.numbers, self.count = numbers, 0

    def on_train_begin(self, trainer, epochs, steps):
        self.count += 1

    def on_epoch_end(self, trainer, record):
        if self.count in self.numbers:
            raise DivergedError("training diverged")


def test_an_interrupt_between_trials_keeps_the_best_so_far(rings):
    def interrupt(trial, search):
        raise KeyboardInterrupt

    with pytest.warns(BpnetWarning, match="interrupted after 1 trial"):
        _, found = tried(rings, on_trial=interrupt)
    assert (found["interrupted"], found["best"]) == (True, 1)


def test_what_diverges_is_not_the_best(rings):
    _, found = tried(rings, trials=3, callbacks=[Diverge(1, 3)])
    assert [trial["state"] for trial in found["trials"]] == ["diverged", "complete", "diverged"]
    assert [trial["loss"] is None for trial in found["trials"]] == [True, False, True]
    assert found["best"] == 2
    with pytest.raises(DivergedError):
        tried(rings, trials=2, callbacks=[Diverge(1, 2)])


def test_a_trial_ends_where_it_is_to_be_pruned():
    class Asked:
        def __init__(self):
            self.reported = []

        def report(self, value, step):
            self.reported.append((value, step))

        def should_prune(self):
            return len(self.reported) == 3

    asked = Asked()
    prune = Prune(asked)
    x = np.random.default_rng(0).normal(size=(16, 2))
    trainer = bp.Trainer(bp.Dense(1), "mse", compile=False)
    trainer.fit(x, x[:, :1], epochs=9, validation=(x, x[:, :1]), callbacks=[prune], progress=False)
    assert len(trainer.history) == 3
    assert prune.pruned
    assert asked.reported == list(zip(trainer.history["val_loss"], (1, 2, 3), strict=True))


def test_a_search_ends_in_time(rings):
    _, found = tried(rings, seconds=1e-6)
    assert len(found["trials"]) == 1


def test_what_can_not_be_searched_is_said(rings, monkeypatch):
    with pytest.raises(OptionError, match="a search needs rows that are held out"):
        tried(rings, validation=0.0)
    with pytest.raises(OptionError, match="trials is 0"):
        tried(rings, trials=0)
    with pytest.raises(OptionError, match="seconds"):
        tried(rings, seconds=-1.0)
    with pytest.raises(DataError, match="no row can be held out"), pytest.warns(BpnetWarning, match="no class has two"):
        tried({"x": np.arange(5.0), "ring": list("abcde")})
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(MissingExtraError, match=r"Optuna.*bpnet-xp\[search\]"):
        tried(rings)
