"""What the two estimators share: parameters, how they are trained, and what there is afterwards.

The order in which random numbers are drawn, and what is computed from them, are scikit-learn's, so that the same
`random_state` gives the same start values, the same held-out rows and the same batches.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, Self

import numpy as np

from bpnet.backends import Array, backend_of
from bpnet.backends.interrupts import methods_end_sessions
from bpnet.callbacks.base import check_callbacks
from bpnet.data.loader import Loader
from bpnet.data.prepare import named
from bpnet.errors import DataError, DivergedError, OptionError, ShapeError, plural, users_line
from bpnet.estimators import making, sparse, tables
from bpnet.estimators.arrays import beside, check_place, first_of, foreign, take, to_host, validated, weights
from bpnet.estimators.fitted import Fitted
from bpnet.estimators.hooks import CallbackSupportMixin, Tasks, tasks, with_callbacks
from bpnet.estimators.parameters import CONSTRAINTS, threads_of
from bpnet.estimators.training import INTERRUPTED, Epochs, HeldOut, Part, Shuffled, WeightedEpochs, minimize, run
from bpnet.layer import Layer
from bpnet.losses.base import Loss
from bpnet.optimizers.base import Optimizer
from bpnet.trainer import Trainer

from sklearn.base import BaseEstimator  # isort: skip
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import check_scoring
from sklearn.model_selection import train_test_split
from sklearn.utils import check_random_state
from sklearn.utils.optimize import _check_optimize_result
from sklearn.utils.validation import check_is_fitted

Rows = tuple[Any, ...]
"""Rows of X, targets as the loss wants them, weights or None, all beside each other; and y as it came, on the host."""


@methods_end_sessions
class BaseMLP(CallbackSupportMixin, Fitted, BaseEstimator):  # type: ignore[misc]
    """Base of the estimators."""

    _parameter_constraints = CONSTRAINTS
    _checks: dict[str, Any] = {}
    _inside = False
    _scale = 1.0
    best_validation_score_: float | None

    def __init__(self, options: dict[str, Any]) -> None:
        """With all arguments of the subclass, by their names."""
        for name, value in options.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def _forget_calibration(self) -> None:
        """The network is another one from now on."""
        self.__dict__.pop("calibration_scores_", None)

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
        return loss.pooled(backend_of(outputs), outputs), loss.single

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
        making.check_together(self)
        if validation_data is not None and self.solver == "lbfgs":
            raise OptionError("validation_data is scored after epochs, which solver='lbfgs' has none of: leave one out")
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
        if not first:
            self._compare_loss(loss)
        target, weight = beside(X, self._targets(y)), self._row_weights(y, sample_weight, incremental)
        scale = 1.0 if first else self._scale
        if weight is not None:
            largest = float(weight.max())
            if not 1.0 <= largest * scale < 2.0**60:  # the trainer would scale them, and the penalty would not know
                scale = 2.0 ** min(20 - math.frexp(largest)[1], 1023)
            weight = beside(X, weight * scale)
        self._scale = scale
        goes_on = self.warm_start == "continue" and not first
        random_state = self._random_state if goes_on else check_random_state(self.random_state)
        rows, kept, out = (X, target, weight, y), None, None
        splits = self.early_stopping and validation_data is None and self.solver != "lbfgs"
        if splits and tables.looks_at_rows(self, X):  # what is held out is not to be looked at
            kept, out = self._split(target, random_state)
        if first:
            self._start(rows if kept is None else _take(rows, kept), loss, scale, random_state)
        else:
            self._go_on(scale, keep=incremental or goes_on)
        if self.solver != "lbfgs":
            self._begin_records(first)
        if splits and kept is None:  # scikit-learn's order of random numbers
            kept, out = self._split(target, random_state)
        held_out = None if out is None else _take(rows, out)
        if validation_data is not None:
            held_out = self._given(validation_data, X, scale)
        told = None if incremental else tasks(self, X, y, sample_weight)
        self._inside = True
        try:
            if self.solver == "lbfgs":
                self._fit_lbfgs(rows, told)
            else:
                self._fit_epochs(
                    self._loader(*rows[:3], kept), self._watched(held_out), random_state, incremental, told
                )
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
        if reset:
            self._schema = tables.schema_of(self, X)
        if self._schema is None:
            X, y = validated(self, X, y, reset=reset, **self._checks)
            X = self._typed(X, None if reset else self._trainer.theta)
        else:
            X, y = tables.encoded(self, self._schema, X, y, reset=reset, **self._checks)
        if not reset:
            tables.check_gaps(self, X, self._trainer.network)
        return X, y.toarray() if sparse.is_sparse(y) else y

    def _typed(self, X: Any, like: Array | None) -> Any:
        """X of the type that is computed with."""
        if sparse.is_sparse(X):
            X = X.tocsr()
        name = self.dtype if like is None else "float32" if "float32" in str(like.dtype) else "float64"
        if name is None or name in str(X.dtype):
            return X
        backend = foreign(X)
        return X.astype(name) if backend is None else backend.xp.astype(X, getattr(backend.xp, name))

    def _start(self, rows: Rows, loss: Loss, scale: float, random_state: Any) -> None:
        """Make a trainer for rows like these."""
        x, y, weight, _ = rows
        if weight is not None and tables.looks_at_rows(self, x) and not (counts := to_host(weight) > 0.0).all():
            x, y = (take(array, np.flatnonzero(counts)) for array in (x, y))  # others are not to be looked at
        sample = x[:1].toarray() if sparse.is_sparse(x) else x
        plan = making.plan_of(self, loss, self._units(), x, y)
        seed = 0 if plan.plain and not plan.network.stochastic else making.seed_of(random_state)
        trainer = self._made(plan.network, plan.loss, plan.optimizer, scale, seed, foreign(first_of(x)) is None)
        data = trainer._prepare({"x": sample}, values=False)
        starts = making.start_values(data.layout, seed, random_state, self.activation) if plan.plain else None
        trainer._start(data, starts)
        if plan.begin is not None:
            plan.begin(trainer, x)
        self._trainer, self._plain, self._best = trainer, plan.plain, None
        self.n_layers_ = len(making.dense_slots(trainer.layout)) + 1
        self.n_iter_ = self.t_ = 0
        shape, units = trainer.layout.out_shape, self._units()
        if shape[-1:] != (units,):
            raise ShapeError(f"the network gives {shape} for a row; expected {plural(units, 'output')}: let it end so")

    def _begin_records(self, anew: bool) -> None:
        """What is noted of epochs; where training goes on, what is lacking since a parameter was another then."""
        if anew or not hasattr(self, "loss_curve_"):
            anew = True
            self.loss_curve_: list[float] = []
        stops = bool(self.early_stopping)
        if anew or (self.best_validation_score_ is not None) != stops:
            self._no_improvement_count = 0
            self.best_loss_ = None if stops else math.inf
            self.validation_scores_: list[float] | None = [] if stops else None
            self.validation_loss_curve_: list[float] | None = [] if stops else None
            self.best_validation_score_ = -math.inf if stops else None

    def _compare_loss(self, loss: Loss) -> None:
        """Raise OptionError where what there is was trained with another loss, of which its outputs are."""
        known = getattr(self._trainer.loss, "inner", self._trainer.loss)
        if self.preset is None and loss != known:
            raise OptionError(f"loss is {self.loss!r}, but the network was trained with another: set warm_start=False")

    def _made(
        self, network: Layer, loss: Loss, optimizer: Optimizer, scale: float, seed: int, on_numpy: bool
    ) -> Trainer:
        """A trainer with the parameters of the estimator."""
        options: dict[str, Any] = {"seed": seed, "penalties": making.penalties_of(self, scale)}
        options |= {"threads": threads_of(self.n_jobs), "precision": self.precision, "device": self.device}
        if on_numpy and self.device is None:  # `training` compiles steps; predictions are of any number of rows
            options["compile"] = False
        return Trainer(network, loss, optimizer, **options)

    def _batch_size(self, rows: int) -> int:
        usual = 200 if self.preset is None else 256
        return min(usual if self.batch_size == "auto" else int(self.batch_size), rows)

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
        trainer = self._made(old.network, old.loss, optimizer, scale, old.seed, old.compile is False)
        count, lr_scale = (old.step_count, old.lr_scale) if keep else (0, 1.0)
        trainer._set_state(old.backend, old.layout, (theta, buffers, state), count, lr_scale)
        trainer.history.epochs += old.history.epochs
        self._trainer = trainer

    def _loader(self, x: Any, y: Array | None, weight: Array | None, kept: Any = None) -> Loader:
        """The rows, or those of these numbers, batch by batch; none is copied but where it is computed with."""
        trainer = self._trainer
        if kept is not None and (sparse.is_sparse(x) or self.device is not None):
            x, y, weight = _take((x, y, weight), kept)
            kept = None
        if sparse.is_sparse(x):
            return sparse.SparseLoader(trainer.layout, x, y, weight, trainer.theta)
        data = trainer._prepare(named(x, y, weight))
        return data if kept is None else Part(data, kept)

    def _fit_lbfgs(self, rows: Rows, told: Tasks | None) -> None:
        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        result = minimize(self._trainer, self._loader(*rows[:3]), self.verbose, told, **options)
        self.loss_ = float(result.fun)
        interrupted = result.status == INTERRUPTED
        self.n_iter_ = result.nit if interrupted else _check_optimize_result("lbfgs", result, self.max_iter)

    def _split(self, target: Array, random_state: Any) -> tuple[Any, Any]:
        """Numbers of rows to train on, and of rows to hold out: where training continues, the same as before."""
        count = target.shape[0]
        parts = getattr(self, "_parts", None) if self.warm_start == "continue" else None
        if parts is None or sum(map(len, parts)) != count:
            stratify = to_host(target).reshape(-1) if self._stratifies() else None
            options = {"random_state": random_state, "test_size": self.validation_fraction, "stratify": stratify}
            parts = train_test_split(np.arange(count), **options)
        if len(parts[1]) < 2:
            raise ValueError(
                "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
            )
        if self.warm_start == "continue":
            self._parts = parts
        return parts[0], parts[1]

    def _given(self, validation_data: Any, x: Any, scale: float) -> Rows:
        """Rows that are to be held out, as those to train on are."""
        if not isinstance(validation_data, Sequence) or len(validation_data) not in (2, 3):
            raise ShapeError("validation_data is expected to be (X, y) or (X, y, sample_weight)")
        x_val, labels = self._checked(validation_data[0], validation_data[1], reset=False)
        weight = validation_data[2] if len(validation_data) == 3 else None
        if weight is not None:
            weight = weights(weight, x_val)
            if weight.min() < 0.0:
                raise DataError(f"validation_data has a negative weight, first in row {int(np.argmax(weight < 0.0))}")
            weight = beside(x, weight * scale)
        return x_val, beside(x, self._targets(labels)), weight, labels

    def _watched(self, rows: Rows | None) -> HeldOut | None:
        """What looks at held-out rows after every epoch."""
        if rows is None:
            return None
        x, y, weight, labels = rows
        known = to_host(y), None if weight is None else to_host(weight)
        if known[1] is not None and not np.any(known[1]):
            raise DataError(
                "all rows that are held out have the weight 0: give some a weight, or hold out more of them"
            )
        score: Any = lambda outputs: self._scored(to_host(outputs), *known)  # noqa: E731
        if self.scoring is not None:
            scorer = None if self.scoring == "loss" else check_scoring(self, self.scoring)
            score = None if scorer is None else lambda _: scorer(self, x, labels)
        if self.validation_scores_ is None:
            self.validation_scores_, self.validation_loss_curve_ = [], []
        return HeldOut(x, y, weight, self._outputs_of, score)

    def _stratifies(self) -> bool:
        return False

    def _fit_epochs(
        self,
        data: Loader,
        held_out: HeldOut | None,
        random_state: Any,
        incremental: bool,
        told: Tasks | None,
    ) -> None:
        trainer = self._trainer
        size = self._batch_size(data.count)
        if self.batch_size != "auto" and self.batch_size > data.count:
            text = "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped"
            warnings.warn(text, stacklevel=users_line())
        kind = Epochs if data.weight is None else WeightedEpochs
        epochs = kind(self, data, size, held_out)
        order = self._order(data.count, random_state) if self.shuffle else False
        listeners = [*check_callbacks(self.callbacks), *([] if told is None else [told])]
        self.n_iter_, before = 0, len(self.loss_curve_)
        try:
            count = 1 if incremental else self.max_iter
            run(trainer, data, epochs, count, order, listeners)
        except KeyboardInterrupt:
            self.n_iter_ = len(self.loss_curve_) - before  # it may have come between these two
            warnings.warn("Training interrupted by user.", stacklevel=users_line())
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
            warnings.warn(text, ConvergenceWarning, stacklevel=users_line())
        else:
            if not incremental and not epochs.converged and self.n_iter_ == self.max_iter and self.preset is None:
                scaled = self.scaling is not None and (self.scaling != "auto" or self.categorical_features is not None)
                scale = "" if scaled else ", or scale X (scaling='standard' does)"
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                    f"converged yet: raise max_iter or learning_rate_init{scale}.",
                    ConvergenceWarning,
                    stacklevel=users_line(),
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
        schema = getattr(self, "_schema", None)
        if schema is not None:
            found = tables.encoded(self, schema, X, reset=False)
            check_place(self, found, like, method)
        else:
            check_place(self, X, like, method)
            found = self._typed(validated(self, X, reset=False), like)
        tables.check_gaps(self, found, self._trainer.network)
        return found

    def _outputs(self, X: Any, method: str) -> Array:
        """What the network gives for rows of X: logits, or numbers before the link."""
        check_is_fitted(self)
        theta = self._trainer.theta
        plain = type(X) is type(theta) is np.ndarray and X.dtype == theta.dtype and not self._inside
        plain = plain and not (self._trainer.network.accepts_nan or hasattr(self, "feature_names_in_"))
        if plain and X.ndim == 2 and X.shape[0] and X.shape[1] == self.n_features_in_:  # as most often
            try:
                return self._trainer.predict(X)
            except (DataError, DivergedError):
                pass
        return self._outputs_of(self._inputs(X, method))

    def _outputs_of(self, x: Any) -> Array:
        """The same for rows that have been checked."""
        if sparse.is_sparse(x):
            return sparse.outputs(self._trainer, x)
        outputs = self._trainer.predict(x, check=isinstance(x, dict))
        return outputs if foreign(first_of(x)) is not None else to_host(outputs)  # which device= has elsewhere


def _take(arrays: Rows, rows: Any) -> Rows:
    """The rows with these numbers of all arrays that there are."""
    return tuple(None if a is None else take(a, rows) for a in arrays)
