"""Engines that users have: estimators in the hands of joblib and Dask, and what is sent to their workers.

What estimators need besides is in test_estimator_conformance.py.  The recipes of Ray, Optuna, joblib and Dask run as
pages do, in test_docs.py.
"""

import pickle
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.children import environment

import bpnet as bp
from bpnet.errors import ArrayMismatchError

RNG = np.random.default_rng(0)
X = RNG.standard_normal((240, 3)).astype("float32")
LABELS, NUMBERS = (X[:, 0] > X[:, 1]).astype(int), X[:, 0] * X[:, 1]
SMALL: dict[str, Any] = {"hidden_layer_sizes": (8,), "max_iter": 3, "tol": 0.0, "random_state": 0}


# ---- what is sent to a worker ---------------------------------------------------------------------------------------


class Seen(bp.Callback):
    def __init__(self) -> None:
        self.losses: list[float] = []

    def on_epoch_end(self, trainer: bp.Trainer, record: dict[str, Any]) -> None:
        self.losses.append(record["loss"])


def of_a_function() -> type[bp.Layer]:
    """A class that nobody can import."""

    @dataclass(frozen=True)
    class OfAFunction(bp.Layer):
        """y = a x."""

        a: float = 2.0

        def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
            return self.a * x, None

        def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, Any]:
            return self.a * dy, {}

    return OfAFunction


def work(trainers: list[bp.Trainer], callback: Seen) -> tuple[Any, ...]:
    """What a worker is to do: train one that is trained already, and one that is not."""
    for trainer in trainers:
        trainer.fit(X, NUMBERS, epochs=2, batch_size=50, progress=False, callbacks=[callback])
    return trainers, callback


def test_what_a_notebook_defines_and_trains_works_in_a_worker(tmp_path: Path) -> None:
    """What can't be imported, a layer say, is sent by value there and back, as joblib, Dask and Ray do."""
    cloudpickle = pytest.importorskip("cloudpickle", reason="cloudpickle, which joblib brings, is not installed")
    network = bp.Sequential(of_a_function()(0.5), bp.Dense(1))
    trainers, callback = [bp.Trainer(network, "mse", seed=0) for _ in range(2)], Seen()
    work(trainers[:1], callback)
    here = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(here)  # as if it were a notebook
    try:
        (tmp_path / "task").write_bytes(cloudpickle.dumps((work, trainers, callback)))
    finally:
        cloudpickle.unregister_pickle_by_value(here)
    worker = (
        "import cloudpickle, pickle\n"
        "from pathlib import Path\n"
        "function, *args = pickle.loads(Path('task').read_bytes())\n"
        "Path('done').write_bytes(cloudpickle.dumps(function(*args)))\n"
    )
    options: dict[str, Any] = {"cwd": tmp_path, "env": environment(), "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", worker], **options)
    assert done.returncode == 0, done.stderr
    theirs, seen = pickle.loads((tmp_path / "done").read_bytes())
    work(trainers, callback)
    assert seen.losses == callback.losses
    assert len(seen.losses) == 6
    for ours, back in zip(trainers, theirs, strict=True):
        assert back.network == network  # of the class that is here
        assert back.step_count == ours.step_count
        np.testing.assert_array_equal(back.predict(X), ours.predict(X))
    theirs[0].save(tmp_path / "model.safetensors")
    assert bp.load(tmp_path / "model.safetensors").network == network


# ---- Dask -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def dask() -> Any:
    """Dask's arrays of X and LABELS, in chunks that are not of one size, computed in this thread."""
    pytest.importorskip("sklearn", reason="scikit-learn is not installed")
    dask = pytest.importorskip("dask", reason="Dask is not installed")
    arrays = pytest.importorskip("dask.array", reason="Dask's arrays are not installed")
    with dask.config.set(scheduler="synchronous"):
        chunks = (100, 80, 60)
        yield arrays.from_array(X, chunks=(chunks, 3)), arrays.from_array(LABELS, chunks=(chunks,))


CUTS = slice(0, 100), slice(100, 180), slice(180, 240)


@pytest.mark.filterwarnings("ignore:Stochastic Optimizer")
def test_estimators_compute_dask_arrays_as_those_of_scikit_learn_do(dask: Any) -> None:
    x, y = dask
    model, other = (bp.MLPClassifier(**SMALL).fit(*data) for data in ((x, y), (X, LABELS)))
    for method in ("predict", "predict_proba"):
        found = getattr(model, method)(x)
        assert isinstance(found, np.ndarray)
        np.testing.assert_array_equal(found, getattr(other, method)(X))
    assert model.score(x, y) == other.score(X, LABELS)
    regressor = bp.MLPRegressor(**SMALL).fit(x, x[:, 0])
    np.testing.assert_array_equal(regressor.predict(x), bp.MLPRegressor(**SMALL).fit(X, X[:, 0]).predict(X))


def test_a_trainer_says_how_dask_arrays_are_read(dask: Any) -> None:
    x, y = dask
    trainer = bp.Trainer(bp.Dense(2), "cross_entropy", seed=0)
    with pytest.raises(ArrayMismatchError, match=r"x is a Dask array.*bp\.data\.stream.*x\.compute\(\)"):
        trainer.fit(x, y)
    trainer.fit(bp.data.stream(x, y, shuffle="exact"), epochs=2, batch_size=50, progress=False)
    other = bp.Trainer(bp.Dense(2), "cross_entropy", seed=0)
    other.fit(X, LABELS, epochs=2, batch_size=50, progress=False)
    np.testing.assert_array_equal(trainer.theta, other.theta)


def test_incremental_learning_is_partial_fit_of_each_chunk(dask: Any) -> None:
    wrappers = pytest.importorskip("dask_ml.wrappers", reason="Dask-ML is not installed")
    x, y = dask
    learner = wrappers.Incremental(bp.MLPClassifier(**SMALL), shuffle_blocks=False, scoring="accuracy")
    by_hand = bp.MLPClassifier(**SMALL)
    for _ in range(2):
        learner.partial_fit(x, y, classes=[0, 1])
        for cut in CUTS:
            by_hand.partial_fit(X[cut], LABELS[cut], classes=[0, 1])
        np.testing.assert_array_equal(learner.predict_proba(x).compute(), by_hand.predict_proba(X))
    assert learner.score(x, y) == pytest.approx(by_hand.score(X, LABELS))
    assert learner.estimator_.t_ == 480
    assert not hasattr(learner.estimator, "t_")
    learner.fit(x, y, classes=[0, 1])  # begins anew
    assert learner.estimator_.t_ == 240
    regressor = wrappers.Incremental(bp.MLPRegressor(**SMALL), shuffle_blocks=False).fit(x, x[:, 0])
    assert regressor.predict(x).compute().shape == (240,)
