"""PyTorch, as its user would write each entry: modules of torch.nn where there are such, a few lines where not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, get_swa_multi_avg_fn

from bench.catalogue.entries import (
    CITIES,
    CLASSES,
    CODES,
    ENTRIES_OF,
    FEATURES,
    MEMBERS,
    NOISE,
    OF_MEMBERS,
    QUANTILES,
    WIDTH,
    WIDTH_OF,
    Entry,
    outputs_of,
)
from bench.contenders.base import Absent


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


class Scale(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(size))

    def forward(self, x: Any) -> Any:
        return x * self.scale


class Parametric(nn.Module):
    def __init__(self, inner: Callable[[Any], Any]) -> None:
        super().__init__()
        self.inner, self.alpha = inner, nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Any) -> Any:
        return torch.lerp(x, self.inner(x), self.alpha)


class Gated(nn.Module):
    def __init__(self, inputs: int, gate: Callable[[Any], Any]) -> None:
        super().__init__()
        self.value, self.gate, self.function = nn.Linear(inputs, WIDTH), nn.Linear(inputs, WIDTH), gate

    def forward(self, x: Any) -> Any:
        return self.value(x) * self.function(self.gate(x))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Any) -> Any:
        return x + torch.tanh(self.inner(x))


class Bilinear(nn.Bilinear):
    def __init__(self, inputs: int) -> None:
        super().__init__(inputs // 2, inputs // 2, WIDTH)

    def forward(self, x: Any) -> Any:
        return super().forward(*x.chunk(2, 1))


class Parallel(nn.Module):
    def __init__(self, inputs: int) -> None:
        super().__init__()
        self.add_module("1", nn.Linear(inputs, FEATURES))

    def forward(self, x: Any) -> Any:
        return torch.cat([x, self.get_submodule("1")(x)], 1)


class Inputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.city = nn.Sequential(nn.Embedding(CITIES, 8), nn.Flatten())

    def forward(self, x: dict[str, Any]) -> Any:
        return torch.cat([x["numbers"], self.city(x["city"])], 1)


class Standardize(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.linspace(-1, 1, FEATURES))
        self.register_buffer("scale", torch.linspace(0.5, 2, FEATURES))

    def forward(self, x: Any) -> Any:
        return (x - self.mean) / self.scale


class NumericInput(nn.Module):
    def __init__(self, features: int, missing: int) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(features))
        self.register_buffer("factor", torch.ones(features))
        self.missing = missing

    def forward(self, x: Any) -> Any:
        z = (torch.nan_to_num(x, 0.0) - self.center) * self.factor
        z = torch.where(x.isnan(), 0.0, z)
        z = z * torch.rsqrt(1.0 + (z / 3.0).square())
        return torch.cat([z, x[:, -self.missing :].isnan().float()], 1) if self.missing else z


class CategoricalInput(nn.Module):
    """One-hot columns, and one table for the others, in which each begins where the one before ends."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = [i for i, width in enumerate(WIDTH_OF) if width]
        self.narrow = [i for i, width in enumerate(WIDTH_OF) if not width]
        self.width_8 = nn.Parameter(torch.zeros(CITIES * len(self.wide), 8))
        self.register_buffer("bound", torch.zeros(len(WIDTH_OF)))
        self.register_buffer("first", torch.zeros(len(WIDTH_OF)))
        self.register_buffer("start", CITIES * torch.arange(len(self.wide)), persistent=False)

    def forward(self, x: Any) -> Any:
        ones = F.one_hot(x[:, self.narrow].long(), ENTRIES_OF[self.narrow[0]])[..., 2:].float()
        rows = F.embedding(x[:, self.wide] + self.start, self.width_8)
        return torch.cat([ones.flatten(1), rows.flatten(1)], 1)


class TabularInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.numbers, self.categories = NumericInput(FEATURES // 2, 0), CategoricalInput()

    def forward(self, x: dict[str, Any]) -> Any:
        return torch.cat([self.numbers(x["numbers"]), self.categories(x["categories"])], 1)


class NumericEmbedding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frequency, self.phase = (nn.Parameter(torch.zeros(FEATURES, 16)) for _ in range(2))
        self.weight, self.bias = nn.Parameter(torch.zeros(FEATURES, 16, 3)), nn.Parameter(torch.zeros(FEATURES, 3))

    def forward(self, x: Any) -> Any:
        waves = torch.cos(2 * math.pi * x[:, :, None] * self.frequency + self.phase)
        return torch.cat([torch.einsum("rnf,nfo->rno", waves, self.weight) + self.bias, x[:, :, None]], 2).flatten(1)


class MemberScale(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.r = nn.Parameter(torch.ones(MEMBERS, features))

    def forward(self, x: Any) -> Any:
        return (x[:, None] if x.ndim == 2 else x) * self.r


class BatchEnsemble(MemberScale):
    def __init__(self, features: int) -> None:
        super().__init__(features)
        self.weight, self.s = nn.Parameter(torch.zeros(features, WIDTH)), nn.Parameter(torch.ones(MEMBERS, WIDTH))
        self.bias = nn.Parameter(torch.zeros(MEMBERS, WIDTH))

    def forward(self, x: Any) -> Any:
        return F.relu((super().forward(x) @ self.weight) * self.s + self.bias)


class MemberDense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(MEMBERS, WIDTH, CLASSES))
        self.bias = nn.Parameter(torch.zeros(MEMBERS, CLASSES))

    def forward(self, x: Any) -> Any:
        return torch.einsum("rn,kno->rko" if x.ndim == 2 else "rkn,kno->rko", x, self.weight) + self.bias


class ActivityPenalty(nn.Module):
    """Keeps the penalty, a mean over rows, for the loss."""

    def forward(self, x: Any) -> Any:
        self.penalty = (1e-3 * x.abs() + 0.5e-3 * x * x).sum() / x.shape[0]
        return x


class Wrapped(nn.Module):
    """A layer under the name that bpnet gives it."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Any) -> Any:
        return self.inner(x)


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "celu": nn.CELU, "elu": nn.ELU, "gelu": nn.GELU, "gelu_tanh": lambda: nn.GELU("tanh"),
    "hard_sigmoid": nn.Hardsigmoid, "hard_swish": nn.Hardswish, "hard_tanh": nn.Hardtanh, "identity": nn.Identity,
    "leaky_relu": nn.LeakyReLU, "log_sigmoid": nn.LogSigmoid, "log_softmax": lambda: nn.LogSoftmax(1),
    "mish": nn.Mish, "parametric_mish": lambda: Parametric(F.mish), "parametric_selu": lambda: Parametric(F.selu),
    "prelu": lambda: nn.PReLU(WIDTH), "relu": nn.ReLU, "relu6": nn.ReLU6, "selu": nn.SELU, "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU, "sine": lambda: Of(lambda z: torch.sin(30.0 * z)), "softmax": lambda: nn.Softmax(1),
    "softplus": nn.Softplus, "softshrink": nn.Softshrink, "softsign": nn.Softsign,
    "squared_relu": lambda: Of(lambda z: F.relu(z).square()), "tanh": nn.Tanh,
}  # fmt: skip


def modules(entry: Entry) -> list[nn.Module]:
    """Those of the network, one for each of bpnet's layers."""
    first, second, last = nn.Linear(FEATURES, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, outputs_of(entry))
    name, relu = entry.name, nn.ReLU
    if entry.kind == "activations":
        return [first, ACTIVATIONS[name](), second, ACTIVATIONS[name](), last]
    plain = [first, relu(), second, relu(), last]
    if entry.kind != "layers":
        after_all = {"binary_cross_entropy": nn.Sigmoid, "Members": lambda: nn.Unflatten(1, (MEMBERS, CLASSES))}
        return [*plain, after_all[name]()] if name in after_all else plain
    after: dict[str, Callable[[], nn.Module]] = {
        "BatchNorm": lambda: nn.BatchNorm1d(WIDTH), "LayerNorm": lambda: nn.LayerNorm(WIDTH),
        "RMSNorm": lambda: nn.RMSNorm(WIDTH, eps=1e-6), "GroupNorm": lambda: nn.GroupNorm(8, WIDTH),
        "Scale": lambda: Scale(WIDTH),
    }  # fmt: skip
    if name in after:
        return [first, after[name](), relu(), second, after[name](), relu(), last]
    behind: dict[str, Callable[[], nn.Module]] = {
        "ActivityPenalty": ActivityPenalty, "Dropout": lambda: nn.Dropout(NOISE),
        "AlphaDropout": lambda: nn.AlphaDropout(NOISE), "Clamp": nn.Identity,
        "GaussianNoise": lambda: Of(lambda x: x + NOISE * torch.randn_like(x)),
    }  # fmt: skip
    if name in behind:
        return [first, relu(), behind[name](), second, relu(), behind[name](), last]
    parametrized: dict[str, Callable[[nn.Module], Any]] = {
        "WeightNorm": nn.utils.parametrizations.weight_norm, "SpectralNorm": nn.utils.parametrizations.spectral_norm,
    }  # fmt: skip
    if name in parametrized:
        return [Wrapped(parametrized[name](first)), relu(), Wrapped(parametrized[name](second)), relu(), last]
    gates: dict[str, Callable[[Any], Any]] = {
        "GLU": torch.sigmoid, "SwiGLU": F.silu, "GeGLU": F.gelu,
    }  # fmt: skip
    if name in gates:
        return [Gated(FEATURES, gates[name]), Gated(WIDTH, gates[name]), last]
    match name:
        case "Dense":
            return plain
        case "Bilinear":
            return [Bilinear(FEATURES), relu(), Bilinear(WIDTH), relu(), last]
        case "Parallel":
            return [Parallel(FEATURES), relu(), Parallel(WIDTH), relu(), nn.Linear(WIDTH + FEATURES, CLASSES)]
        case "Embedding":
            return [nn.Embedding(CODES, 8), nn.Flatten(), *plain]
        case "Flatten":
            return [nn.Flatten(), *plain]
        case "Inputs":
            return [Inputs(), *plain]
        case "Standardize":
            return [Standardize(), *plain]
        case "NumericEmbedding":
            return [NumericEmbedding(), nn.Linear(FEATURES * 4, WIDTH), *plain[1:]]
        case "BatchEnsemble":
            return [BatchEnsemble(FEATURES), BatchEnsemble(WIDTH), MemberDense()]
        case "MemberScale":
            return [MemberScale(FEATURES), *plain[:-1], MemberDense()]
        case "MemberDense":
            return [*plain[:-1], MemberDense()]
        case "NumericInput":
            return [NumericInput(FEATURES, FEATURES // 2), nn.Linear(FEATURES * 3 // 2, WIDTH), *plain[1:]]
        case "CategoricalInput" | "TabularInput":
            features = sum(width or entries - 2 for entries, width in zip(ENTRIES_OF, WIDTH_OF, strict=True))
            if name == "CategoricalInput":
                return [CategoricalInput(), nn.Linear(features, WIDTH), *plain[1:]]
            return [TabularInput(), nn.Linear(FEATURES // 2 + features, WIDTH), *plain[1:]]
        case "Reshape":
            both = [nn.Unflatten(1, (8, WIDTH // 8)), Scale(WIDTH // 8), relu(), nn.Flatten()]
            return [first, *both, second, *copy.deepcopy(both), last]
        case "Residual":
            return [first, Residual(), Residual(), last]
        case "Sequential":
            return [nn.Sequential(first, relu()), nn.Sequential(second, relu()), last]
        case "Shared":
            shared = Wrapped(second)
            return [first, relu(), shared, relu(), shared, relu(), last]
    raise Absent("PyTorch has no such layer")


def fill(network: nn.Module, start: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The network's tensors, each with its start values."""
    pairs = []
    for name, values in start.items():
        *path, leaf = name.split(".")
        owner = network.get_submodule(".".join(path))
        value = torch.from_numpy(values)
        if leaf in ("low", "high"):  # of Clamp, which does nothing while training
            continue
        if leaf == "length":
            pairs.append((owner.inner.parametrizations.weight.original0, value[:, None]))
            continue
        if leaf in ("left", "right"):
            norm = owner.inner.parametrizations.weight[0]
            pairs.append((norm._v if leaf == "left" else norm._u, value))
            continue
        if leaf == "weight" and hasattr(owner, "parametrizations"):
            weight = owner.parametrizations.weight
            pairs.append((getattr(weight, "original1", None), value.T) if hasattr(weight, "original1")
                         else (weight.original, value.T))  # fmt: skip
            continue
        if isinstance(owner, nn.Linear) and leaf == "weight":
            pairs.append((owner.weight, value.T))
            continue
        if isinstance(owner, nn.Bilinear) and leaf == "weight":
            pairs.append((owner.weight, value.permute(2, 0, 1)))
            continue
        if isinstance(owner, nn.Embedding | nn.PReLU):
            leaf = "weight"
        if isinstance(owner, nn.BatchNorm1d | nn.LayerNorm | nn.GroupNorm | nn.RMSNorm):
            leaf = {"scale": "weight", "shift": "bias", "mean": "running_mean", "var": "running_var"}[leaf]
        pairs.append((getattr(owner, leaf), value))
    return pairs


def _quantile(out: Any, y: Any) -> Any:
    q = torch.tensor(QUANTILES)
    error = y[:, :, None] - out.view(-1, CLASSES, len(QUANTILES))
    return torch.maximum(q * error, (q - 1) * error).mean()


def _gaussian(out: Any, y: Any) -> Any:
    pairs = out.view(-1, CLASSES, 2)
    mean, s = pairs[..., 0], pairs[..., 1]
    return 0.5 * (s + (y - mean).square() * torch.exp(-s)).mean()


def _focal(out: Any, y: Any) -> Any:
    log_p = F.log_softmax(out, 1).gather(1, y[:, None])
    return -((1 - log_p.exp()).square() * log_p).mean()


def _binary_focal(out: Any, y: Any) -> Any:
    entropy, p = F.binary_cross_entropy_with_logits(out, y, reduction="none"), torch.sigmoid(out)
    return ((y * (1 - p) + (1 - y) * p).square() * entropy).mean()


def _heads(out: Any, y: Any) -> Any:
    return F.mse_loss(out[:, :5], y[:, :5]) + F.cross_entropy(out[:, 5:], y[:, 5].long())


def _members(out: Any, y: Any) -> Any:
    return F.cross_entropy(out.flatten(0, 1), y.repeat_interleave(MEMBERS))


def _log_cosh(out: Any, y: Any) -> Any:
    error = out - y
    return (error + F.softplus(-2.0 * error) - math.log(2.0)).mean()


LOSSES: dict[str, Callable[[Any, Any], Any]] = {
    "cross_entropy": F.cross_entropy, "focal": _focal, "binary_cross_entropy": F.binary_cross_entropy,
    "binary_cross_entropy_with_logits": F.binary_cross_entropy_with_logits, "binary_focal": _binary_focal,
    "hinge": lambda out, y: F.relu(1 - (2 * y - 1) * out).mean(),
    "squared_hinge": lambda out, y: F.relu(1 - (2 * y - 1) * out).square().mean(),
    "cosine_similarity": lambda out, y: (1 - F.cosine_similarity(out, y)).mean(),
    "gaussian_nll": _gaussian, "huber": F.huber_loss, "log_cosh": _log_cosh, "mean_absolute_error": F.l1_loss,
    "mean_squared_error": F.mse_loss, "quantile": _quantile, "poisson": F.poisson_nll_loss,
    "gamma": lambda out, y: (out + y * torch.exp(-out)).mean(),
    "tweedie": lambda out, y: (2 * torch.exp(0.5 * out) + 2 * y * torch.exp(-0.5 * out)).mean(),
    "kl_divergence": lambda out, y: F.kl_div(F.log_softmax(out, 1), y, reduction="batchmean"), "Heads": _heads,
    "Members": _members,
    "triplet": lambda out, y: F.triplet_margin_loss(out[:, 0], out[:, 1], out[:, 2], margin=1.0, eps=0.0),
}  # fmt: skip


class AdaBelief(torch.optim.Optimizer):
    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})
        self.count = 0

    @torch.no_grad()
    def step(self) -> None:
        self.count += 1
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"], state["s"] = torch.zeros_like(p), torch.zeros_like(p)
                m, s = state["m"].lerp_(p.grad, 0.1), state["s"]
                off = p.grad - m
                s.mul_(0.999).addcmul_(off, off, value=0.001).add_(1e-4)
                root = (s / (1 - 0.999**self.count)).sqrt_().add_(1e-4)
                p.addcdiv_(m, root, value=-group["lr"] / (1 - 0.9**self.count))


class Lion(torch.optim.Optimizer):
    def __init__(self, parameters: Any, lr: float) -> None:
        super().__init__(parameters, {"lr": lr})

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["m"] = torch.zeros_like(p)
                m = state["m"]
                p.add_(torch.sign(m.lerp(p.grad, 0.1)), alpha=-group["lr"])
                m.lerp_(p.grad, 0.01)


SHARED: dict[bool, tuple[Any, Any]] = {}
"""Network and objective of the optimizers, which are the same for all of them: they are compiled once."""


def objective_of(entry: Entry, compiled: bool) -> tuple[Any, Any]:
    """The network, and the function that gives the loss of a batch."""
    network = nn.Sequential(*modules(entry))
    penalties = [m for m in network.modules() if isinstance(m, ActivityPenalty)]
    usual = _members if entry.name in OF_MEMBERS else F.cross_entropy
    criterion = LOSSES[entry.name] if entry.kind == "losses" else usual

    def objective(x: Any, y: Any) -> Any:
        loss = criterion(network(x), y)
        return sum((part.penalty for part in penalties), loss) if penalties else loss

    if not compiled:
        return network, objective
    torch._dynamo.reset()
    return network, torch.compile(objective, fullgraph=True, dynamic=False)


class PyTorch:
    """`compiled` compiles network and loss, and of an optimizer its step."""

    def __init__(self, entry: Entry, start: dict[str, Any], x: Any, threads: int, compiled: bool = False) -> None:
        torch.set_num_threads(threads)
        self.entry = entry
        shared = SHARED.get(compiled) if entry.kind == "optimizers" else None
        self.network, self.objective = shared or objective_of(entry, compiled)
        if entry.kind == "optimizers":
            SHARED[compiled] = self.network, self.objective
        self.network.requires_grad_(True)
        self.start = fill(self.network, start)
        self.restore()
        self.parameters = list(self.network.parameters())
        self.optimizers = self._optimizers()
        self.update: Any = self._update
        self.count = 0
        if compiled and entry.kind == "optimizers":
            self.update = torch.compile(self._update)

    def restore(self) -> None:
        with torch.no_grad():
            for tensor, value in self.start:
                tensor.copy_(value)

    def _optimizers(self) -> list[Any]:
        lr, parameters, o = self.entry.lr, self.parameters, torch.optim
        weights = [p for p in parameters if p.ndim > 1]
        biases = [p for p in parameters if p.ndim <= 1]
        if self.entry.kind != "optimizers":
            return [o.Adam(parameters, lr, eps=1e-4, fused=True)]
        match self.entry.name:
            case "adam" | "amsgrad":
                return [o.Adam(parameters, lr, eps=1e-4, amsgrad=self.entry.name == "amsgrad", fused=True)]
            case "adamw":
                groups = [{"params": weights, "weight_decay": 0.01}, {"params": biases, "weight_decay": 0.0}]
                return [o.AdamW(groups, lr, eps=1e-4, fused=True)]
            case "nadam" | "radam" | "adamax" | "rmsprop" | "adagrad" | "adadelta":
                names = {"nadam": "NAdam", "radam": "RAdam", "rmsprop": "RMSprop"}
                made = getattr(o, names.get(self.entry.name, self.entry.name.capitalize()))
                more = {"fused": True} if made is o.Adagrad else {"foreach": True}  # slow by default
                return [made(parameters, lr, eps=1e-4, **more)]
            case "adafactor":
                return [o.Adafactor(parameters, lr)]
            case "muon":
                hidden = [self.network[2].weight]
                rest = [p for p in parameters if p is not hidden[0]]
                groups = [{"params": [p for p in rest if p.ndim > 1], "weight_decay": 0.01},
                          {"params": [p for p in rest if p.ndim <= 1], "weight_decay": 0.0}]  # fmt: skip
                return [o.Muon(hidden, lr, weight_decay=0.0), o.AdamW(groups, 1e-3, eps=1e-4, fused=True)]
            case "adabelief":
                return [AdaBelief(parameters, lr)]
            case "lion":
                return [Lion(parameters, lr)]
            case "lbfgs":
                options = {"max_iter": 1, "max_eval": 10**6, "line_search_fn": "strong_wolfe", "history_size": 10}
                return [o.LBFGS(parameters, lr=lr, tolerance_grad=0.0, **options)]
            case "Grouped":
                for p in biases:
                    p.requires_grad_(False)
                return [o.SGD(weights, lr, fused=True)]
            case "ExponentialAverage":
                self.average = AveragedModel(self.network, multi_avg_fn=get_ema_multi_avg_fn(0.999))
            case "StochasticAverage":
                self.average = AveragedModel(self.network, multi_avg_fn=get_swa_multi_avg_fn())
            case "sgd" | "sam" | "Accumulate" | "Clip" | "GradientNoise":
                pass
            case _:
                raise Absent("PyTorch has no such optimizer; JAX's is optax")
        return [o.SGD(parameters, lr, fused=True)]

    def _update(self) -> None:
        match self.entry.name:
            case "Clip":
                nn.utils.clip_grad_norm_(self.parameters, 0.1)
            case "GradientNoise":
                with torch.no_grad():
                    for p in self.parameters:
                        p.grad.add_(torch.randn_like(p), alpha=NOISE)
        for optimizer in self.optimizers:
            optimizer.step()

    def put(self, array: Any) -> Any:
        return torch.from_numpy(array)

    def step(self, x: Any, y: Any) -> Any:
        if self.entry.name == "lbfgs":
            return self.optimizers[0].step(lambda: self._gradient(x, y))
        if self.entry.name == "Accumulate":
            return self._accumulate(x, y)
        loss = self._gradient(x, y)
        if self.entry.name == "sam":
            self._climb(x, y)
        self.update()
        if self.entry.name in ("ExponentialAverage", "StochasticAverage"):
            self.average.update_parameters(self.network)
        return loss.detach()

    def _gradient(self, x: Any, y: Any) -> Any:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss = self.objective(x, y)
        loss.backward()
        return loss

    def _accumulate(self, x: Any, y: Any) -> Any:
        loss = self.objective(x, y)
        (loss / 2).backward()
        self.count += 1
        if self.count % 2 == 0:
            self.update()
            self.optimizers[0].zero_grad(set_to_none=True)
        return loss.detach()

    def _climb(self, x: Any, y: Any) -> None:
        """The gradient of SAM: uphill of the parameters, which stay where they are."""
        with torch.no_grad():
            grads = [p.grad for p in self.parameters]
            factor = 0.05 / nn.utils.get_total_norm(grads)
            moves = torch._foreach_mul(grads, factor)
            torch._foreach_add_(self.parameters, moves)
        self._gradient(x, y)
        with torch.no_grad():
            torch._foreach_sub_(self.parameters, moves)

    def value(self, loss: Any) -> float:
        return float(loss)

    def wait(self, loss: Any) -> None:
        pass


make = PyTorch
