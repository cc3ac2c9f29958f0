"""Every layer: right by finite differences, by PyTorch's autograd, and the same on every array library."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from support.differences import differences

import bpnet as bp
from bpnet.errors import OptionError, ShapeError

KEY = (7, 1, 0)


class Case(NamedTuple):
    """A layer, the shape of an input, and the layer's forward in PyTorch: oracle(torch, p, x, run) -> y."""

    layer: bp.Layer
    shape: tuple[int, ...]
    oracle: Callable[..., Any]
    training: bool = True


def dense(t, p, x, run=None):
    return t.nn.functional.linear(x, p["weight"].T, p.get("bias"))


def blend(alpha, z, f):
    return (1.0 - alpha) * z + alpha * f


def dropout(t, p, x, run):
    return x * t.tensor(run.keep_mask(tuple(x.shape), 0.75, like=np.zeros(1)))


def batch_norm(t, p, x, run):
    rows = x.reshape(-1, x.shape[-1])
    mean, var = (None, None) if run.training else (p["mean"].detach(), p["var"].detach())
    y = t.nn.functional.batch_norm(rows, mean, var, p["scale"], p["shift"], run.training, eps=1e-3)
    return y.reshape(x.shape)


def standardize(t, p, x, run=None):
    return (x - p["mean"].detach()) / p["scale"].detach()


def standardize_back(t, p, x, run=None):
    return p["mean"].detach() + p["scale"].detach() * x


def numeric_input(t, p, x, run=None):
    z = (x - p["center"].detach()) * p["factor"].detach()
    return t.cat([z / t.sqrt(1.0 + (z / 3.0) ** 2), t.zeros_like(x[..., 1:3])], -1)


def layer_norm(t, p, x, run=None):
    return t.nn.functional.layer_norm(x, x.shape[-1:], p["scale"], p["shift"], eps=1e-3)


def group_norm(t, p, x, run=None):  # PyTorch's features are the second axis
    y = t.nn.functional.group_norm(t.movedim(x, -1, 1), 2, p["scale"], p["shift"], eps=1e-3)
    return t.movedim(y, 1, -1)


def noise(t, p, x, run):
    return x + 0.3 * t.tensor(run.normal(tuple(x.shape), like=np.zeros(1)))


def alpha_dropout(t, p, x, run):  # as PyTorch's source has it, with our mask
    kept, low = t.tensor(run.keep_mask(tuple(x.shape), 0.75, like=np.zeros(1))) * 0.75, -1.7580993408473766
    a = ((low**2 * 0.25 + 1) * 0.75) ** -0.5
    return a * (x * kept + low * (1 - kept)) - a * low * 0.25


def glu(gate):
    """x W + b times the gate of x V + c; PyTorch's own `glu` is of both side by side."""

    def oracle(t, p, x, run=None):
        return dense(t, p["value"], x) * gate(t, dense(t, p["gate"], x))

    return oracle


def bilinear(t, p, x, run=None):
    weight = p["weight"].permute(2, 0, 1)
    return t.nn.functional.bilinear(*x.split([weight.shape[1], weight.shape[2]], -1), weight, p.get("bias"))


def weight_norm(t, p, x, run=None):
    weight = t._weight_norm(p["inner"]["weight"], p["length"], p["inner"]["weight"].ndim - 1)
    return dense(t, p["inner"] | {"weight": weight}, x)


def spectral_norm(t, p, x, run=None):
    weight = p["inner"]["weight"]
    s = p["left"].detach() @ weight @ p["right"].detach()
    return dense(t, p["inner"] | {"weight": weight / s}, x)


def activated(t, p, z):
    """With the alpha of `Parametric("tanh")`, where there is one."""
    return t.tanh(z) if "activation" not in p else blend(p["activation"]["alpha"], z, t.tanh(z))


def batch_ensemble(t, p, x, run=None):
    x = x if x.ndim == 3 else x[:, None]
    z = t.einsum("rkn,nu->rku", x * p["r"], p["weight"]) * p["s"]
    return activated(t, p, z + p["bias"] if "bias" in p else z)


def member_dense(t, p, x, run=None):
    x = x if x.ndim == 3 else x[:, None].expand(-1, len(p["weight"]), -1)
    z = t.einsum("rkn,knu->rku", x, p["weight"])
    return activated(t, p, z + p["bias"] if "bias" in p else z)


def pbld(t, p, x, run=None):
    made = t.cos(2.0 * t.pi * x[..., None] * p["frequency"] + p["phase"])
    y = t.einsum("...nf,nfd->...nd", made, p["weight"]) + p["bias"]
    return t.cat([y, x[..., None]], -1)


def plr(t, p, x, run=None):
    z = 2.0 * t.pi * x[..., None] * p["frequency"]
    return t.relu(t.einsum("...nf,nfd->...nd", t.cat([z.cos(), z.sin()], -1), p["weight"]) + p["bias"])


def encoding(t, p, x, run=None):
    z = (x[..., None] - p["left"].detach()) * p["inverse"].detach()
    return z.maximum(p["least"].detach()).minimum(p["most"].detach())


def piecewise_linear(t, p, x, run=None):
    y = t.einsum("...nf,nfd->...nd", encoding(t, p, x), p["weight"])
    return y + x[..., None] * p["linear"] + p["bias"]


BINS = ((-1.0, 0.0, 0.5), (-2.0, 2.0), (-1.0, 0.0, 1.0), (0.0, 1.0))


def network(t, p, x, run):
    x = t.tanh(dense(t, p["1"], x.reshape(x.shape[0], -1)))
    x = batch_norm(t, p["2"], x, run)
    x = dropout(t, {}, x, run.at("3")) if run.training else x
    x = x + t.nn.functional.gelu(dense(t, p["4"]["inner"]["0"], x))
    return t.softmax(dense(t, p["5"], x), -1)


NETWORK = bp.Sequential(
    bp.Flatten(),
    bp.Dense(4, "tanh"),
    bp.BatchNorm(epsilon=1e-3),
    bp.Dropout(0.25),
    bp.Residual(bp.Sequential(bp.Dense(4, "gelu"))),
    bp.Dense(3, bp.Softmax()),
)

# Few different shapes, since JAX compiles every operation anew for each.
LAYERS = {
    "dense": Case(bp.Dense(3), (6, 4), dense),
    "dense without bias": Case(bp.Dense(3, bias=False), (6, 4), dense),
    "dense, one row": Case(bp.Dense(3, "tanh"), (1, 4), lambda t, p, x, run: t.tanh(dense(t, p, x))),
    "dense of rows of 2 axes": Case(bp.Dense(3, "tanh"), (3, 2, 4), lambda t, p, x, run: t.tanh(dense(t, p, x))),
    "dense of rows of 3 axes": Case(bp.Dense(3), (3, 1, 2, 4), dense),
    "dense, softmax": Case(bp.Dense(3, "softmax"), (6, 4), lambda t, p, x, run: t.softmax(dense(t, p, x), -1)),
    "dense, prelu": Case(
        bp.Dense(3, "prelu"), (6, 4),
        lambda t, p, x, run: t.nn.functional.prelu(dense(t, p, x), p["activation"]["alpha"]),
    ),
    "dense, parametric, shared, of rows of 2 axes": Case(
        bp.Dense(3, bp.Parametric("tanh", shared=True)), (3, 2, 4),
        lambda t, p, x, run: blend(p["activation"]["alpha"], z := dense(t, p, x), t.tanh(z)),
    ),
    "dense, ntk": Case(
        bp.Dense(3, "tanh", ntk=True), (6, 4),
        lambda t, p, x, run: t.tanh(x @ p["weight"] / 2.0 + p["bias"]),
    ),
    "dropout": Case(bp.Dropout(0.25), (6, 4), dropout),
    "dropout of rows of 2 axes": Case(bp.Dropout(0.25), (3, 2, 4), dropout),
    "dropout of nothing": Case(bp.Dropout(0.0), (6, 4), lambda t, p, x, run: x),
    "dropout, predicting": Case(bp.Dropout(0.25), (6, 4), lambda t, p, x, run: x, training=False),
    "activity penalty": Case(bp.ActivityPenalty(0.1, 0.2), (6, 4), lambda t, p, x, run: x),
    "flatten": Case(bp.Flatten(), (3, 2, 2), lambda t, p, x, run: x.reshape(3, 4)),
    "batch norm": Case(bp.BatchNorm(epsilon=1e-3), (6, 4), batch_norm),
    "batch norm of rows of 2 axes": Case(bp.BatchNorm(epsilon=1e-3), (3, 2, 4), batch_norm),
    "batch norm, predicting": Case(bp.BatchNorm(epsilon=1e-3), (6, 4), batch_norm, training=False),
    "standardize": Case(bp.Standardize((1.0, 2.0, 3.0, 4.0), (1, 2, 3, 4)), (6, 4), standardize, training=False),
    "standardize, inverted": Case(bp.Standardize(3.0, 2.0, invert=True), (6, 4), standardize_back, training=False),
    "standardize rows of 2 axes": Case(bp.Standardize((1.0,) * 4, 2.0), (3, 2, 4), standardize, training=False),
    "network that standardizes": Case(
        bp.Sequential(bp.Standardize(1.0, 2.0), bp.Dense(3), bp.Standardize(3.0, 4.0, invert=True)), (6, 4),
        lambda t, p, x, run: standardize_back(t, p["2"], dense(t, p["1"], standardize(t, p["0"], x))), training=False,
    ),
    "numeric input": Case(
        bp.NumericInput((1.0, 2.0, 3.0, 4.0), (1, 2, 3, 4), clip=3.0, missing=(1, 2)), (6, 4), numeric_input,
        training=False,
    ),
    "layer norm": Case(bp.LayerNorm(epsilon=1e-3), (6, 4), layer_norm),
    "layer norm of rows of 2 axes": Case(bp.LayerNorm(epsilon=1e-3), (3, 2, 4), layer_norm),
    "rms norm": Case(
        bp.RMSNorm(epsilon=1e-3), (6, 4), lambda t, p, x, run: t.nn.functional.rms_norm(x, (4,), p["scale"], eps=1e-3)
    ),
    "group norm": Case(bp.GroupNorm(2, epsilon=1e-3), (6, 4), group_norm),
    "group norm of rows of 2 axes": Case(bp.GroupNorm(2, epsilon=1e-3), (3, 2, 4), group_norm),
    "scale": Case(bp.Scale(0.5), (3, 2, 4), lambda t, p, x, run: x * p["scale"]),
    "reshape": Case(bp.Reshape((2, -1)), (6, 4), lambda t, p, x, run: x.reshape(6, 2, 2)),
    "alpha dropout": Case(bp.AlphaDropout(0.25), (6, 4), alpha_dropout),
    "gaussian noise": Case(bp.GaussianNoise(0.3), (6, 4), noise),
    "glu": Case(bp.GLU(3), (3, 2, 4), glu(lambda t, z: t.sigmoid(z))),
    "bilinear": Case(bp.Bilinear(2, split=1), (3, 2, 4), bilinear),
    "bilinear of one unit": Case(bp.Bilinear(1), (3, 4), bilinear),
    "weight norm": Case(bp.WeightNorm(bp.Dense(3)), (6, 4), weight_norm),
    "spectral norm": Case(bp.SpectralNorm(bp.Dense(3)), (6, 4), spectral_norm),
    "concatenated branches": Case(
        bp.Parallel("identity", bp.Dense(3)), (6, 4), lambda t, p, x, run: t.cat([x, dense(t, p["1"], x)], -1)
    ),
    "added branches": Case(
        bp.Parallel(bp.SwiGLU(3, bias=False), bp.GLU(3, "identity"), join="add"), (6, 4),
        lambda t, p, x, run: glu(lambda t, z: z * t.sigmoid(z))(t, p["0"], x) + glu(lambda t, z: z)(t, p["1"], x),
    ),
    "multiplied branches": Case(
        bp.Parallel(bp.GeGLU(4), "tanh", "identity", join="multiply"), (6, 4),
        lambda t, p, x, run: glu(lambda t, z: t.nn.functional.gelu(z))(t, p["0"], x) * t.tanh(x) * x,
    ),
    "clamp, predicting": Case(
        bp.Clamp(-0.5, (0.0, 0.5, 1.0, 2.0)), (6, 4),
        lambda t, p, x, run: x.maximum(p["low"].detach()).minimum(p["high"].detach()), training=False,
    ),
    "embeddings of numbers": Case(
        bp.Parallel(
            bp.NumericEmbedding(frequencies=3),
            bp.NumericEmbedding("plr", width=2, frequencies=3),
            bp.NumericEmbedding("piecewise_linear", width=2, bins=BINS),
            bp.NumericEmbedding("piecewise_linear", width=None, bins=BINS),
        ),
        (6, 4),
        lambda t, p, x, run: t.cat(
            [f(t, p[str(i)], x).flatten(-2) for i, f in enumerate((pbld, plr, piecewise_linear, encoding))], -1
        ),
        training=False,
    ),
    "batch ensemble": Case(
        bp.BatchEnsemble(2, 3, "tanh", bias=False, ntk=True), (6, 4),
        lambda t, p, x, run: batch_ensemble(t, p, x / 2.0),
    ),
    "member dense": Case(
        bp.MemberDense(2, 3, "tanh", ntk=True), (6, 4), lambda t, p, x, run: member_dense(t, p, x / 2.0)
    ),
    "ensemble": Case(
        bp.Sequential(
            bp.MemberScale(2), bp.MemberScale(2), bp.BatchEnsemble(2, 3, bp.Parametric("tanh")),
            bp.MemberDense(2, 3, "tanh"),
        ),
        (6, 4),
        lambda t, p, x, run: member_dense(
            t, p["3"], batch_ensemble(t, p["2"], x[:, None] * p["0"]["r"] * p["1"]["r"])
        ),
    ),
    "shared": Case(bp.Shared(bp.Dense(3), "encoder"), (6, 4), lambda t, p, x, run: dense(t, p["inner"], x)),
    "residual": Case(bp.Residual(bp.Dense(4)), (6, 4), lambda t, p, x, run: x + dense(t, p["inner"], x)),
    "sequential": Case(
        bp.Sequential(bp.Dense(4), bp.Dense(3)), (6, 4), lambda t, p, x, run: dense(t, p["1"], dense(t, p["0"], x))
    ),
    "sequential of dropouts": Case(
        bp.Sequential(bp.Dropout(0.25), bp.Residual(bp.Dropout(0.25))), (6, 4),
        lambda t, p, x, run: (h := dropout(t, p, x, run.at("0"))) + dropout(t, p, h, run.at("1").at("inner")),
    ),
    "network": Case(NETWORK, (6, 2, 2), network),
    "network, predicting": Case(NETWORK, (6, 2, 2), network, training=False),
}  # fmt: skip


def kinds(layer: bp.Layer) -> set[type]:
    """Those of all layers that it is made of, its activation among them."""
    parts = [child for _, child in getattr(layer, "children", ())]
    return {type(layer)}.union(*(kinds(part) for part in parts))


def test_what_has_defaults_goes_by_name() -> None:
    net = bp.Sequential("Flatten", bp.Dense(3), "LayerNorm", bp.Parallel("identity", "Dropout"), "relu")
    assert net.layers == (
        bp.Flatten(), bp.Dense(3), bp.LayerNorm(), bp.Parallel(bp.Identity(), bp.Dropout()), bp.ReLU()
    )  # fmt: skip


def test_every_layer_has_a_case() -> None:
    every = {c for c in (getattr(bp, name) for name in bp.__all__) if isinstance(c, type) and issubclass(c, bp.Layer)}
    layers = {layer for layer in every if not issubclass(layer, bp.Activation)} - {bp.Layer, bp.Composite}
    layers -= {bp.Embedding, bp.Inputs}  # which take other than one array of numbers: see test_inputs
    layers -= {bp.CategoricalInput, bp.TabularInput}  # and so do these: see test_tabular_layers
    assert layers <= set().union(*(kinds(case.layer) for case in LAYERS.values()))


@pytest.fixture(params=LAYERS)
def case(request: pytest.FixtureRequest) -> Case:
    return LAYERS[request.param]


def mapped(function, tree):
    return {name: mapped(function, v) if isinstance(v, dict) else function(v) for name, v in tree.items()}


def leaves(tree, path=""):
    for name, value in tree.items():
        yield from leaves(value, f"{path}{name}.") if isinstance(value, dict) else [(path + name, value)]


def drawn(case: Case, dtype: str = "float64") -> tuple[dict[str, Any], Any, Any]:
    """Parameters and buffers, input, and slope of the output, on the host; none of them special."""
    rng = np.random.default_rng(5)

    def value(leaf):
        if isinstance(leaf, bp.Leaf):  # running values; a variance is positive
            return rng.uniform(0.5, 1.5, leaf.value.shape).astype(dtype)
        return np.asarray(rng.standard_normal(leaf.shape), dtype)

    p = mapped(value, case.layer.init(bp.Rng(0), case.shape[1:]))
    x = rng.standard_normal(case.shape).astype(dtype)
    dy = rng.standard_normal((case.shape[0], *case.layer.out_shape(case.shape[1:]))).astype(dtype)
    return p, x, dy


def both_passes(lib, case: Case):
    """function(p, x, dy): y, dx, the gradients and the new buffers, computed on a library as the trainer would."""

    def both(p, x, dy):
        run = bp.Run(lib.seam, case.training, KEY)
        y, cache = case.layer.forward(run, p, x)
        dx, grads = case.layer.backward(run, p, cache, dy)
        return y, dx, dict(leaves(grads)), dict(leaves(case.layer.update_buffers(run, p, cache)))

    return lib.compiled(both)


def passes(lib, case: Case, p, x, dy):
    """That for these."""
    with lib.seam.session():
        return both_passes(lib, case)(p, x, dy)


def slope_errors(lib, case: Case, both, p, x, dy, made):
    """How far dx and the gradients, which are `made`, are from differences of sum(dy y)."""
    _, dx, grads, _ = made

    def value(given):
        ((x, *rest),) = (one.values() for one in given)
        rest = iter(rest)
        with lib.seam.session():
            y = both(mapped(lambda _: lib.array(next(rest)), p), lib.array(x), lib.array(dy))[0]
        return [np.sum(lib.host(y) * dy)]

    derived = {"x": dx, **grads}
    return differences(value, [{"x": x, **dict(leaves(p))}], [{k: lib.host(v) for k, v in derived.items()}])


def test_a_saved_one_comes_back(case, tmp_path):
    x = np.random.default_rng(0).standard_normal(case.shape).astype("float32")
    trainer = bp.Trainer(bp.Sequential(case.layer, bp.Dense(2)), "mse").build(x)
    trainer.save(tmp_path / "model")
    loaded = bp.load(tmp_path / "model")
    assert loaded.network == trainer.network
    np.testing.assert_array_equal(loaded.predict(x), trainer.predict(x))


def test_derivatives_by_finite_differences(case, noted):
    x = np.random.default_rng(0).standard_normal(case.shape)
    report = bp.check_gradients(case.layer, x, training=case.training)
    noted("layers", "numpy", [check.error for check in report.checks])


@pytest.mark.parametrize("shape", [(1, 4), (50, 4), (6, 1), (6, 40), (3, 2, 4), (2, 3, 2, 4)], ids=str)
def test_derivatives_for_other_shapes(shape, library, noted):
    """Of one row, many, one feature, many, and rows of several axes, where a layer takes them."""
    lib, errors = library("numpy"), []
    for case in LAYERS.values():
        case = case._replace(shape=shape)
        try:
            case.layer.out_shape(shape[1:])
        except ShapeError:
            continue
        (p, x, dy), both = drawn(case), both_passes(lib, case)
        with lib.seam.session():
            made = both(p, x, dy)
        errors += slope_errors(lib, case, both, p, x, dy, made)
    noted("layers", "numpy", errors)


def test_forward_and_backward_as_pytorch(case, library):
    torch = pytest.importorskip("torch")
    p, x, dy = drawn(case)
    lib = library("numpy")
    y, dx, grads, _ = passes(lib, case, p, x, dy)
    tensors = mapped(lambda a: torch.tensor(a, requires_grad=True), p)
    rows = torch.tensor(x, requires_grad=True)
    out = case.oracle(torch, tensors, rows, bp.Run(lib.seam, case.training, KEY))
    out.backward(torch.tensor(dy))
    lib.close(y, out.detach().numpy())
    lib.close(dx, rows.grad.numpy())
    for name, tensor in leaves(tensors):
        if name in grads:
            lib.close(grads[name], tensor.grad.numpy())


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_same_on_every_library(case, backend, dtype, library, noted):
    if backend.name == "cupy" and dtype == "float32":
        pytest.skip("float32 on CuPy is tested in training: kernels differ by the name of a type")
    p, x, dy = drawn(case, dtype)
    reference = library("numpy")
    arrays = mapped(backend.array, p), backend.array(x), backend.array(dy)
    both = both_passes(backend, case)
    with backend.seam.session():
        actual = both(*arrays)
    expected = passes(reference, case, mapped(lambda a: np.asarray(a, "float64"), p), np.float64(x), np.float64(dy))
    y, dx, grads, buffers = actual
    given = dict(leaves(p))
    assert grads.keys() | buffers.keys() == given.keys() or not case.training
    assert not grads.keys() & buffers.keys()
    for got, want in zip((y, dx), expected, strict=False):
        backend.close(got, want)
    for got, want in zip(actual[2:], expected[2:], strict=True):
        for name in want:
            backend.close(got[name], want[name])
            assert tuple(got[name].shape) == given[name].shape
    for a in (y, dx, *grads.values(), *buffers.values()):
        assert backend.dtype(a) == dtype
        assert backend.seam.device(a) == backend.seam.device(arrays[1])
    for a, before in zip((*dict(leaves(arrays[0])).values(), *arrays[1:]), (*given.values(), x, dy), strict=True):
        np.testing.assert_array_equal(backend.host(a), before)
    if dtype == "float64" and backend.name != "numpy-readonly":
        noted("layers", backend.name, slope_errors(backend, case, both, p, x, dy, actual))


def test_results_stay_on_the_device_of_the_input(case, library):
    lib = library("strict-device")  # it refuses arrays of two devices, so a constant on the default one would raise
    p, x, dy = drawn(case)
    y, dx, grads, buffers = passes(lib, case, mapped(lib.array, p), lib.array(x), lib.array(dy))
    device = lib.seam.device(lib.array(x))
    assert all(lib.seam.device(a) == device for a in (y, dx, *grads.values(), *buffers.values()))


def test_out_shape_is_the_shape_of_the_output(case, library):
    p, x, _ = drawn(case)
    y, _ = case.layer.forward(bp.Run(library("numpy").seam, case.training, KEY), p, x)
    assert y.shape == (case.shape[0], *case.layer.out_shape(case.shape[1:]))


def test_first_layer_can_skip_dx(case, library):
    p, x, dy = drawn(case)
    run = bp.Run(library("numpy").seam, case.training, KEY)
    _, cache = case.layer.forward(run, p, x)
    dx, grads = case.layer.backward(run, p, cache, dy, need_dx=False)
    full = case.layer.backward(run, p, cache, dy)[1]
    assert dx is None
    grads, full = dict(leaves(grads)), dict(leaves(full))
    assert grads.keys() == full.keys()
    for name, gradient in full.items():
        np.testing.assert_allclose(grads[name], gradient, rtol=1e-13, err_msg=name)
    for one, other in itertools.combinations(full.values(), 2):  # so that two in each other's place are found
        assert one.shape != other.shape or not np.allclose(one, other)


def test_layers_are_frozen_values():
    assert bp.Dense(3, "relu") == bp.Dense(3, "relu")
    assert bp.Dense(3, "relu") != bp.Dense(3, "tanh")
    assert hash(bp.Sequential(bp.Dense(3))) == hash(bp.Sequential(bp.Dense(3)))
    assert repr(bp.Sequential(bp.Dropout(0.2))) == "Sequential(Dropout(rate=0.2))"
    with pytest.raises(AttributeError):
        bp.Dense(3).units = 4


# ---- what each layer promises beside its derivative -----------------------------------------------------------------


def test_dropout_keeps_the_share_and_the_mean(backend):
    x = backend.array(np.ones((200, 100)))
    for layer in (bp.Dropout(0.3), bp.Dropout(bp.Constant(0.3))):
        y = backend.host(layer.forward(bp.Run(backend.seam, True, KEY), {}, x)[0])
        np.testing.assert_allclose(np.unique(y), [0.0, 1 / 0.7], rtol=1e-4)
        assert abs(np.mean(y) - 1.0) < 0.02
        assert layer.forward(bp.Run(backend.seam, False, KEY), {}, x)[0] is x


def test_two_dropouts_of_a_network_draw_different_masks(backend):
    net = bp.Sequential(bp.Dropout(0.5), bp.Dropout(0.5), bp.Residual(bp.Dropout(0.5)))
    _, caches = net.forward(
        bp.Run(backend.seam, True, KEY), {"0": {}, "1": {}, "2": {"inner": {}}}, backend.array(np.ones((20, 20)))
    )
    first, second, (third,) = (backend.host(c) if i < 2 else [backend.host(m) for m in c] for i, c in enumerate(caches))
    assert np.mean(first != second) > 0.4
    assert np.mean(first != third) > 0.4
    assert np.mean(second != third) > 0.4


@dataclass(frozen=True)
class Redrawn(bp.Dropout):
    """Dropout that keeps no mask, but draws it again on the way back."""

    def forward(self, run, p, x):
        return super().forward(run, p, x)[0], None

    def backward(self, run, p, cache, dy, need_dx=True):
        return (dy * run.keep_mask(dy.shape, 1.0 - self.rate, like=dy) if need_dx else None), {}


def test_a_mask_may_be_drawn_again_on_the_way_back(backend):
    net = bp.Sequential(Redrawn(0.5), bp.Residual(bp.Sequential(Redrawn(0.5), Redrawn(0.5))))
    assert bp.check_gradients(net, backend.array(np.ones((6, 4))), directions=1).ok


def test_batch_norm_gathers_what_pytorch_gathers():
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    trainer = bp.Trainer(bp.Sequential(bp.BatchNorm(momentum=0.8), bp.Dense(1)), "mse", bp.SGD(0.0))
    norm = torch.nn.BatchNorm1d(3, momentum=0.2, dtype=torch.float64)
    for rows in (5, 8, 2):
        x = 3.0 + 2.0 * rng.standard_normal((rows, 3))
        trainer.step(x, np.zeros((rows, 1)))
        norm(torch.tensor(x))
    expected = np.concatenate([norm.running_mean.numpy(), norm.running_var.numpy()])
    np.testing.assert_allclose(trainer.buffers, expected, rtol=1e-12)
    x = rng.standard_normal((4, 3))
    dense = trainer.parameters["1"]
    out = norm.eval()(torch.tensor(x)).detach().numpy() @ dense["weight"] + dense["bias"]
    np.testing.assert_allclose(trainer.predict(x), out, rtol=1e-12)


def test_alpha_dropout_keeps_mean_and_variance(library):
    layer, seam = bp.AlphaDropout(0.1), library("numpy").seam
    x = np.random.default_rng(0).standard_normal((300, 100))
    y, _ = layer.forward(bp.Run(seam, True, KEY), {}, x)
    assert abs(np.mean(y)) < 0.03
    assert abs(np.var(y) - 1.0) < 0.03
    assert layer.forward(bp.Run(seam), {}, x)[0] is x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_random_numbers_are_the_same_on_every_library(backend, dtype, library):
    """Evenly distributed exactly, normally to the rounding of a logarithm."""

    def drawn(lib, like):
        return lib.call(lambda like: (run_at(lib).uniform((50, 40), like), run_at(lib).normal((50, 40), like)), like)

    def run_at(lib):
        return bp.Run(lib.seam, True, KEY).at("3")

    uniform, normal = drawn(backend, backend.array(np.zeros(1, dtype)))
    expected = drawn(library("numpy"), np.zeros(1))
    assert backend.dtype(uniform) == backend.dtype(normal) == dtype
    np.testing.assert_array_equal(backend.host(uniform), expected[0])
    backend.close(normal, expected[1])


def test_random_numbers_are_distributed_as_they_should_be(library):
    torch = pytest.importorskip("torch")
    run, like = bp.Run(library("numpy").seam, True, KEY), np.zeros(1, np.float32)
    u, n = np.float64(run.uniform((400, 500), like)), np.float64(run.normal((400, 500), like))
    assert 0.0 < np.min(u) < 1e-4
    assert 1.0 - 1e-4 < np.max(u) < 1.0
    moments = [np.mean(u), np.mean(u**2), np.mean(n), np.mean(n**2), np.mean(n**3), np.mean(n**4)]
    np.testing.assert_allclose(moments, [1 / 2, 1 / 3, 0.0, 1.0, 0.0, 3.0], atol=0.03)
    assert np.max(np.abs(n)) > 4.0
    np.testing.assert_allclose(n, torch.special.ndtri(torch.tensor(u)).numpy(), atol=3e-6)  # its quantile function
    assert abs(np.corrcoef(n[:, :-1].ravel(), n[:, 1:].ravel())[0, 1]) < 0.01


def test_noise_is_added_while_training_alone(library):
    run, x = bp.Run(library("numpy").seam, True, KEY), np.ones((100, 100))
    noise = bp.GaussianNoise(0.1).forward(run, {}, x)[0] - x
    assert abs(np.std(noise) - 0.1) < 0.004
    assert bp.GaussianNoise(0.1).forward(bp.Run(library("numpy").seam), {}, x)[0] is x


def test_group_norm_of_one_group_is_over_all_that_a_row_holds(library):
    run, x = bp.Run(library("numpy").seam), np.random.default_rng(0).standard_normal((3, 5, 4))
    p = {"scale": np.ones(4), "shift": np.zeros(4)}
    y, _ = bp.GroupNorm(1).forward(run, p, x)
    np.testing.assert_allclose(np.mean(y, axis=(1, 2)), 0.0, atol=1e-12)
    np.testing.assert_allclose(np.var(y, axis=(1, 2)), 1.0, rtol=1e-4)
    each, _ = bp.GroupNorm(4).forward(run, p, x)
    np.testing.assert_allclose(np.var(each, axis=1), 1.0, rtol=1e-3)


@pytest.mark.parametrize("layer", [bp.BatchNorm(), bp.LayerNorm(), bp.RMSNorm(), bp.GroupNorm(2)])
def test_what_is_normalized_starts_unscaled(layer):
    values = {name: np.asarray(getattr(v, "value", v)) for name, v in layer.init(bp.Rng(0), (3, 4)).items()}
    for name, value in values.items():
        np.testing.assert_array_equal(value, np.full(4, float(name in ("scale", "var"))), err_msg=name)


def test_weight_norm_starts_as_the_layer_without(library):
    plain, normed = (layer.init(bp.Rng(3), (5,)) for layer in (bp.Dense(4), bp.WeightNorm(bp.Dense(4))))
    x, run = np.random.default_rng(0).standard_normal((6, 5)), bp.Run(library("numpy").seam)
    expected = bp.Dense(4).forward(run, plain, x)[0]
    np.testing.assert_allclose(bp.WeightNorm(bp.Dense(4)).forward(run, normed, x)[0], expected, rtol=1e-12)


@dataclass(frozen=True)
class Folded(bp.Dense):
    """A dense layer whose weight has three axes."""

    def init(self, rng, in_shape):
        return {"weight": rng.given((2, in_shape[0] // 2, self.units), np.arange(1.0, 1.0 + self.units))}

    def forward(self, run, p, x):
        return super().forward(run, {"weight": run.xp.reshape(p["weight"], (-1, self.units))}, x)

    def backward(self, run, p, cache, dy, need_dx=True):
        dx, grads = super().backward(run, {"weight": run.xp.reshape(p["weight"], (-1, self.units))}, cache, dy, need_dx)
        return dx, {"weight": run.xp.reshape(grads["weight"], p["weight"].shape)}


def test_a_weight_of_three_axes_has_a_length_for_each_of_the_last():
    layer, x = bp.WeightNorm(Folded(3, bias=False)), np.random.default_rng(0).standard_normal((6, 4))
    np.testing.assert_allclose(layer.init(bp.Rng(0), (4,))["length"], [2.0, 4.0, 6.0])
    assert bp.check_gradients(layer, x).ok
    assert bp.check_gradients(bp.SpectralNorm(Folded(3, bias=False)), x).ok


def test_singular_vectors_follow_the_weight_by_power_iteration(library):
    layer, seam, rng = bp.SpectralNorm(bp.Dense(3), iterations=2), library("numpy").seam, np.random.default_rng(0)
    p = {"inner": {"weight": rng.standard_normal((4, 3)), "bias": np.zeros(3)}, "left": np.ones(4), "right": np.ones(3)}
    w, v = p["inner"]["weight"], p["right"]
    _, cache = layer.forward(bp.Run(seam, True), p, np.ones((2, 4)))
    for _ in range(2):
        u = w @ v / np.linalg.norm(w @ v)
        v = w.T @ u / np.linalg.norm(w.T @ u)
    found = layer.update_buffers(bp.Run(seam, True), p, cache)
    np.testing.assert_allclose(found["left"], u, rtol=1e-13)
    np.testing.assert_allclose(found["right"], v, rtol=1e-13)
    assert not dict(leaves(layer.update_buffers(bp.Run(seam), p, cache)))


def test_gated_units_start_as_their_options_say():
    p = bp.GLU(3, kernel_init="ones", bias_init="zeros").init(bp.Rng(0), (4,))
    for part in p.values():
        np.testing.assert_array_equal(part["weight"], np.ones((4, 3)))
        np.testing.assert_array_equal(part["bias"], np.zeros(3))


def test_spectral_norm_holds_the_largest_singular_value_near_one():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((64, 5)), 10.0 * rng.standard_normal((64, 3))
    trainer = bp.Trainer(bp.SpectralNorm(bp.Dense(3)), "mse", bp.SGD(0.01)).build(x)
    for _ in range(2):
        p = trainer.layout.views(trainer.backend, trainer.theta, trainer.buffers)
        weight, left, right = p["inner"]["weight"], p["left"], p["right"]
        singular = np.linalg.svd(weight, compute_uv=False)
        assert left @ weight @ right == pytest.approx(singular[0], rel=0.05)
        trainer.fit(x, y, epochs=100, batch_size=16, progress=False)
    assert (trainer.layout.size, trainer.layout.buffer_size) == (18, 8)
    assert singular[0] > 1.1  # of W itself, which grows


ENCODER = bp.Shared(bp.Dense(4, "tanh"), "encoder")
TWICE = bp.Sequential(ENCODER, bp.Residual(ENCODER), bp.Dense(3))


def test_a_shared_layer_has_its_parameters_once():
    layout = bp.layout_of(TWICE, (4,))
    assert [slot.name for slot in layout.parameters] == ["0.inner.weight", "2.weight", "0.inner.bias", "2.bias"]
    assert layout.size == bp.layout_of(bp.Sequential(bp.Dense(4), bp.Dense(3)), (4,)).size
    p = layout.views(bp.backends.get("numpy"), np.arange(float(layout.size)))
    assert p["1"]["inner"]["inner"]["weight"] is p["0"]["inner"]["weight"]


def test_the_gradient_of_a_shared_layer_is_the_sum_of_its_places(backend):
    layout, host = bp.layout_of(TWICE, (4,)), bp.backends.get("numpy")
    apart = bp.Sequential(bp.Dense(4, "tanh"), bp.Residual(bp.Dense(4, "tanh")), bp.Dense(3))
    of_apart, rng = bp.layout_of(apart, (4,)), np.random.default_rng(0)
    x, y, theta = (rng.standard_normal(shape) for shape in ((6, 4), (6, 3), layout.size))
    p = layout.views(host, theta)
    both = of_apart.join(host, {"0": p["0"]["inner"], "1": {"inner": p["0"]["inner"]}, "2": p["2"]})
    expected, gradient = bp.value_and_grad(apart, "mse", both, x, y)
    parts = of_apart.views(host, gradient)
    summed = {"inner": {name: value + parts["1"]["inner"][name] for name, value in parts["0"].items()}}
    value, grad = bp.value_and_grad(TWICE, "mse", *map(backend.array, (theta, x, y)))
    backend.close(value, expected, rtol=1e-12)
    backend.close(grad, layout.join(host, {"0": summed, "1": {"inner": summed}, "2": parts["2"]}), rtol=1e-12)


@pytest.mark.parametrize("compile", [False, True])
def test_a_network_that_shares_is_trained_and_saved(compile, tmp_path):
    if compile:
        pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((16, 4)), rng.standard_normal((16, 3))
    trainer = bp.Trainer(TWICE, "mse", bp.SGD(0.1), compile=compile).build(x)
    before = trainer.theta.copy()
    _, grad = bp.value_and_grad(TWICE, "mse", before, x, y)
    trainer.step(x, y)
    np.testing.assert_allclose(trainer.theta, before - 0.1 * grad, rtol=1e-12)
    trainer.save(tmp_path / "m.safetensors")
    loaded = bp.load(tmp_path / "m.safetensors")
    assert loaded.network == TWICE
    np.testing.assert_array_equal(loaded.theta, trainer.theta)
    np.testing.assert_allclose(loaded.predict(x), trainer.predict(x), rtol=1e-12)


def test_derivatives_of_a_network_that_shares_are_checked():
    x = np.random.default_rng(0).standard_normal((5, 4))
    report = bp.check_gradients(bp.Sequential(TWICE, bp.Dense(4), ENCODER), x, directions=1)
    names = ["0.0.inner.weight", "0.0.inner.bias", "0.2.weight", "0.2.bias", "1.weight", "1.bias"]
    assert sorted(check.name for check in report.checks) == sorted(["x", *names])


def test_shared_parameters_are_set_in_all_places_alike():
    encoder = bp.Shared(bp.Dense(3), "encoder")
    trainer = bp.Trainer(bp.Sequential(encoder, encoder), "mse").build(np.ones((2, 3)))
    tree = trainer.parameters
    trainer.parameters = {"0": tree["0"], "1": mapped(np.copy, tree["1"])}
    with pytest.raises(TypeError, match=r"0\.inner\.weight and 1\.inner\.weight are one parameter"):
        trainer.parameters = {"0": tree["0"], "1": mapped(lambda a: a + 1.0, tree["1"])}


def test_a_shared_batch_norm_gathers_the_mean_of_its_places():
    norm = bp.Shared(bp.BatchNorm(momentum=0.5), "norm")
    trainer = bp.Trainer(bp.Sequential(norm, bp.Residual(norm), bp.Dense(1)), "mse", bp.SGD(0.0))
    x = 4.0 + np.random.default_rng(0).standard_normal((50, 2))
    trainer.step(x, np.zeros((50, 1)))  # what the second sees has the mean 0
    np.testing.assert_allclose(trainer.buffers[:2], 0.25 * np.mean(x, axis=0), rtol=1e-9)


def test_a_layer_that_stands_in_a_network_twice_is_not_shared():
    layer = bp.Dense(3)
    assert bp.layout_of(bp.Sequential(layer, layer), (3,)).size == 2 * bp.layout_of(layer, (3,)).size


@pytest.mark.parametrize(
    ("net", "error", "text"),
    [
        (
            bp.Sequential(bp.Shared(bp.Dense(3), "a"), bp.Shared(bp.Dense(3, "relu"), "a")), OptionError,
            r"two layers are shared under the name 'a', Dense\(.*\) and Dense\(.*\): give one another name",
        ),
        (
            bp.Sequential(bp.Shared(bp.Dense(3), "a"), bp.Shared(bp.Dense(3), "a")), ShapeError,
            r"shared under the name 'a', but at '0' and '1' it has inputs of different shapes.*give one another name",
        ),
        (bp.GroupNorm(3), ShapeError, r"GroupNorm\(groups=3.* into 3 groups of as many, but rows have 4 of them"),
        (bp.Reshape((3, 2)), ShapeError, r"Reshape\(shape=\(3, 2\)\) can't hold a row of \(4,\), which has 4 values"),
        (bp.Reshape((3, -1)), ShapeError, r"Reshape\(shape=\(3, -1\)\) can't hold a row of \(4,\)"),
        (
            bp.Parallel("relu", bp.Reshape((2, 2))), ShapeError,
            r"the branches of Parallel\(.*\) give rows of \[\(4,\), \(2, 2\)\]; expected the same shape but for the",
        ),
        (
            bp.Parallel("relu", bp.Dense(3), join="add"), ShapeError,
            r"give rows of \[\(4,\), \(3,\)\]; expected the same shape$",
        ),
        (bp.WeightNorm(bp.Dropout()), ShapeError, r"Dropout.* has no parameter 'weight' of two axes or more"),
    ],
)  # fmt: skip
def test_layers_that_do_not_fit_say_so(net, error, text):
    with pytest.raises(error, match=text):
        bp.layout_of(net, (4,), trains=False)


# How many kernels and copies, besides products, forward and backward together are compiled to: no more than twice what
# one would write by hand.
KERNELS = {
    "numeric input": 3, "layer norm": 1, "layer norm of rows of 2 axes": 1, "rms norm": 1, "group norm": 3,
    "group norm of rows of 2 axes": 7, "scale": 1, "reshape": 2, "alpha dropout": 1, "gaussian noise": 1, "glu": 2,
    "weight norm": 6, "spectral norm": 8, "concatenated branches": 4, "added branches": 2, "multiplied branches": 2,
    "shared": 1, "embeddings of numbers": 56, "batch ensemble": 9, "member dense": 8, "clamp, predicting": 1,
}  # fmt: skip


@pytest.mark.parametrize("name", KERNELS)
def test_a_compiled_layer_takes_few_kernels(name):
    pytest.importorskip("llvmlite", reason="llvmlite is not installed")
    from bpnet.backends.tracing import trace_trees
    from bpnet.compiler.build import build
    from bpnet.compiler.commands import Call, Product

    case = LAYERS[name]
    _, x, dy = drawn(case, "float32")
    layout = bp.layout_of(case.layer, case.shape[1:], trains=False)

    def both(backend, theta, buffers, x, dy):
        run, p = bp.Run(backend, True, KEY), layout.views(backend, theta, buffers)
        y, cache = case.layer.forward(run, p, x)
        dx, grads = case.layer.backward(run, p, cache, dy)
        new = case.layer.update_buffers(run, p, cache)
        return y, dx, *(value for tree in (grads, new) for _, value in leaves(tree))

    vectors = (np.ones(size, np.float32) for size in (layout.size, layout.buffer_size))
    traced, _, _ = trace_trees(both, bp.backends.get("numpy"), np.ndarray, (*vectors, x, dy))
    commands = build(traced).commands
    assert not any(isinstance(command, Call) for command in commands)
    assert sum(not isinstance(command, Product) for command in commands) <= KERNELS[name], commands


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_standardize_keeps_the_digits_that_x_has_beside_a_large_mean(backend, dtype):
    x = (2.0**24 + np.arange(6.0)[:, None] * [1.0, 2.0]).astype(dtype)
    layer = bp.Standardize(2.0**24, (1.0, 2.0**-100))
    p = mapped(lambda leaf: backend.array(leaf.value.astype(dtype)), layer.init(bp.Rng(0), (2,)))
    (y,) = backend.call(lambda p, x: layer.forward(bp.Run(backend.seam), p, x)[:1], p, backend.array(x))
    np.testing.assert_array_equal(backend.host(y), (np.float64(x) - 2.0**24) / [1.0, 2.0**-100])


def test_standardize_is_not_trained_and_leaves_batches_free(backend):
    rng = np.random.default_rng(0)
    x, y = 300.0 + 20.0 * rng.standard_normal((64, 3)), 1e4 + 500.0 * rng.standard_normal((64, 1))
    inner = (bp.Dense(4, "tanh"), bp.Dense(1))
    whole = bp.Sequential(bp.Standardize((300, 300, 300), 20), *inner, bp.Standardize(1e4, 500, invert=True))
    assert not whole.updates_buffers
    raw = bp.Trainer(whole, "mse", bp.SGD(0.1 / 500**2), micro_batch=10)  # a batch may be parted
    scaled = bp.Trainer(bp.Sequential(*inner), "mse", bp.SGD(0.1))
    raw.fit(backend.array(x), backend.array(y), epochs=3, batch_size=16, progress=False)
    scaled.fit((x - 300.0) / 20.0, (y - 1e4) / 500.0, epochs=3, batch_size=16, progress=False)
    backend.close(raw.theta, scaled.theta, rtol=1e-9)
    np.testing.assert_array_equal(backend.host(raw.buffers), [300, 300, 300, 20, 20, 20, 1e4, 500])
    backend.close(raw.predict(backend.array(x)), 1e4 + 500.0 * scaled.predict((x - 300.0) / 20.0), rtol=1e-9)
    assert raw.history["loss"] == pytest.approx([500.0**2 * loss for loss in scaled.history["loss"]])


def test_nothing_before_the_first_trained_layer_is_derived():
    @dataclass(frozen=True)
    class Watched(bp.Dense):
        def backward(self, run, p, cache, dy, need_dx=True):
            assert not need_dx
            return super().backward(run, p, cache, dy, need_dx)

    net = bp.Sequential(bp.Standardize(1.0, 2.0), bp.Flatten(), Watched(3))
    bp.Trainer(net, "mse").step(np.ones((2, 3)), np.ones((2, 3)))


@pytest.mark.parametrize("options", [{"scale": 1e-40}, {"mean": 1e39}, {"mean": -1e39}])
def test_values_that_float32_can_not_hold_are_refused_there(options):
    net, x = bp.Sequential(bp.Standardize(**options), bp.Dense(1)), np.ones((2, 3))
    pattern = r"^(mean|scale) of Standardize\(.*\) is -?1e[-+]\d+; with float32 parameters expected .*, or x of float64"
    with pytest.raises(OptionError, match=pattern):
        bp.Trainer(net, "mse").build(x.astype(np.float32))
    assert np.all(np.isfinite(bp.Trainer(net, "mse").build(x).predict(x)))


def test_standardize_is_told_in_few_words():
    assert len(repr(bp.Standardize(tuple(range(10_000)), 1.0))) < 100
    assert bp.layout_of(bp.Standardize(1.0), (2, 3), trains=False).buffer_size == 6
    assert bp.Standardize(np.array([1, 2]), 1) == bp.Standardize((1.0, 2.0), 1.0)


def test_batch_norm_of_a_single_row_is_finite(library):
    layer = bp.BatchNorm()
    p = {"scale": np.ones(2), "shift": np.ones(2), "mean": np.zeros(2), "var": np.ones(2)}
    run = bp.Run(library("numpy").seam, True, KEY)
    y, cache = layer.forward(run, p, np.array([[3.0, 4.0]]))
    np.testing.assert_array_equal(y, np.ones((1, 2)))
    assert all(np.all(np.isfinite(v)) for v in layer.update_buffers(run, p, cache).values())


def test_what_couples_rows_or_draws_is_told_upwards():
    assert bp.Residual(bp.Sequential(bp.BatchNorm())).couples_rows
    assert not bp.Sequential(bp.Dense(3), bp.Dropout(0.1)).couples_rows
    assert bp.Sequential(bp.Residual(bp.Dropout(0.1))).stochastic
    assert not bp.Sequential(bp.Dense(3), bp.BatchNorm()).stochastic


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: bp.Dense(0), OptionError),
        (lambda: bp.Dense(2.5), OptionError),
        (lambda: bp.Dense(True), OptionError),
        (lambda: bp.Dropout(1.0), OptionError),
        (lambda: bp.Dropout(-0.1), OptionError),
        (lambda: bp.BatchNorm(momentum=1.5), OptionError),
        (lambda: bp.BatchNorm(epsilon=0.0), OptionError),
        (lambda: bp.Standardize(scale=0.0), OptionError),
        (lambda: bp.Standardize(scale=(1.0, -1.0)), OptionError),
        (lambda: bp.Standardize(mean=float("nan")), OptionError),
        (lambda: bp.Standardize(mean=()), OptionError),
        (lambda: bp.Standardize(mean=(1.0, 2.0), scale=(1.0,)), OptionError),
        (lambda: bp.Standardize(mean="mean"), TypeError),
        (lambda: bp.Standardize(invert="yes"), OptionError),
        (lambda: bp.Standardize(mean=(1.0, 2.0)).out_shape((3,)), ShapeError),
        (lambda: bp.Standardize().out_shape(()), ShapeError),
        (lambda: bp.Sequential(), OptionError),
        (lambda: bp.Sequential(bp.Dense), TypeError),
        (lambda: bp.Sequential("Relu"), ValueError),
        (lambda: bp.Residual(3), TypeError),
        (lambda: bp.Residual(bp.Dense(3)).out_shape((4,)), ShapeError),
        (lambda: bp.Dense(3).out_shape(()), ShapeError),
        (lambda: bp.LayerNorm(epsilon=0.0), OptionError),
        (lambda: bp.LayerNorm().out_shape(()), ShapeError),
        (lambda: bp.RMSNorm(epsilon=-1.0), OptionError),
        (lambda: bp.GroupNorm(0), OptionError),
        (lambda: bp.Scale(float("inf")), OptionError),
        (lambda: bp.Scale().out_shape(()), ShapeError),
        (lambda: bp.Reshape(4), TypeError),
        (lambda: bp.Reshape((4, 0)), OptionError),
        (lambda: bp.Reshape((-1, -1)), OptionError),
        (lambda: bp.Reshape((True, 4)), OptionError),
        (lambda: bp.AlphaDropout(1.0), OptionError),
        (lambda: bp.GaussianNoise(-0.1), OptionError),
        (lambda: bp.GLU(0), OptionError),
        (lambda: bp.GLU(3, "gelut"), ValueError),
        (lambda: bp.GLU(3).out_shape(()), ShapeError),
        (lambda: bp.Bilinear(3).out_shape((5,)), ShapeError),
        (lambda: bp.Bilinear(3, split=4).out_shape((4,)), ShapeError),
        (lambda: bp.Bilinear(3, split=0), OptionError),
        (lambda: bp.Parallel(), OptionError),
        (lambda: bp.Parallel(bp.Dense(3), join="sum"), OptionError),
        (lambda: bp.Parallel([bp.Dense(3)]), TypeError),
        (lambda: bp.Shared(bp.Dense(3), ""), OptionError),
        (lambda: bp.Shared(3, "a"), TypeError),
        (lambda: bp.WeightNorm(3), TypeError),
        (lambda: bp.SpectralNorm(bp.Dense(3), iterations=0), OptionError),
        (lambda: bp.BatchNorm().out_shape(()), ShapeError),
    ],
)
def test_unfit_options_and_shapes_are_refused(make, error):
    with pytest.raises(error):
        make()


def test_a_name_stands_for_an_activation_layer(tmp_path):
    network = bp.Sequential(bp.Dense(3), "relu", bp.Residual("gelu_tanh"), bp.Sequential("softplus", bp.Dense(2)))
    same = bp.Sequential(bp.Dense(3), bp.ReLU(), bp.Residual(bp.GELU(True)), bp.Sequential(bp.Softplus(), bp.Dense(2)))
    assert network == same
    assert hash(network) == hash(same)
    assert network.layers[1] == bp.ReLU()
    assert eval(repr(network), vars(bp)) == network
    x = np.random.default_rng(0).standard_normal((6, 4))
    trainer = bp.Trainer(network, "mse").build(x)
    trainer.save(tmp_path / "m.safetensors")
    loaded = bp.load(tmp_path / "m.safetensors")
    assert loaded.network == network
    np.testing.assert_array_equal(loaded.predict(x), bp.Trainer(same, "mse").build(x).predict(x))
