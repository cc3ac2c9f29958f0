"""Any function of one array, minimised by any optimizer."""

from collections.abc import Callable
from typing import Any

from bpnet.backends import Array, backend_of
from bpnet.backends.interrupts import ends_sessions
from bpnet.backpropagation import type_of
from bpnet.data.checks import detached
from bpnet.errors import ArgumentError, DivergedError, DTypeError, ShapeError, kind_of
from bpnet.layout import layout_of_array
from bpnet.optimizers.base import Optimizer
from bpnet.options import whole
from bpnet.registry import resolve
from bpnet.typing import AnyArray, OptimizerName


@ends_sessions
def minimize(
    function: Callable[[Any], tuple[Any, Any]],
    x: AnyArray,
    optimizer: OptimizerName | Optimizer = "adam",
    steps: int = 1000,
) -> Array:
    """Where so many steps of `optimizer` lead from `x`: an array like it, of any shape, in its library, on its device.

        def bowl(x):
            return (x * x).sum(), 2.0 * x               # its value, and its gradient, an array like x

        bp.minimize(bowl, np.ones(3), bp.SGD(0.1), steps=100)

    The array is one leaf, to which weight decay does not apply.  Raises DTypeError where `x` does not hold float32 or
    float64 values, ShapeError or ArgumentError where `function` gives something else, and DivergedError where the end
    is not finite.
    """
    if not callable(function):
        raise ArgumentError(f"function is {kind_of(function)}; expected a function that gives a value and its gradient")
    rule, steps = resolve(Optimizer, "optimizer", optimizer), whole("steps", steps, 0)
    backend = backend_of(x)
    xp, start = backend.xp, detached(backend, x, "x")
    if start.dtype not in (xp.float32, xp.float64):
        raise DTypeError(f"x holds {start.dtype} values; expected float32 or float64")
    if 0 in start.shape:
        raise ShapeError(f"x has the shape {tuple(start.shape)}; expected at least one element")
    rule.check_type(*type_of(backend, start))
    layout = layout_of_array(tuple(start.shape))

    def evaluate(at: Array) -> tuple[Array, Array]:
        made: Any = function(xp.reshape(at, start.shape))
        if not isinstance(made, tuple | list) or len(made) != 2:
            raise ArgumentError("the function gave something else than the two of `return value, gradient`")
        value, grad = made
        if getattr(grad, "shape", None) != start.shape or grad.dtype != start.dtype:
            raise ShapeError(
                f"the function gave a gradient of {getattr(grad, 'shape', 'no shape')}, {getattr(grad, 'dtype', '?')}; "
                f"expected that of x, {tuple(start.shape)}, {start.dtype}"
            )
        return value, xp.reshape(grad, (-1,))

    with backend.session(device=backend.device(start)):
        theta = backend.copy(xp.reshape(start, (-1,)))
        state = rule.init(backend, layout, theta)
        for step in range(steps):
            here = theta, *evaluate(theta)

            def known(at: Array, here: tuple[Array, Array, Array] = here) -> tuple[Array, Array]:
                return here[1:] if at is here[0] else evaluate(at)

            theta, state = rule.update(backend, layout, theta, here[2], state, rule.hyperparameters_at(step), known)
        end = rule.evaluation(backend, layout, theta, state)
        if not bool(xp.all(xp.isfinite(end))):
            raise DivergedError("the minimisation diverged: its end is not finite; try a smaller learning rate")
        return xp.reshape(end, start.shape)
