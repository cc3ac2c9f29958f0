"""A classifier with scikit-learn's interface."""

from typing import Any, NamedTuple, Self

import numpy as np

from bpnet.backends import Array, backend_of
from bpnet.backends.interrupts import methods_end_sessions
from bpnet.errors import DataError, OptionError
from bpnet.estimators._base import BaseMLP
from bpnet.estimators.arrays import beside, foreign, to_host
from bpnet.estimators.intervals import Classes
from bpnet.losses.base import Loss
from bpnet.losses.classes import CrossEntropy
from bpnet.losses.summed import _LabelLogLoss
from bpnet.registry import resolve

from sklearn.base import ClassifierMixin  # isort: skip
from sklearn.metrics import accuracy_score
from sklearn.utils import compute_sample_weight
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import column_or_1d


class _Labels(NamedTuple):
    """What the outputs stand for: sorted, on the host; for several labels per row, their indices."""

    values: Any
    several: bool


def _numbered(y: Any) -> tuple[Any, Any]:
    """The distinct labels, sorted, and the index of each row's: `numpy.unique`, faster for whole numbers."""
    if y.dtype.kind in "biu" and y.ndim == 1 and y.size:
        low, high = int(y.min()), int(y.max())
        if high - low < 2**16 and abs(high) < 2**62:
            there, place = np.zeros(high - low + 1, dtype=bool), np.empty(y.size, dtype=np.uint16)
            for start in range(0, y.size, 2**16):  # so that little is held beside the labels
                some = y[start : start + 2**16].astype(np.int64) - low
                there[some], place[start : start + 2**16] = True, some
            return (np.flatnonzero(there) + low).astype(y.dtype), (np.cumsum(there, dtype=np.int32) - 1)[place]
    return np.unique(y, return_inverse=True)


@methods_end_sessions
class MLPClassifier(ClassifierMixin, Classes, BaseMLP):  # type: ignore[misc]
    """A multi-layer perceptron classifier: scikit-learn's `MLPClassifier`, trained by bpnet.

        from bpnet import MLPClassifier
        MLPClassifier(random_state=0).fit(X, y).predict(X)

    X may be an array of any library; parameters and predictions are then arrays of that library on X's device.  Sparse
    rows (CSR, CSC) stay sparse if the network begins with a dense layer.  NaN in X is a missing value: it counts as 0,
    or as the center if numbers are scaled, and an extra feature tells the network that it is missing.

    y holds labels, or (rows, labels) of 0 and 1.

    Parameters
    ----------
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
    loss : "log_loss", or any loss of bpnet, by name ("focal") or as an object
    class_weight : the weight of each class, {label: weight}, or "balanced" for the same total weight of all classes
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
    calibration_fraction : the share of rows that are kept out of training, by which `predict_set` is calibrated
    categorical_features : the columns of X that are categories: their names or indices, or a mask; they are one-hot
        encoded, or embedded if they have more than 8 values.  "from_dtype" reads text, booleans and dates of a
        DataFrame as such; None expects numbers only
    scaling : "standard", "robust" or "quantile" brings columns of numbers to one scale, as the network's first layer
        (see `bp.NumericInput`); None takes them as they are.  "auto" is "standard" where `categorical_features` is
        given, and else None, as in scikit-learn

    Attributes
    ----------
    coefs_, intercepts_, loss_, loss_curve_, best_loss_, validation_scores_, best_validation_score_, n_iter_, t_,
    n_layers_, n_outputs_, out_activation_, classes_, n_features_in_, feature_names_in_ : as in scikit-learn
    validation_loss_curve_ : the loss on held-out rows after every epoch, if there are any
    calibration_scores_ : how unlikely the true class of each calibration row was predicted to be, in rising order
    model_ : the network as a `bp.TableModel`, which needs no scikit-learn
    """

    _parameter_constraints = {
        **BaseMLP._parameter_constraints,
        "class_weight": [dict, list, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
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
        loss: Any = "log_loss",
        class_weight: Any = None,
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
        calibration_fraction: Any = None,
        categorical_features: Any = None,
        scaling: Any = "auto",
    ) -> None:
        super().__init__(locals())

    def fit(self, X: Any, y: Any, sample_weight: Any = None, *, validation_data: Any = None) -> Self:
        """Train on rows X with labels y.

        `sample_weight` is the weight of each row.  `validation_data`, (X, y) or (X, y, sample_weight), is scored after
        every epoch, and early stopping uses it.
        """
        return self._fit_and_calibrate(X, y, sample_weight, validation_data)

    @available_if(lambda est: est._check_solver())  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Train for one more epoch on these rows; `classes` are all classes that will ever occur.

        With several labels per row, the number of columns says how many there are.
        """
        y = to_host(y)
        if not hasattr(self, "_labels"):
            if type_of_target(y).startswith("multilabel"):
                self._define(y.toarray() if hasattr(y, "toarray") else np.asarray(y))
            elif classes is None:
                raise OptionError("classes must be passed on the first call to partial_fit.")
            else:
                classes = unique_labels(to_host(classes))
                if not len(classes):
                    raise OptionError("classes has no class; expected all that will ever occur")
                self._define(classes)
        elif classes is not None and not self._labels.several:
            classes = unique_labels(to_host(classes))
            if not np.array_equal(classes, self._labels.values):
                raise ValueError(
                    f"`classes={classes}` is not the same as on last call to partial_fit, was: {self._labels.values}"
                )
        self._fit(X, y, sample_weight, True)
        return self

    # ---- labels -------------------------------------------------------------------------------------------------

    def _define(self, y: Any) -> None:
        if not (y.ndim == 1 and y.dtype.kind in "biuUS"):
            try:
                check_classification_targets(y)
            except ValueError as error:
                raise DataError(
                    f"{error} Pass labels as y, text or whole numbers say; MLPRegressor learns numbers"
                ) from None
        several = y.ndim == 2 and type_of_target(y).startswith("multilabel")
        self._labels = _Labels(np.arange(y.shape[1]) if several else _numbered(y.reshape(-1))[0], several)

    def _compare(self, y: Any) -> None:
        found, known = unique_labels(y), self._labels.values
        if self.warm_start and set(found) != set(known):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {known}, `y` has {found}"
            )

    def _targets(self, y: Any) -> Any:
        known, several = self._labels
        if several:
            return np.asarray(y, dtype=np.float64)
        y = column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y
        found, codes = _numbered(y)
        place = np.searchsorted(known, found) if len(known) else np.zeros(len(found), dtype=np.intp)
        if not np.array_equal(known[np.minimum(place, len(known) - 1)], found):
            raise ValueError(f"`y` has classes not in `self.classes_`. `self.classes_` has {known}. 'y' has {found}.")
        codes = place.astype(np.int32)[codes.reshape(-1)]
        if self._loss().labels:
            return codes
        return (codes[:, None] if self.n_outputs_ == 1 else codes[:, None] == np.arange(len(known))).astype(np.float64)

    def _row_weights(self, y: Any, sample_weight: Any, incremental: bool) -> Any:
        if self.class_weight is None:
            return sample_weight
        if incremental and self.class_weight == "balanced":
            raise ValueError("class_weight='balanced' is not for partial_fit, which does not see all rows: pass a dict")
        own = compute_sample_weight(self.class_weight, y)
        return own if sample_weight is None else own * sample_weight

    @property
    def classes_(self) -> Any:
        """The labels in the order of the probabilities: numbers in the library of X, others in NumPy."""
        if not hasattr(self, "_labels"):
            raise AttributeError(f"{type(self).__name__} has no classes_ yet: call fit first")
        values = self._labels.values
        numbers = values.dtype.kind in "biuf" and hasattr(self, "_trainer") and self.device is None
        return beside(self._trainer.theta, values) if numbers and foreign(self._trainer.theta) else values

    def _target(self) -> Any:
        from bpnet.tabular.target import Target

        values, several = self._labels
        return Target("multilabel", columns=len(values)) if several else Target("class", (), tuple(values.tolist()))

    def _restore(self, model: Any) -> None:
        target = model.target
        if target.kind == "number":
            raise DataError("the model gives quantities: MLPRegressor.from_model(...) is for those")
        several = target.kind == "multilabel"
        self._labels = _Labels(np.arange(target.columns) if several else np.array(target.classes), several)
        self._loss()

    # ---- what the network gives ---------------------------------------------------------------------------------

    def _loss(self) -> Loss:
        count, several = len(self._labels.values), self._labels.several
        loss: Loss
        if self.loss == "log_loss":
            wide = not several and (count > 2 or (count == 2 and self.preset is not None))
            loss = CrossEntropy() if wide else _LabelLogLoss()
        else:
            loss = resolve(Loss, "loss", self.loss)
        self.n_outputs_ = count if several or loss.labels or count > 2 else 1
        self.out_activation_ = "softmax" if loss.labels else "logistic" if loss.probabilities else "identity"
        return loss

    def _units(self) -> int:
        return self.n_outputs_

    def _stratifies(self) -> bool:
        return len(self._labels.values) <= 2 and not self._labels.several

    def _answers(self, outputs: Array) -> Array:
        """The index of each row's class, or for each label whether the row has it."""
        z, loss = self._pooled(outputs)
        xp, cut = backend_of(z).xp, loss.boundary if loss.boundary is not None else 0.5
        if self._labels.several:
            return z > cut
        if self.n_outputs_ == 1:
            return xp.astype((z[:, 0] > cut) & (len(self._labels.values) == 2), xp.int64)
        return xp.argmax(z, axis=1)

    def _scored(self, outputs: Any, y: Any, weight: Any) -> float:
        found = self._answers(outputs)
        if self._labels.several:
            right = (found == (y > 0.5)).all(axis=1)
        else:
            right = found == (y if y.ndim == 1 else y[:, 0] if y.shape[1] == 1 else y.argmax(axis=1))
        return float(np.average(right, weights=weight))

    def predict(self, X: Any) -> Any:
        """The predicted label of each row, or for each label whether the row has it."""
        found = self._answers(self._outputs(X, "predict"))
        if self._labels.several:
            xp = backend_of(found).xp
            return xp.astype(found, xp.int64)
        values = self._labels.values
        if foreign(found) is None or values.dtype.kind not in "biuf":
            return values[to_host(found)]
        return backend_of(found).xp.take(beside(found, values), found)

    def predict_log_proba(self, X: Any) -> Any:
        """The logarithm of `predict_proba`; -inf where a probability underflows to 0."""
        p = self._probabilities_of(self._outputs(X, "predict_log_proba"))
        with np.errstate(divide="ignore"):
            return backend_of(p).xp.log(p)

    def _probabilities_of(self, outputs: Array) -> Array:
        loss, backend = self._trainer.loss, backend_of(outputs)
        if type(loss) not in (CrossEntropy, _LabelLogLoss):
            return self._target().probabilities(loss, outputs)
        with backend.session(device=backend.device(outputs)):
            p = loss.prediction(backend, outputs)
            if self.n_outputs_ > 1 or self._labels.several:
                return p
            return backend.xp.concat([1.0 - p, p], axis=1) if len(self._labels.values) > 1 else backend.xp.ones_like(p)

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of rows whose label is right, of several labels a row all of them."""
        known, found = to_host(y), to_host(self.predict(X))
        return float(accuracy_score(known, found, sample_weight=to_host(sample_weight)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
