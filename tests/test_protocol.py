"""Layers, losses and optimizers of a user's own that don't keep to the protocol: the error names them, the method, and
what is expected, before the first step, on every path."""

import inspect
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from conftest import compiles

import bpnet as bp
from bpnet.errors import ArgumentError, BpnetError, DTypeError, GradientError, ShapeError

X = np.random.default_rng(0).standard_normal((20, 4))
Y = np.arange(20) % 3


@dataclass(frozen=True)
class Scaling(bp.Layer):
    """A right layer, y = s x, of which each test changes one method."""

    def init(self, rng: Any, in_shape: Any) -> Any:
        return {"s": rng.full(in_shape, 1.5)}

    def forward(self, run: Any, p: Any, x: Any) -> Any:
        return x * p["s"], x

    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> Any:
        return dy * p["s"] if need_dx else None, {"s": run.xp.sum(dy * cache, axis=0)}


def grads(run: Any, dy: Any, cache: Any) -> Any:
    return run.xp.sum(dy * cache, axis=0)


def widened(self: Any, run: Any, p: Any, x: Any) -> Any:
    y = x * p["s"]
    return run.xp.concat([y, y], axis=1), x


def narrowed(self: Any, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> Any:
    n = cache.shape[1]
    dy = dy[:, :n] + dy[:, n:]
    return dy * p["s"], {"s": grads(run, dy, cache)}


FORWARD = {
    "only y": (lambda self, run, p, x: x * p["s"], ArgumentError, "forward gave one thing; expected .*return y, cache"),
    "three": (lambda self, run, p, x: (x, x, x), ArgumentError, "forward gave 3 things; expected .*return y, cache"),
    "nothing": (lambda self, run, p, x: None, ArgumentError, "forward gave None; expected the two of .return y, cache"),
    "no array": (lambda self, run, p, x: (x.tolist(), x), ArgumentError, "forward gave an object of type list as y"),
    "flat": (lambda self, run, p, x: (run.xp.reshape(x, (-1,)), x), ShapeError, "forward makes .* expected as"),
    "dropped": (lambda self, run, p, x: (x[:1, :], x), ShapeError, r"forward makes \(1, 4\) of \(2, 4\); exp"),
    "narrow": (lambda self, run, p, x: (x[:, :2], x), ShapeError, r"forward turns rows of \(4,\) into \(2,\), but o"),
    "signature": (lambda self, p, x: (x, x), ArgumentError, r"forward can't be called as forward\(self, run, p, x\)"),
}  # fmt: skip
BACKWARD = {
    "only dx": (lambda s, run, p, c, dy, need_dx=True: dy * p["s"], ArgumentError,
                "backward gave one thing; expected the two of .return dx, grads"),
    "three": (lambda s, run, p, c, dy, need_dx=True: (dy, c, {}), ArgumentError, "backward gave 3 things; expected"),
    "nothing": (lambda s, run, p, c, dy, need_dx=True: None, ArgumentError, "backward gave None; expected the two"),
    "array": (lambda s, run, p, c, dy, need_dx=True: (dy, grads(run, dy, c)), ArgumentError,
              "backward gave an object of type ndarray as grads; expected a dict of arrays by name"),
    "missing": (lambda s, run, p, c, dy, need_dx=True: (dy, {}), ShapeError, "backward gave no gradient for s"),
    "unknown": (lambda s, run, p, c, dy, need_dx=True: (dy, {"s": grads(run, dy, c), "t": dy}), ShapeError,
                "backward gave a gradient for t, which is no trainable parameter: they are s"),
    "rows": (lambda s, run, p, c, dy, need_dx=True: (dy, {"s": dy * c}), ShapeError,
             r"the gradient of s has the shape \(2, 4\); expected \(4,\)"),
    "number": (lambda s, run, p, c, dy, need_dx=True: (dy, {"s": 1.0}), ShapeError,
               r"the gradient of s is of type float; expected \(4,\)"),
    "dx": (lambda s, run, p, c, dy, need_dx=True: (dy[:, :1], {"s": grads(run, dy, c)}), ShapeError,
           r"dx has the shape \(2, 1\); expected that of x, \(2, 4\)"),
    "no dx": (lambda s, run, p, c, dy, need_dx=True: (None, {"s": grads(run, dy, c)}), ShapeError,
              "backward gave None for dx although need_dx was True"),
    "without dx": (lambda s, run, p, c, dy, need_dx=True: (dy, {"s": grads(run, dy, c)} if need_dx else {}),
                   ShapeError, "with need_dx=False: backward gave no gradient for s"),
    "signature": (lambda s, run, p, c, dy: (dy, {"s": dy}), ArgumentError,
                  r"can't be called as backward\(self, run, p, cache, dy, need_dx=True\): too many positional"),
}  # fmt: skip
OTHER = {
    "out_shape": ({"out_shape": lambda self, in_shape: 4}, ArgumentError, "out_shape gave 4; expected a tuple of"),
    "out_shape array": ({"out_shape": lambda self, in_shape: np.array([4])}, ArgumentError, "out_shape gave array"),
    "out_shape none": ({"out_shape": lambda self, in_shape: None}, ArgumentError, "out_shape gave None; expec"),
    "init": ({"init": lambda self, rng, in_shape: None}, ArgumentError, "init gave None; exp"),
    "wide": ({"forward": widened, "backward": narrowed}, ShapeError,
             r"forward turns rows of \(4,\) into \(8,\), but out_shape says \(4,\): define out_shape"),
    "update_buffers": (
        {"init": lambda self, rng, s: {"s": rng.full(s, 1.0), "b": bp.Leaf(rng.full(s, 0.0), trainable=False)},
         "update_buffers": lambda self, run, p, cache: {"b": p["b"][:1]}}, ShapeError,
        r"the buffer b has the shape \(1,\) in update_buffers; expected \(4,\)"),
    "update_buffers nothing": (
        {"init": lambda self, rng, s: {"s": rng.full(s, 1.0), "b": bp.Leaf(rng.full(s, 0.0), trainable=False)},
         "update_buffers": lambda self, run, p, cache: None}, ArgumentError, "update_buffers gave None; exp"),
}  # fmt: skip
WRONG: dict[str, Any] = {f"forward, {k}": ({"forward": v[0]}, *v[1:]) for k, v in FORWARD.items()}
WRONG |= {f"backward, {k}": ({"backward": v[0]}, *v[1:]) for k, v in BACKWARD.items()} | OTHER


def wrong(methods: dict[str, Any]) -> bp.Layer:
    return dataclass(frozen=True)(type("Unkept", (Scaling,), methods))()


@pytest.mark.parametrize("name", WRONG)
def test_what_a_method_gives_wrongly_is_named(name: str) -> None:
    methods, error, pattern = WRONG[name]
    layer = wrong(methods)
    network = bp.Sequential(bp.Dense(4), bp.Residual(bp.Sequential("tanh", layer)), bp.Dense(3))
    full = rf"^(layer '1\.inner\.1', )?Unkept\(\).*{pattern}"
    calls: list[Any] = [
        lambda: bp.Trainer(network, "cross_entropy").build(X),
        lambda: bp.Trainer(network, "cross_entropy").step(X[:2], Y[:2]),
        lambda: bp.Trainer(network, "cross_entropy").fit(X, Y, progress=False),
        lambda: bp.value_and_grad(network, "cross_entropy", np.zeros(39), X, Y),
    ]
    for call in calls:
        with pytest.raises(error, match=full) as caught:
            call()
        assert isinstance(caught.value, BpnetError)
    for subject in (layer, network):
        with pytest.raises((GradientError, error), match=pattern):
            bp.check_gradients(subject, X)


def test_the_same_on_every_library(backend: Any) -> None:
    x, y = backend.array(X), backend.array(Y)
    for name in ("forward, only y", "backward, only dx", "wide"):
        methods, error, pattern = WRONG[name]
        with pytest.raises(error, match=pattern):
            bp.Trainer(bp.Sequential(wrong(methods), bp.Dense(3)), "cross_entropy").step(x, y)
    network = bp.Sequential(Scaling(), bp.Dense(3))
    assert np.isfinite(float(bp.Trainer(network, "cross_entropy").step(x, y)))


def test_a_layer_that_wants_other_rows_than_two_is_left_in_peace() -> None:
    @dataclass(frozen=True)
    class ByFours(Scaling):
        """Wants rows by fours."""

        couples_rows = True

        def forward(self, run: Any, p: Any, x: Any) -> Any:
            return run.xp.reshape(run.xp.reshape(x, (-1, 4, 4)) * p["s"], x.shape), x

    trainer = bp.Trainer(bp.Sequential(ByFours(), bp.Dense(3)), "cross_entropy")
    assert np.isfinite(float(trainer.step(X, Y)))


def test_what_is_not_trained_is_a_buffer(backend: Any) -> None:
    @dataclass(frozen=True)
    class Frozen(bp.Dense):
        trainable = False

    @dataclass(frozen=True)
    class Fixed(Frozen):
        def init(self, rng: Any, in_shape: Any) -> Any:
            return {name: bp.Leaf(value, trainable=False) for name, value in super().init(rng, in_shape).items()}

        def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> Any:
            return super().backward(run, p, cache, dy, need_dx)[0], {}

    x, y = backend.array(X), backend.array(Y)
    for layers in ((Frozen(5), bp.Dense(3)), (bp.Dense(4), Frozen(5), bp.Dense(3))):
        pattern = r"Frozen\(.*: trainable is False, but init gives weight, bias to be trained; expected Leaf"
        with pytest.raises(ArgumentError, match=pattern):
            bp.Trainer(bp.Sequential(*layers), "cross_entropy").step(x, y)
    trainer = bp.Trainer(bp.Sequential(Fixed(5), bp.Dense(3)), "cross_entropy").build(x)
    before, buffers = backend.host(trainer.theta).copy(), backend.host(trainer.buffers).copy()
    trainer.step(x, y)
    np.testing.assert_array_equal(backend.host(trainer.buffers), buffers)
    assert trainer.layout.size == 18
    assert np.all(backend.host(trainer.theta) != before)


def test_an_error_within_a_users_method_stays_the_users() -> None:
    def forward(self: Any, run: Any, p: Any, x: Any) -> Any:
        raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        bp.Trainer(bp.Sequential(wrong({"forward": forward}), bp.Dense(3)), "cross_entropy").step(X, Y)


def test_trying_costs_nothing_in_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    @dataclass(frozen=True)
    class CountedScaling(Scaling):
        def forward(self, run: Any, p: Any, x: Any) -> Any:
            calls.append(x.shape[0])
            return super().forward(run, p, x)

    compiles(monkeypatch, False)
    trainer = bp.Trainer(bp.Sequential(CountedScaling(), bp.Dense(3)), "cross_entropy").build(X)
    assert set(calls) == {2}
    calls.clear()
    for _ in range(3):
        trainer.step(X, Y)
    assert calls == [20] * 3


def test_each_method_is_tried_once_and_a_large_layer_is_not() -> None:
    calls = []

    @dataclass(frozen=True)
    class Product(bp.Layer):
        units: int

        def out_shape(self, in_shape: Any) -> Any:
            return (self.units,)

        def init(self, rng: Any, in_shape: Any) -> Any:
            return {"w": rng.normal((*in_shape, self.units), 0.1)}

        def forward(self, run: Any, p: Any, x: Any) -> Any:
            calls.append(("forward", str(x.dtype), str(p["w"].dtype)))
            return x @ p["w"], x

        def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> Any:
            calls.append(("backward", str(dy.dtype), need_dx))
            return dy @ p["w"].T if need_dx else None, {"w": cache.T @ dy}

    x = X.astype(np.float32)
    bp.Trainer(bp.Sequential(Product(5), bp.Dense(3)), "cross_entropy").build(x)
    assert calls == [("forward", "float32", "float32"), ("backward", "float32", True), ("backward", "float32", False)]
    calls.clear()
    bp.Trainer(bp.Sequential(Product(250_000), bp.Dense(3)), "cross_entropy").build(x)
    assert calls == []


HALF = np.float64(0.5)
PROMOTING: dict[str, Any] = {
    "output": {"forward": lambda self, run, p, x: (x * p["s"] * HALF, x)},
    "dx": {"backward": lambda s, run, p, c, dy, need_dx=True: (dy * HALF, {"s": grads(run, dy, c)})},
    "gradient of s": {"backward": lambda s, run, p, c, dy, need_dx=True: (dy, {"s": grads(run, dy, c) * HALF})},
}


@pytest.mark.parametrize("name", PROMOTING)
def test_a_promotion_to_float64_is_named_where_numpy_makes_one(name: str) -> None:
    layer, x = wrong(PROMOTING[name]), X.astype(np.float32)
    network = bp.Sequential(bp.Dense(4), layer, bp.Dense(3))
    with pytest.raises(DTypeError, match=rf"^layer '1', Unkept\(\): the {name} is float64 where x and the parameters"):
        bp.Trainer(network, "cross_entropy").step(x, Y)
    assert np.isfinite(float(bp.Trainer(network, "cross_entropy").step(X, Y)))
    torch = pytest.importorskip("torch")  # to which NumPy's numbers are Python's
    step = bp.Trainer(network, "cross_entropy").step(torch.asarray(x), torch.asarray(Y))
    assert step.dtype == torch.float32


def test_a_method_without_a_signature_is_called_as_it_is() -> None:
    class Compiled:
        """As a method written in C may be: it tells nobody what it takes."""

        @property
        def __signature__(self) -> Any:
            raise ValueError("no signature found")

        def __get__(self, layer: Any, kind: Any = None) -> Any:
            return self

        def __call__(self, in_shape: Any) -> Any:
            return in_shape

    with pytest.raises(ValueError, match="no signature found"):
        inspect.signature(Compiled())
    network = bp.Sequential(wrong({"out_shape": Compiled()}), bp.Dense(3))
    assert np.isfinite(float(bp.Trainer(network, "cross_entropy").step(X, Y)))


@dataclass(frozen=True)
class NoBackward(bp.Layer):
    def forward(self, run: Any, p: Any, x: Any) -> Any:
        return x, None


@dataclass(frozen=True)
class NoForward(bp.Layer):
    def backward(self, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> Any:
        return dy, {}


@dataclass(frozen=True)
class _NoDerivative(bp.Activation):
    def value(self, b: Any, z: Any) -> Any:
        return z


@dataclass(frozen=True)
class NoChildren(bp.Composite):
    forward = NoBackward.forward
    backward = NoForward.backward


@dataclass(frozen=True)
class NoCall(bp.Loss):
    pass


@dataclass(frozen=True)
class NoRate(bp.Schedule):
    pass


@pytest.mark.parametrize(
    ("call", "pattern"),
    [
        (lambda: bp.Sequential(NoBackward(), bp.Dense(3)), "the layer NoBackward has no backward: define it"),
        (lambda: bp.Trainer(NoForward(), "mse"), "the layer NoForward has no forward: define it, as Layer says"),
        (lambda: bp.check_gradients(NoBackward(), X), "the layer NoBackward has no backward: define it, as Layer says"),
        (lambda: bp.Dense(3, _NoDerivative()), "the layer _NoDerivative has no derivative: define it, as Activa"),
        (lambda: bp.Residual(NoChildren()), "the layer NoChildren has no children: define it, as Composite says"),
        (lambda: bp.Trainer(bp.Dense(3), NoCall()), "the loss NoCall has no __call__: define it, as Loss says"),
        (lambda: bp.SGD(NoRate()), "the schedule NoRate has no __call__: define it, as Schedule says"),
    ],
)  # fmt: skip
def test_a_method_that_is_missing_is_named(call: Any, pattern: str) -> None:
    with pytest.raises(ArgumentError, match=pattern):
        call()


# ---- losses ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Squares(bp.Loss):
    """A loss with a planted mistake."""

    mistake: str = "none"

    def __call__(self, run: Any, output: Any, target: Any, weight: Any, total: Any) -> Any:
        error = output - target
        value, slope = run.xp.sum(error * error) / total, 2.0 * error / total
        return {
            "none": (value, slope),
            "slope": (value, error / total),
            "one": value,
            "values": (error * error, slope),
            "summed": (value, run.xp.sum(slope, axis=1)),
            "total": (value * (total / output.shape[0]), slope),
            "coupled": (value - run.xp.sum(run.xp.mean(output, axis=0)), slope),
        }[self.mistake]


@pytest.mark.parametrize(
    ("mistake", "error", "pattern"),
    [
        ("one", ArgumentError, r"Squares\(mistake='one'\) gave one thing; expected the two of .return value, d_output"),
        ("values", ShapeError, r"Squares\(mistake='values'\): the value has the shape \(2, 3\); expected \(\)"),
        ("summed", ShapeError, r"d_output has the shape \(2,\); expected that of the output, \(2, 3\)"),
    ],
)
def test_what_a_loss_gives_wrongly_is_named(mistake: str, error: Any, pattern: str) -> None:
    loss, y = Squares(mistake), X[:, :3]
    with pytest.raises(error, match=pattern):
        bp.Trainer(bp.Dense(3), loss).step(X, y)
    with pytest.raises(error, match=pattern):
        bp.value_and_grad(bp.Dense(3), loss, np.zeros(15), X, y)
    with pytest.raises(GradientError, match=pattern.replace("2,", r"\d+,")):
        bp.check_gradients(bp.Dense(3), X, y, loss=loss)


@pytest.mark.parametrize("mistake", ["total", "coupled"])
def test_a_loss_that_is_no_sum_over_rows_is_named(mistake: str) -> None:
    """Which threads, micro-batches and ranks would add up wrongly."""
    with pytest.raises(ArgumentError, match=r"of two rows it gave .*; expected a sum over rows, divided by total"):
        bp.Trainer(bp.Dense(3), Squares(mistake)).step(X, X[:, :3])


def test_a_loss_that_takes_labels_only_is_tried_with_labels(backend: Any) -> None:
    @dataclass(frozen=True)
    class OfLabels(bp.Loss):
        labels = True

        def __call__(self, run: Any, output: Any, target: Any, weight: Any, total: Any) -> Any:
            xp = run.xp
            hot = xp.expand_dims(target, axis=1) == xp.arange(output.shape[1], dtype=target.dtype)
            error = output - xp.astype(hot, output.dtype)
            return xp.sum(error * error) / total, 2.0 * error / total

    x, y = backend.array(X), backend.array(Y)
    theta = backend.array(np.zeros(15))
    value, gradient = bp.value_and_grad(bp.Dense(3), OfLabels(), theta, x, y)
    error = -(Y[:, None] == np.arange(3)).astype(float)
    expected = np.concatenate([(X.T @ error).reshape(-1), error.sum(axis=0)]) * 2.0 / 20.0
    assert float(value) == pytest.approx(1.0)
    np.testing.assert_allclose(backend.host(gradient), expected, rtol=1e-5, atol=1e-6)
    assert float(bp.Trainer(bp.Dense(3), OfLabels()).step(x, y)) > 0.0


def test_a_wrong_loss_is_told_from_a_wrong_layer() -> None:
    network, y = bp.Sequential(Scaling(), bp.Dense(3)), X[:, :3]
    assert bp.check_gradients(network, X, y, loss=Squares()).ok
    assert np.isfinite(float(bp.Trainer(network, Squares()).step(X, y)))
    with pytest.raises(GradientError) as caught:
        bp.check_gradients(network, X, y, loss=Squares("slope"))
    text = str(caught.value)
    assert text.startswith("WRONG: derivatives of the loss Squares(mistake='slope')")
    assert "weight" not in text
    assert "Dense" not in text

    def backward(self: Any, run: Any, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> Any:
        return dy * p["s"], {"s": 2.0 * grads(run, dy, cache)}

    with pytest.raises(GradientError) as caught:
        bp.check_gradients(bp.Sequential(wrong({"backward": backward}), bp.Dense(3)), X, y, loss=Squares())
    assert str(caught.value).startswith("WRONG: derivatives of Sequential(Unkept()")
    assert "the loss" not in str(caught.value)


@dataclass(frozen=True)
class _Descends(bp.ElementwiseOptimizer):
    """Gradient descent with a planted mistake."""

    mistake: str = "none"
    lr: float = 0.1

    state_names = ("last gradient",)

    def elementwise(self, b: Any, theta: Any, last: Any, grad: Any, lr: Any) -> Any:
        moved = theta - lr * grad
        return {
            "none": (moved, grad),
            "no tuple": moved,
            "no state": (moved,),
            "sum": (moved, b.xp.sum(grad)),
            "double": (moved * np.ones(1), grad),
        }[self.mistake]


@dataclass(frozen=True)
class _Updates(_Descends):
    def update(self, backend: Any, layout: Any, theta: Any, grad: Any, state: Any, *args: Any, **options: Any) -> Any:
        moved = theta - self.lr * grad
        made = {"none": (moved, (grad,)), "one": moved, "short": (moved[:-1], (grad,))}
        return made[self.mistake]


@pytest.mark.parametrize(
    ("optimizer", "error", "pattern"),
    [
        (
            _Descends("no tuple"),
            ArgumentError,
            r"gave no tuple; expected the tuple \(theta, last gradient,\)",
        ),
        (
            _Descends("no state"),
            ArgumentError,
            r"gave 1 thing; expected the tuple \(theta, last gradient,\)",
        ),
        (_Descends("sum"), ShapeError, r"Descends\(.*\): state 0 has the shape \(\) after a step; expected \(9,\)"),
        (_Descends("double"), DTypeError, r"the theta is float64 where x and the parameters are float32"),
        (_Updates("one"), ArgumentError, r"update gave one thing; expected the two of .return theta, state"),
        (_Updates("short"), ShapeError, r"theta has the shape \(8,\) after a step; expected \(9,\)"),
    ],
)
def test_what_an_optimizer_gives_wrongly_is_named(optimizer: Any, error: Any, pattern: str) -> None:
    x = X.astype("float32")
    with pytest.raises(error, match=pattern):
        bp.Trainer(bp.Dense(3), "mse", optimizer).step(x, x[:, :3])
    bp.Trainer(bp.Dense(3), "mse", type(optimizer)()).step(x, x[:, :3])
