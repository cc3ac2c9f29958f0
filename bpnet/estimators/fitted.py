"""What a fitted estimator has besides predictions: coefficients, and a model that can be saved and loaded."""

import copy
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

from bpnet.backends import Array
from bpnet.backends.interrupts import methods_end_sessions
from bpnet.errors import ArgumentError, ShapeError, kind_of
from bpnet.estimators import making
from bpnet.tabular import calibration
from bpnet.trainer import Trainer

KEPT: Mapping[str, Any] = {
    "n_iter_": 0,
    "t_": 0,
    "loss_": math.nan,
    "loss_curve_": [],
    "best_loss_": math.inf,
    "validation_scores_": None,
    "validation_loss_curve_": None,
    "best_validation_score_": None,
    "_no_improvement_count": 0,
}
"""What a file keeps of a fit besides the network, and what is taken for it where there is none."""


def _is_finite(value: Any) -> bool:
    """Whether JSON can hold it."""
    return value is None or all(map(math.isfinite, value if isinstance(value, list) else [value]))


class Arrays(list[Any]):
    """Arrays of an estimator: `arrays[i] = other` sets what it predicts with."""

    def __init__(self, arrays: Sequence[Array], put: Callable[[int, Array], None]) -> None:
        super().__init__(arrays)
        self.put = put

    def __setitem__(self, i: Any, array: Any) -> None:
        if isinstance(i, slice):
            raise ArgumentError("set one array at a time, or all of them: est.coefs_ = [...]")
        self.put(range(len(self))[i], array)
        super().__setitem__(i, array)

    def __reduce__(self) -> tuple[Any, ...]:
        return list, (list(self),)


@methods_end_sessions
class Fitted:
    """Of an estimator that has a trainer."""

    _trainer: Trainer
    _plain: bool

    @property
    def coefs_(self) -> list[Array]:
        """The weight matrix of every dense layer, in the library of X.  Assignable, also one by one.

        NumPy's are views of the parameters: what is written to them counts, until the next fit.
        """
        return self._arrays(0)

    @coefs_.setter
    def coefs_(self, arrays: Sequence[Array]) -> None:
        self._set_arrays(0, arrays)

    @property
    def intercepts_(self) -> list[Array]:
        """The biases of every dense layer, as `coefs_`."""
        return self._arrays(1)

    @intercepts_.setter
    def intercepts_(self, arrays: Sequence[Array]) -> None:
        self._set_arrays(1, arrays)

    def _slots(self, which: int) -> list[Any]:
        if not hasattr(self, "_trainer"):
            raise AttributeError(f"{type(self).__name__} has no coefficients yet: call fit first")
        if not self._plain:
            raise AttributeError("the network is no stack of dense layers: see model_.trainer.parameters")
        return [pair[which] for pair in making.dense_slots(self._trainer.layout)]

    def _arrays(self, which: int) -> list[Array]:
        slots, trainer = self._slots(which), self._trainer
        theta, reshape = trainer._have().evaluated(), trainer.backend.xp.reshape

        def put(i: int, array: Array) -> None:
            self._set_arrays(which, [array if i == j else reshape(theta[s.part], s.shape) for j, s in enumerate(slots)])

        return Arrays([reshape(theta[slot.part], slot.shape) for slot in slots], put)

    def _set_arrays(self, which: int, arrays: Sequence[Array]) -> None:
        slots, trainer = self._slots(which), self._trainer
        if len(arrays) != len(slots):
            raise ShapeError(f"{len(arrays)} arrays for {len(slots)} layers; expected one for each")
        backend, like = trainer.backend, trainer.theta
        tree = trainer.parameters
        for slot, array in zip(slots, arrays, strict=True):
            array = backend.xp.asarray(array, dtype=like.dtype, device=backend.device(like))
            place = tree
            for name in slot.path[:-1]:
                place = place[name]
            place[slot.path[-1]] = array
        trainer.parameters = tree

    # ---- a model of its own -------------------------------------------------------------------------------------

    @property
    def model_(self) -> Any:
        """The trained network as a `bp.TableModel`, which needs no scikit-learn: for files, and for other programs."""
        from bpnet.tabular.model import TableModel
        from bpnet.tabular.schema import Feature, Schema

        est: Any = self
        if not hasattr(self, "_trainer"):
            raise AttributeError(f"{type(self).__name__} has no model_ yet: call fit first")
        schema = getattr(self, "_schema", None)
        if schema is None:
            named = hasattr(self, "feature_names_in_")
            names = est.feature_names_in_ if named else [f"x{i}" for i in range(est.n_features_in_)]
            dtype = "float32" if "float32" in str(self._trainer.theta.dtype) else "float64"
            features = tuple(Feature(str(name), "number") for name in names)
            schema = Schema(features, named, 0 if named else est.n_features_in_, dtype)
        plain: dict[str, Any] = {
            n: v for n, v in est.get_params(deep=False).items() if isinstance(v, str | bool | int | float | None)
        }
        if isinstance(est.hidden_layer_sizes, list | tuple):
            plain["hidden_layer_sizes"] = making.hidden_sizes(est)
        if hasattr(est, "quantiles"):
            plain["quantiles"] = list(map(float, est.quantiles))
        known = {name: getattr(self, name) for name in KEPT if hasattr(self, name)}
        fitted = {name: value for name, value in known.items() if _is_finite(value)}
        settings = {"estimator": type(self).__name__, "parameters": plain, "plain": self._plain, "fitted": fitted}
        if hasattr(self, "calibration_scores_"):
            settings["calibration"] = calibration.kept(self.calibration_scores_)
        return TableModel(schema, est._target(), self._trainer, settings)

    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write the model to a .safetensors file, for `bp.load` and `from_model`; raises as `Trainer.save` does."""
        self.model_.save(path, metadata)

    @classmethod
    def from_model(cls, model: Any) -> Self:
        """The estimator of a model that `save` wrote, given as its path, or of any `bp.TableModel`."""
        from bpnet.loading import load
        from bpnet.tabular.model import TableModel

        if isinstance(model, str | os.PathLike):
            model = load(model)
        if not isinstance(model, TableModel):
            raise ArgumentError(f"model is {kind_of(model)}; expected a path, or a bp.TableModel")
        settings = model.settings if model.settings.get("estimator") == cls.__name__ else {}
        made: Any = cls()
        trainer, known, given = model.trainer, made.get_params(), settings.get("parameters", {})
        objects = {"loss": getattr(trainer.loss, "inner", trainer.loss), "solver": trainer.optimizer}
        objects |= dict.fromkeys(("activation", "norm", "network", "dropout"), trainer.network)
        for name in known.keys() - given.keys():  # those that are objects, which a file has as what came of them
            if name == "learning_rate":
                given = {**given, "solver": trainer.optimizer}
            elif name in objects:
                place = "network" if objects[name] is trainer.network else name
                given = {**given, place: objects[name]}
        if given.get("network") is not None:  # which has these layers in it, or is what the preset makes
            held = {"dropout": 0.0, "norm": None, "residual": False}
            given = {**given, **({"network": None} if given.get("preset") else held)}
        given = {name: tuple(value) if isinstance(value, list) else value for name, value in given.items()}
        made.set_params(**{name: value for name, value in given.items() if name in known})
        made._restore(model)
        vars(made).update({name: settings.get("fitted", {}).get(name, copy.copy(none)) for name, none in KEPT.items()})
        made.n_layers_ = len(making.dense_slots(trainer.layout)) + 1
        made._trainer, made._plain, made._best = trainer, settings.get("plain", False), None
        made._scale = 1.0
        made._schema = None if model.schema.plain and not any(f.texts for f in model.schema.features) else model.schema
        if "calibration" in model.settings:
            made.calibration_scores_ = calibration.restored(model.settings, model.trainer.theta)
        made.n_features_in_ = model.n_features_in_
        if model.schema.named:
            made.feature_names_in_ = model.feature_names_in_
        return made  # type: ignore[no-any-return]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "_trainer")

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        named = self.categorical_features  # type: ignore[attr-defined]
        dense = self.scaling not in (None, "auto") or self.preset  # type: ignore[attr-defined]
        tags.input_tags.sparse = not dense and (named is None or isinstance(named, str))
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = tags.input_tags.string = named is not None
        tags.array_api_support = True
        return tags

    def _check_solver(self) -> bool:
        solver = self.solver  # type: ignore[attr-defined]
        if solver == "lbfgs":
            raise AttributeError(
                f"partial_fit is only available for stochastic optimizers. {solver} is not stochastic."
            )
        return True
