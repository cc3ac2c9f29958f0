"""A regressor with scikit-learn's interface."""

from typing import Any, Self

import numpy as np

from bpnet.backends import backend_of
from bpnet.backends.interrupts import methods_end_sessions
from bpnet.errors import DataError
from bpnet.estimators._base import BaseMLP
from bpnet.estimators.arrays import to_host
from bpnet.estimators.intervals import Quantities
from bpnet.losses.base import Loss
from bpnet.losses.regression import Quantile
from bpnet.losses.summed import _PoissonDeviance, _SquaredError
from bpnet.registry import resolve

from sklearn.base import RegressorMixin  # isort: skip
from sklearn.metrics import r2_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import column_or_1d


@methods_end_sessions
class MLPRegressor(RegressorMixin, Quantities, BaseMLP):  # type: ignore[misc]
    """A multi-layer perceptron regressor: scikit-learn's `MLPRegressor`, trained by bpnet.

        from bpnet import MLPRegressor
        MLPRegressor(random_state=0).fit(X, y).predict(X)

    X may be an array of any library; parameters and predictions are then arrays of that library on X's device.  Sparse
    rows (CSR, CSC) stay sparse if the network begins with a dense layer.  NaN in X is a missing value: it counts as 0,
    or as the center if numbers are scaled, and an extra feature tells the network that it is missing.

    y holds numbers, (rows,) or (rows, quantities).

    Parameters
    ----------
    loss : "squared_error" or "poisson" as in scikit-learn, or any loss of bpnet, by name ("huber") or as an object;
        with "quantile" there is `predict_quantiles`, with "gaussian_nll" also `predict(X, return_std=True)`
    hidden_layer_sizes, activation, solver, alpha, batch_size, learning_rate, learning_rate_init, power_t, max_iter,
    shuffle, random_state, tol, verbose, warm_start, momentum, nesterovs_momentum, early_stopping, validation_fraction,
    beta_1, beta_2, epsilon, n_iter_no_change, max_fun : as in scikit-learn; with the same `random_state`, initial
        weights, held-out rows and batches are the same.  In addition:
        activation : or any activation of bpnet, by name ("gelu") or as an object
        solver : or any optimizer of bpnet, by name ("adamw"), with its own learning rate, or as an object
        learning_rate : or "cosine", "coslog", "flat_cosine", "linear" or "one_cycle", which span `max_iter` epochs, or
            any bpnet schedule
        warm_start : True continues from the coefficients with a new optimizer, as scikit-learn does; "continue" keeps
            the state of the optimizer and the order of rows too, so that two fits equal one longer fit
    dropout : the dropout rate after each hidden layer, or a schedule
    norm : a layer between the product and the activation, by name ("LayerNorm") or as an object
    residual : y = x + block(x) for every hidden layer that is as wide as the one before it
    network : a bpnet layer in place of the hidden layers and the last one, with its own initialization.  Columns are
        scaled, embedded and freed of gaps before it, unless it begins with a layer such as `bp.NumericInput` itself
    ensemble : this many networks in one, trained side by side on the same batches, whose predictions are averaged
        (TabM, Gorishniy et al. 2025)
    preset : "strong" trains a network of RealMLP's kind for `max_iter` epochs (Holzmueller et al. 2024; see
        `bpnet.tabular.networks.strong`) in place of what solver, activation, hidden_layer_sizes, alpha, dropout
        and learning rates say; with `early_stopping` the best epoch is kept
    scoring : how held-out rows are scored: a scorer of scikit-learn, by name or as a function, or "loss"; None for
        `score`
    callbacks : bpnet's callbacks, by name or as objects
    precision, device : as in `bp.Trainer`
    dtype : "float32" or "float64", in which everything is computed; None for that of X
    n_jobs : the number of threads; None and -1 for all, at most OMP_NUM_THREADS
    quantiles : which ones the loss "quantile" learns, in rising order
    calibration_fraction : the share of rows that are kept out of training, by which `predict_interval` is calibrated
    categorical_features : the columns of X that are categories: their names or indices, or a mask; they are one-hot
        encoded, or embedded if they have more than 8 values.  "from_dtype" reads text, booleans and dates of a
        DataFrame as such; None expects numbers only
    scaling : "standard", "robust" or "quantile" brings columns of numbers to one scale, as the network's first layer
        (see `bp.NumericInput`); None takes them as they are.  "auto" is "standard" where `categorical_features` is
        given, and else None, as in scikit-learn

    Attributes
    ----------
    coefs_, intercepts_, loss_, loss_curve_, best_loss_, validation_scores_, best_validation_score_, n_iter_, t_,
    n_layers_, n_outputs_, out_activation_, n_features_in_, feature_names_in_ : as in scikit-learn
    validation_loss_curve_ : the loss on held-out rows after every epoch, if there are any
    calibration_scores_ : the errors on the calibration rows, in rising order
    model_ : the network as a `bp.TableModel`, which needs no scikit-learn
    """

    _parameter_constraints = {**BaseMLP._parameter_constraints, "quantiles": ["array-like"]}
    _checks = {"y_numeric": True}

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
        dropout: Any = 0.0,
        norm: Any = None,
        residual: Any = False,
        network: Any = None,
        ensemble: Any = None,
        preset: Any = None,
        scoring: Any = None,
        callbacks: Any = (),
        precision: Any = "float32",
        device: Any = None,
        dtype: Any = None,
        n_jobs: Any = None,
        quantiles: Any = (0.05, 0.5, 0.95),
        calibration_fraction: Any = None,
        categorical_features: Any = None,
        scaling: Any = "auto",
    ) -> None:
        super().__init__(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation_data: Any = None) -> Self:
        """Train on rows X with targets y.

        `sample_weight` is the weight of each row.  `validation_data`, (X, y) or (X, y, sample_weight), is scored after
        every epoch, and early stopping uses it.
        """
        return self._fit_and_calibrate(X, y, sample_weight, validation_data)

    @available_if(lambda est: est._check_solver())  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train for one more epoch on these rows."""
        self._fit(X, y, sample_weight, True)
        return self

    # ---- targets ------------------------------------------------------------------------------------------------

    def _define(self, y: Any) -> None:
        self._columns = y.shape[1] if y.ndim == 2 and y.shape[1] > 1 else 0
        self.n_outputs_ = self._columns or 1

    def _targets(self, y: Any) -> Any:
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        if y.dtype.kind not in "biuf":
            raise DataError(
                f"y holds values of type {y.dtype}; expected numbers: convert it by y.astype(float), or learn labels "
                "by MLPClassifier"
            )
        return np.asarray(y.reshape(-1, 1) if y.ndim == 1 else y, dtype=None if y.dtype == np.float32 else np.float64)

    def _target(self) -> Any:
        from bpnet.tabular.target import Target

        return Target("number", columns=self._columns)

    def _restore(self, model: Any) -> None:
        if model.target.kind != "number":
            raise DataError("the model gives labels: MLPClassifier.from_model(...) is for those")
        self._columns = model.target.columns
        self.n_outputs_ = self._columns or 1
        self._loss()

    # ---- what the network gives ---------------------------------------------------------------------------------

    def _loss(self) -> Loss:
        self.out_activation_ = "exp" if self.loss == "poisson" else "identity"
        if self.loss == "squared_error":
            return _SquaredError()
        if self.loss == "quantile":
            return Quantile(tuple(self.quantiles))
        return _PoissonDeviance() if self.loss == "poisson" else resolve(Loss, "loss", self.loss)

    def _units(self) -> int:
        return int(self._target().outputs(self._loss()))

    def _predictions(self, outputs: Any) -> Any:
        z, loss = self._pooled(outputs)
        return loss.prediction(backend_of(z), z)

    def _scored(self, outputs: Any, y: Any, weight: Any) -> float:
        found = self._predictions(outputs)
        return float(r2_score(y, found, sample_weight=weight)) if np.isfinite(found).all() else np.nan

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """R**2, the share of the variance of y that the predictions explain; for several targets, the mean."""
        known, found = to_host(y), to_host(self.predict(X))
        return float(r2_score(known, found, sample_weight=to_host(sample_weight)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags
