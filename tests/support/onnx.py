"""Models in ONNX run by ONNX's own evaluator and by onnxruntime, beside what they are of."""

import itertools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np

import bpnet as bp
from support.networks import Problem

BATCHES = (1, 2, 7, 64)


def run_by_all(model: Any, inputs: dict[str, Any]) -> Iterator[tuple[str, list[Any]]]:
    """Who runs it, and the outputs."""
    import onnx
    import onnxruntime
    from onnx.reference import ReferenceEvaluator

    found: list[Any] | None = None
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the evaluator's own
        try:
            found = ReferenceEvaluator(model).run(None, inputs)
        except TypeError:  # which before 1.23 can't gather by indices that do not lie next to each other
            if tuple(map(int, onnx.__version__.split(".")[:2])) >= (1, 23):
                raise
    if found is not None:
        yield "ONNX's evaluator", found
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    # an optimization that leaves out additions of one number below 1e-8, which float64 does not
    off = {"disabled_optimizers": ["NoopElimination"]}
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"], **off)
    yield "onnxruntime", session.run(None, inputs)


def of_type(x: Any, dtype: str) -> Any:
    """Arrays whose numbers are of that type."""
    if isinstance(x, dict | tuple):
        values = [of_type(a, dtype) for a in (x.values() if isinstance(x, dict) else x)]
        return dict(zip(x, values, strict=True)) if isinstance(x, dict) else tuple(values)
    return x.astype(dtype) if x.dtype.kind == "f" else x


def rows_of(x: Any, count: int) -> Any:
    """So many rows, of which some come again where there are fewer."""
    if isinstance(x, dict):
        return {name: rows_of(a, count) for name, a in x.items()}
    if isinstance(x, tuple):
        return tuple(rows_of(a, count) for a in x)
    return x[np.arange(count) % len(x)]


def fed(x: Any) -> dict[str, Any]:
    """x as a model in ONNX takes it, whose codes are int64."""
    given = dict(zip(map(str, range(len(x))), x, strict=True)) if isinstance(x, tuple) else x
    given = given if isinstance(given, dict) else {"x": given}
    return {name: a.astype("int64") if a.dtype.kind == "i" else a for name, a in given.items()}


def apart(found: Any, want: Any) -> float:
    """The largest difference of two arrays, or where numbers are large its share of the largest."""
    return float(np.max(np.abs(found - want)) / max(1.0, np.max(np.abs(want))))


def distance(trainer: bp.Trainer, model: Any, x: Any) -> float:
    """How far apart the outputs are for some rows."""
    want = np.asarray(trainer.predict(x, check=False))
    worst = 0.0
    for who, (found,) in run_by_all(model, fed(x)):
        assert found.shape == want.shape, who
        assert found.dtype == want.dtype, who
        worst = max(worst, apart(found, want))
    return worst


def assert_same(trainer: bp.Trainer, x: Any, **options: Any) -> Any:
    """The model in ONNX, which gives what the trainer predicts for any number of rows."""
    model = bp.files.to_onnx(trainer, None, **options)
    for rows in BATCHES:
        assert distance(trainer, model, rows_of(x, rows)) <= 1e-5
    return model


def trained(problem: Problem, dtype: str) -> tuple[bp.Trainer, Any]:
    """A trainer after a step, and the rows."""
    x, y, weight = (None if a is None else of_type(a, dtype) for a in (problem.x, problem.y, problem.weight))
    trainer = problem.trainer(compile=False).build(x)
    trainer.step(x, y, weight)
    return trainer, x


def largest_distance(problem: Problem, dtype: str) -> float:
    """Of a random problem's network in ONNX, after a step, for all sizes of batches."""
    trainer, x = trained(problem, dtype)
    model = bp.files.to_onnx(trainer, None)
    return max(distance(trainer, model, rows_of(x, rows)) for rows in BATCHES)


def largest_move(problem: Problem, dtype: str) -> float:
    """How far its own predictions move where each number of its input is an ulp off."""
    trainer, given = trained(problem, dtype)
    moved = 0.0
    for seed, rows in itertools.product(range(8), BATCHES):
        x, signs = rows_of(given, rows), np.random.default_rng(seed)

        def near(a: Any, signs: Any = signs) -> Any:
            return a * (1.0 + signs.choice([-1.0, 1.0], a.shape) * np.finfo(dtype).eps) if a.dtype.kind == "f" else a

        shaken = {name: near(a) for name, a in x.items()} if isinstance(x, dict) else near(x)
        moved = max(moved, apart(trainer.predict(of_type(shaken, dtype)), trainer.predict(x)))
    return moved
