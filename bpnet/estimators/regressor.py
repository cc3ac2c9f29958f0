"""A regressor with scikit-learn's face."""

from typing import Any, Self

import numpy as np

from bpnet.estimators._base import BaseMLP
from bpnet.estimators.losses import _PoissonDeviance, _SquaredError
from bpnet.losses.base import Loss

from sklearn.base import RegressorMixin  # isort: skip
from sklearn.metrics import r2_score
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import column_or_1d


class MLPRegressor(RegressorMixin, BaseMLP):  # type: ignore[misc]
    """A multi-layer perceptron that gives numbers: scikit-learn's `MLPRegressor`, trained by bpnet."""

    _parameter_constraints = {
        **BaseMLP._parameter_constraints,
        "loss": [StrOptions({"squared_error", "poisson"})],
    }

    def __init__(
        self,
        loss: Any = "squared_error",
        hidden_layer_sizes: Any = (100,),
        activation: Any = "relu",
        *,
        solver: Any = "adam",
        alpha: Any = 0.0001,
        batch_size: Any = "auto",
        learning_rate: Any = "constant",
        learning_rate_init: Any = 0.001,
        power_t: Any = 0.5,
        max_iter: Any = 200,
        shuffle: Any = True,
        random_state: Any = None,
        tol: Any = 1e-4,
        verbose: Any = False,
        warm_start: Any = False,
        momentum: Any = 0.9,
        nesterovs_momentum: Any = True,
        early_stopping: Any = False,
        validation_fraction: Any = 0.1,
        beta_1: Any = 0.9,
        beta_2: Any = 0.999,
        epsilon: Any = 1e-8,
        n_iter_no_change: Any = 10,
        max_fun: Any = 15000,
    ) -> None:
        super().__init__(locals())

    _checks: dict[str, Any] = {"y_numeric": True}

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on rows X with targets y."""
        self._fit(X, y, sample_weight, incremental=False)
        return self

    @available_if(lambda est: est._check_solver())  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one epoch on these rows, and go on from what there is."""
        self._fit(X, y, sample_weight, incremental=True)
        return self

    def _targets(self, y: Any, first: bool, incremental: bool) -> Any:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        y = y.reshape(-1, 1) if y.ndim == 1 else y
        self.n_outputs_ = y.shape[1]
        self.out_activation_ = "exp" if self.loss == "poisson" else "identity"
        return y

    def _loss(self) -> Loss:
        return _PoissonDeviance() if self.loss == "poisson" else _SquaredError()

    def _scored(self, outputs: Any, y: Any, weight: Any) -> float:
        prediction = self._trainer.loss.prediction(self._trainer.backend, outputs)
        return float(r2_score(y, prediction, sample_weight=weight)) if np.isfinite(prediction).all() else np.nan

    def predict(self, X: Any) -> Any:
        """The prediction for each row."""
        z = self._outputs(X)
        y = self._trainer.loss.prediction(self._trainer.backend, z)
        return y[:, 0] if y.shape[1] == 1 else y
