"""How the estimators train: epochs as scikit-learn counts and ends them, and L-BFGS-B by SciPy."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.callbacks.base import Callback
from bpnet.data.prepare import named
from bpnet.trainer import Trainer

SMALLEST_RATE = 1e-6
"""The adaptive learning rate is not divided below it."""


class Epochs(Callback):
    """What scikit-learn's perceptrons do after an epoch: note losses and scores, set the learning rate, and end.

    `score`, where it is given, is called for the score on held-out rows; `best` has the parameters that had the best.
    """

    def __init__(self, estimator: Any, rows: int, score: Callable[[], float] | None) -> None:
        self.estimator, self.rows, self.score = estimator, rows, score
        self.best: Any = None
        self.converged = False

    def on_epoch_end(self, trainer: Trainer, record: dict[str, Any]) -> None:
        est = self.estimator
        est.loss_ = self.loss(trainer, record)
        est.n_iter_ += 1
        est.t_ += self.rows
        est.loss_curve_.append(est.loss_)
        if est.verbose:
            print(f"Iteration {est.n_iter_}, loss = {est.loss_:.8f}")
        self._count(trainer)
        if est.solver == "sgd" and est.learning_rate == "invscaling":
            trainer.lr_scale = 1.0 / (est.t_ + 1) ** est.power_t
        if est._no_improvement_count > est.n_iter_no_change:
            what = "Validation score" if self.score else "Training loss"
            text = f"{what} did not improve more than tol={est.tol:f} for {est.n_iter_no_change} consecutive epochs."
            if self._ends(trainer, text):
                self.converged = trainer.stop = True
            else:
                est._no_improvement_count = 0

    def loss(self, trainer: Trainer, record: dict[str, Any]) -> float:
        """The mean of the losses of steps, each counting as many rows as it has."""
        loss: float = record["loss"]
        return loss

    def _count(self, trainer: Trainer) -> None:
        """How many epochs there have been without an improvement."""
        est = self.estimator
        if self.score is None:
            worse = est.loss_ > est.best_loss_ - est.tol
            est.best_loss_ = min(est.best_loss_, est.loss_)
        else:
            score = self.score()
            est.validation_scores_.append(score)
            if est.verbose:
                print(f"Validation score: {score:f}")
            worse = score < est.best_validation_score_ + est.tol
            if score > est.best_validation_score_:
                est.best_validation_score_, self.best = score, trainer.snapshot()
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

    def __init__(self, *args: Any, batch_size: int) -> None:
        super().__init__(*args)
        self.batch_size = batch_size
        self.losses: list[Array] = []

    def on_step_end(self, trainer: Trainer, step: int) -> None:
        self.losses.append(trainer.step_loss)

    def loss(self, trainer: Trainer, record: dict[str, Any]) -> float:
        values, size = trainer.backend.fetch(self.losses), self.batch_size
        self.losses = []
        return sum(v * min(size, self.rows - size * i) for i, v in enumerate(values)) / self.rows


def shuffled(rows: int, random_state: Any) -> Callable[[int], Any]:
    """The order of the rows in every epoch, as scikit-learn draws it: that of the last epoch, shuffled."""
    last = np.arange(rows)

    def order(epoch: int) -> Any:
        nonlocal last
        index = np.arange(rows)
        random_state.shuffle(index)
        last = last[index]
        return last

    return order


def minimize(trainer: Trainer, x: Array, y: Array, weight: Array | None, verbose: bool, **options: Any) -> Any:
    """Train on all rows at once by SciPy's L-BFGS-B, from the trainer's parameters: SciPy's result.

    An interrupt ends it at the last iteration that was complete.
    """
    from scipy.optimize import OptimizeResult, minimize

    data, engine = trainer._prepare(named(x, y, weight)), trainer._have()
    backend, ((theta, buffers, state), count) = engine.backend, engine.state.now
    dtype, device = theta.dtype, backend.device(theta)
    begin = np.asarray(backend.to_host(theta), dtype=np.float64)
    batch, evaluations = data.whole_batch(), 0
    last = OptimizeResult(x=begin, nit=0, nfev=0, status=99, success=False, message="interrupted", fun=np.nan)

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

    try:
        result = minimize(function, begin, method="L-BFGS-B", jac=True, options=options, callback=after)
    except KeyboardInterrupt:
        result = last
        warnings.warn("Training interrupted by user.", stacklevel=2)
    end = backend.from_host(result.x, dtype, device)
    engine.state.now = (end, buffers, engine.optimizer.restart(backend, engine.layout, end, state)), count + evaluations
    return result
