"""A classifier with scikit-learn's face."""

from typing import Any, NamedTuple, Self

import numpy as np

from bpnet.errors import DataError
from bpnet.estimators._base import BaseMLP
from bpnet.estimators.arrays import beside, foreign, to_host
from bpnet.estimators.losses import _LabelLogLoss
from bpnet.losses.base import Loss
from bpnet.losses.classes import CrossEntropy

from sklearn.base import ClassifierMixin  # isort: skip
from sklearn.metrics import accuracy_score
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import column_or_1d


class _Labels(NamedTuple):
    """What the outputs stand for: sorted, on the host; of several labels a row, their numbers."""

    values: Any
    several: bool


class MLPClassifier(ClassifierMixin, BaseMLP):  # type: ignore[misc]
    """A multi-layer perceptron that names classes: scikit-learn's `MLPClassifier`, trained by bpnet."""

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
    ) -> None:
        super().__init__(locals())

    _checks: dict[str, Any] = {}

    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Train on rows X with labels y."""
        self._fit(X, y, sample_weight, incremental=False)
        return self

    @available_if(lambda est: est._check_solver())  # type: ignore[untyped-decorator]
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Self:
        """Train for one epoch on these rows, and go on from what there is; `classes` are all that there will be."""
        if not hasattr(self, "_labels") and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if classes is not None:
            classes = unique_labels(to_host(classes))
            if not hasattr(self, "_labels"):
                self._set_labels(to_host(y) if type_of_target(to_host(y)).startswith("multilabel") else classes)
            elif not np.array_equal(classes, self._labels.values):
                raise ValueError(
                    f"`classes={classes}` is not the same as on last call to partial_fit, was: {self._labels.values}"
                )
        self._fit(X, y, sample_weight, incremental=True)
        return self

    def _set_labels(self, y: Any) -> None:
        try:
            check_classification_targets(y)
        except ValueError as error:
            raise DataError(
                f"{error} Pass labels as y, text or whole numbers say; MLPRegressor learns numbers"
            ) from None
        several = type_of_target(y).startswith("multilabel")
        self._labels = _Labels(np.arange(y.shape[1]) if several else np.unique(y), several)

    def _targets(self, y: Any, first: bool, incremental: bool) -> Any:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "_labels") or (not self.warm_start and not incremental):
            self._set_labels(y)
        if self._labels.several:
            self.n_outputs_ = y.shape[1]
            self.out_activation_ = "logistic"
            return np.asarray(y, dtype=np.float64)
        found, known = np.unique(y), self._labels.values
        if self.warm_start and set(found) != set(known):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {known}, `y` has {found}"
            )
        if np.setdiff1d(found, known).size:
            raise ValueError(f"`y` has classes not in `self.classes_`. `self.classes_` has {known}. 'y' has {found}.")
        codes, count = np.searchsorted(known, y), len(known)
        self.n_outputs_ = count if count > 2 else 1
        self.out_activation_ = "softmax" if count > 2 else "logistic"
        return codes.astype(np.int32) if count > 2 else codes[:, None].astype(np.float64)

    @property
    def classes_(self) -> Any:
        """The labels in the order of the probabilities: where they are numbers, in the library of X, else NumPy's."""
        if not hasattr(self, "_labels"):
            raise AttributeError(f"{type(self).__name__} has no classes_ yet: call fit first")
        values = self._labels.values
        numbers = values.dtype.kind in "biuf" and hasattr(self, "_trainer")
        return beside(self._trainer.theta, values) if numbers and foreign(self._trainer.theta) else values

    def _loss(self) -> Loss:
        return CrossEntropy() if self.out_activation_ == "softmax" else _LabelLogLoss()

    def _stratifies(self) -> bool:
        return bool(self.n_outputs_ == 1)

    def _scored(self, outputs: Any, y: Any, weight: Any) -> float:
        right = outputs.argmax(axis=1) == y if y.ndim == 1 else ((outputs > 0.0) == (y > 0.5)).all(axis=1)
        return float(np.average(right, weights=weight))

    def predict(self, X: Any) -> Any:
        """The label of each row."""
        z = self._outputs(X, "predict")
        xp = self._trainer.backend.xp
        if self._labels.several:
            return xp.astype(z > 0.0, xp.int64)
        if self.n_outputs_ == 1:
            codes = xp.astype((z[:, 0] > 0.0) & (len(self._labels.values) == 2), xp.int64)
        else:
            codes = xp.argmax(z, axis=1)
        classes = self.classes_
        return classes[to_host(codes)] if isinstance(classes, np.ndarray) else xp.take(classes, codes, axis=0)

    def predict_proba(self, X: Any) -> Any:
        """The probability of every class, in the order of `classes_`."""
        return self._probabilities(X, "predict_proba")

    def predict_log_proba(self, X: Any) -> Any:
        """The logarithm of `predict_proba`, finite where a probability is too small for its type."""
        z, xp = self._outputs(X, "predict_log_proba"), self._trainer.backend.xp
        if self.out_activation_ == "softmax":
            z = z - xp.max(z, axis=1, keepdims=True)
            return z - xp.log(xp.sum(xp.exp(z), axis=1, keepdims=True))
        far = xp.log1p(xp.exp(-xp.abs(z)))
        log = xp.minimum(z, 0.0) - far
        return xp.concat([xp.minimum(-z, 0.0) - far, log], axis=1) if self.n_outputs_ == 1 else log

    def _probabilities(self, X: Any, method: str) -> Any:
        z, backend = self._outputs(X, method), self._trainer.backend
        p = self._trainer.loss.prediction(backend, z)
        return backend.xp.concat([1.0 - p, p], axis=1) if self.n_outputs_ == 1 else p

    def score(self, X: Any, y: Any, sample_weight: Any = None) -> float:
        """The share of rows whose label is right, of several labels a row all of them."""
        known, found = to_host(y), to_host(self.predict(X))
        return float(accuracy_score(known, found, sample_weight=to_host(sample_weight)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
