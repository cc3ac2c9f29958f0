"""What the estimators' parameters may be, in the terms of scikit-learn, which checks them."""

from numbers import Integral, Real
from typing import Any

import numpy as np

from bpnet.backends.base import PRECISIONS
from bpnet.backends.threads import default_threads
from bpnet.errors import OptionError
from bpnet.estimators.making import RULES, SCHEDULES
from bpnet.layer import Layer
from bpnet.layers.activation import Activation
from bpnet.losses.base import Loss
from bpnet.optimizers.base import Optimizer
from bpnet.schedules import Schedule

from sklearn.utils._param_validation import Interval, Options, StrOptions  # isort: skip

CONSTRAINTS: dict[str, list[Any]] = {
    "hidden_layer_sizes": ["array-like", Interval(Integral, 1, None, closed="left")],
    "activation": [str, Activation],
    "solver": [str, Optimizer],
    "alpha": [Interval(Real, 0, None, closed="left")],
    "batch_size": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
    "learning_rate": [StrOptions({*RULES, *SCHEDULES}), Schedule],
    "learning_rate_init": [Interval(Real, 0, None, closed="neither")],
    "power_t": [Interval(Real, 0, None, closed="left")],
    "max_iter": [Interval(Integral, 1, None, closed="left")],
    "shuffle": ["boolean"],
    "random_state": ["random_state"],
    "tol": [Interval(Real, 0, None, closed="left")],
    "verbose": ["verbose"],
    "warm_start": ["boolean", StrOptions({"continue"})],
    "momentum": [Interval(Real, 0, 1, closed="both")],
    "nesterovs_momentum": ["boolean"],
    "early_stopping": ["boolean"],
    "validation_fraction": [Interval(Real, 0, 1, closed="left")],
    "beta_1": [Interval(Real, 0, 1, closed="left")],
    "beta_2": [Interval(Real, 0, 1, closed="left")],
    "epsilon": [Interval(Real, 0, None, closed="neither")],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), Options(Real, {np.inf})],
    "max_fun": [Interval(Integral, 1, None, closed="left")],
    "loss": [str, Loss],
    "dropout": [Interval(Real, 0, 1, closed="left"), Schedule],
    "norm": [str, Layer, None],
    "residual": ["boolean"],
    "network": [Layer, None],
    "ensemble": [Interval(Integral, 1, None, closed="left"), None],
    "preset": [StrOptions({"strong"}), None],
    "scoring": [str, callable, None],
    "callbacks": [list, tuple],
    "precision": [StrOptions(set(PRECISIONS))],
    "device": [str, None],
    "dtype": [StrOptions({"float32", "float64"}), None],
    "n_jobs": [Integral, None],
    "categorical_features": ["array-like", StrOptions({"from_dtype"}), None],
    "scaling": [StrOptions({"auto", "robust", "standard", "quantile"}), None],
    "calibration_fraction": [Interval(Real, 0, 1, closed="neither"), None],
}


def threads_of(jobs: int | None) -> int | None:
    """How many threads `n_jobs` means; None for all that the process is to use."""
    if jobs == 0:
        raise OptionError("n_jobs is 0; expected a number of threads, or -1 for all")
    return None if jobs in (None, -1) else jobs if jobs > 0 else max(1, default_threads() + 1 + jobs)
