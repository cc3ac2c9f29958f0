"""Every public entry point, every argument of it, given 49 classes of values that are wrong in most places.

Entries and arguments are generated: classes and functions from the tables of public names, arguments from their
signatures.  A call either works, and then gives what it documents, or raises one of bpnet's errors, which is also the
built-in that a caller would catch.  It modifies no input, warns of nothing but on purpose, and returns.
"""

import contextlib
import copy
import dataclasses
import datetime
import decimal
import faulthandler
import fractions
import importlib
import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet import names
from bpnet.errors import BpnetError, BpnetWarning
from bpnet.registry import own_catalogue

REPEATS = {"epochs", "directions", "steps", "tries", "max_iter", "samples"}
"""Arguments by which as much is done as they say, also 10^30 times."""

BUILT_IN = (TypeError, ValueError, OSError, LookupError, MemoryError, RuntimeError, ImportError, AssertionError)

LONGEST = 60.0
"""Seconds that a call may take before it counts as one that hangs."""

X = np.random.default_rng(0).standard_normal((12, 4)).astype("float32")
Y = (np.arange(12) % 3).astype("int32")
NETWORK = bp.Sequential(bp.Dense(5, "relu"), bp.Dense(3))


class Hostile:
    """Whatever is asked of it raises what nobody expects."""

    def _raise(self, *_: Any) -> Any:
        raise ZeroDivisionError("from a hostile object")

    __len__ = __iter__ = __bool__ = __float__ = __index__ = __fspath__ = __array__ = __getitem__ = __call__ = _raise


class Word(str):
    """Text of a class of its own."""


def own_list() -> list[Any]:
    found: list[Any] = []
    found.append(found)
    return found


def deep_list() -> Any:
    found: Any = 1.0
    for _ in range(100_000):
        found = [found]
    return found


def read_only(a: Any) -> Any:
    a = a.copy()
    a.flags.writeable = False
    return a


def masked(a: Any) -> Any:
    return np.ma.masked_array(a, mask=a > 1)


def spoiled(a: Any, value: float) -> Any:
    a = a.copy()
    a[3] = value
    return a


CLASSES: dict[str, Callable[[], Any]] = {
    "None": lambda: None,
    "a truth value": lambda: True,
    "zero": lambda: 0,
    "negative": lambda: -1,
    "beyond 64 bits": lambda: 10**30,
    "a fraction": lambda: 0.5,
    "NaN": lambda: float("nan"),
    "infinity": lambda: float("inf"),
    "near the largest": lambda: 1.7e308,
    "subnormal": lambda: 5e-324,
    "complex": lambda: 1j,
    "a whole number of NumPy": lambda: np.int64(3),
    "an array without axes": lambda: np.asarray(np.nan),
    "a Decimal": lambda: decimal.Decimal("0.5"),
    "a Fraction": lambda: fractions.Fraction(1, 3),
    "a date": lambda: datetime.date(2020, 1, 1),
    "empty text": lambda: "",
    "an unknown name": lambda: "no such name",
    "text that is no UTF-8": lambda: "\0\ud800\n",
    "long text": lambda: "a" * 100_000,
    "text of a subclass": lambda: Word("word"),
    "bytes": lambda: b"bytes",
    "an empty list": list,
    "an empty tuple": tuple,
    "an empty dict": dict,
    "a dict of numbers": lambda: {1: 2},
    "a set": lambda: {1, "a"},
    "a list that holds itself": own_list,
    "a deep list": deep_list,
    "a mixed list": lambda: [1, "a", None],
    "a class": lambda: int,
    "a function": lambda: lambda *args, **options: None,
    "a generator": lambda: (i for i in range(3)),
    "an object": object,
    "a hostile object": Hostile,
    "an array without rows": lambda: X[:0],
    "an array without columns": lambda: X[:, :0],
    "an array of one axis": lambda: X[:, 0],
    "an array of three axes": lambda: X[:, None, :],
    "an array of objects": lambda: X.astype(object),
    "an array of text": lambda: X.astype(str),
    "an array of complex": lambda: X.astype("complex64"),
    "an array of another byte order": lambda: X.astype(">f4"),
    "an array with NaN": lambda: spoiled(X, np.nan),
    "an array with infinity": lambda: spoiled(X, np.inf),
    "a masked array": lambda: masked(X),
    "a structured array": lambda: np.zeros(12, [("a", "f4"), ("b", "i4")]),
    "an array that is read backwards": lambda: X[::-1, ::-1],
    "an array that can only be read": lambda: read_only(X),
}


# ---- entries --------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Entry:
    """Something public that can be called; `good` gives arguments with which it works, made anew each time."""

    name: str
    function: Callable[..., Any]
    good: Callable[[Path], dict[str, Any]]
    after: Callable[[Any], Any] = lambda result: result
    """What a user would do with the result, in which what was not checked would come to light."""

    def parameters(self) -> list[str]:
        """The names of its arguments; one for all of those that may be any number."""
        found = inspect.signature(self.function).parameters.values()
        return [p.name for p in found if p.kind is not p.VAR_KEYWORD]

    def call(self, given: Mapping[str, Any]) -> Any:
        """By name; by position where there is no other way."""
        listed: list[Any] = []
        named = dict(given)
        for p in inspect.signature(self.function).parameters.values():
            if p.kind is p.POSITIONAL_ONLY and p.name in named:
                listed.append(named.pop(p.name))
            elif p.kind is p.VAR_POSITIONAL and p.name in named:
                several = named.pop(p.name)
                listed += several if isinstance(several, list) and several and several[0] is not several else [several]
        return self.function(*listed, **named)


def bound(call: Callable[..., Any], signature: inspect.Signature, skip: int = 0) -> Callable[..., Any]:
    """`call`, whose arguments are those of `signature` but for the first `skip`."""
    parameters = list(signature.parameters.values())[skip:]
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return call


def built(**options: Any) -> bp.Trainer:
    return bp.Trainer(NETWORK, "cross_entropy", **options).build(X)


def frame() -> dict[str, Any]:
    return {"a": X[:, 0].copy(), "b": ["u", "v", None] * 4, "y": ["r", "s"] * 6}


@cache
def model() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bp.train_table(frame(), "y", epochs=1, hidden=(3,), progress=False, compile=False)


@cache
def regression() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        table = {"a": X[:, 0], "y": X[:, 1]}
        options: dict[str, Any] = {"epochs": 1, "hidden": (3,), "progress": False, "compile": False}
        made = bp.train_table(table, "y", loss="gaussian_nll", validation=0.0, **options)
        made.calibrate(table, X[:, 1])
        return made


def saved(folder: Path) -> Path:
    path = folder / "good.safetensors"
    if not path.exists():
        built().save(path)
    return path


def use(thing: Any) -> Any:
    """Something of the catalogue, in a trainer."""
    if isinstance(thing, bp.Layer):
        shape: Any = (3, 12) if isinstance(thing, bp.BatchEnsemble | bp.MemberDense | bp.MemberScale) else (12,)
        if isinstance(thing, bp.Inputs):
            shape = {name: (12,) for name, _ in thing.branches}
        if isinstance(thing, bp.TabularInput):
            shape = {"numbers": (2,), "categories": (2,)}
        if isinstance(thing, bp.CategoricalInput):
            shape = (len(thing.entries),)
        layout = bp.layout_of(thing, shape, trains=False)
        return layout.start(0) if layout.size < 10**6 else None
    if isinstance(thing, bp.Epochs):
        return bp.Trainer(bp.Dense(1), "mse", bp.SGD(thing), compile=False).fit(X, X[:, :1], progress=False)
    if isinstance(thing, bp.Schedule):
        return [thing(step) for step in (0, 1, 100)]
    if isinstance(thing, bp.Optimizer):
        network = bp.Sequential(bp.Dense(3), bp.Dense(1))
        return bp.Trainer(network, "mse", thing, compile=False).fit(X, X[:, :1], progress=False)
    return repr(thing)


EXAMPLES: dict[str, tuple[Any, ...]] = {
    "TabularInput": (bp.NumericInput(), bp.CategoricalInput((3, 4), (0, 2))),
    "OfHead": (0, "accuracy"),
    "L1": (0.1,),
    "L2": (0.1,),
    "Orthogonality": (0.1,),
}
"""Arguments where a class's own example has none."""


def of_catalogue() -> Iterator[Entry]:
    for base in (bp.Layer, bp.Schedule, bp.Optimizer, bp.Loss, bp.metrics.Metric, bp.Penalty):
        for cls in dict.fromkeys(cls for cls, _ in own_catalogue(base).values()):
            signature = list(inspect.signature(cls).parameters.values())
            named = [p.name for p in signature if p.kind is not p.VAR_POSITIONAL]
            several = [p.name for p in signature if p.kind is p.VAR_POSITIONAL]
            given = EXAMPLES.get(cls.__name__, cls.example)
            example = {several[0]: list(given)} if several else dict(zip(named, given, strict=False))
            yield Entry(cls.__name__, cls, lambda _, e=example: dict(e), use)


def of_trainer() -> Iterator[Entry]:
    def method(name: str, good: Callable[[Path], dict[str, Any]], **more: Any) -> Entry:
        def call(**given: Any) -> Any:
            return getattr(built(compile=False), name)(**given)

        signature = inspect.signature(getattr(bp.Trainer, name))
        return Entry(f"Trainer.{name}", bound(call, signature, 1), good, **more)

    yield Entry(
        "Trainer",
        bp.Trainer,
        lambda _: {"network": NETWORK, "loss": "cross_entropy", "compile": False},
        lambda trainer: trainer.step(X, Y),
    )

    def data(_: Path) -> dict[str, Any]:
        return {"x": X.copy(), "y": Y.copy()}

    yield method("fit", lambda _: {"x": X.copy(), "y": Y.copy(), "progress": False})
    for name in ("step", "evaluate", "explain"):
        yield method(name, data)
    yield method("predict", lambda _: {"x": X.copy()})
    yield method("save", lambda folder: {"path": folder / "saved.safetensors"})
    values: dict[str, Any] = {"step_count": 1, "lr_scale": 1.0, "parameters": built().parameters}
    values |= {"classes": ["a", "b", "c"], "metadata": {}}

    def setter(name: str, folder: list[Path]) -> Entry:
        def assign(value: Any) -> Any:
            trainer = built(compile=False)
            setattr(trainer, name, value)
            trainer.step(X, Y)
            trainer.save(folder[0] / "assigned.safetensors")

        def good(at: Path) -> dict[str, Any]:
            folder.append(at)
            return {"value": values[name]}

        return Entry(f"Trainer.{name} = ...", assign, good)

    for name in values:
        yield setter(name, [])
    yield Entry(
        "Trainer.restore", lambda snapshot: built().restore(snapshot), lambda _: {"snapshot": built().snapshot()}
    )
    yield Entry("History", bp.History, lambda _: {}, repr)
    yield Entry("History[...]", bp.History([{"epoch": 1, "loss": 1.0}]).__getitem__, lambda _: {"name": "loss"})


def of_functions() -> Iterator[Entry]:
    theta = np.array(built().theta)
    data = {"x": X.astype("float64"), "y": Y}
    yield Entry(
        "value_and_grad",
        bp.value_and_grad,
        lambda _: {
            "network": NETWORK,
            "loss": "cross_entropy",
            "theta": theta.astype("float64"),
            **copy.deepcopy(data),
        },
    )
    yield Entry(
        "row_losses", bp.row_losses, lambda _: {"loss": "cross_entropy", "output": X[:, :3].copy(), "target": Y.copy()}
    )
    yield Entry(
        "check_gradients",
        bp.check_gradients,
        lambda _: {"subject": NETWORK, **copy.deepcopy(data), "loss": "cross_entropy", "directions": 1},
    )

    def square(xp: Any, z: Any) -> Any:
        return z * z

    def doubled(xp: Any, z: Any) -> Any:
        return 2.0 * z

    def activation(function: Any, slope: Any) -> Any:
        return bp.Activation(function, slope)

    yield Entry("Activation", activation, lambda _: {"function": square, "slope": doubled}, use)
    yield Entry("Head", bp.Head, lambda _: {"loss": bp.MeanSquaredError(), "outputs": 1}, lambda h: bp.Heads(h))
    yield Entry("layout_of", bp.layout_of, lambda _: {"network": NETWORK, "in_shape": (4,)})
    yield Entry("load", bp.load, lambda folder: {"path": saved(folder)})
    yield Entry("inspect", bp.inspect, lambda _: {"trainer": built(), "x": X.copy(), "y": Y.copy()}, repr)
    yield Entry("lsuv", bp.lsuv, lambda _: {"trainer": built(compile=False), "x": X.copy()})
    yield Entry(
        "find_learning_rate",
        bp.find_learning_rate,
        lambda _: {"trainer": built(compile=False), "x": X.copy(), "y": Y.copy(), "steps": 8},
        repr,
    )
    yield Entry(
        "minimize",
        bp.minimize,
        lambda _: {"function": lambda x: ((x * x).sum(), 2 * x), "x": np.ones(3), "steps": 2},
    )
    listeners = {
        "ModelCheckpoint": lambda folder: {"path": folder / "{epoch}.safetensors", "monitor": "loss"},
        "CSVLogger": lambda folder: {"path": folder / "log.csv"},
        "EarlyStopping": lambda _: {"monitor": "loss"},
        "ReduceOnPlateau": lambda _: {"monitor": "loss"},
        "Norms": lambda _: {},
        "Progress": lambda _: {},
        "LivePlot": lambda _: {},
    }

    def fitted(callback: Any) -> Any:
        built(compile=False).fit(X, Y, epochs=2, callbacks=[callback], progress=False)

    for name, good in listeners.items():
        yield Entry(name, getattr(bp, name), good, fitted)
    yield Entry("check_backend", bp.check_backend, lambda _: {"x": X.copy()})


def of_tables() -> Iterator[Entry]:
    quick = {"epochs": 1, "hidden": (3,), "progress": False, "compile": False}
    yield Entry("train_table", bp.train_table, lambda _: {"table": frame(), "target": "y", **quick})

    def method(made: Callable[[], Any], name: str, table: dict[str, Any]) -> Entry:
        def call(**given: Any) -> Any:
            return getattr(made(), name)(**given)

        function = bound(call, inspect.signature(getattr(bp.TableModel, name)), 1)
        known = {"table": table, "y": table["y"], "probabilities": (0.1, 0.9), "confidence": 0.9}
        given = {n: known[n] for n in inspect.signature(function).parameters if n in known}
        return Entry(f"TableModel.{name}", function, lambda _: copy.deepcopy(given))

    for name in ("predict", "predict_proba", "outputs", "evaluate", "summary"):
        yield method(model, name, frame())
    for name in ("predict", "predict_deviation", "predict_interval", "calibrate"):
        yield method(regression, name, {"a": X[:, 0].copy(), "y": X[:, 1].copy()})
    yield Entry("Schema.of", bp.Schema.of, lambda _: {"table": frame()}, lambda schema: schema.encode(frame()))
    yield Entry("Target.of", bp.Target.of, lambda _: {"y": frame()["y"]})
    yield Entry("Schema.restore", bp.Schema.restore, lambda _: {"plain": model().schema.describe()})
    yield Entry("Target.restore", bp.Target.restore, lambda _: {"plain": model().target.describe()})


def of_files() -> Iterator[Entry]:
    """What takes a model elsewhere, where the library for it is there."""
    files = bp.files

    def module() -> Any:
        torch = pytest.importorskip("torch", reason="PyTorch is not installed")
        return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.ReLU(), torch.nn.Linear(5, 3))

    needs: dict[str, str] = {"to_onnx": "onnx", "to_torch_module": "torch", "to_c": "llvmlite", "from_torch": "torch"}
    needs |= {"to_torch": "torch", "from_sklearn": "sklearn"}
    good: dict[str, Callable[[Path], dict[str, Any]]] = {
        "to_onnx": lambda folder: {"model": built(), "path": folder / "model.onnx"},
        "to_torch_module": lambda _: {"model": built()},
        "to_numpy_source": lambda folder: {"model": built(), "path": folder / "model.py"},
        "to_c": lambda folder: {"model": built(), "path": folder / "model", "block": 2},
        "from_torch": lambda _: {"model": built(), "state_dict": module().state_dict()},
        "to_torch": lambda _: {"model": built()},
        "from_keras": lambda _: {"model": built(), "weights": files.to_keras(built())},
        "to_keras": lambda _: {"model": built()},
        "from_sklearn": lambda _: {"mlp": _fitted_by_scikit_learn()},
    }
    for name, arguments in good.items():
        if name not in needs or find_spec(needs[name]):
            yield Entry(f"files.{name}", getattr(files, name), arguments)


@cache
def _fitted_by_scikit_learn() -> Any:
    from sklearn.neural_network import MLPClassifier

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return MLPClassifier((3,), max_iter=2, random_state=0).fit(X, Y)


def of_plots() -> Iterator[Entry]:
    matplotlib = pytest.importorskip("matplotlib", reason="Matplotlib is not installed")
    matplotlib.use("Agg")
    history = bp.History([{"epoch": i, "step": i, "loss": 1.0 / i, "lr": 0.1, "seconds": 0.1} for i in (1, 2, 3)])
    good: dict[str, dict[str, Any]] = {
        "history": {"history": history},
        "network": {"network": NETWORK, "x": X},
        "decision_boundary": {"trainer": bp.Trainer(NETWORK, "cross_entropy").build(X[:, :2]), "x": X[:, :2]},
        "weights": {"trainer": built()},
        "confusion_matrix": {"y": Y, "predicted": Y[::-1].copy()},
        "predictions": {"y": X[:, 0].copy(), "predicted": X[:, 1].copy()},
    }
    for name, arguments in good.items():
        yield Entry(f"plots.{name}", getattr(bp.plots, name), lambda _, given=arguments: dict(given))


def of_estimators() -> Iterator[Entry]:
    pytest.importorskip("sklearn")
    quick = {"hidden_layer_sizes": (3,), "max_iter": 2, "random_state": 0}

    def fit(cls: Any, y: Any) -> Entry:
        def call(**given: Any) -> Any:
            return cls(**{**quick, **given}).fit(X, y)

        return Entry(f"{cls.__name__}(...).fit", bound(call, inspect.signature(cls)), lambda _: {})

    def method(cls: Any, y: Any, name: str) -> Entry:
        def call(**given: Any) -> Any:
            estimator = cls(**quick)
            return getattr(estimator if name.endswith("fit") else estimator.fit(X, y), name)(**given)

        given = {"X": X, "y": y} if name != "predict" else {"X": X}
        given |= {"classes": np.arange(3)} if (cls, name) == (bp.MLPClassifier, "partial_fit") else {}
        function = bound(call, inspect.signature(getattr(cls, name)), 1)
        return Entry(f"{cls.__name__}.{name}", function, lambda _: copy.deepcopy(given))

    for cls, y in ((bp.MLPClassifier, Y), (bp.MLPRegressor, X[:, 0])):
        yield fit(cls, y)
        for name in ("fit", "predict", "score", "partial_fit"):
            yield method(cls, y, name)


SOURCES = (of_catalogue, of_trainer, of_functions, of_tables, of_estimators, of_files, of_plots)
GROUPS = {f.__name__.removeprefix("of_"): f for f in SOURCES}


# ---- the matrix -----------------------------------------------------------------------------------------------------


def image(value: Any) -> Any:
    """What of an input a call could change, for comparison."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.tobytes() if value.dtype != object else value.tolist()
    if isinstance(value, dict):
        return [(key, image(item)) for key, item in value.items()]
    if isinstance(value, list) and not (value and value[0] is value) and not (value and isinstance(value[0], list)):
        return [image(item) for item in value]
    return None


def outcome(entry: Entry, given: dict[str, Any], bad: str) -> tuple[str, str]:
    """Whether the call "works", is "refused", or what is wrong with it; and the text of the error."""
    before = image(given[bad])
    others = {name: image(value) for name, value in given.items() if name != bad}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            warnings.simplefilter("ignore", BpnetWarning)
            with contextlib.suppress(ImportError):
                from sklearn.exceptions import ConvergenceWarning

                warnings.simplefilter("ignore", ConvergenceWarning)
            entry.after(entry.call(given))
        found, text = "works", ""
    except BpnetError as error:
        found, text = "refused", str(error)
        if not isinstance(error, BUILT_IN):
            found = f"{type(error).__name__} is no built-in that a caller would catch"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        if "from a hostile object" in str(error) or given[bad] is int:  # which is called, and raises what it will
            return "refused", ""
        if type(error).__module__.startswith("sklearn.") or _scikit_learns(entry, error):
            return "refused", str(error)
        place = ""
        trace = error.__traceback__
        while trace is not None:
            if "/bpnet/" in trace.tb_frame.f_code.co_filename:
                place = f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
            trace = trace.tb_next
        return f"{type(error).__name__}: {str(error)[:150]} ({place})", ""
    if image(given[bad]) != before or any(image(given[n]) != others[n] for n in others):
        return "modified its input", ""
    unreadable = len(text) > 1200 or "\n" in text or re.search(r"<[\w.]+ object at 0x", text)
    if found == "refused" and unreadable and entry.name != "check_gradients":  # whose error is a report
        return f"an error nobody wants to read: {text[:200]!r} of {len(text)}", ""
    return found, text


def _scikit_learns(entry: Entry, error: BaseException) -> bool:
    """Whether scikit-learn itself refuses what its estimators are given, as it does for all estimators."""
    if "MLP" not in entry.name or not isinstance(error, ValueError | TypeError | RecursionError | Warning):
        return False
    trace, last = error.__traceback__, ""
    while trace is not None:
        last = trace.tb_frame.f_code.co_filename
        if "/sklearn/" in last:
            return True
        trace = trace.tb_next
    return False


@pytest.mark.parametrize("group", GROUPS)
def test_every_argument_is_checked(group: str, soak: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where files of odd names are written
    made = list(GROUPS[group]())
    cases = [
        (entry, name, kind)
        for entry in made
        for name in entry.parameters()
        for kind in CLASSES
        if not (name in REPEATS and kind == "beyond 64 bits")
    ]
    count = min(len(cases), soak.count(len(cases), 150))
    chosen = np.random.default_rng(soak.seed).permutation(len(cases))[:count]
    wrong: dict[str, list[str]] = {}
    counts = {"works": 0, "refused": 0}
    for number in chosen:
        entry, name, kind = cases[number]
        given = entry.good(tmp_path) | {name: CLASSES[kind]()}
        faulthandler.dump_traceback_later(LONGEST, exit=True)
        try:
            found, _ = outcome(entry, given, name)
        finally:
            faulthandler.cancel_dump_traceback_later()
        if found in counts:
            counts[found] += 1
        else:
            wrong.setdefault(f"{entry.name}({name}=...): {found}", []).append(kind)
    soak.record(
        "bad input",
        cases=count,
        failures=[f"{what}, given {kind}" for what, kinds in wrong.items() for kind in kinds],
        detail=f"{group}: {counts['refused']:,} refused, {counts['works']:,} work",
    )


def test_every_public_name_is_an_entry() -> None:
    """A name that is added is tried, too."""
    called = [entry.name.partition("(")[0] for group in GROUPS.values() for entry in group()]
    known = {part for name in called for part in name.split(".")}
    bases = {"Callback", "Composite", "Layer", "Leaf", "Rng", "Run", "Layout", "Loss", "Metric", "Optimizer", "Penalty"}
    bases |= {"ElementwiseLoss", "ElementwiseOptimizer", "RowLoss", "Schedule", "Statistics", "Parametric"}
    results = {"BackendReport", "Inspection", "Summary", "LearningRateCurve", "GradientReport", "reference"}
    outside = {"MLflow", "TensorBoard", "search_table", "check_metrics", "larger_is_better", "total"}
    for module, table in names.PUBLIC.items():
        own = {name for listed in table.values() for name in listed.split()}
        assert own <= known | bases | results | outside, own - known - bases - results - outside
        assert all(hasattr(importlib.import_module(module), name) for name in own)
