"""What is no longer finite, where it began, and the error that says so."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpnet.backends import Array, Backend
from bpnet.data.loader import Batch, take_rows
from bpnet.errors import DivergedError
from bpnet.layer import Composite, Input, Layer, Params, Path, Run, row_count
from bpnet.layers.composition import Sequential
from bpnet.layout import Layout, Slot, accepting
from bpnet.losses.base import Loss
from bpnet.optimizers.base import Optimizer
from bpnet.protocol import titled
from bpnet.schedules import Schedule
from bpnet.step import Carry, Snapshot, vectors


def is_finite_step(
    backend: Backend, value: Array, after: Sequence[Array], before: Carry, written: Array | None = None
) -> bool:
    """Whether a loss is finite, and arrays are but for what was infinite `before`, such as a bias of -inf.

    A finite sum tells at once, in one pass for each and one wait for all; but finite values may have another.  Where
    all that was `written` of the arrays is known, its sum is enough.
    """
    xp = backend.xp
    with backend.session(device=backend.device(value)):
        value, *sums = backend.fetch([value, *[xp.sum(array) for array in (after if written is None else [written])]])
        if not math.isfinite(value):
            return False
        if all(map(math.isfinite, sums)):
            return True
        pairs = zip(after, vectors(before), strict=False)  # of theta alone in most steps
        return not any(bool(xp.any(_broken(xp, *pair))) for pair in pairs)


def has_nan(backend: Backend, arrays: Sequence[Array]) -> bool:
    """Whether one of them has a NaN; a finite sum tells at once that none has."""
    xp = backend.xp
    with backend.session(device=backend.device(arrays[0])):
        sums = backend.fetch([xp.sum(array) for array in arrays])
        return not all(map(math.isfinite, sums)) and any(bool(xp.any(xp.isnan(array))) for array in arrays)


def what_was_kept(backend: Backend, now: Snapshot) -> str:
    """What a trainer went back to."""
    begin = f"The parameters, buffers and optimizer state from before step {now[1] + 1}"
    if has_nan(backend, vectors(now[0])):
        return f"{begin} had NaN already, and still have: go back to others, or build afresh"
    return f"{begin} were kept"


@dataclass(frozen=True)
class Diagnosis:
    """Of a network with its loss and optimizer: what its parameters, or a step with them, make that is not finite."""

    backend: Backend
    layout: Layout
    loss: Loss
    optimizer: Optimizer
    seed: int
    precision: str

    def diverged(
        self, good: Snapshot, after: Snapshot, value: Array, batch: Batch, values: Mapping[Schedule, float]
    ) -> DivergedError:
        """The error of a training that went from `good`, by a last step on this batch and to this loss, to `after`.

        `values`: what the schedules of layers gave for that step.
        """
        backend, layout = self.backend, self.layout
        (theta, buffers, state), step = good[0], after[1]
        loss_is_finite = math.isfinite(float(value))
        hint = "try a smaller learning rate, clip_norm=1.0, or inputs and targets of a smaller scale"
        x, y, weight, rows = batch
        x, y, weight = take_rows(backend, (x, y, weight), (0, row_count(x if rows is None else rows)), rows)
        key, context = (self.seed, step), backend.context(self.precision)
        run = Run(backend, True, key, context, values)
        p = layout.views(backend, theta, buffers)
        infinite = self._not_finite(layout.parameters, theta)
        changed = self._not_finite(layout.buffers, after[0][1], buffers)
        if infinite and loss_is_finite:  # then those are as they were meant
            where = next(iter(changed.values()), None)
        else:
            where = first_not_finite(run, layout.network, p, x, infinite | changed)
        if where is None and not loss_is_finite:
            where = "the loss"
            if good[1] == step - 1:
                hint = self._too_large(run, layout.network.forward(run, p, x)[0], y, weight)
        where = where or next(self._of_the_update(after[0], (theta, buffers, state)), None)
        where = where or "something that is carried from step to step"
        text = f"training diverged at step {step}: {where} is no longer finite; {hint}."
        return DivergedError(f"{text} {what_was_kept(backend, good)}")

    def first_changed(self, after: Carry, before: Carry) -> str | None:
        """What is no longer finite of parameters, buffers and the optimizer's state: the first of it."""
        found = self._not_finite(self.layout.parameters, after[0], before[0])
        found |= self._not_finite(self.layout.buffers, after[1], before[1])
        return next(iter(found.values()), None) or next(self._of_the_update(after, before), None)

    def _too_large(self, run: Run, output: Array, y: Array | None, weight: Array | None) -> str:
        """What to do about a loss that is not finite, though the output is."""
        xp = self.backend.xp

        def is_finite(weight: Array | None) -> bool:
            total = self.loss.total(float(output.shape[0]) if weight is None else xp.sum(weight))
            return y is not None and math.isfinite(float(self.loss(run, output, y, weight, total)[0]))

        if is_finite(weight):
            return f"{self.loss} of the outputs is, so it is a penalty that is not: give it a smaller strength"
        if is_finite(None):
            return f"{self.loss} of the outputs is, but not with the weights of rows: give them smaller ones"
        compared = [output] if y is None or y.dtype != output.dtype else [output, y]
        size = max(float(xp.max(xp.abs(a))) for a in compared)
        if size <= 0.5 * float(xp.finfo(output.dtype).max) ** 0.5:
            return f"every output is, so it may not be what {self.loss} expects"
        return (
            f"outputs and targets of up to {size:.1g} are too large for {self.loss}: scale the inputs and the targets "
            "down, or try a smaller learning rate"
        )

    def _of_the_update(self, after: Carry, before: Carry) -> Iterator[str]:
        """What is no longer finite of the optimizer's state and the parameters."""
        optimizer, layout, xp = self.optimizer, self.layout, self.backend.xp
        names = (*optimizer.state_names_of(layout), *("state",) * len(after[2]))
        for name, array, own in zip(names, after[2], before[2], strict=False):
            what = f"{type(optimizer).__name__}'s {name}"
            if array.shape == after[0].shape:
                yield from (f"{what} of {leaf}" for leaf in self._not_finite(layout.parameters, array, own).values())
            elif bool(xp.any(_broken(xp, array, own))):
                yield f"{what} of {layout.network}"
        yield from self._not_finite(layout.parameters, after[0], before[0]).values()

    def _not_finite(self, slots: Iterable[Slot], vector: Array, before: Array | None = None) -> dict[Path, str]:
        """By its path, what to call every leaf of the vector whose values are not all finite.

        With `before`, what was infinite in that does not count.
        """
        xp, found = self.backend.xp, {}
        wrong = ~xp.isfinite(vector) if before is None else _broken(xp, vector, before)
        for slot in slots:
            if bool(xp.any(wrong[slot.part])):
                depth, layer = 0, self.layout.network
                while isinstance(layer, Composite) and slot.path[depth] in dict(layer.children):
                    layer = dict(layer.children)[slot.path[depth]]
                    depth += 1
                where = titled(".".join(slot.path[:depth]), layer)
                found[slot.path] = f"{'.'.join(slot.path[depth:])} of {where}"
        return found

    def not_a_number(self, what: str, carry: Carry, x: Input | None) -> DivergedError:
        """The error that says where the NaN comes from that rows of x gave, or would give."""
        backend, layout = self.backend, self.layout
        theta, buffers, _ = carry
        leaves = self._not_finite(layout.parameters, theta) | self._not_finite(layout.buffers, buffers)
        where = next(iter(leaves.values()), "what comes of it")
        if x is not None:
            run, p = Run(backend, context=backend.context(self.precision)), layout.views(backend, theta, buffers)
            where = first_not_finite(run, layout.network, p, x, leaves) or where
        fit = "has no infinity" if any(accepting(layout.network)) else "is finite"
        though = "" if x is None else f", though x {fit}"
        return DivergedError(
            f"{what} is NaN{though}: {where} is not finite. Go back to parameters that are, or where all "
            "are, to values of a smaller scale"
        )


def first_not_finite(
    run: Run, layer: Layer, p: Params, x: Input, leaves: Mapping[Path, str], path: Path = ()
) -> str | None:
    """The first layer, in the order of the forward pass, that has one of `leaves` or an output that is not finite."""
    if isinstance(layer, Sequential):
        for name, child in layer.children:
            at = run.at(name) if child.stochastic else run
            found = first_not_finite(at, child, p[name], x, leaves, (*path, name))
            if found:
                return found
            x = child.forward(at, p[name], x)[0]
        return None
    own = [text for leaf, text in leaves.items() if leaf[: len(path)] == path]
    if own:
        return own[0]
    output, xp = layer.forward(run, p, x)[0], run.xp
    return None if bool(xp.all(xp.isfinite(output))) else f"the output of {titled('.'.join(path), layer)}"


def _broken(xp: Any, array: Array, before: Array) -> Array:
    """Where an array is NaN, or infinite though it was not before."""
    return xp.isnan(array) | (xp.isinf(array) & xp.isfinite(before))
