"""`check_gradients` finds planted errors and reports them readably; `gradient` is what it says, whole or in blocks."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import ArgumentError, ArrayMismatchError, DataError, DTypeError, GradientError, ShapeError

X = np.random.default_rng(0).standard_normal((6, 4))


@dataclass(frozen=True)
class Affine(bp.Layer):
    """y = tanh(x W + b): right as it stands; the classes below each plant one error."""

    def init(self, rng, in_shape):
        n = in_shape[-1]
        return {"weight": rng.normal((n, n), 0.5), "bias": rng.full((n,), 0.0)}

    def forward(self, run, p, x):
        y = run.xp.tanh(run.xp.matmul(x, p["weight"]) + p["bias"])
        return y, (x, y)

    def backward(self, run, p, cache, dy, need_dx=True):
        x, y = cache
        dz = dy * (1.0 - y * y)
        grads = {"weight": run.xp.matmul(x.T, dz), "bias": run.xp.sum(dz, axis=0)}
        return run.xp.matmul(dz, p["weight"].T) if need_dx else None, grads


def planted(change):
    """A layer like Affine, of which `change(dx, grads, p, cache, dy)` spoils what backward gives."""

    @dataclass(frozen=True)
    class Wrong(Affine):
        def backward(self, run, p, cache, dy, need_dx=True):
            dx, grads = super().backward(run, p, cache, dy, need_dx)
            return change(dx, grads, p, cache, dy)

    return Wrong()


def times(factor):
    return lambda a: None if a is None else a * factor


def slope(cache, dy):
    return dy * (1.0 - cache[1] ** 2)


def set_one(a, value):
    a = a.copy()
    a[0, 1] = value
    return a


def spoil_dy(dx, grads, p, cache, dy):
    dy *= 2.0
    return dx, grads


def spoil_x(dx, grads, p, cache, dy):
    cache[0][...] = 0.0
    return dx, grads


PLANTED = {  # what is wrong, and words of the report
    "dx doubled": (lambda dx, g, p, c, dy: (times(2.0)(dx), g), "WRONG x"),
    "dx of the other sign": (lambda dx, g, p, c, dy: (times(-1.0)(dx), g), "WRONG x"),
    "dx of zero": (lambda dx, g, p, c, dy: (times(0.0)(dx), g), "WRONG x"),
    "dx off by 1 in 10,000": (lambda dx, g, p, c, dy: (times(1.0001)(dx), g), "WRONG x"),
    "dx of the weight untransposed": (lambda dx, g, p, c, dy: (slope(c, dy) @ p["weight"], g), "WRONG x"),
    "dx that forgets the activation": (lambda dx, g, p, c, dy: (dy @ p["weight"].T, g), "WRONG x"),
    "dx wrong in one entry": (lambda dx, g, p, c, dy: (None if dx is None else set_one(dx, 3.0), g), "entry 1"),
    "dx not a number": (lambda dx, g, p, c, dy: (times(np.nan)(dx), g), "nan"),
    "dx missing": (lambda dx, g, p, c, dy: (None, g), "gave None for dx"),
    "dx of two rows": (lambda dx, g, p, c, dy: (None if dx is None else dx[:2], g), "dx has the shape (2, 4)"),
    "weight transposed": (lambda dx, g, p, c, dy: (dx, g | {"weight": g["weight"].T}), "WRONG weight"),
    "weight averaged over rows": (lambda dx, g, p, c, dy: (dx, g | {"weight": g["weight"] / 5}), "WRONG weight"),
    "weight wrong in one entry": (lambda dx, g, p, c, dy: (dx, g | {"weight": set_one(g["weight"], 0.0)}), "entry 1"),
    "bias averaged over rows": (lambda dx, g, p, c, dy: (dx, g | {"bias": g["bias"] / 5}), "WRONG bias"),
    "bias of one row": (lambda dx, g, p, c, dy: (dx, g | {"bias": slope(c, dy)[0]}), "WRONG bias"),
    "bias kept as a row": (lambda dx, g, p, c, dy: (dx, g | {"bias": g["bias"][None, :]}), "the shape (1, 4)"),
    "bias missing": (lambda dx, g, p, c, dy: (dx, {"weight": g["weight"]}), "no gradient for bias"),
    "one too many": (lambda dx, g, p, c, dy: (dx, g | {"scale": g["bias"]}), "scale, which is no trainable parameter"),
    "another without dx": (lambda dx, g, p, c, dy: (dx, {"weight": g["weight"]} if dx is None else g), "need_dx=False"),
    "dy written to": (spoil_dy, "modified its input dy"),
    "x written to": (spoil_x, "modified its input x"),
}  # fmt: skip


def test_a_right_derivative_passes():
    report = bp.check_gradients(Affine(), X)
    assert report.ok
    assert not report.faults
    assert {c.name for c in report.checks} == {"x", "weight", "bias"}
    assert all(c.error < 1e-7 for c in report.checks)
    assert str(report).startswith("correct: derivatives of Affine()")


@pytest.mark.parametrize("error", PLANTED)
def test_a_planted_error_is_found_and_named(error):
    change, words = PLANTED[error]
    with pytest.raises(GradientError, match=r"^WRONG") as caught:
        bp.check_gradients(planted(change), X)
    assert words in str(caught.value)


@dataclass(frozen=True)
class Twins(bp.Layer):
    """y = factor x + offset: two parameters of one shape, whose gradients are given the other way round `when` so."""

    when: str

    def init(self, rng, in_shape):
        return {"factor": rng.full(in_shape, 1.0), "offset": rng.full(in_shape, 0.0)}

    def forward(self, run, p, x):
        return x * p["factor"] + p["offset"], x

    def backward(self, run, p, cache, dy, need_dx=True):
        grads = run.xp.sum(dy * cache, axis=0), run.xp.sum(dy, axis=0)
        if self.when == "always" or (self.when == "without dx" and not need_dx):
            grads = grads[::-1]
        return dy * p["factor"] if need_dx else None, {"factor": grads[0], "offset": grads[1]}


def test_gradients_in_each_others_place_are_found(backend):
    x = backend.array(X)
    assert bp.check_gradients(Twins("never"), x, directions=1).ok
    with pytest.raises(GradientError, match="WRONG factor") as caught:
        bp.check_gradients(Twins("always"), x, directions=1)
    assert "WRONG offset" in str(caught.value)
    with pytest.raises(GradientError, match="gradient of factor is another with need_dx=False"):
        bp.check_gradients(Twins("without dx"), x, directions=1)


@pytest.mark.parametrize("error", ["dx doubled", "dx that forgets the activation", "weight transposed", "bias missing"])
def test_an_error_deep_in_a_network_is_found(error):
    net = bp.Sequential(bp.Dense(4, "tanh"), bp.Residual(planted(PLANTED[error][0])), bp.Dense(2))
    with pytest.raises(GradientError):
        bp.check_gradients(net, X)


@dataclass(frozen=True)
class WritesToX(Affine):
    def forward(self, run, p, x):
        x *= 2.0
        return super().forward(run, p, x)

    def backward(self, run, p, cache, dy, need_dx=True):
        dx, grads = super().backward(run, p, cache, dy, need_dx)
        return times(2.0)(dx), grads


@dataclass(frozen=True)
class WritesToParameters(Affine):
    def backward(self, run, p, cache, dy, need_dx=True):
        result = super().backward(run, p, cache, dy, need_dx)
        p["weight"][...] = 0.0
        return result


@pytest.mark.parametrize("layer", [WritesToX(), WritesToParameters()])
def test_a_layer_that_writes_to_what_it_is_given_is_found(layer):
    with pytest.raises(GradientError, match="modified"):
        bp.check_gradients(layer, X)


def test_the_report_names_leaf_entry_and_numbers():
    wrong = planted(lambda dx, g, p, c, dy: (dx, g | {"weight": set_one(g["weight"], 100.0)}))
    with pytest.raises(GradientError) as caught:
        bp.check_gradients(wrong, X)
    lines = str(caught.value).splitlines()
    marks = {line.split()[1]: line.split()[0] for line in lines[2:] if "random" in line}
    assert marks == {"x": "ok", "weight": "WRONG", "bias": "ok"}
    (worst,) = [line for line in lines if "entry" in line]
    assert "entry 1 " in worst
    assert "1.00000000e+02" in worst


@dataclass(frozen=True)
class Curved(bp.Activation):
    """y = x**3 / 3 for x > 0, else x: wrong on one side only where `wrong`."""

    wrong: bool

    saves = "input"

    def value(self, b, z):
        return b.xp.where(z > 0.0, z * z * z / 3.0, z)

    def derivative(self, b, kept, dy):
        return dy * b.xp.where(kept > 0.0, kept * kept, 0.9 if self.wrong else 1.0)


def test_an_error_on_one_side_of_a_kink_is_found():
    assert bp.check_gradients(Curved(False), X).ok
    assert bp.check_gradients(bp.Dense(3, Curved(False)), X).ok
    with pytest.raises(GradientError):
        bp.check_gradients(Curved(True), X)
    assert bp.check_gradients(Curved(True), np.abs(X)).ok
    with pytest.raises(GradientError):
        bp.check_gradients(bp.Dense(3, Curved(True)), X)


@dataclass(frozen=True)
class RowsForgotten(bp.BatchNorm):
    """Batch normalization whose derivative takes mean and variance for constants."""

    def backward(self, run, p, cache, dy, need_dx=True):
        _, grads = super().backward(run, p, cache, dy, True)
        return dy * p["scale"] * cache[-1] if need_dx else None, grads


def test_coupled_rows_that_are_forgotten_are_found():
    assert bp.check_gradients(RowsForgotten(), X, training=False).ok
    with pytest.raises(GradientError):
        bp.check_gradients(RowsForgotten(), X)


@dataclass(frozen=True)
class Unmasked(bp.Dropout):
    def backward(self, run, p, cache, dy, need_dx=True):
        return dy if need_dx else None, {}


def test_a_mask_that_is_forgotten_is_found():
    assert bp.check_gradients(Unmasked(0.5), X, training=False).ok
    with pytest.raises(GradientError):
        bp.check_gradients(Unmasked(0.5), X)


@dataclass(frozen=True)
class HalfSquares(bp.Loss):
    """A loss whose slope forgets the factor 2."""

    def __call__(self, run, output, target, weight, total):
        error = output - target
        return run.xp.sum(error * error) / total, error / total


def test_a_wrong_loss_is_found():
    assert bp.check_gradients(bp.Dense(2), X, X[:, :2], loss="mse").ok
    with pytest.raises(GradientError):
        bp.check_gradients(bp.Dense(2), X, X[:, :2], loss=HalfSquares())


def test_on_every_library(backend):
    x, y = backend.array(X), backend.array(np.array([0, 1, 2, 0, 3, 1]))
    assert bp.check_gradients(bp.Sequential(Affine(), bp.Dropout(0.2)), x, y, loss="cross_entropy", directions=1).ok
    wrong = planted(lambda dx, g, p, c, dy: (dx, g | {"bias": g["bias"] * 2.0}))
    with pytest.raises(GradientError, match="bias"):
        bp.check_gradients(wrong, x, directions=1)


def test_single_precision_input_is_checked_in_double():
    assert bp.check_gradients(bp.Dense(3, "tanh"), X.astype(np.float32)).ok


def test_y_without_a_loss_is_refused():
    with pytest.raises(ArgumentError):
        bp.check_gradients(bp.Dense(2), X, X[:, :2])


# ---- bp.value_and_grad ----------------------------------------------------------------------------------------------

NET = bp.Sequential(bp.Dense(4, "tanh"), bp.Residual(bp.Dense(4, "gelu")), bp.Dense(3))
LABELS = np.array([0, 2, 1, 1, 0, 2])
THETA, _ = bp.layout_of(NET, (4,)).start(0)
WEIGHT = np.array([1.0, 0.5, 2.0, 0.0, 3.0, 1.5])


@pytest.mark.parametrize("weight", [None, WEIGHT], ids=["unweighted", "weighted"])
def test_gradient_of_a_network_as_pytorch(weight):
    torch = pytest.importorskip("torch")
    f = torch.nn.functional
    leaves = {
        name: {k: torch.tensor(v, requires_grad=True) for k, v in p.items()}
        for name, p in (("0", tree()["0"]), ("1", tree()["1"]["inner"]), ("2", tree()["2"]))
    }
    h = torch.tanh(torch.tensor(X) @ leaves["0"]["weight"] + leaves["0"]["bias"])
    h = h + f.gelu(h @ leaves["1"]["weight"] + leaves["1"]["bias"])
    out = h @ leaves["2"]["weight"] + leaves["2"]["bias"]
    rows = f.cross_entropy(out, torch.tensor(LABELS), reduction="none")
    by_row = torch.ones(6, dtype=torch.float64) if weight is None else torch.tensor(weight)
    loss = (rows * by_row).sum() / by_row.sum()
    loss.backward()
    value, grad = bp.value_and_grad(NET, "cross_entropy", THETA, X, LABELS, sample_weight=weight)
    np.testing.assert_allclose(value, loss.item(), rtol=1e-13)
    got = bp.layout_of(NET, (4,)).views(bp.backends.get("numpy"), grad)
    for name, mine in (("0", got["0"]), ("1", got["1"]["inner"]), ("2", got["2"])):
        for key, tensor in leaves[name].items():
            expected = tensor.grad.numpy()
            np.testing.assert_allclose(mine[key], expected, rtol=1e-12, atol=1e-12 * np.max(np.abs(expected)))


def tree():
    return bp.layout_of(NET, (4,)).views(bp.backends.get("numpy"), THETA)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_gradient_on_every_library(backend, dtype):
    arrays = [a.astype(dtype) for a in (THETA, X)]
    given = [backend.array(a) for a in arrays]
    value, grad = bp.value_and_grad(NET, "cross_entropy", *given, backend.array(LABELS))
    expected = bp.value_and_grad(NET, "cross_entropy", *map(np.float64, arrays), LABELS)
    backend.close(value, expected[0])
    backend.close(grad, expected[1])
    assert backend.dtype(value) == backend.dtype(grad) == dtype
    assert backend.seam.device(grad) == backend.seam.device(given[0])
    for a, before in zip(given, arrays, strict=True):
        np.testing.assert_array_equal(backend.host(a), before)


def test_gradient_stays_on_the_device_of_the_input(library):
    lib = library("strict-device")
    x = lib.array(X)
    value, grad = bp.value_and_grad(NET, "cross_entropy", lib.array(THETA), x, lib.array(LABELS))
    assert lib.seam.device(value) == lib.seam.device(grad) == lib.seam.device(x)


def test_gradient_of_many_rows_is_the_sum_over_blocks():
    """Enough rows that NumPy cuts them into blocks; a network that couples rows is never cut."""
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((9000, 40)), rng.standard_normal((9000, 30))
    net = bp.Sequential(bp.Dense(50, "tanh"), bp.Dense(30))
    seam, layout = bp.backends.get("numpy"), bp.layout_of(net, (40,))
    theta = layout.start(0)[0]
    assert len(seam.blocks(9000, 6.0 * layout.size)) > 2
    value, grad = bp.value_and_grad(net, "mse", theta, x, y)
    parts = [bp.value_and_grad(net, "mse", theta, x[i : i + 1000], y[i : i + 1000]) for i in range(0, 9000, 1000)]
    np.testing.assert_allclose(value, np.mean([v for v, _ in parts]), rtol=1e-13)
    mean = np.mean([g for _, g in parts], axis=0)
    np.testing.assert_allclose(grad, mean, rtol=1e-10, atol=1e-14)


def test_gradient_without_training_leaves_dropout_out():
    net = bp.Sequential(bp.Dropout(0.5), bp.Dense(2))
    theta = bp.layout_of(net, (4,)).start(0)[0]
    plain = bp.value_and_grad(bp.Sequential(bp.Dropout(0.0), bp.Dense(2)), "mse", theta, X, X[:, :2])
    still = bp.value_and_grad(net, "mse", theta, X, X[:, :2], training=False)
    np.testing.assert_array_equal(still[1], plain[1])
    first, again, other = (bp.value_and_grad(net, "mse", theta, X, X[:, :2], seed=s)[1] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_gradient_takes_buffers_and_does_not_move_them():
    net = bp.Sequential(bp.BatchNorm(), bp.Dense(2))
    theta, buffers = bp.layout_of(net, (4,)).start(0)
    before = buffers.copy()
    bp.value_and_grad(net, "mse", theta, X, X[:, :2], buffers=buffers)
    np.testing.assert_array_equal(buffers, before)
    with pytest.raises(ShapeError, match="buffers"):
        bp.value_and_grad(net, "mse", theta, X, X[:, :2])


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"theta": THETA[:-1]}, ShapeError),
        ({"theta": THETA.astype(np.float32)}, DTypeError),
        ({"theta": list(THETA)}, ArrayMismatchError),
        ({"x": X[0]}, ShapeError),
        ({"x": X * np.inf}, DataError),
        ({"y": LABELS[:-1]}, ShapeError),
        ({"y": LABELS + 1}, DataError),
        ({"sample_weight": WEIGHT[:2]}, ShapeError),
        ({"sample_weight": -WEIGHT}, DataError),
    ],
)
def test_gradient_refuses_what_does_not_fit(changed, error):
    good = {"theta": THETA, "x": X, "y": LABELS}
    with np.errstate(invalid="ignore"), pytest.raises(error):
        bp.value_and_grad(NET, "cross_entropy", **{**good, **changed})


@dataclass(frozen=True)
class Centred(bp.Layer):
    """Takes the mean over the rows off, and does not say that it couples them."""

    def forward(self, run, p, x):
        return x - run.xp.mean(x, axis=0), None

    def backward(self, run, p, cache, dy, need_dx=True):
        return dy - run.xp.mean(dy, axis=0), {}


@dataclass(frozen=True)
class Doubled(bp.Layer):
    """Makes float64 of float32."""

    def forward(self, run, p, x):
        return run.xp.astype(x, run.xp.float64) * 2.0, None

    def backward(self, run, p, cache, dy, need_dx=True):
        return dy * 2.0, {}


@pytest.mark.parametrize(
    ("layer", "said"), [(Centred(), "set couples_rows = True"), (Doubled(), "output is .*float64")]
)
def test_what_differences_cannot_see_is_found_too(layer, said):
    with pytest.raises(GradientError, match=said):
        bp.check_gradients(layer, np.random.default_rng(0).standard_normal((6, 3)))


@dataclass(frozen=True)
class Twice(bp.Layer):
    """y = f(f(x)), one dense layer applied two times with the same parameters."""

    inner: bp.Dense

    def out_shape(self, in_shape):
        return self.inner.out_shape(in_shape)

    def init(self, rng, in_shape):
        return self.inner.init(rng, in_shape)

    def forward(self, run, p, x):
        y, first = self.inner.forward(run, p, x)
        z, second = self.inner.forward(run, p, y)
        return z, (first, second)

    def backward(self, run, p, cache, dy, need_dx=True):
        dy, second = self.inner.backward(run, p, cache[1], dy, True)
        dx, first = self.inner.backward(run, p, cache[0], dy, need_dx)
        return dx, {name: first[name] + second[name] for name in first}


@pytest.mark.parametrize("units", [4, 300])  # for small and for large products
def test_parameters_that_are_used_twice_get_both_gradients(backend, units):
    rng = np.random.default_rng(0)
    x = backend.array(rng.standard_normal((20, units)))
    y = backend.array(rng.standard_normal((20, units)))
    network = Twice(bp.Dense(units, "tanh"))
    theta = backend.array(0.1 * rng.standard_normal(bp.layout_of(network, (units,)).size))
    _, grad = bp.value_and_grad(network, "mse", theta, x, y)
    along = backend.array(rng.standard_normal(theta.shape))
    step = 1e-6
    above, _ = bp.value_and_grad(network, "mse", theta + step * along, x, y)
    below, _ = bp.value_and_grad(network, "mse", theta - step * along, x, y)
    slope = (float(above) - float(below)) / (2 * step)
    assert float(backend.xp.sum(grad * along)) == pytest.approx(slope, rel=1e-4)


@dataclass(frozen=True)
class _PassesTooMuch(bp.Layer):
    """y = s x, with a dx that is wrong."""

    def init(self, rng: bp.Rng, in_shape: Any) -> dict[str, Any]:
        return {"s": rng.full(in_shape, 1.0)}

    def forward(self, run: bp.Run, p: Any, x: Any) -> tuple[Any, Any]:
        return x * p["s"], x

    def backward(self, run: bp.Run, p: Any, cache: Any, dy: Any, need_dx: bool = True) -> tuple[Any, dict[str, Any]]:
        return 1.01 * dy * p["s"], {"s": run.sum_rows(dy * cache)}


def test_a_kink_is_called_one() -> None:
    with pytest.raises(GradientError, match=r"there are kinks at these values, and no derivative"):
        bp.check_gradients(bp.ReLU(), np.zeros((4, 3)))
    with pytest.raises(GradientError, match=r"(?s)^(?!.*kinks)"):
        bp.check_gradients(_PassesTooMuch(), np.ones((4, 3)))


def test_a_wrong_dx_is_looked_for_where_it_arises() -> None:
    network = bp.Sequential(bp.Dense(3), _PassesTooMuch(), bp.Dense(2))
    with pytest.raises(GradientError, match=r"all before 1\.s is wrong, and nothing from there on: look at dx of its"):
        bp.check_gradients(network, np.random.default_rng(0).standard_normal((4, 3)))
