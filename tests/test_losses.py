"""Every loss: right by finite differences, by PyTorch's autograd, for extreme outputs, with weights, and in blocks."""

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import mpmath
import numpy as np
import pytest
from support.differences import differences

import bpnet as bp
from bpnet.data.checks import ignored_rows
from bpnet.errors import DataError, GradientError, OptionError, ShapeError, UnknownNameError

ROWS = 6


class Case(NamedTuple):
    """A loss, an output, a target, and PyTorch's value of every row: oracle(torch.nn.functional, output, target)."""

    loss: bp.Loss
    output: Any
    target: Any
    oracle: Callable[..., Any]


def squared(f, o, t):
    return ((o - t) ** 2).flatten(1).mean(1)


def binary(f, o, t):
    return f.binary_cross_entropy(o, t, reduction="none").mean(1)


def binary_logits(f, o, t):
    return f.binary_cross_entropy_with_logits(o, t, reduction="none").mean(1)


def cross(f, o, t):
    return f.cross_entropy(o, t, reduction="none")


def labelled(f, o, t):
    return cross(f, o, t.long())


def by_hand(formula):
    """Of a loss that PyTorch does not have: its formula, of every output, for PyTorch to differentiate."""
    return lambda f, o, t: formula(f, o, t).flatten(1).mean(1)


def named(name, **options):
    """PyTorch's function of that name, of every output."""
    return by_hand(lambda f, o, t: getattr(f, name)(o, t, reduction="none", **options))


def log_cosh(f, o, t):
    return o - t + f.softplus(-2.0 * (o - t)) - math.log(2.0)


def pinball(f, o, t):
    q, e = torch_like(o, QUANTILES), t[:, :, None] - o.reshape(ROWS, -1, len(QUANTILES))
    return (q * f.relu(e) + (1.0 - q) * f.relu(-e)).flatten(1)


def gaussian(f, o, t):
    return f.gaussian_nll_loss(o[:, ::2], t, o[:, 1::2].exp(), eps=1e-300, reduction="none")


def tweedie(f, o, t):
    return (0.7 * o).exp() / 0.7 + t * (-0.3 * o).exp() / 0.3


def focal_of_two(f, o, t):
    """As torchvision has it, with twice its alpha."""
    q = t * (-o).sigmoid() + (1.0 - t) * o.sigmoid()
    return (0.6 * t + 1.4 * (1.0 - t)) * q**1.7 * f.binary_cross_entropy_with_logits(o, t, reduction="none")


def focal(f, o, t):
    log_p = f.log_softmax(o, 1)
    return -(t * (1.0 - log_p.exp()) ** 1.7 * log_p).sum(1)


def kl(f, o, t):
    return f.kl_div(f.log_softmax(o, 1), t, reduction="none").sum(1)


def cross_with(**options):
    def oracle(f, o, t):
        given = {k: torch_like(o, v) if isinstance(v, tuple) else v for k, v in options.items()}
        return f.cross_entropy(o, t.long() if t.ndim == 1 else t, reduction="none", **given)

    return oracle


def adjusted(f, o, t):
    return cross(f, o + 0.8 * torch_like(o, SHARES).log(), t.long())


def weighted_binary(f, o, t):
    return f.binary_cross_entropy_with_logits(o, t, pos_weight=torch_like(o, (0.5, 1.0, 3.0)), reduction="none").mean(1)


def triplet(f, o, t):
    return f.triplet_margin_loss(o[:, 0], o[:, 1], o[:, 2], margin=0.7, eps=0.0, reduction="none")


def headed(f, o, t):
    of_class = f.cross_entropy(o[:, :4], t[:, 0].long(), reduction="none")
    return of_class + 0.25 * ((o[:, 4:6] - t[:, 1:3]) ** 2).mean(1) + 2.0 * gaussian_of_one(f, o[:, 6:], t[:, 3:])


def gaussian_of_one(f, o, t):
    return f.gaussian_nll_loss(o[:, :1], t, o[:, 1:].exp(), eps=1e-300, reduction="none").mean(1)


def torch_like(o, values):
    return o.new_tensor(values)


def draw(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape)


def chances(*shape):
    return np.random.default_rng(9).uniform(0.05, 0.95, shape)


LABELS = np.array([2, 0, 1, 3, 3, 0], dtype=np.int32)
ONE_HOT = np.eye(4)[LABELS]
BITS = (chances(ROWS, 3) > 0.5).astype(float)
COUNTS = np.floor(5.0 * chances(ROWS, 3)) * BITS
QUANTILES, SHARES, CLASSES = (0.1, 0.5, 0.75), (0.4, 0.3, 0.2, 0.1), (0.5, 1.0, 2.0, 0.25)

LOSSES = {
    "mse": Case(bp.MeanSquaredError(), draw(ROWS, 3), chances(ROWS, 3), squared),
    "mse of 2 axes": Case(bp.MeanSquaredError(), draw(ROWS, 2, 3), chances(ROWS, 2, 3), squared),
    "mse, scaled": Case(
        bp.MeanSquaredError(scale=(0.5, 1.0, 4.0)),
        draw(ROWS, 3),
        chances(ROWS, 3),
        lambda f, o, t: squared(f, o / torch_like(o, (0.5, 1.0, 4.0)), t / torch_like(o, (0.5, 1.0, 4.0))),
    ),
    "bce": Case(bp.BinaryCrossEntropy(), chances(ROWS, 3), BITS, binary),
    "bce, one output": Case(bp.BinaryCrossEntropy(), chances(ROWS, 1), BITS[:, :1], binary),
    "bce, soft": Case(bp.BinaryCrossEntropy(), chances(ROWS, 3), chances(ROWS, 3)[::-1], binary),
    "bce of logits": Case(bp.BinaryCrossEntropyWithLogits(), 3 * draw(ROWS, 3), BITS, binary_logits),
    "bce of logits, soft": Case(bp.BinaryCrossEntropyWithLogits(), draw(ROWS, 3), chances(ROWS, 3), binary_logits),
    "cross entropy, labels": Case(bp.CrossEntropy(), 3 * draw(ROWS, 4), LABELS, labelled),
    "cross entropy, one-hot": Case(bp.CrossEntropy(), 3 * draw(ROWS, 4), ONE_HOT, cross),
    "cross entropy, soft": Case(bp.CrossEntropy(), draw(ROWS, 4), 0.9 * ONE_HOT + 0.025, cross),
    "cross entropy, not quite adding up": Case(bp.CrossEntropy(), draw(ROWS, 4), 0.9995 * ONE_HOT, cross),
    "mae": Case(bp.MeanAbsoluteError(), draw(ROWS, 3), chances(ROWS, 3), named("l1_loss")),
    "mae of 2 axes": Case(bp.MeanAbsoluteError(), draw(ROWS, 2, 3), chances(ROWS, 2, 3), named("l1_loss")),
    "huber": Case(bp.Huber(0.7), 2 * draw(ROWS, 3), chances(ROWS, 3), named("huber_loss", delta=0.7)),
    "log cosh": Case(bp.LogCosh(), 2 * draw(ROWS, 3), chances(ROWS, 3), by_hand(log_cosh)),
    "quantiles": Case(bp.Quantile(QUANTILES), draw(ROWS, 6), chances(ROWS, 2), by_hand(pinball)),
    "median": Case(bp.Quantile(), draw(ROWS, 2), chances(ROWS, 2), by_hand(lambda f, o, t: 0.5 * (o - t).abs())),
    "poisson": Case(bp.Poisson(), draw(ROWS, 3), COUNTS, named("poisson_nll_loss", log_input=True, full=False)),
    "gamma": Case(bp.Gamma(), draw(ROWS, 3), COUNTS + 0.5, by_hand(lambda f, o, t: o + t * (-o).exp())),
    "tweedie": Case(bp.Tweedie(1.3), draw(ROWS, 3), COUNTS, by_hand(tweedie)),
    "gaussian": Case(bp.GaussianNLL(), draw(ROWS, 4), chances(ROWS, 2), by_hand(gaussian)),
    "hinge": Case(bp.Hinge(), draw(ROWS, 3), BITS, by_hand(lambda f, o, t: f.relu(1.0 - (2.0 * t - 1.0) * o))),
    "squared hinge": Case(
        bp.SquaredHinge(), draw(ROWS, 3), BITS, by_hand(lambda f, o, t: f.relu(1.0 - (2.0 * t - 1.0) * o) ** 2)
    ),
    "binary focal": Case(bp.BinaryFocal(1.7, 0.3), 2 * draw(ROWS, 3), BITS, by_hand(focal_of_two)),
    "binary focal, soft": Case(bp.BinaryFocal(1.7, 0.3), draw(ROWS, 3), chances(ROWS, 3), by_hand(focal_of_two)),
    "focal, labels": Case(bp.Focal(1.7), draw(ROWS, 4), LABELS, lambda f, o, t: focal(f, o, f.one_hot(t.long(), 4))),
    "focal, soft": Case(bp.Focal(1.7), draw(ROWS, 4), 0.9 * ONE_HOT + 0.025, focal),
    "kl, soft": Case(bp.KLDivergence(), draw(ROWS, 4), 0.9 * ONE_HOT + 0.025, kl),
    "kl, not quite adding up": Case(bp.KLDivergence(), draw(ROWS, 4), 0.9995 * ONE_HOT, kl),
    "kl, one-hot": Case(bp.KLDivergence(), draw(ROWS, 4), ONE_HOT, kl),
    "cosine": Case(
        bp.CosineSimilarity(), draw(ROWS, 3), chances(ROWS, 3), lambda f, o, t: 1.0 - f.cosine_similarity(o, t)
    ),
    "triplet": Case(bp.Triplet(0.7), draw(ROWS, 3, 4), np.zeros((ROWS, 1)), triplet),
    "cross entropy, smooth": Case(
        bp.CrossEntropy(label_smoothing=0.1), draw(ROWS, 4), LABELS, cross_with(label_smoothing=0.1)
    ),
    "cross entropy, weighted classes": Case(
        bp.CrossEntropy(label_smoothing=0.1, class_weight=CLASSES),
        draw(ROWS, 4),
        LABELS,
        cross_with(label_smoothing=0.1, weight=CLASSES),
    ),
    "cross entropy, weighted and soft": Case(
        bp.CrossEntropy(class_weight=CLASSES), draw(ROWS, 4), 0.9 * ONE_HOT + 0.025, cross_with(weight=CLASSES)
    ),
    "cross entropy, ignoring": Case(
        bp.CrossEntropy(label_smoothing=0.1, ignore_index=-1),
        draw(ROWS, 4),
        np.where(LABELS == 3, -1, LABELS),
        cross_with(label_smoothing=0.1, ignore_index=-1),
    ),
    "cross entropy, adjusted": Case(bp.CrossEntropy(class_prior=SHARES, tau=0.8), draw(ROWS, 4), LABELS, adjusted),
    "bce of logits, weighted": Case(
        bp.BinaryCrossEntropyWithLogits(pos_weight=(0.5, 1.0, 3.0)), 3 * draw(ROWS, 3), BITS, weighted_binary
    ),
    "bce of logits, smooth": Case(
        bp.BinaryCrossEntropyWithLogits(label_smoothing=0.1),
        draw(ROWS, 3),
        BITS,
        lambda f, o, t: binary_logits(f, o, 0.9 * t + 0.05),
    ),
    "members": Case(bp.Members("mse"), draw(ROWS, 2, 3), chances(ROWS, 3), lambda f, o, t: squared(f, o, t[:, None])),
    "members, labels": Case(
        bp.Members(bp.CrossEntropy(ignore_index=-1)),
        draw(ROWS, 2, 4),
        np.where(LABELS == 3, -1, LABELS),
        lambda f, o, t: (cross_with(ignore_index=-1)(f, o[:, 0], t) + cross_with(ignore_index=-1)(f, o[:, 1], t)) / 2,
    ),
    "heads": Case(
        bp.Heads(bp.Head("cross_entropy", 4), bp.Head("mse", 2, weight=0.25), bp.Head("gaussian_nll", 2, 2.0)),
        draw(ROWS, 8),
        np.concatenate([LABELS[:, None], chances(ROWS, 3)], axis=1),
        headed,
    ),
}
WEIGHT = np.array([0.5, 2.0, 0.0, 1.0, 3.0, 1.5])


@pytest.fixture(params=LOSSES)
def case(request: pytest.FixtureRequest) -> Case:
    return LOSSES[request.param]


@pytest.fixture(params=["unweighted", "weighted"])
def weight(request: pytest.FixtureRequest) -> Any:
    return None if request.param == "unweighted" else WEIGHT


def evaluate(lib, loss, output, target, weight=None, total=None):
    total = total or float(output.shape[0] if weight is None else np.sum(lib.host(weight)))
    with lib.seam.session():
        return lib.call(lambda o, t, w: loss(bp.Run(lib.seam), o, t, w, total), output, target, weight)


def compiled_if_jax(lib):
    """Skip what takes long on JAX where it compiles every operation alone, and is tested compiled as a whole."""
    if lib.name == "jax":
        pytest.skip("on JAX, all losses and trainers are tested compiled: the member jax-jit")


def as_type(a, dtype):
    return a.astype(dtype) if a is not None and a.dtype.kind == "f" else a


def test_every_loss_of_the_catalogue_is_in_the_table():
    public = [getattr(bp, name) for name in bp.__all__]
    assert {type(c.loss) for c in LOSSES.values()} == {
        c for c in public if isinstance(c, type) and issubclass(c, bp.Loss)
    } - {bp.Loss, bp.ElementwiseLoss, bp.RowLoss}


@pytest.mark.parametrize(
    ("name", "loss"),
    [
        ("mse", bp.MeanSquaredError()),
        ("mean_squared_error", bp.MeanSquaredError()),
        ("mae", bp.MeanAbsoluteError()),
        ("mean_absolute_error", bp.MeanAbsoluteError()),
        ("huber", bp.Huber(1.0)),
        ("log_cosh", bp.LogCosh()),
        ("quantile", bp.Quantile((0.5,))),
        ("poisson", bp.Poisson()),
        ("gamma", bp.Gamma()),
        ("tweedie", bp.Tweedie(1.5)),
        ("gaussian_nll", bp.GaussianNLL()),
        ("binary_cross_entropy", bp.BinaryCrossEntropy()),
        ("binary_cross_entropy_with_logits", bp.BinaryCrossEntropyWithLogits()),
        ("binary_focal", bp.BinaryFocal(2.0)),
        ("hinge", bp.Hinge()),
        ("squared_hinge", bp.SquaredHinge()),
        ("cross_entropy", bp.CrossEntropy()),
        ("kl_divergence", bp.KLDivergence()),
        ("focal", bp.Focal(2.0)),
        ("cosine_similarity", bp.CosineSimilarity()),
        ("triplet", bp.Triplet(1.0)),
    ],
)
def test_names(name, loss):
    assert bp.Trainer(bp.Dense(2), name).loss == loss


def test_unknown_name_suggests_a_known_one():
    with pytest.raises(UnknownNameError, match="did you mean 'cross_entropy'"):
        bp.Trainer(bp.Dense(2), "cross_entrpy")


def test_derivative_by_finite_differences(case, noted):
    activation = "sigmoid" if isinstance(case.loss, bp.BinaryCrossEntropy) else "identity"
    net = bp.Dense(case.output.shape[-1], activation)
    x = draw(*case.output.shape[:-1], 5)
    report = bp.check_gradients(net, x, case.target, loss=case.loss, tolerance=1e-7)
    noted("losses", "numpy", [check.error for check in report.checks])


def test_value_and_slope_as_pytorch(case, weight, library):
    torch = pytest.importorskip("torch")
    output = torch.tensor(case.output, requires_grad=True)
    rows = case.oracle(torch.nn.functional, output, torch.tensor(case.target.copy()))
    by_row = torch.ones(ROWS, dtype=rows.dtype) if weight is None else torch.tensor(weight)
    value = (rows * by_row).sum() / by_row.sum()
    value.backward()
    got, slope = evaluate(library("numpy"), case.loss, case.output, case.target, weight)
    np.testing.assert_allclose(got, value.item(), rtol=1e-12)
    library("numpy").close(slope, output.grad.numpy())


class Together:
    """All losses of the table in one function, compiled as a trainer's would be, since compiling one alone costs most
    of the time; `cases` are those of which it is."""

    def __init__(self, lib, cases=None):
        self.lib, self.cases = lib, list((cases or LOSSES).values())
        self.compiled = lib.seam.compile(self._all)

    def _all(self, seam, outputs, targets, weight, total):
        run = bp.Run(seam)
        given = zip(self.cases, outputs, targets, strict=True)
        return tuple(case.loss(run, output, target, weight, total) for case, output, target in given)

    def __call__(self, outputs, weight, dtype, total=None):
        """Value and slope of every case, for NumPy arrays."""
        lib, total = self.lib, total or float(ROWS if weight is None else np.sum(weight))
        outputs = tuple(lib.array(o, dtype) for o in outputs)
        targets = tuple(lib.array(as_type(case.target, dtype)) for case in self.cases)
        weight = None if weight is None else lib.array(weight, dtype)
        before = [lib.host(a) for a in (*outputs, *targets)]
        with lib.seam.session(work=1.0):
            found = self.compiled(outputs, targets, weight, total)
        for a, kept in zip((*outputs, *targets), before, strict=True):
            np.testing.assert_array_equal(lib.host(a), kept)
        for (value, slope), output in zip(found, outputs, strict=True):
            assert tuple(value.shape) == ()
            assert lib.dtype(value) == lib.dtype(slope) == dtype
            assert lib.seam.device(slope) == lib.seam.device(output)
        return found

    def slope_errors(self, weight, total):
        """How far the slopes are from differences of the values, in double precision."""

        def values(given):
            return [self.lib.host(v) for v, _ in self([g["output"] for g in given], weight, "float64", total)]

        given = [{"output": case.output} for case in self.cases]
        slopes = [s for _, s in self([case.output for case in self.cases], weight, "float64", total)]
        return differences(values, given, [{"output": self.lib.host(s)} for s in slopes], 3)


@pytest.mark.parametrize(("dtype", "weight"), [("float64", WEIGHT), ("float32", None)])
def test_same_on_every_library(weight, backend, dtype, library, uncompiled, noted):
    """Also for outputs so large, where they are no probabilities, that squares and exponentials overflow."""
    compiled_if_jax(backend)
    together, reference = Together(backend), Together(library("numpy"))
    for scale in (1.0, 1e4, 1e30):
        far = [1.0 if isinstance(case.loss, bp.BinaryCrossEntropy) else scale for case in together.cases]
        outputs = [as_type(case.output, dtype) * f for case, f in zip(together.cases, far, strict=True)]
        found = together(outputs, weight, dtype)
        like = "float64" if scale == 1.0 else dtype  # where it overflows is a matter of the type
        expected = reference([as_type(o, like) for o in outputs], weight, like)
        for name, results, wanted in zip(LOSSES, found, expected, strict=True):
            for got, want in zip(results, wanted, strict=True):
                got, want = backend.host(got), np.asarray(want)
                assert not np.any(np.isnan(got)), name
                finite = np.isfinite(want)
                np.testing.assert_array_equal(got[~finite], want[~finite], err_msg=name)
                rtol, floor = (1e-12, 0.0) if dtype == "float64" else (1.3e-6, 1e-5)
                atol = max(floor, rtol * np.max(np.abs(want[finite]), initial=0.0))
                np.testing.assert_allclose(got[finite], want[finite], rtol=rtol, atol=atol, err_msg=name)
    assert not uncompiled()
    if dtype == "float64":
        for total in (None, 1.0):  # the mean, and the sum
            noted("losses", backend.name, together.slope_errors(weight, total))


def test_stays_on_the_device_of_the_output(case, weight, library):
    lib = library("strict-device")
    arrays = [None if a is None else lib.array(a) for a in (case.output, case.target, weight)]
    total = None if weight is None else lib.xp.sum(arrays[2])
    results = evaluate(lib, case.loss, *arrays, total=total)
    assert {lib.seam.device(a) for a in results} == {lib.seam.device(arrays[0])}


def test_blocks_of_rows_add_up_to_the_batch(case, weight, library):
    lib = library("numpy")
    total = float(ROWS if weight is None else np.sum(weight))
    value, slope = evaluate(lib, case.loss, case.output, case.target, weight)
    parts = [
        evaluate(lib, case.loss, *[None if a is None else a[s] for a in (case.output, case.target, weight)], total)
        for s in (slice(0, 1), slice(1, 4), slice(4, ROWS))
    ]
    np.testing.assert_allclose(sum(v for v, _ in parts), value, rtol=1e-14)
    np.testing.assert_allclose(np.concatenate([s for _, s in parts]), slope, rtol=1e-14)


def test_a_weight_counts_as_so_many_rows(case, library):
    lib, times = library("numpy"), np.array([1, 3, 0, 2, 1, 1])
    value, slope = evaluate(lib, case.loss, case.output, case.target, times.astype(float))
    repeated = np.repeat(case.output, times, axis=0), np.repeat(case.target, times, axis=0)
    again, slopes = evaluate(lib, case.loss, *repeated)
    np.testing.assert_allclose(value, again, rtol=1e-14)
    starts = np.cumsum(times) - times
    summed = [slopes[s : s + n].sum(axis=0) for s, n in zip(starts, times, strict=True)]
    np.testing.assert_allclose(slope, summed, rtol=1e-13, atol=1e-16)


def test_labels_equal_one_hot(backend, weight):
    output = backend.array(LOSSES["cross entropy, labels"].output)
    by_row = None if weight is None else backend.array(weight)
    named = evaluate(backend, bp.CrossEntropy(), output, backend.array(LABELS), by_row)
    coded = evaluate(backend, bp.CrossEntropy(), output, backend.array(ONE_HOT), by_row)
    for a, b in zip(named, coded, strict=True):
        np.testing.assert_allclose(backend.host(a), backend.host(b), rtol=1e-14, atol=1e-17)


# ---- far from where training should be ------------------------------------------------------------------------------

EXTREMES = [0, 1e-8, 0.5, 3, 17, 36, 60, 88, 104, 500, 709, 746, 1e3, 1e4]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("target", [0.0, 1.0, 0.25])
def test_binary_cross_entropy_of_extreme_logits(backend, dtype, target):
    z = np.array(sorted({s * v for v in EXTREMES for s in (-1, 1)}), dtype=dtype)
    eps = np.finfo(dtype).eps
    for v in z.tolist():
        with mpmath.workdps(50):
            sigmoid = 1 / (1 + mpmath.exp(-mpmath.mpf(v)))
            exact = float(mpmath.log1p(mpmath.exp(mpmath.mpf(v))) - target * mpmath.mpf(v)), float(sigmoid - target)
        output, wanted = (backend.array([[a]], dtype) for a in (v, target))
        value, slope = outside_a_session(backend, bp.BinaryCrossEntropyWithLogits(), output, wanted)
        assert abs(float(value) - exact[0]) <= 4 * eps * max(abs(v), 1.0)
        assert abs(float(backend.host(slope)[0, 0]) - exact[1]) <= 4 * eps


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_cross_entropy_of_extreme_logits(backend, dtype):
    z = np.array(
        [[1e4, -1e4, 0], [-1e4, 1e4, 1e4], [0, 0, 0], [-1e4, -1e4, -1e4], [88, 89, 710], [3, 746, -746]], dtype
    )
    for row in z:
        for label in range(3):
            with mpmath.workdps(50):
                e = [mpmath.exp(mpmath.mpf(float(v))) for v in row]
                exact = float(mpmath.log(sum(e)) - mpmath.mpf(float(row[label])))
                share = [float(v / sum(e)) - (k == label) for k, v in enumerate(e)]
            output, target = backend.array(row[None, :]), backend.array(np.array([label], np.int32))
            value, slope = outside_a_session(backend, bp.CrossEntropy(), output, target)
            eps = np.finfo(dtype).eps
            assert abs(float(value) - exact) <= 4 * eps * max(float(np.max(np.abs(row))), 1.0)
            np.testing.assert_allclose(backend.host(slope)[0], share, rtol=4 * eps, atol=4 * eps)


def _log1pexp(z):
    return mpmath.log1p(mpmath.exp(z))


FORMULAS = {  # of one output and one target: the loss, targets, and its value by mpmath
    "mse": (bp.MeanSquaredError(), (0.25, -3.0), lambda z, t: (z - t) ** 2),
    "mae": (bp.MeanAbsoluteError(), (0.25, -3.0), lambda z, t: abs(z - t)),
    "huber": (bp.Huber(), (0.25,), lambda z, t: (z - t) ** 2 / 2 if abs(z - t) < 1 else abs(z - t) - mpmath.mpf(1) / 2),
    "log cosh": (bp.LogCosh(), (0.0, 0.25), lambda z, t: mpmath.log(mpmath.cosh(z - t))),
    "quantile": (bp.Quantile((0.25,)), (0.125,), lambda z, t: max((t - z) / 4, (z - t) * 3 / 4)),
    "poisson": (bp.Poisson(), (0.0, 3.0, 1e10), lambda z, t: mpmath.exp(z) - t * z),
    "gamma": (bp.Gamma(), (0.5, 1e10), lambda z, t: z + t * mpmath.exp(-z)),
    "tweedie": (bp.Tweedie(), (0.0, 3.0), lambda z, t: 2 * mpmath.exp(z / 2) + 2 * t * mpmath.exp(-z / 2)),
    "hinge": (bp.Hinge(), (0.0, 1.0), lambda z, t: max(0, 1 - (2 * t - 1) * z)),
    "squared hinge": (bp.SquaredHinge(), (0.0, 1.0), lambda z, t: max(0, 1 - (2 * t - 1) * z) ** 2),
    "weighted": (
        bp.BinaryCrossEntropyWithLogits(pos_weight=3.0), (0.0, 0.25, 1.0),
        lambda z, t: 3 * t * _log1pexp(-z) + (1 - t) * _log1pexp(z),
    ),
    "smooth": (
        bp.BinaryCrossEntropyWithLogits(label_smoothing=0.5), (0.0, 1.0),
        lambda z, t: _log1pexp(z) - (t / 2 + mpmath.mpf(1) / 4) * z,
    ),
    "binary focal": (
        bp.BinaryFocal(1.5), (0.0, 0.25, 1.0),
        lambda z, t: (t / (1 + mpmath.exp(z)) + (1 - t) / (1 + mpmath.exp(-z))) ** mpmath.mpf(1.5)
        * (_log1pexp(z) - t * z),
    ),
}  # fmt: skip
FAR = [0.0, -0.0, 5e-324, 1e-300, 1e-8, 0.37, 3.1, 17.0, 88.0, 300.0, 746.0, 1e4, 1e20, 1e30]


def slope_by_mpmath(f, z, t):
    h = mpmath.ldexp(1, -1170)  # less than the smallest number, and both ends have all of their digits
    return (f(z + h, t) - f(z - h, t)) / (2 * h)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", FORMULAS)
def test_extreme_outputs_of_one_target(library, name, dtype):
    loss, targets, formula = FORMULAS[name]
    lib, largest = library("numpy"), float(np.finfo(dtype).max)
    z = np.array(sorted({s * v for v in FAR for s in (-1, 1)}), dtype)
    for target in targets:
        output, wanted = z[:, None], np.full((len(z), 1), target, dtype)
        with lib.seam.session():
            run = bp.Run(lib.seam)
            values, slopes = loss.rows(run, output, wanted), loss(run, output, wanted, None, 1.0)[1][:, 0]
        with mpmath.workdps(450):
            t = mpmath.mpf(float(wanted[0, 0]))
            for v, *found in zip(z.tolist(), values.tolist(), slopes.tolist(), strict=True):
                exact = formula(mpmath.mpf(v), t), slope_by_mpmath(formula, mpmath.mpf(v), t)
                for got, want in zip(found, exact, strict=True):
                    if abs(want) > largest:
                        assert got == math.copysign(math.inf, want), (v, target)
                    else:
                        assert abs(got - want) <= max(1e-6 * abs(want), 8 * np.finfo(dtype).eps), (v, target)


def _entropy(s=0.0, weight=(1, 1, 1), shares=(1, 1, 1)):
    """The cross-entropy of smoothed labels, with weights of the classes, of logits adjusted by shares."""

    def formula(z, label):
        z = [v + mpmath.log(share) for v, share in zip(z, shares, strict=True)]
        wanted = [(1 - mpmath.mpf(s)) * (k == label) + mpmath.mpf(s) / 3 for k in range(3)]
        return -sum(c * t * mpmath.log(_share(z, k)) for k, (c, t) in enumerate(zip(weight, wanted, strict=True)) if t)

    return formula


def _triplet(z, _):
    a, p, n = z[:2], z[2:4], z[4:]
    near, far = (_long([x - y for x, y in zip(a, other, strict=True)]) for other in (p, n))
    return max(0, near - far + mpmath.mpf(1.5))


LOGITS = [
    [1e4, -1e4, 0], [1e30, -1e30, 3], [1e20, 1e20, -1e20], [0, -0.0, 0], [1e30] * 3, [5e-324, 0, -5e-324],
    [0.2, 17, -36], [88, 89, 710],
]  # fmt: skip
ROWS_OF_SEVERAL = {  # the loss, its outputs, targets, and the value of a row by mpmath
    "cross entropy": (bp.CrossEntropy(), LOGITS, [0, 1, 2], _entropy()),
    "smooth": (
        bp.CrossEntropy(label_smoothing=0.125, class_weight=(1, 2, 0.5)), LOGITS, [0, 2],
        _entropy(0.125, (1, 2, mpmath.mpf(0.5))),
    ),
    "adjusted": (
        bp.CrossEntropy(class_prior=(0.5, 0.25, 0.125)), LOGITS, [1],
        _entropy(shares=tuple(mpmath.mpf(2) ** -k for k in (1, 2, 3))),
    ),
    "triplet": (
        bp.Triplet(1.5), [
            [1e30, 0, 0, 1e30, -1e30, 3], [1e4, -1e4, 1e4, -1e4, 0, 1e20], [0, -0.0, 5e-324, 0, 0.25, 0.5],
            [0, 1e-30, 1e-20, 0, 0, -1e-30], [0.3, 0.1, 0.4, -0.2, 0.5, 17], [1, 2, 1, 2, 1, 2],
        ],
        [[0.0]], _triplet,
    ),
    "focal": (
        bp.Focal(1.5), LOGITS, [0, 1, 2],
        lambda z, t: -((1 - _share(z, t)) ** mpmath.mpf(1.5)) * mpmath.log(_share(z, t)),
    ),
    "kl": (
        bp.KLDivergence(), LOGITS,
        [[0.25, 0.75, 0.0], [1.0, 0.0, 0.0]],
        lambda z, t: sum(p * (mpmath.log(p) - mpmath.log(_share(z, k))) for k, p in enumerate(t) if p),
    ),
    "gaussian": (
        bp.GaussianNLL(), [[0.5, -1e4], [0.5, 1e4], [0.25, -1e4], [1e20, 1e4], [1e30, 0], [3, -1e30], [2, 1e-8]],
        [[0.25]], lambda z, t: (z[1] + (t[0] - z[0]) ** 2 * mpmath.exp(-z[1])) / 2,
    ),
    "cosine": (
        bp.CosineSimilarity(), [[1e30, 1e30, 1], [1e4, -1e20, 0], [1e-6, 1e-7, 0], [0.1, -0.0, 0.3]], [[3, 0.5, -1e20]],
        lambda z, t: 1 - sum(a * b for a, b in zip(z, t, strict=True)) / _long(z) / _long(t),
    ),
}  # fmt: skip


def _share(z, k):
    return 1 / sum(mpmath.exp(other - z[k]) for other in z)


def _long(z):
    return mpmath.sqrt(sum(v * v for v in z))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", ROWS_OF_SEVERAL)
def test_extreme_rows(library, name, dtype):
    loss, outputs, targets, formula = ROWS_OF_SEVERAL[name]
    lib, eps, largest = library("numpy"), np.finfo(dtype).eps, float(np.finfo(dtype).max)
    for target in targets:
        given = np.array([target] * len(outputs), np.int64 if isinstance(target, int) else dtype)
        z = np.array(outputs, dtype)
        with lib.seam.session():
            run, rows = bp.Run(lib.seam), z.reshape(-1, 3, 2) if isinstance(loss, bp.Triplet) else z
            values, slopes = loss.rows(run, rows, given), loss(run, rows, given, None, 1.0)[1].reshape(z.shape)
        with mpmath.workdps(450):
            t = target if isinstance(target, int) else [mpmath.mpf(v) for v in given[0].tolist()]
            for row, value, slope in zip(z.tolist(), values.tolist(), slopes.tolist(), strict=True):
                at = [mpmath.mpf(v) for v in row]
                exact = [formula(at, t)]
                for k in range(len(at)):
                    of = lambda v, _, k=k: formula([*at[:k], v, *at[k + 1 :]], t)  # noqa: E731, B023
                    exact.append(slope_by_mpmath(of, at[k], t))
                for got, want in zip([value, *slope], exact, strict=True):
                    if abs(want) > largest:
                        assert got == math.copysign(math.inf, want), row
                    else:
                        assert abs(got - want) <= max(1e-6 * abs(want), 8 * eps), (row, got, want)


def outside_a_session(lib, loss, output, target):
    """No session quietens a warning of overflow here, and eager: it would fail the test."""
    return loss(bp.Run(lib.seam), output, target, None, 1.0)


KINDS = {  # of which the third class has no part, and of which the second has
    "labels": (np.int32([0, 0, 1]), np.int32([2, 0, 1])),
    "one-hot": (np.eye(3)[[0, 0, 1]], np.eye(3)[[2, 0, 1]]),
    "probabilities": (np.array([[0.25, 0.75, 0], [1, 0, 0], [0.5, 0.5, 0]]), np.full((3, 3), 1 / 3)),
}


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_class_switched_off_adds_nothing(backend, kind, dtype, library):
    """Where its logit is -inf, or further from the largest than any number."""
    largest = float(np.finfo(dtype).max)
    good, bad = KINDS[kind]
    two = np.array([[0.3, -1.2], [2.0, 5.0], [-0.5, 0.5]])
    chosen = good if good.ndim == 1 else good[:, :2]
    rows, slopes = evaluate(library("numpy"), bp.CrossEntropy(), two, chosen, np.array([1.0, 2.0, 0.5]))
    wanted = np.concatenate([slopes, np.zeros((3, 1))], axis=1)
    z = np.concatenate([two, np.full((3, 1), -np.inf)], axis=1)
    weight, target = backend.array(np.array([1.0, 2.0, 0.5]), dtype), backend.array(as_type(good, dtype))
    value, slope = evaluate(backend, bp.CrossEntropy(), backend.array(z, dtype), target, weight)
    backend.close(value, rows)
    backend.close(slope, wanted)
    assert np.all(backend.host(slope)[:, 2] == 0.0)

    far = backend.array([[largest, largest, -largest]] * 3, dtype)
    value, slope = evaluate(backend, bp.CrossEntropy(), far, target)
    backend.close(value, np.log(2.0))
    assert np.all(backend.host(slope)[:, 2] == 0.0)

    wrong = backend.array(as_type(bad, dtype))
    value, slope = evaluate(backend, bp.CrossEntropy(), backend.array(z, dtype), wrong)
    assert float(value) == np.inf
    assert np.all(np.isfinite(backend.host(slope)))


@pytest.mark.parametrize("kind", KINDS)
def test_a_row_of_no_weight_adds_nothing_though_infinitely_wrong(backend, kind, library):
    z, target = draw(3, 3), KINDS[kind][1]
    z[0, 2] = -np.inf
    weight = np.array([0.0, 2.0, 0.5])
    kept = target[1:] if target.ndim == 1 else target[1:, :]
    wanted, slopes = evaluate(library("numpy"), bp.CrossEntropy(), z[1:], kept, weight[1:])
    value, slope = evaluate(backend, bp.CrossEntropy(), *map(backend.array, (z, target, weight)))
    backend.close(value, wanted)
    backend.close(slope, np.concatenate([np.zeros((1, 3)), slopes]))


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_binary_cross_entropy_of_infinite_logits(backend, dtype):
    """Right ones cost nothing, wrong ones are infinitely wrong; so it is of the largest numbers too."""
    largest = float(np.finfo(dtype).max)
    loss, factors = bp.BinaryCrossEntropyWithLogits(), backend.array([1.0, 2.0, 1.0, 2.0, 0.0], dtype)
    z = backend.array([[np.inf], [-np.inf], [largest], [-largest], [-np.inf]], dtype)
    target = backend.array([[1.0], [0.0], [1.0], [0.0], [1.0]], dtype)
    value, slope = evaluate(backend, loss, z, target, factors)
    assert float(value) == 0.0
    assert np.all(backend.host(slope) == 0.0)
    for logit, wanted in ((np.inf, 0.0), (-np.inf, 1.0), (np.inf, 0.5), (-np.inf, 0.5)):
        value, slope = evaluate(backend, loss, backend.array([[logit]], dtype), backend.array([[wanted]], dtype))
        assert float(value) == np.inf
        assert backend.host(slope)[0, 0] == (logit > 0) - wanted


def test_a_bias_of_minus_infinity_switches_a_class_off(backend):
    """In everything that a trainer does with it."""
    compiled_if_jax(backend)
    x, y = backend.array(np.ones((2, 2))), backend.array(np.array([0, 2]))
    hot = backend.array(np.eye(3)[[0, 2]])
    trainer = bp.Trainer(bp.Dense(3), "cross_entropy", bp.SGD(0.1)).build(x)
    trainer.parameters = {
        "weight": backend.array(np.array([[1.0, 2, 3], [4, 5, 6]])),
        "bias": backend.array(np.array([0, -np.inf, 0])),
    }
    wanted = np.log1p(np.exp(4.0)) - 2.0  # of logits 5 and 9
    grads = []
    for target in (y, hot):
        assert trainer.evaluate(x, target)["loss"] == pytest.approx(wanted, rel=1e-12)
        value, grad = bp.value_and_grad(trainer.network, "cross_entropy", trainer.theta, x, target)
        assert float(value) == pytest.approx(wanted, rel=1e-12)
        grads.append(backend.host(grad))
    share = 1 / (1 + np.exp(-4.0)) - 0.5  # of the third, less its target's
    np.testing.assert_allclose(grads[0], [-share, 0, share] * 3, rtol=1e-12)
    np.testing.assert_allclose(grads[1], grads[0], rtol=1e-12)
    assert float(trainer.step(x, y)) == pytest.approx(wanted, rel=1e-12)
    bias = backend.host(trainer.parameters["bias"])
    np.testing.assert_allclose(bias, [0.1 * share, -np.inf, -0.1 * share], rtol=1e-12)
    for _ in range(40):  # past a look at all that is carried on
        trainer.step(x, y)
    losses = trainer.fit(x, y, epochs=2, batch_size=2, validation=(x, hot), progress=False)["val_loss"]
    assert np.log(2.0) < losses[1] < losses[0] < wanted
    assert np.all(backend.host(trainer.predict(x))[:, 1] == -np.inf)
    assert backend.host(trainer.parameters["bias"])[1] == -np.inf
    steep = bp.Trainer(bp.Dense(3), "cross_entropy", bp.SGD(1e308)).build(x)
    steep.parameters, kept = trainer.parameters, backend.host(trainer.theta)
    with pytest.raises(bp.errors.DivergedError, match="is no longer finite"):  # what becomes so is noticed all the same
        steep.fit(x * 1e3, y, epochs=9, progress=False)
    np.testing.assert_array_equal(backend.host(steep.theta), kept)


def test_what_is_not_finite_stays_in_its_row_and_costs_nothing_in_one_of_no_weight(backend):
    """WEIGHT has one such row, the third.  No number is given where there is none."""
    compiled_if_jax(backend)
    together, large = Together(backend), float(np.finfo("float64").max)
    outputs = [case.output for case in together.cases]
    wanted = [backend.host(a) for pair in together(outputs, WEIGHT, "float64") for a in pair]
    for values in ((np.inf, 1.0), (-np.inf, 1.0), (np.inf, -np.inf), (large, -large), (np.nan, np.inf)):
        changed = [output.copy() for output in outputs]
        for output in changed:
            row = output[2].reshape(-1)
            row[0], row[-1] = values
        found = [backend.host(a) for pair in together(changed, WEIGHT, "float64") for a in pair]
        for i, (got, want) in enumerate(zip(found, wanted, strict=True)):
            np.testing.assert_array_equal(got, want, err_msg=list(LOSSES)[i // 2])
        for output, other in zip(changed, outputs, strict=True):
            output[3], output[2] = output[2], other[2]
        found = [backend.host(a) for pair in together(changed, WEIGHT, "float64") for a in pair]
        for name, got, slope, want in zip(LOSSES, found[::2], found[1::2], wanted[1::2], strict=True):
            np.testing.assert_array_equal(np.delete(slope, 3, 0), np.delete(want, 3, 0), err_msg=name)
            assert not np.isnan(values[0]) or np.isnan(got), name


@pytest.mark.parametrize("name", ["mse", "binary_cross_entropy", "binary_cross_entropy_with_logits", "cross_entropy"])
@pytest.mark.parametrize("hot", [True, False])
def test_a_trainer_overlooks_what_a_row_of_no_weight_gives(name, hot, backend):
    if not hot and name != "cross_entropy":
        pytest.skip("it has no labels")
    compiled_if_jax(backend)
    net = bp.Dense(2, "sigmoid" if name == "binary_cross_entropy" else "identity")
    y = backend.array(np.eye(2)[[1, 0, 0]] if hot else np.array([1, 0, 0]))
    weight, results = backend.array(np.array([1.0, 2.0, 0.0])), []
    for far in (1.0, 1e308):
        x = backend.array(np.array([[0.1, 0.2], [0.3, 0.1], [far, far]]))
        trainer = bp.Trainer(net, name, bp.SGD(0.1)).build(x)
        trainer.parameters = {
            "weight": backend.array(np.array([[4.0, -4.0], [2.0, -3.0]])),
            "bias": backend.array(np.zeros(2)),
        }
        results.append(trainer.evaluate(x, y, sample_weight=weight)["loss"])
        results.append(float(trainer.step(x, y, weight)))
        results.append(backend.host(trainer.theta))
    assert results[3] == pytest.approx(results[0], rel=1e-12)
    assert results[4] == pytest.approx(results[1], rel=1e-12)
    np.testing.assert_allclose(results[5], results[2], rtol=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_binary_cross_entropy_of_certain_and_wrong_probabilities_is_finite(backend, dtype):
    p, t = ([[0.0], [1.0], [1.0], [0.0], [-0.0], [5e-324]], [[1.0], [0.0], [1.0], [0.0], [1.0], [1.0]])
    value, slope = evaluate(backend, bp.BinaryCrossEntropy(), backend.array(p, dtype), backend.array(t, dtype))
    assert float(value) == pytest.approx(400.0 / 6.0)  # four of six rows, at log(0) taken as -100
    expected = 1e12 / 6.0 * np.array([-1.0, 1.0, 0.0, 0.0, -1.0, -1.0])
    np.testing.assert_allclose(backend.host(slope)[:, 0], expected, rtol=1e-6)


def test_binary_cross_entropy_of_small_probabilities_is_exact(backend):
    p = np.array([1e-12, 1e-30, 1 - 1e-12])[:, None]
    value, _ = evaluate(backend, bp.BinaryCrossEntropy(), backend.array(p), backend.array(1.0 - np.round(p)), None)
    with mpmath.workdps(50):
        exact = (
            -sum(mpmath.log(mpmath.mpf(v)) if v < 0.5 else mpmath.log1p(-mpmath.mpf(v)) for v in p[:, 0].tolist()) / 3
        )
    np.testing.assert_allclose(float(value), float(exact), rtol=1e-14)


PROBABILITIES = [1e-10, 1e-7, 1e-4, 3e-3, 0.1, 0.5, 0.9, 0.997, 1 - 1e-4, 1 - 1e-6]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_binary_cross_entropy_has_its_slope_down_to_small_probabilities(backend, dtype):
    """(p - t) / (p (1 - p)) of p as it is in its type, and the value besides, each row's by its own."""
    targets = [0.0, 0.25, 1.0]
    p = np.repeat(np.array(PROBABILITIES, dtype), len(targets))[:, None]
    t = np.tile(np.array(targets, dtype), len(PROBABILITIES))[:, None]
    value, slope = evaluate(backend, bp.BinaryCrossEntropy(), backend.array(p), backend.array(t), total=1.0)
    exact, total = [], mpmath.mpf(0)
    with mpmath.workdps(50):
        for a, b in zip(p[:, 0].tolist(), t[:, 0].tolist(), strict=True):
            a, b = mpmath.mpf(a), mpmath.mpf(b)
            exact.append(float((a - b) / (a * (1 - a))))
            total -= b * mpmath.log(a) + (1 - b) * mpmath.log1p(-a)
    eps = np.finfo(dtype).eps
    np.testing.assert_allclose(backend.host(slope)[:, 0], exact, rtol=4 * eps)
    np.testing.assert_allclose(float(value), float(total), rtol=8 * eps)


def test_a_mean_whose_sum_float32_can_not_hold(backend):
    error = backend.array(np.full((100, 1), 1.5e19, "float32"))
    value, dy = evaluate(backend, bp.MeanSquaredError(), error, error * 0.0)
    assert float(value) == pytest.approx(2.25e38, rel=1e-5)
    np.testing.assert_allclose(backend.host(dy), 3e17, rtol=1e-5)


# ---- a user's elementwise loss --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Huber(bp.ElementwiseLoss):
    """e**2 / 2 of errors e up to delta, and delta (|e| - delta / 2) of larger ones (Huber 1964)."""

    delta: float = 1.0

    def value(self, b, output, target):
        size = b.xp.abs(output - target)
        near = b.xp.minimum(size, self.delta)
        return near * (size - 0.5 * near)

    def derivative(self, b, output, target):
        return b.xp.minimum(b.xp.maximum(output - target, -self.delta), self.delta)


@pytest.mark.parametrize("delta", [0.5, 2.0])
def test_a_users_elementwise_loss_sees_its_options(backend, delta, tmp_path):
    rng = np.random.default_rng(0)
    output, target = 2.0 * rng.standard_normal((30, 3)), rng.standard_normal((30, 3))
    weight = rng.uniform(size=30)
    e = output - target
    each = np.where(np.abs(e) <= delta, 0.5 * e * e, delta * (np.abs(e) - 0.5 * delta))
    for w in (None, weight):
        share = (np.full(30, 1.0 / 30) if w is None else w / w.sum())[:, None] / 3
        given = [None if a is None else backend.array(a) for a in (output, target, w)]
        value, dy = evaluate(backend, _Huber(delta), *given)
        assert float(value) == pytest.approx(np.sum(share * each), rel=1e-12)
        backend.close(dy, share * np.clip(e, -delta, delta))
    x, y = backend.array(output), backend.array(target)
    trainer = bp.Trainer(bp.Dense(3), _Huber(delta), bp.SGD(0.1)).build(x)
    weights, bias = np.split(backend.host(trainer.theta), [9])
    trainer.step(x, y)
    dz = np.clip(output @ weights.reshape(3, 3) + bias - target, -delta, delta) / 90
    backend.close(trainer.theta, np.concatenate([weights - 0.1 * (output.T @ dz).ravel(), bias - 0.1 * dz.sum(axis=0)]))
    trainer.save(tmp_path / "m.safetensors")
    assert bp.load(tmp_path / "m.safetensors").loss == _Huber(delta)


def test_the_derivative_of_a_users_elementwise_loss_is_proven():
    x = np.random.default_rng(0).standard_normal((6, 4))
    assert bp.check_gradients(bp.Dense(2), x, x[:, :2], loss=_Huber(0.3)).ok

    @dataclass(frozen=True)
    class _Doubled(_Huber):
        def derivative(self, b, output, target):
            return 2.0 * super().derivative(b, output, target)

    with pytest.raises(GradientError):
        bp.check_gradients(bp.Dense(2), x, x[:, :2], loss=_Doubled(0.3))


# ---- options, targets, and what becomes of rows ---------------------------------------------------------------------


def test_the_loss_of_each_row(case, weight, library):
    """Whose mean or sum is that of all."""
    lib = library("numpy")
    rows = bp.row_losses(case.loss, case.output, case.target)
    assert rows.shape == (ROWS,)
    by_row = np.ones(ROWS) if weight is None else weight
    value, slope = evaluate(lib, case.loss, case.output, case.target, weight)
    np.testing.assert_allclose(value, np.sum(rows * by_row) / np.sum(by_row), rtol=1e-12)
    summed = dataclasses.replace(case.loss, reduction="sum") if not isinstance(case.loss, bp.Heads) else case.loss
    if summed is not case.loss:
        assert "reduction='sum'" in repr(summed)
        assert "reduction" not in repr(case.loss)
        total, slopes = evaluate(lib, case.loss, case.output, case.target, weight, summed.total(1e9))
        np.testing.assert_allclose(total, np.sum(rows * by_row), rtol=1e-12)
        np.testing.assert_allclose(slopes, slope * np.sum(by_row), rtol=1e-12, atol=1e-300)


@pytest.mark.parametrize("weight", [0.25, 3.0])
def test_a_sum_takes_weights_as_they_are(weight):
    x, y, weights = np.ones((4, 2)), np.array([[1.0], [2.0], [3.0], [4.0]]), weight * np.array([0.0, 0.5, 1.0, 1.0])
    trainer = bp.Trainer(bp.Dense(1), bp.MeanSquaredError(reduction="sum"), bp.SGD(0.01), compile=False).build(x)
    expected = float(np.sum((trainer.predict(x) - y)[:, 0] ** 2 * weights))
    assert trainer.evaluate(x, y, sample_weight=weights)["loss"] == pytest.approx(expected, rel=1e-12)
    assert trainer.step(x, y, weights) == pytest.approx(expected, rel=1e-12)


def test_the_loss_of_each_row_is_of_the_library_of_the_output(backend):
    output, target = np.array([[1.0], [3.0]]), np.array([[0.5], [0.0]])
    rows = bp.row_losses("mse", backend.array(output), backend.array(target))
    np.testing.assert_allclose(backend.host(rows), [0.25, 9.0], rtol=1e-14)


@dataclass(frozen=True)
class _Cubed(bp.Loss):
    def __call__(self, run, output, target, weight, total):
        error = run.xp.abs(output - target)
        return run.xp.sum(error**3) / total, 3.0 * error * (output - target) / total


def test_a_users_loss_has_rows_too():
    np.testing.assert_allclose(bp.row_losses(_Cubed(), np.array([[1.0], [3.0]]), np.zeros((2, 1))), [1.0, 27.0])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_trainer_reduces_as_the_loss_says(library, reduction):
    backend, x, y = library("numpy"), draw(8, 3), chances(8, 2)
    trainer = bp.Trainer(bp.Dense(2), bp.Huber(reduction=reduction), bp.SGD(0.0)).build(backend.array(x))
    rows = bp.row_losses("huber", backend.host(trainer.predict(backend.array(x))), y)
    wanted = np.mean(rows) if reduction == "mean" else np.sum(rows)
    given = backend.array(x), backend.array(y)
    assert trainer.evaluate(*given, batch_size=3)["loss"] == pytest.approx(wanted, rel=1e-12)
    assert trainer.fit(*given, batch_size=3, progress=False)["loss"][0] == pytest.approx(wanted, rel=1e-12)
    value, _ = bp.value_and_grad(trainer.network, trainer.loss, trainer.theta, *given)
    assert float(value) == pytest.approx(wanted, rel=1e-12)


def test_rows_with_an_ignored_label_are_as_if_they_were_not_there(tmp_path):
    x, y = draw(9, 3), np.array([0, 1, -1, 2, 2, -1, 1, 0, 1])
    there, weight = y >= 0, np.arange(1.0, 10.0)
    loss, results = bp.CrossEntropy(ignore_index=-1), []
    for some, w in ((slice(None), None), (there, None), (slice(None), weight), (there, weight)):
        given = x[some], y[some]
        w = None if w is None else w[some]
        trainer = bp.Trainer(bp.Dense(3), loss, bp.SGD(0.5))
        trainer.fit(*given, sample_weight=w, epochs=2, shuffle=False, progress=False)
        trainer.step(*given, w)
        trainer.step(*given, w)
        results.append((trainer.theta.copy(), trainer.evaluate(*given, sample_weight=w)))
    for (theta, scores), (again, others) in (results[:2], results[2:]):
        np.testing.assert_allclose(theta, again, rtol=1e-10)
        assert scores == pytest.approx(others, rel=1e-10)
    trainer.save(tmp_path / "model.safetensors")
    assert bp.load(tmp_path / "model.safetensors").loss == loss
    with pytest.raises(DataError, match="no row counts: y has the label -1, which is ignored"):
        trainer.fit(x[:2], np.array([-1, -1]))


def test_an_ignored_label_is_a_weight_of_zero(backend):
    y, weight = backend.array(np.array([0, -1, 1])), backend.array(np.array([2.0, 3.0, 4.0]))
    for given, wanted in ((None, [1.0, 0.0, 1.0]), (weight, [2.0, 0.0, 4.0])):
        loss, dtype = bp.CrossEntropy(ignore_index=-1), weight.dtype
        found = ignored_rows(backend.seam, loss, dtype, y, given, "y", True)
        np.testing.assert_array_equal(backend.host(found), wanted)


def test_logit_adjustment_trains_towards_classes_however_rare():
    """Of one input, so that only the shares of the classes matter: plain logits are these, adjusted ones equal."""
    x, y = np.ones((10, 1)), np.array([0] * 8 + [1] * 2)
    for loss, expected in ((bp.CrossEntropy(), math.log(4.0)), (bp.CrossEntropy(class_prior=(0.8, 0.2)), 0.0)):
        trainer = bp.Trainer(bp.Dense(2), loss, bp.SGD(1.0))
        trainer.fit(x, y, epochs=300, progress=False)
        z = trainer.predict(x[:1])[0]
        assert z[0] - z[1] == pytest.approx(expected, abs=1e-6)


def test_heads_train_as_their_losses_say(tmp_path):
    x, y = draw(ROWS, 5), LOSSES["heads"].target
    trainer = bp.Trainer(bp.Dense(8), LOSSES["heads"].loss, bp.SGD(0.01)).build(x)
    before = trainer.evaluate(x, y)["loss"]
    trainer.fit(x, y, epochs=20, progress=False)
    assert trainer.evaluate(x, y)["loss"] < before
    trainer.save(tmp_path / "model.safetensors")
    assert bp.load(tmp_path / "model.safetensors").loss == trainer.loss


BAD_TARGETS = {  # the loss, the outputs, targets, and the error
    "poisson": ("poisson", 1, [[1.0], [2.0], [-1.5]], r"Poisson\(\) does not take.* at least 0, first in row 2: -1.5"),
    "tweedie": ("tweedie", 1, [[0.0], [-2.0], [1.0]], r"Tweedie\(\).* of at least 0, first in row 1: -2"),
    "gamma": ("gamma", 2, [[1.0, 2.0], [3.0, 0.0], [1, 1]], r"Gamma\(\).* above 0, first in row 1: 0"),
    "hinge": ("hinge", 1, [[1.0], [-1.0], [1.0]], r"outside 0 ... 1, first in row 1: -1"),
    "kl": ("kl_divergence", 2, [[1.0, 0.0], [0.5, 0.6], [0, 1]], r"does not add up to 1 .* first in row 1"),
    "ignored": (bp.CrossEntropy(ignore_index=-1), 3, [0, -2, 1], "the label -2, but the network has 3 outputs"),
    "label of a head": (bp.Heads(bp.Head("mse", 1), bp.Head("cross_entropy", 3)), 4, [[1, 0.0], [1, 2.5], [1, 1]],
                        r"column 1 of y has a label other than 0 ... 2, first in row 1: 2.5"),
    "value of a head": (bp.Heads(bp.Head("mse", 1), bp.Head("gamma", 1)), 2, [[1, 1.0], [1, 2.5], [1, -1]],
                        r"y from column 1 on has a value that Gamma\(\) .* first in row 2: -1"),
}  # fmt: skip


def refuses(lib, name):
    loss, outputs, target, message = BAD_TARGETS[name]
    trainer = bp.Trainer(bp.Dense(outputs), loss)
    with pytest.raises(DataError, match=message):
        trainer.fit(lib.array(np.ones((3, 2))), lib.array(np.array(target)))


@pytest.mark.parametrize("name", BAD_TARGETS)
def test_targets_that_a_loss_does_not_take(library, name):
    refuses(library("numpy"), name)


def test_a_target_is_named_on_every_library(backend):
    refuses(backend, "poisson")


@pytest.mark.parametrize(
    ("loss", "outputs"),
    [
        (bp.Quantile((0.1, 0.9)), (3,)), (bp.GaussianNLL(), (3,)), (bp.GaussianNLL(), (2, 2)), (bp.Triplet(), (3,)),
        (bp.Triplet(), (2, 4)), (bp.CosineSimilarity(), (2, 2)), (bp.Focal(), (1,)), (bp.KLDivergence(), (1,)),
        (bp.CrossEntropy(class_weight=(1.0, 2.0)), (3,)), (bp.CrossEntropy(class_prior=(0.5, 0.5)), (3,)),
        (bp.BinaryCrossEntropyWithLogits(pos_weight=(1.0, 2.0)), (3,)), (bp.Heads(bp.Head("mse", 2)), (3,)),
    ],
)  # fmt: skip
def test_outputs_that_a_loss_does_not_take(loss, outputs):
    with pytest.raises(ShapeError, match=str(outputs[0])):
        loss.target_shape(outputs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bp.Huber(0.0), "delta is 0.0"),
        (lambda: bp.Huber(reduction="none"), "reduction is 'none'; expected 'mean' or 'sum'"),
        (lambda: bp.Quantile(()), "quantiles is ()"),
        (lambda: bp.Quantile((0.9, 0.1)), "expected different ones, the smallest first"),
        (lambda: bp.Quantile((0.1, 1.0)), r"quantiles\[1\] is 1.0"),
        (lambda: bp.Quantile(0.5), "quantiles is 0.5; expected several numbers"),
        (lambda: bp.Tweedie(2.0), r"power is 2.0; expected a number in \(1, 2\)"),
        (lambda: bp.Triplet(-1.0), "margin is -1.0"),
        (lambda: bp.Focal(-1.0), "gamma is -1.0"),
        (lambda: bp.BinaryFocal(alpha=1.0), "alpha is 1.0"),
        (lambda: bp.CrossEntropy(label_smoothing=1.0), "label_smoothing is 1.0"),
        (lambda: bp.CrossEntropy(class_weight=(1.0, -1.0)), r"class_weight\[1\] is -1.0"),
        (lambda: bp.CrossEntropy(class_prior=(1.0, 0.0)), r"class_prior\[1\] is 0.0"),
        (lambda: bp.CrossEntropy(ignore_index=0.5), "ignore_index is 0.5"),
        (lambda: bp.BinaryCrossEntropyWithLogits(pos_weight=(1.0, 0.0)), r"pos_weight\[1\] is 0.0"),
        (lambda: bp.Heads(), r"Heads\(\) has no heads"),
        (lambda: bp.Head("mse", 0), "outputs is 0"),
        (lambda: bp.Heads(bp.Head(bp.Heads(bp.Head("mse", 1)), 1)), "the loss of head 0 is Heads itself"),
    ],
)
def test_options_of_a_loss_that_can_not_be(make, message):
    with pytest.raises(OptionError, match=message):
        make()


def test_what_an_output_says_of_the_target(library):
    """In the target's own unit."""
    backend = library("numpy")
    output = np.array([[0.5, -1.0, 2.0, 0.25]])
    e = np.exp(output)
    for loss, wanted in (
        (bp.MeanSquaredError(), output), (bp.Poisson(), e), (bp.Gamma(), e), (bp.Tweedie(), e),
        (bp.CrossEntropy(class_prior=(0.1, 0.2, 0.3, 0.4)), e / e.sum()), (bp.Focal(), e / e.sum()),
        (bp.BinaryCrossEntropyWithLogits(), e / (1.0 + e)), (bp.BinaryFocal(), e / (1.0 + e)),
        (bp.GaussianNLL(), output[:, ::2]), (bp.Quantile((0.1, 0.6)), output[:, 1::2]), (bp.Hinge(), output),
    ):  # fmt: skip
        found = loss.prediction(backend.seam, backend.array(output))
        np.testing.assert_allclose(backend.host(found), wanted, rtol=1e-14, err_msg=str(loss))


# ---- what else a loss knows -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "output", "target", "right"),
    [
        (bp.CrossEntropy(), [[0.1, 2.0, 0.0], [3.0, 0.0, 0.0], [0.0, 0.0, 1.0]], np.int32([1, 2, 2]), [1, 0, 1]),
        (bp.CrossEntropy(), [[0.1, 2.0, 0.0], [3.0, 0.0, 0.0]], np.array([[0.0, 1, 0], [0, 0, 1]]), [1, 0]),
        (bp.BinaryCrossEntropy(), [[0.7], [0.4], [0.6]], np.array([[1.0], [0], [0]]), [1, 1, 0]),
        (bp.BinaryCrossEntropy(), [[0.7, 0.1], [0.4, 0.4]], np.array([[1.0, 0.0], [0, 1]]), [1, 0]),
        (bp.BinaryCrossEntropyWithLogits(), [[0.2], [-0.4], [0.6]], np.array([[1.0], [0], [0]]), [1, 1, 0]),
    ],
)  # fmt: skip
def test_which_rows_are_right(backend, loss, output, target, right):
    found = loss.correct(bp.Run(backend.seam), backend.array(output), backend.array(target))
    assert backend.dtype(found) == "float64"
    np.testing.assert_array_equal(backend.host(found), right)


def test_mean_squared_error_calls_no_row_right_or_wrong(backend):
    a = backend.array(np.ones((2, 1)))
    assert bp.MeanSquaredError().correct(bp.Run(backend.seam), a, a) is None


@pytest.mark.parametrize("shape", [(1,), (3, 2), ()])
def test_cross_entropy_needs_one_output_a_class(shape):
    with pytest.raises(ShapeError):
        bp.CrossEntropy().target_shape(shape)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "int64"])
def test_labels_of_any_whole_type_name_every_class(backend, dtype):
    compiled_if_jax(backend)
    x, labels = np.random.default_rng(0).standard_normal((4, 3)), np.asarray([0, 1, 2, 100])
    net = bp.Dense(300)
    trainer = bp.Trainer(net, "cross_entropy").build(backend.array(x))
    wanted = trainer.evaluate(backend.array(x), backend.array(np.eye(300)[labels]))["loss"]
    try:
        y = backend.array(labels.astype(dtype))
    except TypeError:
        pytest.skip(f"{backend.name} has no {dtype}")
    assert trainer.evaluate(backend.array(x), y)["loss"] == pytest.approx(wanted, rel=1e-9)
