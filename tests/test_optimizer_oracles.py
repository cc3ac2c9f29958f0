"""Every optimizer that PyTorch or optax has too: the same after 100 steps, for every combination of its options."""

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.layout import layout_of_array

DECAY = {"weight_decay": [0.0, 0.03]}
BETAS = {"beta1": [0.9, 0.7], "beta2": [0.999, 0.9], "epsilon": [1e-8, 1e-2]}
NETWORK = bp.Sequential(bp.Dense(5, bias=False), bp.Dense(4, bias=False), bp.Dense(3))
LAYOUT = bp.layout_of(NETWORK, (7,))
STEPS = 100


def combinations(options: dict[str, list[Any]]) -> Iterator[dict[str, Any]]:
    """Every choice of one value for each option."""
    for values in itertools.product(*options.values()):
        yield dict(zip(options, values, strict=True))


def drawn() -> tuple[Any, list[Any]]:
    """A start and the gradients, of sizes from 1e-3 to 1e3, some exactly 0."""
    rng = np.random.default_rng(0)
    size = 10.0 ** rng.uniform(-3, 3, LAYOUT.size) * (rng.uniform(size=LAYOUT.size) > 0.05)
    return rng.standard_normal(LAYOUT.size), [size * rng.standard_normal(LAYOUT.size) for _ in range(STEPS)]


THETA, GRADIENTS = drawn()


def ours(optimizer: bp.Optimizer) -> Any:
    backend = bp.backends.get("numpy")
    with backend.session():
        theta, state = THETA, optimizer.init(backend, LAYOUT, THETA)
        for i, grad in enumerate(GRADIENTS):
            theta, state = optimizer.update(backend, LAYOUT, theta, grad, state, optimizer.hyperparameters_at(i))
        return optimizer.evaluation(backend, LAYOUT, theta, state)


def check(optimizer: bp.Optimizer, expected: Any) -> None:
    assert np.isfinite(expected).all()
    largest = max(np.max(np.abs(a)) for a in (THETA, expected))  # sums of steps that cancel are as exact as these
    np.testing.assert_allclose(ours(optimizer), expected, rtol=1e-10, atol=1e-12 * largest, err_msg=str(optimizer))


# ---- PyTorch --------------------------------------------------------------------------------------------------------


def in_torch(make: Callable[..., Any], transposed: bool = False, **options: Any) -> Any:
    """theta after the steps of make(groups, **options), in which weights of a leaf decay, and others don't.

    Where PyTorch's has no such decay, it is done here.
    """
    torch: Any = pytest.importorskip("torch")
    decay, decoupled = options.pop("weight_decay", 0.0), options.pop("decoupled", False)

    def of(vector: Any, slot: Any) -> Any:
        values = torch.tensor(vector[slot.part].reshape(slot.shape))
        return values.T.contiguous() if transposed and values.ndim == 2 else values

    parts = [of(THETA, slot).requires_grad_() for slot in LAYOUT.parameters]
    groups = [
        {"params": [part], "weight_decay": decay if slot.decay and decoupled else 0.0}
        for part, slot in zip(parts, LAYOUT.parameters, strict=True)
    ]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # of a product that NAdam keeps
    try:
        oracle = make(torch.optim)(groups, **options)
        for grad in GRADIENTS:
            for part, slot in zip(parts, LAYOUT.parameters, strict=True):
                part.grad = of(grad, slot)
                if slot.decay and not decoupled:
                    part.data *= 1.0 - options["lr"] * decay
            oracle.step()
    finally:
        torch.set_default_dtype(before)
    return np.concatenate(
        [(part.T if transposed and part.ndim == 2 else part).detach().numpy().reshape(-1) for part in parts]
    )


def betas(options: dict[str, Any]) -> dict[str, Any]:
    """Options of ours by the names that PyTorch gives them."""
    found = dict(options)
    if "beta1" in found:
        found["betas"] = found.pop("beta1"), found.pop("beta2")
    for name, theirs in (
        ("epsilon", "eps"), ("rho", "alpha"), ("initial_sum", "initial_accumulator_value"), ("decay", "beta2_decay"),
    ):  # fmt: skip
        if name in found:
            found[theirs] = found.pop(name)
    return found


TORCH: dict[str, tuple[type[bp.Optimizer], dict[str, list[Any]], Callable[..., dict[str, Any]]]] = {
    "SGD": (bp.SGD, {"lr": [0.1], "momentum": [0.0, 0.9], "nesterov": [False, True], **DECAY}, dict),
    "Adam": (bp.Adam, {"lr": [0.01], **BETAS, "amsgrad": [False, True]}, dict),
    "AdamW": (bp.AdamW, {"lr": [0.01], **BETAS, "amsgrad": [False, True], "weight_decay": [0.0, 0.3]},
              lambda o: o | {"decoupled": True}),
    "NAdam": (bp.NAdam, {"lr": [0.01], **BETAS, "momentum_decay": [4e-3, 0.1], **DECAY},
              lambda o: o | {"decoupled": True, "decoupled_weight_decay": True}),
    "RAdam": (bp.RAdam, {"lr": [0.01], **BETAS, **DECAY},
              lambda o: o | {"decoupled": True, "decoupled_weight_decay": True}),
    "Adamax": (bp.Adamax, {"lr": [0.01], **BETAS, **DECAY}, dict),
    "RMSprop": (bp.RMSprop, {"lr": [0.01], "rho": [0.99, 0.8], "epsilon": [1e-8, 0.1], "momentum": [0.0, 0.9],
                             "centered": [False, True], **DECAY}, dict),
    "Adagrad": (bp.Adagrad, {"lr": [0.1], "lr_decay": [0.0, 0.1], "initial_sum": [0.0, 2.0], "epsilon": [1e-10, 0.1],
                             **DECAY}, dict),
    "Adadelta": (bp.Adadelta, {"lr": [0.5], "rho": [0.9, 0.5], "epsilon": [1e-6, 0.1], **DECAY},
                 lambda o: {"rho": o.pop("alpha"), **o}),
    "Adafactor": (bp.Adafactor, {"lr": [0.3], "decay": [0.8, 0.5], "epsilon": [None, 1e-3],
                                 "least_scale": [1e-3, 0.5], "clip": [1.0, 1.5], **DECAY},
                  lambda o: {"d": o.pop("clip"), "eps": (o.pop("eps"), o.pop("least_scale")), "decoupled": True,
                             **o, "beta2_decay": -o["beta2_decay"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", TORCH)
def test_as_pytorch(name: str) -> None:
    cls, options, theirs = TORCH[name]
    for some in combinations(options):
        if some.get("nesterov") and not some["momentum"]:
            continue
        check(cls(**some), in_torch(lambda optim: getattr(optim, name), **theirs(betas(some))))


@pytest.mark.parametrize("match_rms", [False, True])
def test_muon_as_pytorch(match_rms: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its Newton-Schulz iterations are in bfloat16, which the oracle is kept from here; and it has matrices alone."""
    torch: Any = pytest.importorskip("torch")
    monkeypatch.setattr(torch.Tensor, "bfloat16", lambda tensor: tensor.clone())
    hidden = ("1.weight",)
    adjusted = "match_rms_adamw" if match_rms else "original"
    options = {"lr": [0.02], "momentum": [0.95, 0.5], "nesterov": [True, False], "weight_decay": [0.0, 0.3],
               "iterations": [5, 2], "epsilon": [1e-7, 0.1]}  # fmt: skip
    for some in combinations(options):
        theirs = {"ns_steps": some["iterations"], "eps": some["epsilon"], "adjust_lr_fn": adjusted}
        theirs |= {name: some[name] for name in ("lr", "momentum", "nesterov", "weight_decay")}

        def both(optim: Any, theirs: dict[str, Any] = theirs) -> Any:
            def make(groups: list[Any], **_: Any) -> Any:
                parts = zip(groups, LAYOUT.parameters, strict=True)
                chosen: list[list[Any]] = [[], []]
                for group, slot in parts:
                    chosen[slot.name not in hidden].append(group["params"][0])
                return Both(optim.Muon(chosen[0], **theirs), optim.SGD(chosen[1], 0.1))

            return make

        rest = bp.SGD(0.1)
        check(bp.Muon(**some, match_rms=match_rms, rest=rest), in_torch(both, transposed=True, decoupled=True))


@pytest.mark.parametrize(("history", "lr"), [(1, 1.0), (3, 1.0), (10, 0.3), (10, 1.0)])
def test_lbfgs_as_pytorch(history: int, lr: float) -> None:
    """On a function whose curvatures differ by a factor of 1000, after every one of the steps."""
    torch: Any = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    matrix, curvature = rng.standard_normal((40, 12)), np.logspace(-1, 2, 12)

    def value_and_gradient(x: Any) -> tuple[Any, Any]:
        z = matrix @ x
        value = np.sum(np.logaddexp(0.0, z)) + np.sum(curvature * x**2 / 2.0 + x**4 / 4.0)
        return value, matrix.T @ (1.0 / (1.0 + np.exp(-z))) + curvature * x + x**3

    start = 3.0 * rng.standard_normal(12)
    x = torch.tensor(start, requires_grad=True)
    options = {"max_iter": 1, "max_eval": 10**6, "line_search_fn": "strong_wolfe", "history_size": history}
    oracle = torch.optim.LBFGS([x], lr=lr, tolerance_grad=0.0, **options)

    def closure() -> Any:
        value, gradient = value_and_gradient(x.detach().numpy())
        x.grad = torch.tensor(gradient)
        return torch.tensor(value)

    backend, optimizer, layout = bp.backends.get("numpy"), bp.LBFGS(lr, history=history), layout_of_array((12,))
    theta, state = start, bp.LBFGS(history=history).init(backend, layout, start)
    for i in range(STEPS):
        gradient = value_and_gradient(theta)[1]
        numbers = optimizer.hyperparameters_at(i)
        theta, state = optimizer.update(backend, layout, theta, gradient, state, numbers, value_and_gradient)
        oracle.step(closure)
        np.testing.assert_allclose(theta, x.detach().numpy(), rtol=1e-10, atol=1e-10, err_msg=f"step {i}")


LINES: dict[str, Callable[[Any], tuple[Any, Any]]] = {
    "waves": lambda x: (np.sum(0.05 * x**2 + np.sin(4.0 * x)), 0.1 * x + 4.0 * np.cos(4.0 * x)),
    "kinks": lambda x: (np.sum(np.sqrt(1e-8 + x**2)), x / np.sqrt(1e-8 + x**2)),
    "leaning kinks": lambda x: (
        np.sum(np.sqrt(1e-6 + (x - 0.3) ** 2) + 0.1 * x), (x - 0.3) / np.sqrt(1e-6 + (x - 0.3) ** 2) + 0.1
    ),
    "narrow wells": lambda x: (np.sum(np.log1p(1e4 * x**2)), 2e4 * x / (1.0 + 1e4 * x**2)),
    "two minima": lambda x: (np.sum(x**4 - 3.0 * x**2 + x), 4.0 * x**3 - 6.0 * x + 1.0),
}  # fmt: skip


@pytest.mark.parametrize("name", LINES)
def test_line_searches_as_pytorch(name: str) -> None:
    """That begin too near and too far, where one has to look several times, in either direction."""
    torch: Any = pytest.importorskip("torch")
    function, backend, layout = LINES[name], bp.backends.get("numpy"), layout_of_array((1,))
    for lr, begin in itertools.product((0.01, 1.0, 30.0, 1000.0), (-1.7, -0.4, 0.9, 2.3)):
        start = np.array([begin])
        x = torch.tensor(start, requires_grad=True)
        oracle = torch.optim.LBFGS([x], lr, 1, 10**6, 0.0, history_size=3, line_search_fn="strong_wolfe")

        def closure(x: Any = x) -> Any:
            value, gradient = function(x.detach().numpy())
            x.grad = torch.tensor(gradient)
            return torch.tensor(value)

        optimizer = bp.LBFGS(lr, history=3)
        theta, state = start, optimizer.init(backend, layout, start)
        for i in range(3):
            numbers = optimizer.hyperparameters_at(i)
            theta, state = optimizer.update(backend, layout, theta, function(theta)[1], state, numbers, function)
            oracle.step(closure)
            np.testing.assert_allclose(theta, x.detach().numpy(), rtol=1e-7, atol=1e-7, err_msg=f"{lr} {begin} {i}")


def test_adafactor_of_a_stack_of_matrices_as_pytorch() -> None:
    torch: Any = pytest.importorskip("torch")
    gradients = np.random.default_rng(0).standard_normal((5, 2, 3, 4))
    backend, optimizer, layout = bp.backends.get("numpy"), bp.Adafactor(0.1), layout_of_array((2, 3, 4))
    x = torch.ones((2, 3, 4), dtype=torch.float64, requires_grad=True)
    oracle = torch.optim.Adafactor([x], 0.1, weight_decay=0.0, eps=(None, 1e-3))
    theta, state = np.ones(24), optimizer.init(backend, layout, np.ones(24))
    for i, grad in enumerate(gradients):
        numbers = optimizer.hyperparameters_at(i)
        theta, state = optimizer.update(backend, layout, theta, grad.reshape(-1), state, numbers)
        x.grad = torch.tensor(grad)
        oracle.step()
    np.testing.assert_allclose(theta, x.detach().numpy().reshape(-1), rtol=1e-10)


class Both:
    """Two optimizers of PyTorch as one."""

    def __init__(self, *optimizers: Any) -> None:
        self.optimizers = optimizers

    def step(self) -> None:
        for optimizer in self.optimizers:
            optimizer.step()


# ---- optax ----------------------------------------------------------------------------------------------------------


WEIGHTS = {slot.name: slot.decay for slot in LAYOUT.parameters}
STATIC = ("nesterov", "safe_warm_up")
"""Options by which optax decides in Python."""


def in_optax(name: str, some: list[dict[str, Any]]) -> list[Any]:
    """theta after the steps of an optimizer of optax, for each of several choices of options, which share a program."""
    jax: Any = pytest.importorskip("jax")
    optax: Any = pytest.importorskip("optax")

    def tree(vector: Any) -> dict[str, Any]:
        return {slot.name: jax.numpy.asarray(vector[slot.part].reshape(slot.shape)) for slot in LAYOUT.parameters}

    start, gradients = tree(THETA), jax.tree.map(lambda *a: jax.numpy.stack(a), *map(tree, GRADIENTS))
    fixed = {option: some[0][option] for option in STATIC if option in some[0]}

    def steps(numbers: dict[str, Any]) -> Any:
        optimizer = optax_of(optax, name, numbers | fixed)

        def step(carry: Any, grad: Any) -> Any:
            params, state = carry
            updates, state = optimizer.update(grad, state, params)
            return (jax.tree.map(lambda p, u: p + u, params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (start, optimizer.init(start)), gradients)
        return optax.contrib.schedule_free_eval_params(state, params) if name == "ScheduleFreeAdamW" else params

    numbers = {o: jax.numpy.asarray([each[o] for each in some]) for o in some[0] if o not in STATIC}
    found = jax.jit(jax.vmap(steps))(numbers)
    leaves = [np.asarray(found[slot.name]).reshape(len(some), -1) for slot in LAYOUT.parameters]
    return list(np.concatenate(leaves, axis=1))


def optax_of(optax: Any, name: str, o: dict[str, Any]) -> Any:
    moments = {"b1": o.get("beta1"), "b2": o.get("beta2")}
    masked = {"weight_decay": o["weight_decay"], "mask": WEIGHTS}
    match name:
        case "AdaBelief":
            decayed = optax.add_decayed_weights(o["weight_decay"], mask=WEIGHTS)
            belief = optax.scale_by_belief(**moments, eps=o["epsilon"], eps_root=o["epsilon"])
            return optax.chain(belief, decayed, optax.scale(-o["lr"]))
        case "Lion":
            return optax.lion(o["lr"], **moments, **masked)
        case "LAMB":
            return optax.lamb(o["lr"], **moments, eps=o["epsilon"], **masked)
        case "LARS":
            return optax.lars(
                o["lr"], o["weight_decay"], WEIGHTS, o["trust"], o["epsilon"], WEIGHTS, o["momentum"], o["nesterov"]
            )
        case "Prodigy":
            return optax.contrib.prodigy(
                o["lr"], (o["beta1"], o["beta2"]), None, o["epsilon"], o["initial"], o["growth"], o["weight_decay"],
                o["safe_warm_up"],
            )  # fmt: skip
        case _:
            base = optax.adamw(o["lr"], b1=0.0, b2=o["beta2"], eps=o["epsilon"], **masked)
            return optax.contrib.schedule_free(base, o["lr"], b1=o["beta1"])


OPTAX: dict[str, tuple[type[bp.Optimizer], dict[str, list[Any]]]] = {
    "AdaBelief": (bp.AdaBelief, {"lr": [0.01], "beta1": [0.9, 0.7], "beta2": [0.999, 0.9], "epsilon": [1e-16, 1e-2],
                                 **DECAY}),
    "Lion": (bp.Lion, {"lr": [0.01], "beta1": [0.9, 0.5], "beta2": [0.99, 0.8], **DECAY}),
    "LAMB": (bp.LAMB, {"lr": [0.01], "beta1": [0.9, 0.7], "beta2": [0.999, 0.9], "epsilon": [1e-6, 1e-2], **DECAY}),
    "LARS": (bp.LARS, {"lr": [0.5], "momentum": [0.9, 0.5], "trust": [1e-3, 0.1], "epsilon": [0.0, 10.0],
                       "nesterov": [False, True], **DECAY}),
    "Prodigy": (bp.Prodigy, {"lr": [1.0], "beta1": [0.9, 0.7], "beta2": [0.999, 0.9], "epsilon": [1e-8, 1e-2],
                             "initial": [1e-6, 1e-2], "growth": [1.0], "weight_decay": [0.0],
                             "safe_warm_up": [False, True]}),
    "ScheduleFreeAdamW": (bp.ScheduleFreeAdamW, {"lr": [0.01, 1.0], "beta1": [0.9, 0.5], "beta2": [0.999, 0.9],
                                                 "epsilon": [1e-8, 1e-2], **DECAY}),
}  # fmt: skip


@pytest.mark.parametrize("name", OPTAX)
def test_as_optax(name: str) -> None:
    cls, options = OPTAX[name]
    every = list(combinations(options))
    for fixed in combinations({o: values for o, values in options.items() if o in STATIC}):
        some = [each for each in every if fixed.items() <= each.items()]
        for each, expected in zip(some, in_optax(name, some), strict=True):
            check(cls(**each), expected)


# ---- by hand, where the others have no such option ------------------------------------------------------------------


def stepped(optimizer: bp.Optimizer, gradients: list[Any]) -> Any:
    """theta after steps along these gradients, and the parameters to predict with."""
    backend = bp.backends.get("numpy")
    theta, state = THETA, optimizer.init(backend, LAYOUT, THETA)
    for i, grad in enumerate(gradients):
        theta, state = optimizer.update(backend, LAYOUT, theta, grad, state, optimizer.hyperparameters_at(i))
    return theta, optimizer.evaluation(backend, LAYOUT, theta, state)


DECAYS = np.arange(LAYOUT.size) < LAYOUT.decaying


def test_adam_with_epsilon_hat_by_hand() -> None:
    """theta <- theta - lr c / (1 - beta1**t) m / (sqrt(v) + epsilon), with c = sqrt(1 - beta2**t)."""
    theta, m, v, lr, beta1, beta2, epsilon = THETA, 0.0, 0.0, 0.01, 0.8, 0.99, 0.1
    for t, grad in enumerate(GRADIENTS, 1):
        m, v = beta1 * m + (1.0 - beta1) * grad, beta2 * v + (1.0 - beta2) * grad**2
        theta = theta - lr * (1.0 - beta2**t) ** 0.5 / (1.0 - beta1**t) * m / (v**0.5 + epsilon)
    check(bp.Adam(lr, beta1, beta2, epsilon, epsilon_hat=True), theta)


@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_with_steps_in_velocity_by_hand(nesterov: bool) -> None:
    """v <- momentum v - lr g, theta <- theta + v, or momentum v - lr g once more: Keras's, with a rate that falls."""
    theta, v, rate = THETA, 0.0, bp.Cosine(0.1, STEPS)
    for t, grad in enumerate(GRADIENTS):
        v = 0.9 * v - rate(t) * grad
        theta = theta + (0.9 * v - rate(t) * grad if nesterov else v)
    check(bp.SGD(rate, 0.9, nesterov, steps_in_velocity=True), theta)


@pytest.mark.parametrize("safe", [False, True])
def test_prodigy_goes_further_and_decays_weights_by_hand(safe: bool) -> None:
    """Down a bowl, whose gradients show how far it is, as those drawn above don't."""
    theta, d, r, s, m, v = THETA, 0.01, 0.0, 0.0, 0.0, 0.0
    gradients, distances = [], []
    for t in range(1, 41):
        g = (1.0 + np.arange(LAYOUT.size) % 3) * (theta - 5.0)
        a = d * 0.5 * (1.0 - 0.95**t) ** 0.5 / (1.0 - 0.8**t)
        m, v = 0.8 * m + 0.2 * d * g, 0.95 * v + 0.05 * (d * g) ** 2
        r = 0.95**0.5 * r + d / 0.01 * a * np.sum(g * (THETA - theta))
        s = 0.95**0.5 * s + (d if safe else a) * d / 0.01 * g
        d = max(d, 0.9 * r / np.sum(np.abs(s)))
        theta = theta - a * m / (np.sqrt(v) + d * 1e-3) - np.where(DECAYS, a * 0.3 * theta, 0.0)
        gradients.append(g)
        distances.append(d)
    options = {"weight_decay": 0.3, "safe_warm_up": safe}
    found, _ = stepped(bp.Prodigy(0.5, 0.8, 0.95, 1e-3, initial=0.01, growth=0.9, **options), gradients)
    np.testing.assert_allclose(found, theta, rtol=1e-9)
    assert len(set(distances)) > 10


def test_schedule_free_warms_up_by_hand() -> None:
    """Also down again: the average counts a step by the largest rate so far."""
    rates = [0.01, 0.02, 0.03, 0.04, 0.04, 0.03, 0.02, 0.01]
    x, z, v, total = THETA, THETA, 0.0, 0.0
    for t, (lr, g) in enumerate(zip(rates, GRADIENTS, strict=False), 1):
        y = 0.1 * z + 0.9 * x
        v = 0.999 * v + 0.001 * g * g
        z = z - lr * (g / (np.sqrt(v / (1.0 - 0.999**t)) + 1e-8) + np.where(DECAYS, 0.3 * y, 0.0))
        total += max(rates[:t]) ** 2
        x = x + max(rates[:t]) ** 2 / total * (z - x)
    schedule = bp.WarmUp(bp.Polynomial(0.04, 4), 4)
    theta, average = stepped(bp.ScheduleFreeAdamW(schedule, weight_decay=0.3), GRADIENTS[:8])
    np.testing.assert_allclose(theta, 0.1 * z + 0.9 * x, rtol=1e-11)
    np.testing.assert_allclose(average, x, rtol=1e-10)
