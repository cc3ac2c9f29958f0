"""What the two estimators share: parameters, how they are trained, and what there is afterwards.

The order in which random numbers are drawn, and what is computed from them, are scikit-learn's, so that the same
`random_state` gives the same start values, the same held-out rows and the same batches.
"""

import math
import os
import warnings
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Self

import numpy as np

from bpnet.backends import Array, backend_of
from bpnet.backends.base import PRECISIONS
from bpnet.backends.numpy import can_compile
from bpnet.callbacks.base import check_callbacks
from bpnet.data.loader import Loader
from bpnet.data.prepare import named
from bpnet.engine import WORK_OF_A_CALL
from bpnet.errors import DataError, DivergedError, MissingExtraError, OptionError, ShapeError
from bpnet.estimators import making, sparse
from bpnet.estimators.arrays import beside, check_place, foreign, take, to_host, validated, weights
from bpnet.estimators.fitted import Fitted
from bpnet.estimators.hooks import CallbackSupportMixin, Tasks, tasks, with_callbacks
from bpnet.estimators.training import Epochs, HeldOut, Shuffled, WeightedEpochs, minimize, run
from bpnet.layer import Layer
from bpnet.layers.activation import Activation
from bpnet.losses.base import Loss
from bpnet.optimizers.base import Optimizer
from bpnet.schedules import Schedule
from bpnet.trainer import Trainer

try:
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.metrics import check_scoring
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils._param_validation import Interval, Options, StrOptions
    from sklearn.utils.optimize import _check_optimize_result
    from sklearn.utils.validation import check_is_fitted
except ImportError as error:
    raise MissingExtraError("an estimator", "scikit-learn", "sklearn") from error

COMPILED = 2e10
"""Floating-point operations, as `Engine.cost` counts them, that a fit may take from which on it compiles at once."""


class BaseMLP(CallbackSupportMixin, Fitted, BaseEstimator):  # type: ignore[misc]
    """Base of the estimators."""

    _parameter_constraints: dict[str, list[Any]] = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [str, Activation],
        "solver": [str, Optimizer],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({*making.RULES, *making.SCHEDULES}), Schedule],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean", StrOptions({"continue"})],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
        "loss": [str, Loss],
        "dropout": [Interval(Real, 0, 1, closed="left"), Schedule],
        "norm": [str, Layer, None],
        "residual": ["boolean"],
        "network": [Layer, None],
        "ensemble": [Interval(Integral, 1, None, closed="left"), None],
        "preset": [StrOptions({"strong"}), None],
        "scoring": [str, callable, None],
        "callbacks": [list, tuple],
        "precision": [StrOptions(set(PRECISIONS))],
        "device": [str, None],
        "dtype": [StrOptions({"float32", "float64"}), None],
        "n_jobs": [Integral, None],
        "calibration_fraction": [Interval(Real, 0, 1, closed="neither"), None],
    }
    _checks: dict[str, Any] = {}
    _inside = False

    def __init__(self, options: dict[str, Any]) -> None:
        """With all arguments of the subclass, by their names."""
        for name, value in options.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def _forget_calibration(self) -> None:
        """The network is another one from now on."""
        vars(self).pop("calibration_scores_", None)

    # ---- what a subclass has ------------------------------------------------------------------------------------

    def _define(self, y: Any) -> None:
        """Note what the values of y are."""

    def _compare(self, y: Any) -> None:
        """Raise where y has not what training began with."""

    def _units(self) -> int:
        """How many outputs a network has."""
        raise NotImplementedError

    def _pooled(self, outputs: Array) -> tuple[Array, Loss]:
        """Outputs and loss of an ensemble as those of one network."""
        loss: Any = self._trainer.loss
        return (loss.pooled(backend_of(outputs), outputs), loss.inner) if outputs.ndim == 3 else (outputs, loss)

    def _loss(self) -> Loss:
        """The loss of one network; sets `n_outputs_` and `out_activation_`."""
        raise NotImplementedError

    def _targets(self, y: Any) -> Any:
        """What the network is to learn, as its loss wants it, an array of the host."""
        raise NotImplementedError

    def _scored(self, outputs: Any, y: Any, weight: Any) -> float:
        """The score of outputs for targets, all on the host."""
        raise NotImplementedError

    def _row_weights(self, y: Any, sample_weight: Any, incremental: bool) -> Any:
        """The weight of every row on the host, or None."""
        return sample_weight

    # ---- training -----------------------------------------------------------------------------------------------

    @with_callbacks  # type: ignore[untyped-decorator]
    def _fit(self, X: Any, y: Any, sample_weight: Any, incremental: bool, validation_data: Any = None) -> Self:
        self._validate_params()
        self._forget_calibration()
        making.hidden_sizes(self)
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        first = not hasattr(self, "_trainer") or not (self.warm_start or incremental)
        X, y = self._checked(X, y, reset=first)
        if not first:
            check_place(self, X, self._trainer.theta, "partial_fit" if incremental else "fit")
        if sample_weight is not None:
            sample_weight = weights(sample_weight, X)
        if not first:
            self._compare(y)
        elif not (incremental and hasattr(self, "_labels")):
            self._define(y)
        loss = self._loss()
        target, weight = beside(X, self._targets(y)), self._row_weights(y, sample_weight, incremental)
        scale = 1.0
        if weight is not None:
            power = math.frexp(float(weight.max()))[1]
            if not 0 < power <= 60:  # else the trainer would scale them, and the penalty would not know
                scale = 2.0 ** (1 - power)
            weight = beside(X, weight * scale)
        goes_on = self.warm_start == "continue" and not first
        random_state = self._random_state if goes_on else check_random_state(self.random_state)
        rows = X, target, weight
        if first:
            self._start(rows, loss, scale, random_state)
        else:
            self._go_on(scale, keep=incremental or goes_on)
        told = None if incremental else tasks(self, X, y, sample_weight)
        self._inside = True
        try:
            if self.solver == "lbfgs":
                self._fit_lbfgs(rows, told)
            else:
                rows, held_out = self._split(rows, y, random_state, validation_data, scale)
                self._fit_epochs(rows, held_out, random_state, incremental, told)
        except DivergedError as error:
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                f"preprocessed. ({error})"
            ) from error
        finally:
            self._inside = False
            for record in self._trainer.history:
                record["seconds"] = 0.0  # so that a fit that is repeated is pickled the same
        if told is not None:
            told.close()
        return self

    def _checked(self, X: Any, y: Any, reset: bool) -> tuple[Any, Any]:
        """Rows and targets, as sound arrays."""
        X, y = validated(self, X, y, reset=reset, **self._checks)
        y = y.toarray() if sparse.is_sparse(y) else y
        return self._typed(X, None if reset else self._trainer.theta), y

    def _typed(self, X: Any, like: Array | None) -> Any:
        """X of the type that is computed with."""
        if sparse.is_sparse(X):
            X = X.tocsr()
        name = self.dtype if like is None else "float32" if "float32" in str(like.dtype) else "float64"
        if name is None or name in str(X.dtype):
            return X
        backend = foreign(X)
        return X.astype(name) if backend is None else backend.xp.astype(X, getattr(backend.xp, name))

    def _start(self, rows: tuple[Any, Any, Any], loss: Loss, scale: float, random_state: Any) -> None:
        """Make a trainer for rows like these."""
        x, y, _ = rows
        sample = x[:1].toarray() if sparse.is_sparse(x) else x
        plan = making.plan_of(self, loss, self._units(), x, y)
        seed = 0 if plan.plain and not plan.network.stochastic else making.seed_of(random_state)
        trainer = self._made(plan.network, plan.loss, plan.optimizer, scale, seed)
        data = trainer._prepare({"x": sample}, values=False)
        trainer.compile = self._compiles(data.layout.size, x)
        starts = making.start_values(data.layout, seed, random_state, self.activation) if plan.plain else None
        trainer._start(data, starts)
        if plan.begin is not None:
            plan.begin(trainer, x)
        self._trainer, self._plain, self._best = trainer, plan.plain, None
        self.n_layers_ = len(making.dense_slots(trainer.layout)) + 1
        self.n_iter_ = self.t_ = 0
        if self.solver != "lbfgs":
            self.loss_curve_: list[float] = []
            self._no_improvement_count = 0
            self.best_loss_ = None if self.early_stopping else math.inf
            self.validation_scores_: list[float] | None = [] if self.early_stopping else None
            self.validation_loss_curve_: list[float] | None = [] if self.early_stopping else None
            self.best_validation_score_ = -math.inf if self.early_stopping else None

    def _made(self, network: Layer, loss: Loss, optimizer: Optimizer, scale: float, seed: int) -> Trainer:
        """A trainer with the parameters of the estimator."""
        options: dict[str, Any] = {"seed": seed, "penalties": making.penalties_of(self, scale)}
        options |= {"threads": _threads(self.n_jobs), "precision": self.precision, "device": self.device}
        return Trainer(network, loss, optimizer, **options)

    def _compiles(self, size: int, x: Any) -> bool | str:
        """Whether steps of a network of so many parameters are compiled: by NumPy, where a fit may take long enough."""
        if sparse.is_sparse(x):
            return False
        rows = x.shape[0]
        batch = rows if self.solver == "lbfgs" else self._batch_size(rows)
        work = self.max_iter * math.ceil(rows / batch) * (6.0 * size * batch + WORK_OF_A_CALL)
        pays = work >= COMPILED or self.preset is not None
        return True if pays and isinstance(x, np.ndarray) and self.device is None and can_compile() else "auto"

    def _batch_size(self, rows: int) -> int:
        size = (making.STRONG_BATCH if self.preset else 200) if self.batch_size == "auto" else self.batch_size
        return min(int(size), rows)

    def _go_on(self, scale: float, keep: bool) -> None:
        """Have a trainer of what the parameters of the estimator now are, with those of the network.

        With `keep` the optimizer goes on too.
        """
        old = self._trainer
        penalties = making.penalties_of(self, scale)
        if keep and old.penalties == penalties:
            return
        optimizer = old.optimizer if keep or self.preset is not None else making.optimizer_of(self)
        theta, buffers, state = old._have().carry
        if not keep:
            with old._have().looking():
                state = optimizer.init(old.backend, old.layout, theta)
        trainer = self._made(old.network, old.loss, optimizer, scale, old.seed)
        trainer.compile = old.compile
        count, lr_scale = (old.step_count, old.lr_scale) if keep else (0, 1.0)
        trainer._set_state(old.backend, old.layout, (theta, buffers, state), count, lr_scale)
        trainer.history.epochs += old.history.epochs
        self._trainer = trainer

    def _loader(self, x: Any, y: Array | None, weight: Array | None) -> Loader:
        trainer = self._trainer
        if sparse.is_sparse(x):
            return sparse.SparseLoader(trainer.layout, x, y, weight, trainer.theta)
        return trainer._prepare(named(x, y, weight))

    def _fit_lbfgs(self, rows: tuple[Any, Any, Any], told: Tasks | None) -> None:
        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        result = minimize(self._trainer, self._loader(*rows), bool(self.verbose), told, **options)
        self.loss_ = float(result.fun)
        self.n_iter_ = _check_optimize_result("lbfgs", result, self.max_iter)

    def _split(
        self, rows: tuple[Any, Any, Any], labels: Any, random_state: Any, validation_data: Any, scale: float
    ) -> tuple[tuple[Any, Any, Any], HeldOut | None]:
        """Rows to train on, and rows that are held out."""
        x, y, weight = rows
        if validation_data is not None:
            if not isinstance(validation_data, Sequence) or len(validation_data) not in (2, 3):
                raise ShapeError("validation_data is expected to be (X, y) or (X, y, sample_weight)")
            x_val, labels_val = self._checked(validation_data[0], validation_data[1], reset=False)
            y_val, weight_val = beside(x, self._targets(labels_val)), None
            if len(validation_data) == 3 and validation_data[2] is not None:
                weight_val = beside(x, weights(validation_data[2], x_val) * scale)
        elif self.early_stopping:
            stratify = to_host(y).reshape(-1) if self._stratifies() else None
            options = {"random_state": random_state, "test_size": self.validation_fraction, "stratify": stratify}
            kept, out = train_test_split(np.arange(x.shape[0]), **options)
            if out.shape[0] < 2:
                raise ValueError(
                    "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
                )
            (x_val, y_val, weight_val), labels_val = [None if a is None else take(a, out) for a in rows], labels[out]
            x, y, weight = [None if a is None else take(a, kept) for a in rows]
        else:
            return rows, None
        known = to_host(y_val), None if weight_val is None else to_host(weight_val)
        score: Any = lambda outputs: self._scored(to_host(outputs), *known)  # noqa: E731
        if self.scoring is not None:
            scorer = None if self.scoring == "loss" else check_scoring(self, self.scoring)
            score = None if scorer is None else lambda _: scorer(self, x_val, labels_val)
        if self.validation_scores_ is None:
            self.validation_scores_, self.validation_loss_curve_ = [], []
        return (x, y, weight), HeldOut(x_val, y_val, weight_val, self._outputs_of, score)

    def _stratifies(self) -> bool:
        return False

    def _fit_epochs(
        self,
        rows: tuple[Any, Any, Any],
        held_out: HeldOut | None,
        random_state: Any,
        incremental: bool,
        told: Tasks | None,
    ) -> None:
        trainer, data = self._trainer, self._loader(*rows)
        size = self._batch_size(data.count)
        if self.batch_size != "auto" and self.batch_size > data.count:
            text = "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
            warnings.warn(text, stacklevel=4)
        kind = Epochs if data.weight is None else WeightedEpochs
        epochs = kind(self, data.count, size, held_out)
        order = self._order(data.count, random_state) if self.shuffle else False
        listeners = [epochs, *check_callbacks(self.callbacks), *([] if told is None else [told])]
        self.n_iter_ = 0
        try:
            count = 1 if incremental else self.max_iter
            run(trainer, data, epochs=count, batch_size=size, shuffle=order, listeners=listeners)
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=4)
        except DivergedError as error:
            if self._best is None:
                raise
            self.n_iter_ += 1
            self.loss_ = math.nan
            self.loss_curve_.append(math.nan)
            for curve in (self.validation_scores_, self.validation_loss_curve_):
                if curve is not None:
                    curve.append(math.nan)
            text = f"Training ended, since it diverged, with the parameters of the best validation score ({error})."
            warnings.warn(text, ConvergenceWarning, stacklevel=4)
        else:
            if not incremental and not epochs.converged and self.n_iter_ == self.max_iter and self.preset is None:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                    "converged yet: raise max_iter or learning_rate_init, or scale X.",
                    ConvergenceWarning,
                    stacklevel=4,
                )
        if self.early_stopping and self._best is not None:
            engine = trainer._have()
            engine.state.now = (*self._best, engine.carry[2]), engine.count
        if not self.warm_start:
            self._best = None

    def _order(self, rows: int, random_state: Any) -> Shuffled:
        """The order of the rows in every epoch; where training continues, it goes on from the last."""
        if self.warm_start != "continue":
            return Shuffled(rows, random_state)
        self._random_state = random_state
        old = getattr(self, "_shuffled", None)
        self._shuffled = old if old is not None and old.last.size == rows else Shuffled(rows, random_state)
        return self._shuffled

    # ---- use ----------------------------------------------------------------------------------------------------

    def _inputs(self, X: Any, method: str) -> Any:
        """What the network takes for rows of X; `method` is who asks."""
        check_is_fitted(self)
        if self._inside:
            return X
        like = self._trainer.theta
        check_place(self, X, like, method)
        return self._typed(validated(self, X, reset=False), like)

    def _outputs(self, X: Any, method: str) -> Array:
        """What the network gives for rows of X: logits, or numbers before the link."""
        check_is_fitted(self)
        theta = self._trainer.theta
        plain = type(X) is type(theta) is np.ndarray and X.dtype == theta.dtype and not self._inside
        plain = plain and not hasattr(self, "feature_names_in_")
        if plain and X.ndim == 2 and X.shape[0] and X.shape[1] == self.n_features_in_:  # as most often
            try:
                return self._trainer.predict(X)
            except (DataError, DivergedError):
                pass
        return self._outputs_of(self._inputs(X, method))

    def _outputs_of(self, x: Any) -> Array:
        """The same for rows that have been checked."""
        return sparse.outputs(self._trainer, x) if sparse.is_sparse(x) else self._trainer.predict(x, check=False)


def _threads(jobs: int | None) -> int | None:
    """How many threads `n_jobs` means; None for all that the process may use."""
    if jobs == 0:
        raise OptionError("n_jobs is 0; expected a number of threads, or -1 for all")
    if jobs is None:  # as joblib's workers are told how many they may have
        told = os.environ.get("OMP_NUM_THREADS", "")
        return int(told) if told.isdecimal() and int(told) > 0 else None
    return None if jobs == -1 else jobs if jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + jobs)
