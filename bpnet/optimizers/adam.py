"""Adam and its kin: along a running mean of the gradient, over the root of one of its square."""

from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from operator import mul
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.errors import OptionError
from bpnet.optimizers.base import ElementwiseOptimizer, Optimizer
from bpnet.options import flag, fraction, not_negative, positive
from bpnet.schedules import Schedule, or_schedule, rate


@dataclass(frozen=True)
class _Moments(Optimizer):
    """What has a running mean of the gradient, m, and one of its size, v.

    It has `beta1`, which may be a schedule, `beta2` and `epsilon`; the corrections by 1 - beta1**t are then of the
    number of the step.
    """

    lr: float | Schedule = 1e-3
    beta1: float | Schedule = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    @property
    def state_names(self) -> tuple[str, ...]:
        return "first moment m", "second moment v"

    def __post_init__(self) -> None:
        self._check(lr=rate, beta1=or_schedule(fraction), beta2=fraction, epsilon=positive)
        if "weight_decay" in vars(self):
            self._check(weight_decay=or_schedule(not_negative))

    def check_type(self, dtype: str, smallest: float, largest: float) -> None:
        """As `Registered.check_type`, and raises OptionError where epsilon is below sqrt(smallest / (1 - beta2)).

        The squares of smaller gradients g are 0, so that a step is lr g / epsilon, which must not be longer than lr.
        """
        least = (smallest / (1.0 - self.beta2)) ** 0.5
        if self.epsilon < least:
            raise OptionError(
                f"epsilon of {self} is {self.epsilon!r}; with {dtype} parameters expected at least {least:.2g}, since "
                "the squares of smaller gradients are 0"
            )
        super().check_type(dtype, smallest, largest)

    def corrections(self, step: int) -> tuple[float, float]:
        """1 - beta1**t and 1 - beta2**t: by how much m and v, which start at 0, are too small after t steps."""
        assert not isinstance(self.beta1, Schedule)
        return 1.0 - self.beta1**step, 1.0 - self.beta2**step

    def moments(self, m: Array, v: Array, grad: Array) -> tuple[Array, Array]:
        """beta1 m + (1 - beta1) g and beta2 v + (1 - beta2) g**2."""
        beta1: Any = self.beta1
        m = beta1 * m + (1.0 - beta1) * grad
        v = self.beta2 * v + (1.0 - self.beta2) * grad * grad  # from the left, so that the square overflows last
        return m, v


@dataclass(frozen=True)
class Adam(_Moments, ElementwiseOptimizer):
    """Adam (Kingma and Ba 2015): along m, a running mean of the gradient g, over the root of v, a running mean of g**2.

    Both start at 0, and so are too small after t steps by the factors that m_hat and v_hat divide by:

        m <- beta1 m + (1 - beta1) g,          m_hat = m / (1 - beta1**t),
        v <- beta2 v + (1 - beta2) g**2,       v_hat = v / (1 - beta2**t),
        theta <- theta - lr m_hat / (sqrt(v_hat) + epsilon).

    It is computed as at the end of the paper's section 2: with c = sqrt(1 - beta2**t) the last line is

        theta <- theta - alpha m / (sqrt(v) + epsilon_hat),   alpha = lr c / (1 - beta1**t),   epsilon_hat = epsilon c.

    `amsgrad` has the largest v so far in the place of v there (Reddi, Kale and Kumar 2018), so that no step grows
    because large gradients are forgotten.  `epsilon_hat` takes epsilon itself for epsilon_hat, as Keras and
    scikit-learn do: where gradients are not far above epsilon, the first steps are then shorter.
    """

    amsgrad: bool = field(default=False, kw_only=True)
    epsilon_hat: bool = field(default=False, kw_only=True)

    names = {"adam": {}, "amsgrad": {"amsgrad": True}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(amsgrad=flag, epsilon_hat=flag)

    @property
    def state_names(self) -> tuple[str, ...]:
        return ("first moment m", "second moment v", "largest second moment")[: 3 if self.amsgrad else 2]

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        """alpha and epsilon_hat."""
        first, second = self.corrections(step)
        c = second**0.5
        return lr * c / first, self.epsilon if self.epsilon_hat else self.epsilon * c

    def elementwise(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        m, v, *largest, grad, alpha, epsilon_hat = args
        m, v = self.moments(m, v, grad)
        if not largest:
            return theta - alpha * m / (b.xp.sqrt(v) + epsilon_hat), m, v
        top = b.xp.maximum(largest[0], v)
        return theta - alpha * m / (b.xp.sqrt(top) + epsilon_hat), m, v, top


@dataclass(frozen=True)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter 2019), theta <- theta - lr weight_decay theta.

    So before Adam's step theta is multiplied by 1 - lr weight_decay: the weights are, but not biases, scales and
    shifts.
    """

    weight_decay: float | Schedule = 0.01

    names = {"adamw": {}}


@dataclass(frozen=True)
class NAdam(_Moments, ElementwiseOptimizer):
    """Adam with Nesterov's look ahead (Dozat 2016): the step is along the mean as it will be after the next gradient.

        mu_t = beta1 (1 - 0.96**(t momentum_decay) / 2),        M_t = mu_1 mu_2 ... mu_t,
        m_hat = (1 - mu_t) g / (1 - M_t) + mu_(t+1) m / (1 - M_(t+1)),
        theta <- theta - lr m_hat / (sqrt(v_hat) + epsilon),

    with m, v and v_hat as in `Adam`.
    """

    lr: float | Schedule = 2e-3
    momentum_decay: float = 4e-3
    weight_decay: float | Schedule = 0.0

    names = {"nadam": {}}

    def __post_init__(self) -> None:
        super().__post_init__()
        self._check(momentum_decay=not_negative)

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        """The factors of g and m, and epsilon_hat, all as if v needed no correction."""
        assert not isinstance(self.beta1, Schedule)
        c = self.corrections(step)[1] ** 0.5
        mu, following = (_mu(self.beta1, self.momentum_decay, t) for t in (step, step + 1))
        product = _product_of_mu(self.beta1, self.momentum_decay, step)
        of_grad, of_mean = (1.0 - mu) / (1.0 - product), following / (1.0 - product * following)
        return lr * c * of_grad, lr * c * of_mean, self.epsilon * c

    def elementwise(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        m, v, grad, of_grad, of_mean, epsilon_hat = args
        m, v = self.moments(m, v, grad)
        return theta - (of_grad * grad + of_mean * m) / (b.xp.sqrt(v) + epsilon_hat), m, v


def _mu(beta1: float, decay: float, step: int) -> float:
    value: float = beta1 * (1.0 - 0.5 * 0.96 ** (step * decay))
    return value


def _product_of_mu(beta1: float, decay: float, step: int) -> float:
    """mu_1 ... mu_step; 0 once 1 minus it is 1, as it stays."""
    products = _products(beta1, decay, 1 << step.bit_length())
    return products[step] if step < len(products) else 0.0


@lru_cache(maxsize=16)
def _products(beta1: float, decay: float, count: int) -> tuple[float, ...]:
    found: list[float] = []
    for product in accumulate((_mu(beta1, decay, t) for t in range(1, count)), mul, initial=1.0):
        if product < 1e-20:
            break
        found.append(product)
    return tuple(found)


@dataclass(frozen=True)
class RAdam(_Moments, ElementwiseOptimizer):
    """Adam that is rectified while v is known from few gradients only (Liu et al. 2020).

        rho_inf = 2 / (1 - beta2) - 1,     rho_t = rho_inf - 2 t beta2**t / (1 - beta2**t),
        r = sqrt((rho_t - 4) (rho_t - 2) rho_inf / ((rho_inf - 4) (rho_inf - 2) rho_t)),
        theta <- theta - lr r m_hat sqrt(1 - beta2**t) / (sqrt(v) + epsilon)       where rho_t > 5,
        theta <- theta - lr m_hat                                                  before,

    with m, v and m_hat as in `Adam`.
    """

    weight_decay: float | Schedule = 0.0

    names = {"radam": {}}

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        """The factor of m over the root of v, and that of m alone: one of them is 0."""
        first, second = self.corrections(step)
        most = 2.0 / (1.0 - self.beta2) - 1.0
        rho = most - 2.0 * step * self.beta2**step / second
        if rho <= 5.0:
            return 0.0, lr / first
        rectified = (rho - 4.0) * (rho - 2.0) * most / ((most - 4.0) * (most - 2.0) * rho)
        return lr / first * (rectified * second) ** 0.5, 0.0

    def elementwise(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        m, v, grad, over_root, alone = args
        m, v = self.moments(m, v, grad)
        return theta - m * (over_root / (b.xp.sqrt(v) + self.epsilon) + alone), m, v


@dataclass(frozen=True)
class Adamax(_Moments, ElementwiseOptimizer):
    """Adam with the largest gradient, which fades, in the place of a root (Kingma and Ba 2015, algorithm 2).

        u <- max(beta2 u, |g| + epsilon),       theta <- theta - lr m_hat / u,

    with m and m_hat as in `Adam`.
    """

    lr: float | Schedule = 2e-3
    weight_decay: float | Schedule = 0.0

    names = {"adamax": {}}
    state_names = ("first moment m", "largest gradient u")

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        return (lr / self.corrections(step)[0],)

    def elementwise(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        m, u, grad, alpha = args
        beta1: Any = self.beta1
        m = beta1 * m + (1.0 - beta1) * grad
        u = b.xp.maximum(self.beta2 * u, b.xp.abs(grad) + self.epsilon)
        return theta - alpha * m / u, m, u


@dataclass(frozen=True)
class AdaBelief(_Moments, ElementwiseOptimizer):
    """Adam that steps far where gradients are as expected, however large they are (Zhuang et al. 2020).

        s <- beta2 s + (1 - beta2) (g - m)**2 + epsilon,       s_hat = s / (1 - beta2**t),
        theta <- theta - lr m_hat / (sqrt(s_hat) + epsilon),

    with m and m_hat as in `Adam`.
    """

    epsilon: float = 1e-16
    weight_decay: float | Schedule = 0.0

    names = {"adabelief": {}}
    state_names = ("first moment m", "squared surprise s")

    def hyperparameters(self, lr: float, step: int) -> tuple[float, ...]:
        """alpha and epsilon_hat, as for `Adam`."""
        first, second = self.corrections(step)
        c = second**0.5
        return lr * c / first, self.epsilon * c

    def elementwise(self, b: Backend, theta: Array, *args: Any) -> tuple[Array, ...]:
        m, s, grad, alpha, epsilon_hat = args
        beta1: Any = self.beta1
        m = beta1 * m + (1.0 - beta1) * grad
        off = grad - m
        s = self.beta2 * s + (1.0 - self.beta2) * off * off + self.epsilon
        return theta - alpha * m / (b.xp.sqrt(s) + epsilon_hat), m, s
