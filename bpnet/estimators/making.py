"""What is made of an estimator's parameters: its network, loss, optimizer and penalty."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from typing import Any, Literal

import numpy as np

from bpnet.errors import OptionError, shown
from bpnet.estimators.arrays import to_host
from bpnet.estimators.tables import categorical_input, input_layer, numeric_input
from bpnet.layer import Layer
from bpnet.layers.composition import Sequential
from bpnet.layers.dense import Dense
from bpnet.layout import Layout, Slot
from bpnet.losses.base import Loss
from bpnet.losses.binary import BinaryCrossEntropy
from bpnet.optimizers.base import Optimizer
from bpnet.penalties import L2
from bpnet.registry import resolve
from bpnet.schedules import Schedule
from bpnet.trainer import Trainer

from sklearn.base import is_classifier  # isort: skip

ACTIVATIONS = {"logistic": "sigmoid"}
"""scikit-learn's names that are others here."""
QUANTILES = (0.05, 0.5, 0.95)
"""Those that the loss "quantile" learns where none are named."""
RULES = ("constant", "invscaling", "adaptive")
"""scikit-learn's learning rates."""
SCHEDULES = {
    "cosine": "Cosine",
    "coslog": "CosLog",
    "flat_cosine": "FlatCosine",
    "linear": "Polynomial",
    "one_cycle": "OneCycle",
}
"""Learning rates that fall to 0 over all epochs, by name."""


@dataclass(frozen=True)
class Plan:
    """A network and how it is trained."""

    network: Layer
    loss: Loss
    optimizer: Optimizer
    plain: bool
    """Whether its dense layers start as scikit-learn's do."""
    begin: Callable[[Trainer, Any], Any] | None = None
    """What is to be done once with the trainer and its rows before it is trained."""


_make: Callable[..., Any] = lru_cache(maxsize=128)(lambda cls, *args, **options: cls(*args, **options))
"""An object of these options, the same each time: what is compiled for it is found again."""


def hidden_sizes(estimator: Any) -> list[int]:
    """The units of the hidden layers."""
    sizes = estimator.hidden_layer_sizes
    sizes = list(sizes) if isinstance(sizes, Iterable) else [sizes]
    if any(size <= 0 for size in sizes):
        raise ValueError(f"hidden_layer_sizes must be > 0, got {sizes}.")
    return [int(size) for size in sizes]


def check_together(estimator: Any) -> None:
    """Raise OptionError where a parameter is set that another one leaves nothing to do."""
    layers = {"dropout": 0.0, "norm": None, "residual": False}
    rivals: dict[str, dict[str, Any]] = {
        "preset": {"network": None, "norm": None, "residual": False, "scaling": "auto"},
        "network": layers,
    }
    for name, others in rivals.items():
        for other, unset in others.items():
            value = getattr(estimator, other)
            if getattr(estimator, name) is not None and value is not None and value != unset:
                raise OptionError(
                    f"{other} is {shown(value)}, but {name} is set, which has layers of its own: leave one out"
                )
    quantiles = getattr(estimator, "quantiles", None)
    if quantiles is not None and estimator.loss != "quantile" and not np.array_equal(quantiles, QUANTILES):
        raise OptionError(
            f"quantiles is {shown(quantiles)}, but loss is {estimator.loss!r}: pass loss='quantile' as well"
        )
    if estimator.solver == "lbfgs":
        for name in ("preset", "callbacks"):
            if getattr(estimator, name):
                raise OptionError(f"{name} is set, but solver is 'lbfgs', which has no epochs: take another solver")
        if estimator.dropout != 0.0:
            raise OptionError("dropout is set, but solver is 'lbfgs', which needs a loss without chance: take another")


def plan_of(estimator: Any, loss: Loss, outputs: int, x: Any, y: Any) -> Plan:
    """The plan for an estimator whose network needs so many outputs; x and y are the rows to train on."""
    members, network = estimator.ensemble, estimator.network
    if estimator.preset is not None:
        return _strong(estimator, loss, outputs, x, y)
    if network is None and isinstance(loss, BinaryCrossEntropy):
        raise OptionError(
            f"loss is {estimator.loss!r}, which takes probabilities, but the last layer gives numbers: take "
            "'binary_cross_entropy_with_logits', or a network= that ends in a sigmoid"
        )
    if members is not None:
        from bpnet.losses.members import Members

        loss = _make(Members, loss)
    inputs = None if network is not None and network.accepts_nan else input_layer(estimator, x)
    if network is not None:
        return Plan(
            network if inputs is None else _make(Sequential, inputs, network), loss, optimizer_of(estimator), False
        )
    sizes, activation = hidden_sizes(estimator), ACTIVATIONS.get(estimator.activation, estimator.activation)
    if members is None and estimator.norm is None and not estimator.residual and estimator.dropout == 0.0:
        network = _make(_stack, inputs, tuple(sizes), activation, outputs)
    else:
        from bpnet.tabular.networks import table_network

        options = {name: getattr(estimator, name) for name in ("dropout", "norm", "residual")}
        options |= {"hidden": tuple(sizes), "activation": activation, "members": members}
        network = _make(table_network, inputs, outputs, **options)
    return Plan(network, loss, optimizer_of(estimator), members is None)


def _stack(inputs: Layer | None, sizes: tuple[int, ...], activation: Any, outputs: int) -> Sequential:
    first = [] if inputs is None else [inputs]
    return Sequential(*first, *[Dense(units, activation) for units in sizes], Dense(outputs))


def _strong(estimator: Any, loss: Loss, outputs: int, x: Any, y: Any) -> Plan:
    """RealMLP's ingredients, for as many epochs as `max_iter` says."""
    from bpnet.layers.standardize import Standardize
    from bpnet.tabular.networks import strong

    task: Literal["classification", "regression"]
    options: dict[str, Any] = {"members": estimator.ensemble, "epochs": estimator.max_iter}
    if is_classifier(estimator):
        task, own = "classification", None if loss.labels and estimator.loss == "log_loss" else loss
    else:
        task, own = "regression", None if estimator.loss == "squared_error" else loss
        if own is None:
            y = np.asarray(to_host(y), dtype=np.float64)
            mean, scale = y.mean(axis=0), y.std(axis=0)
            scale = np.where(scale > 0.0, scale, 1.0)
            options["out_scale"] = Standardize(tuple(mean.tolist()), tuple(scale.tolist()), invert=True)
            options["out_range"] = tuple(y.min(axis=0).tolist()), tuple(y.max(axis=0).tolist())
    recipe = strong(
        numeric_input(estimator, x), categorical_input(estimator._schema), outputs, task=task, loss=own, **options
    )
    return Plan(recipe.network, recipe.loss, recipe.optimizer, False, recipe.start)


# ---- how it is trained ----------------------------------------------------------------------------------------------


def optimizer_of(estimator: Any) -> Optimizer:
    """The optimizer that `solver` and the parameters of its kind mean."""
    solver, lr = estimator.solver, estimator.learning_rate_init
    made: Optimizer
    if solver == "adam":
        from bpnet.optimizers.adam import Adam

        moments = {"beta1": estimator.beta_1, "beta2": estimator.beta_2, "epsilon": estimator.epsilon}
        made = _make(Adam, lr, **moments, epsilon_hat=True)
    elif solver == "sgd":
        from bpnet.optimizers.sgd import SGD

        nesterov = bool(estimator.nesterovs_momentum and estimator.momentum > 0.0)
        made = _make(SGD, lr, estimator.momentum, nesterov, steps_in_velocity=True)
    else:
        made = resolve(Optimizer, "solver", solver)
    rate = estimator.learning_rate
    if isinstance(rate, str) and rate in RULES:
        return made
    if "lr" not in {field.name for field in fields(made)}:  # type: ignore[arg-type]
        raise OptionError(
            f"learning_rate is {rate!r}, but {made} has no learning rate of its own: give those in it one"
        )
    return replace(made, lr=rate if isinstance(rate, Schedule) else _schedule(rate, made.lr, estimator.max_iter))  # type: ignore[type-var]


def _schedule(name: str, lr: Any, epochs: int) -> Schedule:
    """A schedule of that name over so many epochs."""
    from bpnet import schedules

    if name not in SCHEDULES:
        known = ", ".join((*RULES, *SCHEDULES))
        raise OptionError(f"learning_rate is {name!r}; expected one of {known}, or a bpnet schedule")
    if isinstance(lr, Schedule):
        raise OptionError(f"learning_rate is {name!r}, but the solver has a schedule of its own: leave out one of them")
    return schedules.Epochs(getattr(schedules, SCHEDULES[name])(lr, epochs))


def penalties_of(estimator: Any, scale: float) -> tuple[L2, ...]:
    """The penalty that `alpha` means, where the weights of rows are `scale` times those that were given."""
    if estimator.alpha == 0.0 or estimator.preset is not None:
        return ()
    return (L2(estimator.alpha * scale, per_row=True),)


# ---- start values ---------------------------------------------------------------------------------------------------


def dense_slots(layout: Layout) -> list[tuple[Slot, Slot | None]]:
    """Weight and bias of every dense layer, in their order."""
    biases = {slot.path[:-1]: slot for slot in layout.parameters if slot.path[-1] == "bias"}
    return [
        (slot, biases.get(slot.path[:-1]))
        for slot in layout.parameters
        if slot.path[-1] == "weight" and len(slot.shape) == 2
    ]


def start_values(layout: Layout, seed: int, random_state: Any, activation: Any) -> tuple[Any, Any]:
    """Parameters and buffers as vectors of the host: those of dense layers as scikit-learn draws them, in its order."""
    pairs = dense_slots(layout)
    drawn = sum(slot.size + (0 if bias is None else bias.size) for slot, bias in pairs)
    all_drawn = drawn == layout.size and not layout.buffer_size
    theta, buffers = (np.empty(layout.size), np.empty(0)) if all_drawn else layout.start(seed)
    for weight, bias in pairs:
        bound = math.sqrt((2.0 if activation == "logistic" else 6.0) / sum(weight.shape))
        for slot in (weight, bias):
            if slot is not None:
                theta[slot.part] = random_state.uniform(-bound, bound, slot.shape).reshape(-1)
    return theta, buffers


def seed_of(random_state: Any) -> int:
    """A seed for what bpnet draws, which leaves `random_state` as it is."""
    return int(copy.deepcopy(random_state).randint(2**31 - 1))
