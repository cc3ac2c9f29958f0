"""How the estimators train: epochs as scikit-learn counts and ends them, and L-BFGS-B by SciPy."""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.backends.numpy import can_compile
from bpnet.callbacks.base import Callback
from bpnet.data.loader import Loader
from bpnet.estimators.hooks import Tasks
from bpnet.fitting import run_epochs
from bpnet.layer import Run
from bpnet.locking import locked
from bpnet.trainer import Trainer

COMPILES = 2e9
"""Floating-point operations, as `Engine.cost` counts them, after which NumPy's steps are compiled: a tenth of a second.

So much does that cost at the first time in a process; each step is then some three times faster.
"""
SMALLEST_RATE = 1e-6
"""The adaptive learning rate is not divided below it."""


class Shuffled:
    """The order of the rows in every epoch, as scikit-learn draws it: that of the last epoch, shuffled."""

    def __init__(self, rows: int, random_state: Any) -> None:
        self.random_state, self.last = random_state, np.arange(rows)

    def __call__(self, epoch: int) -> Any:
        index = np.arange(self.last.size)
        self.random_state.shuffle(index)
        self.last = self.last[index]
        return self.last


class HeldOut:
    """Rows that are not trained on: x, targets and weights beside it, and `score(outputs) -> number`."""

    def __init__(self, x: Any, y: Array, weight: Array | None, outputs: Callable[[Any], Array], score: Any) -> None:
        self.x, self.y, self.weight, self.outputs, self.score = x, y, weight, outputs, score

    def evaluate(self, trainer: Trainer) -> tuple[float, float]:
        """The loss and the score of the trainer's network."""
        backend, outputs = trainer.backend, self.outputs(self.x)
        with backend.session(device=backend.device(outputs)):
            total = float(outputs.shape[0]) if self.weight is None else float(backend.xp.sum(self.weight))
            value, _ = trainer.loss(Run(backend), outputs, self.y, self.weight, trainer.loss.total(total))
            loss = float(value)
        return loss, -loss if self.score is None else float(self.score(outputs))


class Epochs(Callback):
    """What scikit-learn's perceptrons do after an epoch: note losses and scores, set the learning rate, and end."""

    def __init__(self, estimator: Any, rows: int, batch_size: int, held_out: HeldOut | None) -> None:
        self.estimator, self.rows, self.batch_size, self.held_out = estimator, rows, batch_size, held_out
        self.converged = False

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        est = self.estimator
        est.loss_ = self.loss(trainer, record)
        est.n_iter_ += 1
        est.t_ += self.rows
        est.loss_curve_.append(est.loss_)
        if est.verbose:
            print(f"Iteration {est.n_iter_}, loss = {est.loss_:.8f}")
        self._count(trainer, record)
        compile_later(trainer, self.batch_size)
        if est.solver == "sgd" and est.learning_rate == "invscaling":
            trainer.lr_scale = 1.0 / (est.t_ + 1) ** est.power_t
        if est._no_improvement_count > est.n_iter_no_change and est.preset is None:
            what = "Validation score" if est.early_stopping else "Training loss"
            text = f"{what} did not improve more than tol={est.tol:f} for {est.n_iter_no_change} consecutive epochs."
            if self._ends(trainer, text):
                self.converged = trainer.stop = True
            else:
                est._no_improvement_count = 0

    def loss(self, trainer: Trainer, record: dict[str, Any]) -> float:
        """The mean of the losses of steps, each counting as many rows as it has."""
        loss: float = record["loss"]
        return loss

    def _count(self, trainer: Trainer, record: dict[str, Any]) -> None:
        """How many epochs there have been without an improvement."""
        est, score = self.estimator, -math.inf
        if self.held_out is not None:
            loss, score = self.held_out.evaluate(trainer)
            record["val_loss"] = loss
            est.validation_loss_curve_.append(loss)
            est.validation_scores_.append(score)
            if est.verbose:
                print(f"Validation score: {score:f}")
        if est.early_stopping:
            worse = score < est.best_validation_score_ + est.tol
            if score > est.best_validation_score_:
                est.best_validation_score_, est._best = score, trainer.snapshot()[0][:2]
        else:
            worse = est.loss_ > est.best_loss_ - est.tol
            est.best_loss_ = min(est.best_loss_, est.loss_)
        est._no_improvement_count = est._no_improvement_count + 1 if worse else 0

    def _ends(self, trainer: Trainer, text: str) -> bool:
        """Whether training ends, or goes on with a smaller learning rate."""
        est = self.estimator
        ends, then = True, ""
        if est.solver == "sgd" and est.learning_rate == "adaptive":
            rate = est.learning_rate_init * trainer.lr_scale
            ends, then = rate <= SMALLEST_RATE, " Learning rate too small."
            if not ends:
                trainer.lr_scale /= 5.0
                then = f" Setting learning rate to {rate / 5.0:f}"
        if est.verbose:
            print(text + then + (" Stopping." if ends else ""))
        return ends


class WeightedEpochs(Epochs):
    """The same where rows have weights: an epoch's loss counts rows all the same, so it is made of those of steps."""

    before_next_step = False

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.losses: list[Array] = []

    def on_step_end(self, trainer: Trainer, step: int) -> None:
        self.losses.append(trainer.step_loss)

    def loss(self, trainer: Trainer, record: dict[str, Any]) -> float:
        values, size = trainer.backend.fetch(self.losses), self.batch_size
        self.losses = []
        return sum(v * min(size, self.rows - size * i) for i, v in enumerate(values)) / self.rows


def compile_later(trainer: Trainer, batch_size: int) -> None:
    """Compile from now on, where the steps that there have been are worth it; it depends on their number alone."""
    engine = trainer._have()
    worth = engine.count * engine.cost(batch_size) >= COMPILES
    if worth and engine.compile == "auto" and engine.backend.name == "numpy" and can_compile():
        engine.compile = True


@locked("train")
def run(
    trainer: Trainer, data: Loader, *, epochs: int, batch_size: int, shuffle: Any, listeners: Sequence[Callback]
) -> None:
    """`Trainer.fit` on rows that have been checked."""
    engine = trainer._have()
    engine.set_epoch(-(-data.count // batch_size))
    with engine.session(data.count):
        data = data.cached()
    trainer.stop = False
    compile_later(trainer, batch_size)
    options: dict[str, Any] = {"epochs": epochs, "batch_size": batch_size, "shuffle": shuffle}
    run_epochs(trainer, engine, data, None, **options, metrics=(), listeners=listeners)


def minimize(trainer: Trainer, data: Loader, verbose: bool, told: Tasks | None, **options: Any) -> Any:
    """Train on all rows at once by SciPy's L-BFGS-B, from the trainer's parameters: SciPy's result.

    `told` hears of every iteration, and may end it.  An interrupt ends it at the last iteration that was complete.
    """
    from scipy.optimize import OptimizeResult, minimize

    engine = trainer._have()
    backend, ((theta, buffers, state), count) = engine.backend, engine.state.now
    dtype, device = theta.dtype, backend.device(theta)
    begin = np.asarray(backend.to_host(theta), dtype=np.float64)
    batch, evaluations = data.whole_batch(), 0
    last = OptimizeResult(x=begin, nit=0, nfev=0, status=99, success=False, message="interrupted", fun=math.nan)

    def function(vector: Any) -> tuple[float, Any]:
        nonlocal evaluations
        evaluations += 1
        with engine.session(data.count, evaluations):
            at = backend.from_host(vector, dtype, device)
            value, grad, _ = engine.gradient(at, buffers, *batch, count + 1)
            return float(value), np.asarray(backend.to_host(grad), dtype=np.float64)

    def after(intermediate_result: Any) -> None:
        last.x, last.fun, last.nit = intermediate_result.x.copy(), intermediate_result.fun, last.nit + 1
        if verbose:
            print(f"Iteration {last.nit}, loss = {last.fun:.8f}")
        if told is not None:
            engine.state.now = (backend.from_host(last.x, dtype, device), buffers, state), count
            if told.ended(lambda: copy.copy(trainer)):
                raise StopIteration
            told.begin()

    if told is not None:
        told.begin()
    try:
        result = minimize(function, begin, method="L-BFGS-B", jac=True, options=options, callback=after)
    except KeyboardInterrupt:
        result = last
        warnings.warn("Training interrupted by user.", stacklevel=2)
    end = backend.from_host(result.x, dtype, device)
    engine.state.now = (end, buffers, engine.optimizer.restart(backend, engine.layout, end, state)), count + evaluations
    return result
