"""JAX: the whole step as one compiled function, with optax's optimizers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bench.catalogue.entries import (
    CITIES,
    CLASSES,
    ENTRIES_OF,
    FEATURES,
    MEMBERS,
    NOISE,
    OF_MEMBERS,
    QUANTILES,
    WIDTH,
    WIDTH_OF,
    Entry,
)
from bench.contenders.base import Absent

nn = jax.nn


def dense(p: Any, x: Any) -> Any:
    return x @ p["weight"] + p["bias"]


def _standard(x: Any, axis: Any, epsilon: float) -> Any:
    mean, variance = x.mean(axis=axis, keepdims=True), x.var(axis=axis, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + epsilon)


def layer_norm(p: Any, x: Any) -> Any:
    return _standard(x, -1, 1e-5) * p["scale"] + p["shift"]


def group_norm(p: Any, x: Any) -> Any:
    return _standard(x.reshape(len(x), 8, -1), -1, 1e-5).reshape(x.shape) * p["scale"] + p["shift"]


def rms_norm(p: Any, x: Any) -> Any:
    return x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6) * p["scale"]


def gated(gate: Callable[[Any], Any]) -> Any:
    return lambda p, x: dense(p["value"], x) * gate(dense(p["gate"], x))


def weight_norm(p: Any, x: Any) -> Any:
    v = p["inner"]["weight"]
    return x @ (v * (p["length"] / jnp.linalg.norm(v, axis=0))) + p["inner"]["bias"]


def bilinear(p: Any, x: Any) -> Any:
    u, v = jnp.split(x, 2, axis=1)
    return jnp.einsum("ri,ijk,rj->rk", u, p["weight"], v) + p["bias"]


def parametric(f: Callable[[Any], Any]) -> Any:
    return lambda p, x: (1 - p["alpha"]) * x + p["alpha"] * f(x)


def plain(f: Callable[[Any], Any]) -> Any:
    return lambda p, x: f(x)


ACTIVATIONS: dict[str, Any] = {
    **{name: plain(f) for name, f in (
        ("celu", nn.celu), ("elu", nn.elu), ("gelu", lambda z: nn.gelu(z, approximate=False)), ("gelu_tanh", nn.gelu),
        ("hard_sigmoid", nn.hard_sigmoid), ("hard_swish", nn.hard_swish), ("hard_tanh", nn.hard_tanh),
        ("identity", lambda z: z), ("leaky_relu", nn.leaky_relu), ("log_sigmoid", nn.log_sigmoid),
        ("log_softmax", nn.log_softmax), ("mish", nn.mish), ("relu", nn.relu), ("relu6", nn.relu6), ("selu", nn.selu),
        ("sigmoid", nn.sigmoid), ("silu", nn.silu), ("sine", lambda z: jnp.sin(30.0 * z)), ("softmax", nn.softmax),
        ("softplus", nn.softplus), ("softshrink", lambda z: z - jnp.clip(z, -0.5, 0.5)), ("softsign", nn.soft_sign),
        ("squared_relu", lambda z: jnp.square(nn.relu(z))), ("tanh", jnp.tanh),
    )},
    "parametric_mish": parametric(nn.mish), "parametric_selu": parametric(nn.selu),
    "prelu": lambda p, z: jnp.where(z > 0, z, p["alpha"] * z),
}  # fmt: skip

MEAN, SPREAD = np.linspace(-1, 1, FEATURES, dtype=np.float32), np.linspace(0.5, 2, FEATURES, dtype=np.float32)
AFTER = {"LayerNorm": layer_norm, "GroupNorm": group_norm, "RMSNorm": rms_norm, "Scale": lambda p, x: x * p["scale"]}
INSTEAD = {
    "WeightNorm": weight_norm, "Parallel": lambda p, x: jnp.concatenate([x, dense(p["1"], x)], axis=1),
    "Dense": dense, "Bilinear": bilinear,
}  # fmt: skip
GATES = {
    "GLU": nn.sigmoid,
    "SwiGLU": nn.silu,
    "GeGLU": lambda z: nn.gelu(z, approximate=False),
}
WIDE = np.flatnonzero(WIDTH_OF)
NARROW = np.flatnonzero(np.equal(WIDTH_OF, 0))


def numbers(x: Any, center: Any, scale: Any) -> Any:
    z = jnp.where(jnp.isnan(x), 0.0, (x - center) / scale)
    return z * jax.lax.rsqrt(1.0 + (z / 3.0) ** 2)


def categories(p: Any, x: Any) -> Any:
    ones = nn.one_hot(x[:, NARROW] - 2, ENTRIES_OF[NARROW[0]] - 2)  # of what is negative, zeros
    rows = p["width_8"][x[:, WIDE] + CITIES * np.arange(len(WIDE))]
    return jnp.concatenate([ones.reshape(len(x), -1), rows.reshape(len(x), -1)], axis=1)


def embedded(p: Any, x: Any) -> Any:
    waves = jnp.cos(2 * jnp.pi * x[:, :, None] * p["frequency"] + p["phase"])
    y = jnp.einsum("rnf,nfo->rno", waves, p["weight"]) + p["bias"]
    return jnp.concatenate([y, x[:, :, None]], axis=2).reshape(len(x), -1)


def scaled(p: Any, x: Any) -> Any:
    return (x[:, None] if x.ndim == 2 else x) * p["r"]


def ensemble(p: Any, x: Any) -> Any:
    return nn.relu((scaled(p, x) @ p["weight"]) * p["s"] + p["bias"])


def each(p: Any, x: Any) -> Any:
    return jnp.einsum("rn,kno->rko" if x.ndim == 2 else "rkn,kno->rko", x, p["weight"]) + p["bias"]


FIRST: dict[str, list[Any]] = {
    "NumericEmbedding": [embedded],
    "NumericInput": [lambda p, x: jnp.concatenate(
        [numbers(x, MEAN, SPREAD), jnp.isnan(x[:, FEATURES // 2 :]).astype(x.dtype)], axis=1)],
    "CategoricalInput": [categories],
    "TabularInput": [lambda p, x: jnp.concatenate(
        [numbers(x["numbers"], 0.5, 2.0), categories(p["categories"], x["categories"])], axis=1)],
    "Embedding": [lambda p, x: p["table"][x], lambda p, x: x.reshape(len(x), -1)],
    "Flatten": [lambda p, x: x.reshape(len(x), -1)],
    "Inputs": [lambda p, x: jnp.concatenate(
        [x["numbers"], p["city"]["0"]["table"][x["city"]].reshape(len(x["city"]), -1)], axis=1)],
    "Standardize": [lambda p, x: (x - MEAN) / SPREAD],
}  # fmt: skip


def dropout(p: Any, x: Any, key: Any) -> Any:
    return jnp.where(jax.random.bernoulli(key, 1 - NOISE, x.shape), x / (1 - NOISE), 0)


def alpha_dropout(p: Any, x: Any, key: Any) -> Any:
    lowest = -1.0507009873554805 * 1.6732632423543772
    a = ((1 - NOISE) * (1 + NOISE * lowest**2)) ** -0.5
    return a * jnp.where(jax.random.bernoulli(key, 1 - NOISE, x.shape), x, lowest) - a * NOISE * lowest


def noise(p: Any, x: Any, key: Any) -> Any:
    return x + NOISE * jax.random.normal(key, x.shape)


DRAWN = {"Dropout": dropout, "AlphaDropout": alpha_dropout, "GaussianNoise": noise}


def layers(entry: Entry) -> list[Any]:
    """A function of parameters and x for each of bpnet's layers."""
    relu, name = plain(nn.relu), entry.name
    usual = [dense, relu, dense, relu, dense]
    if entry.kind == "activations":
        return [dense, ACTIVATIONS[name], dense, ACTIVATIONS[name], dense]
    if entry.kind != "layers":
        last = {"binary_cross_entropy": nn.sigmoid, "Members": lambda x: x.reshape(-1, MEMBERS, CLASSES)}
        return [*usual, plain(last[name])] if name in last else usual
    if name in AFTER:
        return [dense, AFTER[name], relu, dense, AFTER[name], relu, dense]
    if name in DRAWN:
        return [dense, relu, DRAWN[name], dense, relu, DRAWN[name], dense]
    if name in INSTEAD:
        return [INSTEAD[name], relu, INSTEAD[name], relu, dense]
    if name in GATES:
        return [gated(GATES[name]), gated(GATES[name]), dense]
    if name in FIRST:
        return [*FIRST[name], *usual]
    match name:
        case "BatchNorm" | "SpectralNorm" | "ActivityPenalty":
            return usual  # see `Jax._with_buffers`
        case "Clamp":
            return [dense, relu, plain(lambda x: x), dense, relu, plain(lambda x: x), dense]
        case "BatchEnsemble":
            return [ensemble, ensemble, each]
        case "MemberScale" | "MemberDense":
            return [*([scaled] if name == "MemberScale" else []), *usual[:-1], each]
        case "Reshape":
            both = [lambda p, x: x.reshape(-1, 8, WIDTH // 8), AFTER["Scale"], relu,
                    lambda p, x: x.reshape(-1, WIDTH)]  # fmt: skip
            return [dense, *both, dense, *both, dense]
        case "Residual":
            return [dense, *[lambda p, x: x + jnp.tanh(dense(p["inner"], x))] * 2, dense]
        case "Sequential":
            return [*[lambda p, x: nn.relu(dense(p["0"], x))] * 2, dense]
        case "Shared":
            shared = lambda p, x: dense(p["inner"], x)  # noqa: E731
            return [dense, relu, shared, relu, shared, relu, dense]
    raise Absent(f"{name} has not been written for JAX")


def _cross_entropy(out: Any, y: Any) -> Any:
    return -jnp.take_along_axis(nn.log_softmax(out), y[:, None], axis=1).mean()


def _members(out: Any, y: Any) -> Any:
    return _cross_entropy(out.reshape(-1, CLASSES), jnp.repeat(y, MEMBERS))


def _focal(out: Any, y: Any) -> Any:
    log_p = jnp.take_along_axis(nn.log_softmax(out), y[:, None], axis=1)
    return -((1 - jnp.exp(log_p)) ** 2 * log_p).mean()


def _binary(out: Any, y: Any) -> Any:
    return jnp.maximum(out, 0) - out * y + jnp.log1p(jnp.exp(-jnp.abs(out)))


def _binary_focal(out: Any, y: Any) -> Any:
    p = nn.sigmoid(out)
    return ((y * (1 - p) + (1 - y) * p) ** 2 * _binary(out, y)).mean()


def _gaussian(out: Any, y: Any) -> Any:
    pairs = out.reshape(-1, CLASSES, 2)
    mean, s = pairs[..., 0], pairs[..., 1]
    return 0.5 * (s + (y - mean) ** 2 * jnp.exp(-s)).mean()


def _quantile(out: Any, y: Any) -> Any:
    q = jnp.array(QUANTILES)
    error = y[:, :, None] - out.reshape(-1, CLASSES, len(QUANTILES))
    return jnp.maximum(q * error, (q - 1) * error).mean()


def _cosine(out: Any, y: Any) -> Any:
    lengths = jnp.linalg.norm(out, axis=1) * jnp.linalg.norm(y, axis=1)
    return (1 - (out * y).sum(axis=1) / lengths).mean()


def _kl(out: Any, y: Any) -> Any:
    return (y * (jnp.log(y) - nn.log_softmax(out))).sum(axis=1).mean()


def _triplet(out: Any, y: Any) -> Any:
    near = jnp.linalg.norm(out[:, 0] - out[:, 1], axis=1)
    far = jnp.linalg.norm(out[:, 0] - out[:, 2], axis=1)
    return nn.relu(near - far + 1.0).mean()


def _heads(out: Any, y: Any) -> Any:
    return ((out[:, :5] - y[:, :5]) ** 2).mean() + _cross_entropy(out[:, 5:], y[:, 5].astype(jnp.int32))


LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "cross_entropy": _cross_entropy, "focal": _focal, "binary_focal": _binary_focal,
    "binary_cross_entropy": lambda out, y: -(y * jnp.log(out) + (1 - y) * jnp.log1p(-out)).mean(),
    "binary_cross_entropy_with_logits": lambda out, y: _binary(out, y).mean(),
    "hinge": lambda out, y: nn.relu(1 - (2 * y - 1) * out).mean(),
    "squared_hinge": lambda out, y: (nn.relu(1 - (2 * y - 1) * out) ** 2).mean(),
    "cosine_similarity": _cosine, "gaussian_nll": _gaussian, "quantile": _quantile, "kl_divergence": _kl,
    "huber": lambda out, y: optax.losses.huber_loss(out, y).mean(),
    "log_cosh": lambda out, y: optax.losses.log_cosh(out, y).mean(),
    "mean_absolute_error": lambda out, y: jnp.abs(out - y).mean(),
    "mean_squared_error": lambda out, y: ((out - y) ** 2).mean(),
    "gamma": lambda out, y: (out + y * jnp.exp(-out)).mean(),
    "poisson": lambda out, y: (jnp.exp(out) - y * out).mean(),
    "tweedie": lambda out, y: (2 * jnp.exp(0.5 * out) + 2 * y * jnp.exp(-0.5 * out)).mean(),
    "Members": _members, "triplet": _triplet, "Heads": _heads,
}  # fmt: skip


def optimizer(entry: Entry, parameters: Any) -> Any:
    o, lr = optax, entry.lr
    if entry.kind != "optimizers":
        return o.adam(lr, eps=1e-4)
    weights = jax.tree.map(lambda p: p.ndim > 1, parameters)
    match entry.name:
        case "adam":
            return o.adam(lr, eps=1e-4)
        case "adamw":
            return o.adamw(lr, eps=1e-4, weight_decay=0.01, mask=weights)
        case "adabelief":
            return o.chain(o.scale_by_belief(eps=1e-4, eps_root=1e-4), o.scale(-lr))
        case "adamax":
            return o.adamax(lr, eps=1e-4)
        case "radam":
            return o.radam(lr, eps=1e-4)
        case "rmsprop":
            return o.rmsprop(lr, decay=0.99, eps=1e-4, eps_in_sqrt=False)
        case "adadelta":
            return o.adadelta(lr, rho=0.9, eps=1e-4)
        case "lamb":
            return o.lamb(lr, eps=1e-4)
        case "lars":
            return o.lars(lr, 0.0, weights, 0.001, 0.0, weights, 0.9)
        case "lion":
            return o.lion(lr, weight_decay=0.0)
        case "prodigy":
            return o.contrib.prodigy(lr, eps=1e-4)
        case "schedule_free_adamw":
            return o.contrib.schedule_free(o.adamw(lr, b1=0.0, eps=1e-4, weight_decay=0.0), lr, b1=0.9)
        case "sgd" | "sam" | "ExponentialAverage" | "StochasticAverage":
            return o.sgd(lr)
        case "Accumulate":
            return o.MultiSteps(o.sgd(lr), 2)
        case "Clip":
            return o.chain(o.clip_by_global_norm(0.1), o.sgd(lr))
        case "GradientNoise":
            return o.chain(o.add_noise(NOISE**2, 0.55, 0), o.sgd(lr))
        case "Grouped":
            return o.multi_transform({True: o.sgd(lr), False: o.set_to_zero()}, weights)
    others = {
        "adagrad": "optax adds epsilon within the root", "muon": "optax corrects the bias of the momentum",
        "amsgrad": "optax takes the largest v after its bias is corrected", "nadam": "optax's has no momentum_decay",
        "adafactor": "optax's scales steps otherwise", "lbfgs": "optax's line search is another",
    }  # fmt: skip
    raise Absent(others[entry.name])


def nested(values: dict[str, Any]) -> Any:
    """{"0.weight": ...} as {"0": {"weight": ...}}."""
    tree: dict[str, Any] = {}
    for name, value in values.items():
        *path, leaf = name.split(".")
        at = tree
        for part in path:
            at = at.setdefault(part, {})
        at[leaf] = jnp.asarray(value)
    return tree


BUFFERS = ("mean", "var", "left", "right", "center", "factor", "bound", "first", "low", "high")


class Jax:
    """Parameters and all state go into the step and come out of it, which may write over them."""

    def __init__(self, entry: Entry, start: dict[str, Any], x: Any, threads: int) -> None:
        self.entry, self.layers = entry, layers(entry)
        self.start = nested({k: v for k, v in start.items() if k.split(".")[-1] not in BUFFERS})
        buffers = nested({k: v for k, v in start.items() if k.split(".")[-1] in BUFFERS})
        if entry.name in ("Standardize", "NumericInput", "TabularInput", "CategoricalInput", "Clamp"):
            buffers = {}
        usual = _members if entry.name in OF_MEMBERS else _cross_entropy
        self.criterion = LOSSES[entry.name] if entry.kind == "losses" else usual
        self.optimizer = optimizer(entry, self.start)
        average = jax.tree.map(jnp.copy, self.start) if "Average" in entry.name else None
        state = self.optimizer.init(self.start)
        own = jax.tree.map(jnp.copy, self.start)  # which the first step may write over
        self.state = (own, jax.tree.map(jnp.copy, state), buffers, average, jnp.zeros((), jnp.int32), jax.random.key(0))
        self._step = jax.jit(self._pure_step, donate_argnums=0)

    def restore(self) -> None:
        self.state = (jax.tree.map(jnp.copy, self.start), *self.state[1:])

    def _network(self, p: Any, buffers: Any, x: Any, key: Any) -> tuple[Any, Any, Any]:
        """The outputs, the new buffers, and what is added to the loss."""
        match self.entry.name:
            case "BatchNorm":
                return (*self._batch_norm(p, buffers, x), 0.0)
            case "SpectralNorm":
                return (*self._spectral_norm(p, buffers, x), 0.0)
            case "ActivityPenalty":
                return self._penalized(p, x)
        for place, layer in enumerate(self.layers):
            name = "2" if self.entry.name == "Shared" and place == 4 else str(place)
            args = (jax.random.fold_in(key, place),) if layer in DRAWN.values() else ()
            x = layer(p.get(name), x, *args)
        return x, buffers, 0.0

    def _batch_norm(self, p: Any, buffers: Any, x: Any) -> tuple[Any, Any]:
        new: dict[str, Any] = {}
        for place in ("0", "3"):
            x, own, n = dense(p[place], x), p[str(int(place) + 1)], x.shape[0]
            mean, var = x.mean(axis=0), x.var(axis=0)
            old = buffers[str(int(place) + 1)]
            new[str(int(place) + 1)] = jax.lax.stop_gradient(
                {"mean": 0.9 * old["mean"] + 0.1 * mean, "var": 0.9 * old["var"] + 0.1 * n / (n - 1) * var}
            )
            x = nn.relu((x - mean) * jax.lax.rsqrt(var + 1e-5) * own["scale"] + own["shift"])
        return dense(p["6"], x), new

    def _spectral_norm(self, p: Any, buffers: Any, x: Any) -> tuple[Any, Any]:
        new: dict[str, Any] = {}
        for place in ("0", "2"):
            w, u, v = p[place]["inner"]["weight"], buffers[place]["left"], buffers[place]["right"]
            x = nn.relu(x @ (w / (u @ w @ v)) + p[place]["inner"]["bias"])
            u = w @ v
            u /= jnp.linalg.norm(u)
            v = w.T @ u
            new[place] = jax.lax.stop_gradient({"left": u, "right": v / jnp.linalg.norm(v)})
        return dense(p["4"], x), new

    def _penalized(self, p: Any, x: Any) -> tuple[Any, Any, Any]:
        extra: Any = 0.0
        for place in ("0", "3"):
            x = nn.relu(dense(p[place], x))
            extra += (1e-3 * jnp.abs(x) + 0.5e-3 * x * x).sum() / len(x)
        return dense(p["6"], x), {}, extra

    def _objective(self, p: Any, buffers: Any, x: Any, y: Any, key: Any) -> tuple[Any, Any]:
        out, buffers, extra = self._network(p, buffers, x, key)
        return self.criterion(out, y) + extra, buffers

    def _pure_step(self, state: Any, x: Any, y: Any) -> tuple[Any, Any]:
        p, inner, buffers, average, count, key = state
        key, used = jax.random.split(key)
        slope = jax.value_and_grad(self._objective, has_aux=True)
        (loss, new), gradient = slope(p, buffers, x, y, used)
        if self.entry.name == "sam":
            length = optax.tree.norm(gradient)
            uphill = jax.tree.map(lambda p, g: p + 0.05 / length * g, p, gradient)
            gradient = slope(uphill, buffers, x, y, used)[1]
        updates, inner = self.optimizer.update(gradient, inner, p)
        p = optax.apply_updates(p, updates)
        if average is not None:
            share = jnp.where(count == 0, 1.0, 1e-3) if self.entry.name == "ExponentialAverage" else 1.0 / (count + 1)
            average = jax.tree.map(lambda a, p: (1 - share) * a + share * p, average, p)
        return (p, inner, new, average, count + 1, key), loss

    def put(self, array: Any) -> Any:
        return jax.device_put(array)

    def step(self, x: Any, y: Any) -> Any:
        self.state, loss = self._step(self.state, x, y)
        return loss

    def value(self, loss: Any) -> float:
        return float(loss)

    def wait(self, loss: Any) -> None:
        jax.block_until_ready((loss, self.state[0]))


make = Jax
