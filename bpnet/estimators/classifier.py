"""A classifier with scikit-learn's face."""

from typing import Any, Self

import numpy as np

from bpnet.estimators._base import BaseMLP
from bpnet.estimators.losses import _LabelLogLoss
from bpnet.losses.base import Loss
from bpnet.losses.classes import CrossEntropy

from sklearn.base import ClassifierMixin  # isort: skip
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import _check_partial_fit_first_call, check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d


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
        if _check_partial_fit_first_call(self, classes):
            multilabel = type_of_target(y).startswith("multilabel")
            self._set_classes(y if multilabel else classes)
        self._fit(X, y, sample_weight, incremental=True)
        return self

    def _set_classes(self, y: Any) -> None:
        check_classification_targets(y)
        self._multilabel = type_of_target(y).startswith("multilabel")
        self.classes_ = np.arange(y.shape[1]) if self._multilabel else np.unique(y)

    def _targets(self, y: Any, first: bool, incremental: bool) -> Any:
        if y.ndim == 2 and y.shape[1] == 1:
            y = column_or_1d(y, warn=True)
        if not hasattr(self, "classes_") or (not self.warm_start and not incremental):
            self._set_classes(y)
        if self._multilabel:
            self.n_outputs_ = y.shape[1]
            self.out_activation_ = "logistic"
            return np.asarray(y, dtype=np.float64)
        found = np.unique(y)
        if self.warm_start and set(found) != set(self.classes_):
            raise ValueError(
                "warm_start can only be used where `y` has the same classes as in the previous call to fit. Previously "
                f"got {self.classes_}, `y` has {found}"
            )
        if np.setdiff1d(found, self.classes_).size:
            raise ValueError(
                f"`y` has classes not in `self.classes_`. `self.classes_` has {self.classes_}. 'y' has {found}."
            )
        codes = np.searchsorted(self.classes_, y)
        count = len(self.classes_)
        self.n_outputs_ = count if count > 2 else 1
        self.out_activation_ = "softmax" if count > 2 else "logistic"
        return codes.astype(np.int32) if count > 2 else codes[:, None].astype(np.float64)

    def _loss(self) -> Loss:
        return CrossEntropy() if self.out_activation_ == "softmax" else _LabelLogLoss()

    def _stratifies(self) -> bool:
        return bool(self.n_outputs_ == 1)

    def _scored(self, outputs: Any, y: Any, weight: Any) -> float:
        right = outputs.argmax(axis=1) == y if y.ndim == 1 else ((outputs > 0.0) == (y > 0.5)).all(axis=1)
        return float(np.average(right, weights=weight))

    def predict(self, X: Any) -> Any:
        """The label of each row."""
        z = self._outputs(X)
        if self._multilabel:
            return (z > 0.0).astype(int)
        if self.n_outputs_ == 1:
            return self.classes_[((z[:, 0] > 0.0) & (len(self.classes_) == 2)).astype(int)]
        return self.classes_[z.argmax(axis=1)]

    def predict_proba(self, X: Any) -> Any:
        """The probability of every class, in the order of `classes_`."""
        z = self._outputs(X)
        p = self._trainer.loss.prediction(self._trainer.backend, z)
        return np.hstack([1.0 - p, p]) if self.n_outputs_ == 1 else p

    def predict_log_proba(self, X: Any) -> Any:
        """The logarithm of `predict_proba`."""
        return np.log(self.predict_proba(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags
