"""How the estimators train: epochs as scikit-learn counts and ends them, and L-BFGS-B by SciPy."""

import copy
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from bpnet.backends import Array, backend_of
from bpnet.backends.numpy import can_compile
from bpnet.callbacks.base import Callback
from bpnet.data.loader import Batch, Loader, Size
from bpnet.errors import users_line
from bpnet.estimators.hooks import Tasks
from bpnet.estimators.sparse import SparseLoader
from bpnet.fitting import Training
from bpnet.layer import Run
from bpnet.locking import locked
from bpnet.trainer import Trainer

COMPILES, COMPILES_AT_ONCE = 1e9, 2e9
"""Floating-point operations, as `Engine.cost` counts them, after which NumPy's steps are compiled: some 0.05 seconds.

And so many in the whole of a fit from which on they are at once.  Once machine code for a kind of network is on the
disk, which takes 0.2 to 0.4 seconds, that costs 0.03 seconds at the first time in a process and 0.01 for further sizes;
each step is then some three times faster.  When it begins depends on numbers alone: a fit repeats bit for bit.
"""
INTERRUPTED = 99
"""The status of SciPy's result where Ctrl-C ended the search."""
SMALLEST_RATE = 1e-6
"""The adaptive learning rate is not divided below it."""


class Shuffled:
    """The order of the rows in every epoch, as scikit-learn draws it: that of the last epoch, shuffled."""

    def __init__(self, rows: int, random_state: Any) -> None:
        self.random_state, self.last = random_state, np.arange(rows, dtype=np.int32 if rows < 2**31 else np.int64)

    def __call__(self, epoch: int) -> Any:
        index = np.arange(self.last.size, dtype=self.last.dtype)
        self.random_state.shuffle(index)
        for start in range(0, index.size, 2**16):  # in place, where many rows take some memory
            part = index[start : start + 2**16]
            part[:] = self.last[part]
        self.last = index
        return self.last


class Part(Loader):
    """Some rows of another loader's, by their numbers: they stay where they are until a batch takes them."""

    def __init__(self, data: Loader, kept: Any) -> None:
        super().__init__(data.backend, data.layout, data.x, data.y, data.weight, data.like)
        self.kept, self.count = kept, len(kept)

    def batches(self, size: Size, order: Any = None) -> Iterator[Batch]:
        return super().batches(size, self._own(order))

    def sizes(self, size: Size, order: Any = None) -> list[float]:
        return super().sizes(size, self._own(order))

    def _own(self, order: Any) -> Any:
        return self.kept if order is None else self.kept[np.asarray(order)]


class HeldOut:
    """Rows that are not trained on: x, targets and weights beside it, and `score(outputs) -> number`."""

    def __init__(self, x: Any, y: Array, weight: Array | None, outputs: Callable[[Any], Array], score: Any) -> None:
        self.x, self.y, self.weight, self.outputs, self.score = x, y, weight, outputs, score

    def evaluate(self, trainer: Trainer) -> tuple[float, float]:
        """The loss and the score of the trainer's network."""
        outputs = self.outputs(self.x)
        backend = backend_of(outputs)
        with backend.session(device=backend.device(outputs)):
            total = float(outputs.shape[0]) if self.weight is None else float(backend.xp.sum(self.weight))
            value, _ = trainer.loss(Run(backend), outputs, self.y, self.weight, trainer.loss.total(total))
            loss = float(value)
        return loss, -loss if self.score is None else float(self.score(outputs))


class Epochs(Callback):
    """What scikit-learn's perceptrons do after an epoch: note losses and scores, set the learning rate, and end."""

    def __init__(self, estimator: Any, data: Loader, batch_size: int, held_out: HeldOut | None) -> None:
        self.estimator, self.data, self.batch_size, self.held_out = estimator, data, batch_size, held_out
        self.rows = data.count
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
        compile_soon(trainer, self.data, self.batch_size)
        if est.solver == "sgd" and est.learning_rate == "invscaling" and est.preset is None:
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
            better = score > est.best_validation_score_ or (est.preset and score == est.best_validation_score_)
            if better:  # of RealMLP's best epochs the last one
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


def compile_soon(trainer: Trainer, data: Loader, batch_size: int, planned: float = 0.0, done: int = 0) -> None:
    """Compile from now on where it pays: by the steps that there have been, or the work that is planned."""
    engine = trainer._have()
    if trainer.compile is False and not engine.compile and not isinstance(data, SparseLoader):
        cost = engine.cost(batch_size)
        pays = (engine.count + done) * cost >= COMPILES or planned * cost >= COMPILES_AT_ONCE
        engine.compile = pays and can_compile()


@locked("train")
def run(
    trainer: Trainer, data: Loader, after: Epochs, epochs: int, shuffle: Any, listeners: Sequence[Callback]
) -> None:
    """`Trainer.fit` on rows that have been checked; `after` comes before the other listeners."""
    engine, size = trainer._have(), after.batch_size
    preset = after.estimator.preset is not None
    count = after.rows = data.count - data.count % size if preset else data.count  # as with drop_last
    steps = -(-count // size)
    engine.set_epoch(steps)
    with engine.session(data.count):
        data = data.cached()
    planned = math.inf if preset else steps * epochs
    compile_soon(trainer, data, size, planned)
    options: dict[str, Any] = {"batch_size": size, "shuffle": shuffle, "drop_last": preset}
    try:
        Training(trainer, engine, data, **options, listeners=[after, *listeners]).run(epochs)
    finally:
        engine.compile = trainer.compile


def minimize(trainer: Trainer, data: Loader, verbose: Any, told: Tasks | None, **options: Any) -> Any:
    """Train on all rows at once by SciPy's L-BFGS-B, from the trainer's parameters: SciPy's result.

    `told` hears of every iteration, and may end it.  An interrupt ends it at the last iteration that was complete.
    """
    from scipy.optimize import OptimizeResult, minimize

    engine = trainer._have()
    backend, ((theta, buffers, state), count) = engine.backend, engine.state.now
    dtype, device = theta.dtype, backend.device(theta)
    begin = np.asarray(backend.to_host(theta), dtype=np.float64)
    batch, evaluations = data.whole_batch(), 0
    last = OptimizeResult(
        x=begin, nit=0, nfev=0, status=INTERRUPTED, success=False, message="interrupted", fun=math.nan
    )

    def function(vector: Any) -> tuple[float, Any]:
        nonlocal evaluations
        evaluations += 1
        compile_soon(trainer, data, data.count, options["maxiter"], evaluations)
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
        warnings.warn("Training interrupted by user.", stacklevel=users_line())
    finally:
        engine.compile = trainer.compile
    end = backend.from_host(result.x, dtype, device)
    engine.state.now = (end, buffers, engine.optimizer.restart(backend, engine.layout, end, state)), count + evaluations
    return result
