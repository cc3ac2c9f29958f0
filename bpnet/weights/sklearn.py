"""A model from a perceptron that scikit-learn has trained."""

from typing import TYPE_CHECKING, Any

import numpy as np

from bpnet.errors import ArgumentError, kind_of
from bpnet.export.models import exported
from bpnet.layers.composition import Sequential
from bpnet.layers.dense import Dense
from bpnet.losses.base import Loss
from bpnet.penalties import L2
from bpnet.registry import resolve
from bpnet.tabular.schema import Feature, Schema
from bpnet.tabular.target import Target
from bpnet.trainer import Trainer
from bpnet.weights.matching import set_values

if TYPE_CHECKING:
    from bpnet.tabular.model import TableModel

LOSSES = {
    "softmax": "cross_entropy",
    "logistic": "binary_cross_entropy_with_logits",
    "identity": "mean_squared_error",
    "exp": "poisson",
}
"""By scikit-learn's activation of the outputs, which is in the loss here."""


def from_sklearn(mlp: Any) -> "TableModel":
    """The `TableModel` of a fitted `sklearn.neural_network.MLPClassifier` or `MLPRegressor`.

        model = bp.files.from_sklearn(mlp)
        model.predict(x)           # the labels or numbers that mlp.predict gives
        model.predict_proba(x)     # mlp.predict_proba, to rounding

    It needs no scikit-learn any more, can be saved, exported and trained on (`model.trainer`): with the solver's
    optimizer (Adam for "lbfgs") and penalty, from its first step on.  `bp.MLPClassifier.from_model(model)` makes a
    bpnet estimator of it.  Raises ArgumentError where `mlp` is none of these, or is not fitted.
    """
    from bpnet.estimators.making import ACTIVATIONS, optimizer_of
    from bpnet.tabular.model import TableModel

    wanted = "expected a fitted MLPClassifier or MLPRegressor of scikit-learn"
    classes = type(mlp).__mro__
    if not any(c.__name__ == "BaseMultilayerPerceptron" and c.__module__.startswith("sklearn.") for c in classes):
        raise ArgumentError(f"mlp is {kind_of(mlp)}; {wanted}")
    if not hasattr(mlp, "coefs_"):
        raise ArgumentError(f"this {type(mlp).__name__} is not fitted yet; {wanted}")
    activation = ACTIVATIONS.get(mlp.activation, mlp.activation)
    widths = [coef.shape[1] for coef in mlp.coefs_]
    network = Sequential(*[Dense(units, activation) for units in widths[:-1]], Dense(widths[-1]))
    loss = resolve(Loss, "loss", LOSSES[mlp.out_activation_])
    optimizer: Any = "adam" if mlp.solver == "lbfgs" else optimizer_of(mlp)
    penalties = (L2(float(mlp.alpha), per_row=True),) if mlp.alpha else ()
    dtype = np.result_type(*mlp.coefs_)
    trainer = Trainer(network, loss, optimizer, penalties=penalties)
    trainer.build(np.zeros((1, mlp.n_features_in_), dtype=dtype))
    arrays = {f"{i}.weight": coef for i, coef in enumerate(mlp.coefs_)}
    set_values(exported(trainer), arrays | {f"{i}.bias": bias for i, bias in enumerate(mlp.intercepts_)})
    named = hasattr(mlp, "feature_names_in_")
    names = mlp.feature_names_in_ if named else [f"x{i}" for i in range(mlp.n_features_in_)]
    features = tuple(Feature(str(name), "number") for name in names)
    schema = Schema(features, named, 0 if named else mlp.n_features_in_, str(dtype))
    return TableModel(schema, _target(mlp), trainer)


def _target(mlp: Any) -> Target:
    if not hasattr(mlp, "classes_"):
        return Target("number", columns=mlp.n_outputs_ if mlp.n_outputs_ > 1 else 0)
    if getattr(mlp._label_binarizer, "y_type_", "").startswith("multilabel"):
        return Target("multilabel", columns=mlp.n_outputs_)
    return Target("class", classes=tuple(mlp.classes_.tolist()))
