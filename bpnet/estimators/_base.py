"""What the two estimators share: parameters, the network that they make, and how it is trained.

The order in which random numbers are drawn, and what is computed from them, are scikit-learn's, so that the same
`random_state` gives the same start values, the same held-out rows and the same batches.
"""

import math
import warnings
from collections.abc import Iterable, Sequence
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

import numpy as np

from bpnet.backends import Array
from bpnet.errors import DivergedError, MissingExtraError
from bpnet.estimators.training import Epochs, WeightedEpochs, minimize, shuffled
from bpnet.layers.composition import Sequential
from bpnet.layers.dense import Dense
from bpnet.losses.base import Loss
from bpnet.optimizers.base import Optimizer
from bpnet.penalties import L2
from bpnet.trainer import Trainer

try:
    from sklearn.base import BaseEstimator
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state
    from sklearn.utils._param_validation import Interval, Options, StrOptions
    from sklearn.utils.optimize import _check_optimize_result
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise MissingExtraError("an estimator", "scikit-learn", "sklearn") from error

ACTIVATIONS = {"logistic": "sigmoid"}
"""scikit-learn's names that are others here."""


class BaseMLP(BaseEstimator):  # type: ignore[misc]
    """Base of the estimators."""

    _parameter_constraints: dict[str, list[Any]] = {
        "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions({"identity", "logistic", "tanh", "relu"})],
        "solver": [StrOptions({"lbfgs", "sgd", "adam"})],
        "alpha": [Interval(Real, 0, None, closed="left")],
        "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "learning_rate": [StrOptions({"constant", "invscaling", "adaptive"})],
        "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
        "power_t": [Interval(Real, 0, None, closed="left")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "shuffle": ["boolean"],
        "random_state": ["random_state"],
        "tol": [Interval(Real, 0, None, closed="left")],
        "verbose": ["verbose"],
        "warm_start": ["boolean"],
        "momentum": [Interval(Real, 0, 1, closed="both")],
        "nesterovs_momentum": ["boolean"],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="left")],
        "beta_1": [Interval(Real, 0, 1, closed="left")],
        "beta_2": [Interval(Real, 0, 1, closed="left")],
        "epsilon": [Interval(Real, 0, None, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
        "max_fun": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(self, options: dict[str, Any]) -> None:
        """With all arguments of the subclass, by their names."""
        for name, value in options.items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    # ---- what a subclass has ------------------------------------------------------------------------------------

    def _targets(self, y: Any, first: bool, incremental: bool) -> Any:
        """What the network is to learn, as its loss wants it; sets `n_outputs_` and `out_activation_`."""
        raise NotImplementedError

    def _loss(self) -> Loss:
        raise NotImplementedError

    def _scored(self, outputs: Any, y: Any, weight: Any) -> float:
        """The score of outputs for held-out targets, on the host."""
        raise NotImplementedError

    # ---- what is made of the parameters -------------------------------------------------------------------------

    def _hidden(self) -> list[int]:
        sizes = self.hidden_layer_sizes
        sizes = list(sizes) if isinstance(sizes, Iterable) else [sizes]
        if any(size <= 0 for size in sizes):
            raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
        return [int(size) for size in sizes]

    def _network(self) -> Sequential:
        activation: Any = ACTIVATIONS.get(self.activation, self.activation)
        return Sequential(*[Dense(n, activation) for n in self._hidden()], Dense(self.n_outputs_))

    def _optimizer(self) -> Optimizer:
        if self.solver == "adam":
            from bpnet.optimizers.adam import Adam

            moments = {"beta1": self.beta_1, "beta2": self.beta_2, "epsilon": self.epsilon}
            return Adam(self.learning_rate_init, **moments, epsilon_hat=True)
        if self.solver == "sgd":
            from bpnet.optimizers.sgd import SGD

            nesterov = self.nesterovs_momentum and self.momentum > 0.0
            return SGD(self.learning_rate_init, self.momentum, nesterov, steps_in_velocity=True)
        from bpnet.optimizers.lbfgs import LBFGS

        return LBFGS()

    def _start(self, x: Array, random_state: Any) -> None:
        """A trainer for rows like those of x, with scikit-learn's start values."""
        trainer = Trainer(self._network(), self._loss(), self._optimizer(), penalties=self._penalties(1.0))
        trainer.build(x)
        backend, like = trainer.backend, trainer.theta
        factor, tree = 2.0 if self.activation == "logistic" else 6.0, {}
        sizes = [int(x.shape[1]), *self._hidden(), self.n_outputs_]
        for i, (inputs, units) in enumerate(pairwise(sizes)):
            bound = math.sqrt(factor / (inputs + units))
            weight = random_state.uniform(-bound, bound, (inputs, units))
            bias = random_state.uniform(-bound, bound, units)
            device = backend.device(like)
            tree[str(i)] = {
                "weight": backend.from_host(weight, like.dtype, device),
                "bias": backend.from_host(bias, like.dtype, device),
            }
        trainer.parameters = tree
        self._trainer = trainer
        self.n_layers_ = len(sizes)
        self.n_iter_ = self.t_ = 0
        if self.solver != "lbfgs":
            self.loss_curve_: list[float] = []
            self._no_improvement_count = 0
            self.best_loss_ = None if self.early_stopping else math.inf
            self.validation_scores_: list[float] | None = [] if self.early_stopping else None
            self.best_validation_score_ = -math.inf if self.early_stopping else None

    def _penalties(self, scale: float) -> list[L2]:
        return [L2(self.alpha * scale, per_row=True)] if self.alpha > 0.0 else []

    def _go_on(self, scale: float, incremental: bool) -> None:
        """Have a trainer for what the parameters of the estimator now are, with the parameters of the network."""
        old = self._trainer
        optimizer, penalties = old.optimizer if incremental else self._optimizer(), self._penalties(scale)
        if incremental and old.penalties == tuple(penalties):
            return
        theta, buffers, state = old._have().carry
        trainer = Trainer(old.network, old.loss, optimizer, penalties=penalties)
        state = state if incremental else optimizer.init(old.backend, old.layout, theta)
        count, lr_scale = (old.step_count, old.lr_scale) if incremental else (0, 1.0)
        trainer._set_state(old.backend, old.layout, (theta, buffers, state), count, lr_scale)
        self._trainer = trainer

    # ---- training -----------------------------------------------------------------------------------------------

    def _fit(self, X: Any, y: Any, sample_weight: Any, incremental: bool) -> "BaseMLP":
        self._validate_params()
        self._hidden()
        first = not hasattr(self, "_trainer") or not (self.warm_start or incremental)
        X, y = validate_data(
            self,
            X,
            y,
            accept_sparse=["csr", "csc"],
            multi_output=True,
            dtype=(np.float64, np.float32),
            order="C",
            reset=first,
            **self._checks,
        )
        scale = 1.0
        if sample_weight is not None:
            sample_weight = _check_sample_weight(sample_weight, X)
            power = math.frexp(float(sample_weight.max()))[1]
            if not 0 < power <= 60:  # else the trainer would scale them, and the penalty would not know
                scale = 2.0 ** (1 - power)
                sample_weight = sample_weight * scale
        target = self._targets(y, first, incremental)
        random_state = check_random_state(self.random_state)
        if first:
            self._start(X, random_state)
        self._go_on(scale, incremental)
        try:
            if self.solver == "lbfgs":
                self._fit_lbfgs(X, target, sample_weight)
            else:
                self._fit_epochs(X, target, sample_weight, random_state, incremental)
        except DivergedError as error:
            raise ValueError(
                "Solver produced non-finite parameter weights. The input data may contain large values and need to be "
                f"preprocessed. ({error})"
            ) from error
        return self

    def _fit_lbfgs(self, x: Array, y: Array, weight: Array | None) -> None:
        options = {"maxfun": self.max_fun, "maxiter": self.max_iter, "gtol": self.tol}
        result = minimize(self._trainer, x, y, weight, bool(self.verbose), **options)
        self.loss_ = float(result.fun)
        self.n_iter_ = _check_optimize_result("lbfgs", result, self.max_iter)

    def _fit_epochs(self, x: Array, y: Array, weight: Array | None, random_state: Any, incremental: bool) -> None:
        if self.early_stopping and incremental:
            raise ValueError("partial_fit does not support early_stopping=True")
        trainer, score = self._trainer, None
        if self.early_stopping:
            stratify = y[:, 0] if self._stratifies() else None
            options = {"random_state": random_state, "test_size": self.validation_fraction, "stratify": stratify}
            kept, held_out = train_test_split(np.arange(x.shape[0]), **options)
            if held_out.shape[0] < 2:
                raise ValueError(
                    "The validation set is too small. Increase 'validation_fraction' or the size of your dataset."
                )
            x_val, y_val = x[held_out], y[held_out]
            weight_val = None if weight is None else weight[held_out]
            x, y, weight = x[kept], y[kept], None if weight is None else weight[kept]

            def score() -> float:
                return self._scored(trainer.predict(x_val, check=False), y_val, weight_val)

        rows = int(x.shape[0])
        size = min(200, rows) if self.batch_size == "auto" else self.batch_size
        if size > rows:
            warnings.warn(
                "Got `batch_size` less than 1 or larger than sample size. It is going to be clipped", stacklevel=3
            )
            size = rows
        epochs = Epochs(self, rows, score) if weight is None else WeightedEpochs(self, rows, score, batch_size=size)
        order = shuffled(rows, random_state) if self.shuffle else False
        self.n_iter_ = 0
        try:
            trainer.fit(
                x,
                y,
                epochs=1 if incremental else self.max_iter,
                batch_size=size,
                sample_weight=weight,
                shuffle=order,
                callbacks=[epochs],
                progress=False,
            )
        except KeyboardInterrupt:
            warnings.warn("Training interrupted by user.", stacklevel=3)
        else:
            if not incremental and not epochs.converged:
                warnings.warn(
                    f"Stochastic Optimizer: Maximum iterations ({self.max_iter}) reached and the optimization hasn't "
                    "converged yet.",
                    ConvergenceWarning,
                    stacklevel=3,
                )
        if epochs.best is not None:
            trainer.restore(epochs.best)

    def _stratifies(self) -> bool:
        return False

    # ---- use ----------------------------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> Array:
        """What the network gives for rows of X: logits, or numbers before the link."""
        check_is_fitted(self)
        X = validate_data(self, X, accept_sparse=["csr", "csc"], order="C", reset=False)
        like = self._trainer.theta
        if X.dtype != like.dtype:
            X = X.astype(like.dtype)
        return self._trainer.predict(X, check=False)

    @property
    def coefs_(self) -> list[Array]:
        """The weight matrix of every layer."""
        return self._arrays("weight")

    @coefs_.setter
    def coefs_(self, arrays: Sequence[Array]) -> None:
        self._set_arrays("weight", arrays)

    @property
    def intercepts_(self) -> list[Array]:
        """The biases of every layer."""
        return self._arrays("bias")

    @intercepts_.setter
    def intercepts_(self, arrays: Sequence[Array]) -> None:
        self._set_arrays("bias", arrays)

    def _arrays(self, name: str) -> list[Array]:
        if not hasattr(self, "_trainer"):
            raise AttributeError(f"{type(self).__name__} has no {name}s yet: call fit first")
        return [layer[name] for layer in self._trainer.parameters.values() if name in layer]

    def _set_arrays(self, name: str, arrays: Sequence[Array]) -> None:
        tree = self._trainer.parameters
        layers = [key for key, layer in tree.items() if name in layer]
        self._trainer.parameters = tree | {
            key: tree[key] | {name: array} for key, array in zip(layers, arrays, strict=True)
        }

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_trainer")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    def _check_solver(self) -> bool:
        if self.solver == "lbfgs":
            raise AttributeError(
                f"partial_fit is only available for stochastic optimizers. {self.solver} is not stochastic."
            )
        return True
