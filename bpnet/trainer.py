"""The trainer: the one object with state.  All it does is call pure functions, keep their results, and tell callbacks."""

import math
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bpnet.backends import Array, Backend, common
from bpnet.backends.base import Rows
from bpnet.callbacks import Callback, History, Progress
from bpnet.data import check_rows, check_target, check_weight, check_x
from bpnet.errors import ArrayMismatchError, DivergedError, DTypeError, NotBuiltError, OptionError, ShapeError
from bpnet.backpropagation import loss_and_gradient, take_rows
from bpnet.layer import Composite, Layer, Params, Run, check_range
from bpnet.layout import Layout, layout_of
from bpnet.losses import Loss
from bpnet.optimizers import Optimizer, clip_by_global_norm
from bpnet.registry import resolve

Snapshot = tuple[Array, Array, tuple[Array, ...], int]
"""Parameters, buffers, optimizer state and step count at one moment."""


class Trainer:
    """Trains a network on arrays of any library, on the device where they lie.

    Parameters
    ----------
    network : a layer, most often `Sequential(...)`
    loss : a name ("cross_entropy", "mse", ...) or a `Loss`
    optimizer : a name ("adam", "adamw", "sgd") or an `Optimizer`
    seed : of start values, shuffling and dropout; the same seed gives the same result bit for bit on the same library
    clip_norm : largest Euclidean norm of the gradient; None for no limit
    threads : processor threads to use at most (NumPy); the result does not depend on it
    """

    def __init__(
        self,
        network: Layer,
        loss: str | Loss,
        optimizer: str | Optimizer = "adam",
        *,
        seed: int = 0,
        clip_norm: float | None = None,
        threads: int | None = None,
    ) -> None:
        if not isinstance(network, Layer):
            raise TypeError(
                f"network is a {type(network).__name__}; expected a bpnet layer, most often Sequential(...)"
            )
        self.network = network
        self.loss = resolve(Loss, "loss", loss)
        self.optimizer = resolve(Optimizer, "optimizer", optimizer)
        self.seed = _whole("seed", seed, 0)
        if clip_norm is not None:
            check_range("clip_norm", clip_norm, 0.0, math.inf, closed="neither")
        self.clip_norm = clip_norm
        self.threads = None if threads is None else _whole("threads", threads, 1)
        self.history = History()
        self.metadata: dict[str, Any] = {}
        """What `save` was given beside the network, where this trainer was loaded from a file."""
        self.stop = False
        self.step_count = 0
        self._backend: Backend | None = None

    # ---- parameters ---------------------------------------------------------------------------------------------

    def build(self, x: Array) -> "Trainer":
        """Draw start values for rows like those of `x`, in its library, on its device, of its floating type.

        Called by the first `fit` or `step`; raises ShapeError where a layer or the loss does not fit.
        """
        backend, x = check_x(x)
        self._build(backend, x)
        return self

    def _build(self, backend: Backend, x: Array) -> None:
        layout = layout_of(self.network, tuple(int(n) for n in x.shape[1:]))
        self.loss.target_shape(layout.out_shape)
        theta, buffers = layout.start(self.seed)
        device = backend.device(x)
        self._adopt(
            backend,
            layout,
            backend.from_host(theta, x.dtype, device),
            backend.from_host(buffers, x.dtype, device),
            None,
        )

    def _adopt(
        self, backend: Backend, layout: Layout, theta: Array, buffers: Array, state: tuple[Array, ...] | None
    ) -> None:
        self._backend, self._layout, self.theta, self.buffers = backend, layout, theta, buffers
        with backend.session(self.threads):
            self.state = self.optimizer.init(backend, theta) if state is None else state
        self._step = backend.compile(self._step_function(), donate=True)
        self._output = backend.compile(self._output_function())
        self._score = backend.compile(self._score_function())

    @property
    def backend(self) -> Backend:
        """The library that the parameters belong to."""
        if self._backend is None:
            raise NotBuiltError(
                "the trainer has no parameters yet: they are made from the first data, by fit(x, y) or build(x)"
            )
        return self._backend

    @property
    def layout(self) -> Layout:
        """Where each parameter lies in `theta`."""
        self.backend  # noqa: B018 - raises where there is none
        return self._layout

    @property
    def parameters(self) -> dict[str, Any]:
        """The trained parameters, nested by layer: {"0": {"weight": ..., "bias": ...}, ...}.  Assignable."""
        return self.layout.views(self.backend, self.theta)

    @parameters.setter
    def parameters(self, tree: Mapping[str, Any]) -> None:
        backend, layout = self.backend, self.layout
        have = {slot.name: slot for slot in layout.parameters}
        given = dict(_flat(tree))
        if given.keys() != have.keys():
            wrong = sorted(given.keys() ^ have.keys())
            raise ShapeError(f"parameters differ from the network's in {', '.join(wrong)}; expected {', '.join(have)}")
        for name, value in given.items():
            common(**{name: value, "the trainer's parameters": self.theta})
            if tuple(value.shape) != have[name].shape:
                raise ShapeError(f"{name} has the shape {tuple(value.shape)}; expected {have[name].shape}")
            if value.dtype != self.theta.dtype:
                raise DTypeError(f"{name} holds {value.dtype} values; expected {self.theta.dtype}")
        self.theta = layout.join(backend, tree)

    def snapshot(self) -> Snapshot:
        """A copy of parameters, buffers, optimizer state and step count."""
        copy = self.backend.copy
        return copy(self.theta), copy(self.buffers), tuple(copy(s) for s in self.state), self.step_count

    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot."""
        copy = self.backend.copy
        theta, buffers, state, self.step_count = snapshot
        self.theta, self.buffers, self.state = copy(theta), copy(buffers), tuple(copy(s) for s in state)

    # ---- training -----------------------------------------------------------------------------------------------

    def step(self, x: Array, y: Array, sample_weight: Array | None = None) -> Array:
        """One training step on the batch x, y; the loss before the step, a 0-d array on the device."""
        backend, x, y, weight = self._data(x, y, sample_weight)
        with backend.session(self.threads):
            return self._advance(x, y, weight, None)

    def fit(
        self,
        x: Array,
        y: Array,
        *,
        epochs: int = 1,
        batch_size: int = 256,
        validation: Sequence[Array] | None = None,
        sample_weight: Array | None = None,
        shuffle: bool = True,
        callbacks: Sequence[Callback] = (),
        progress: bool | None = None,
    ) -> History:
        """Train for `epochs` passes over the rows of x, y in batches of `batch_size`; calling it again goes on.

        Parameters
        ----------
        x : (rows, ...) float32 or float64; whole numbers become float32
        y : targets as the loss wants them: labels (rows,), or values in the shape of the network's output
        validation : (x, y) or (x, y, sample_weight), evaluated after every epoch
        sample_weight : (rows,) how much each row counts
        shuffle : another order of the rows in every epoch, drawn from the seed
        callbacks : told after steps and epochs
        progress : a bar on standard error; None shows it where that is a terminal

        Raises ShapeError, DTypeError, DataError or ArrayMismatchError on unfit data, and DivergedError when the loss is
        no longer finite; the last finite parameters are then kept.
        """
        epochs, batch_size = _whole("epochs", epochs, 1), _whole("batch_size", batch_size, 1)
        _, x, y, weight = self._data(x, y, sample_weight)
        held_out = None if validation is None else self._validation(validation)
        shown = sys.stderr.isatty() if progress is None else progress
        told = [*([Progress()] if shown else []), *callbacks]
        steps = -(-x.shape[0] // batch_size)
        self.stop = False
        for callback in told:
            callback.on_train_begin(self, epochs, steps)
        try:
            for _ in range(epochs):
                record = self._epoch(x, y, weight, batch_size, shuffle, told)
                if held_out is not None:
                    scores = self._evaluate(*held_out, None)
                    record |= {f"val_{name}": value for name, value in scores.items()}
                record["seconds"] = time.perf_counter() - record["seconds"]
                self.history.epochs.append(record)
                for callback in told:
                    callback.on_epoch_end(self, record)
                if self.stop:
                    break
        finally:
            for callback in told:
                callback.on_train_end(self)
        return self.history

    def _epoch(
        self, x: Array, y: Array, weight: Array | None, batch_size: int, shuffle: bool, told: list[Callback]
    ) -> dict[str, Any]:
        backend, started = self.backend, time.perf_counter()
        epoch, before = len(self.history), self.snapshot()
        losses: list[Array] = []
        with backend.session(self.threads):
            for i, batch in enumerate(self._batches(x, y, weight, batch_size, shuffle, epoch)):
                losses.append(self._advance(*batch))
                for callback in told:
                    callback.on_step_end(self, i + 1)
        values = backend.fetch(losses)
        if not all(map(math.isfinite, values)):
            self._diverged(self._batches(x, y, weight, batch_size, shuffle, epoch), before)
        sizes = [min(batch_size, x.shape[0] - i * batch_size) for i in range(len(values))]
        mean = sum(v * n for v, n in zip(values, sizes, strict=True)) / x.shape[0]
        lr = self.optimizer.schedule(self.step_count - 1)
        return {"epoch": epoch + 1, "step": self.step_count, "loss": mean, "lr": lr, "seconds": started}

    def _batches(
        self, x: Array, y: Array, weight: Array | None, batch_size: int, shuffle: bool, epoch: int
    ) -> Iterator[tuple[Array, Array, Array | None, Array | None]]:
        """The batches of an epoch: x, y, weight, and the rows to take of them (None: all)."""
        count = x.shape[0]
        starts = range(0, count, batch_size)
        if not shuffle:
            for start in starts:
                part = (start, min(start + batch_size, count))
                bx, by, bw = take_rows(self.backend, (x, y, weight), part, None)
                yield bx, by, bw, None
            return
        import numpy

        order = numpy.random.default_rng((self.seed, epoch)).permutation(count)
        index = self.backend.xp.int64 if count >= 2**31 else self.backend.xp.int32
        order = self.backend.from_host(order, index, self.backend.device(x))
        for start in starts:
            yield x, y, weight, order[start : min(start + batch_size, count)]

    def _advance(self, x: Array, y: Array, weight: Array | None, rows: Array | None) -> Array:
        """One step on the batch, which is known to be good."""
        lr = self.optimizer.schedule(self.step_count)
        carry = (self.theta, self.buffers, self.state)
        (self.theta, self.buffers, self.state), value = self._step(carry, x, y, weight, rows, lr, self.step_count + 1)
        self.step_count += 1
        return value

    def _step_function(self) -> Callable[..., Any]:
        backend, layout, loss, optimizer = self.backend, self._layout, self.loss, self.optimizer
        seed, clip_norm = self.seed, self.clip_norm
        seen: list[Any] = [
            None,
            None,
            None,
        ]  # theta, buffers, and their views: made anew only where the vectors are others

        def step(carry: Any, x: Array, y: Array, weight: Array | None, rows: Array | None, lr: Any, number: Any) -> Any:
            theta, buffers, state = carry
            if backend.traces or seen[0] is not theta or seen[1] is not buffers:
                p = layout.views(backend, theta, buffers)
                if not backend.traces:
                    seen[:] = theta, buffers, p
            else:
                p = seen[2]
            value, grad, taken = loss_and_gradient(backend, layout, loss, p, x, y, weight, rows, (seed, number))
            if clip_norm is not None:
                grad = clip_by_global_norm(backend, grad, clip_norm)
            theta, state = optimizer.update(backend, layout, theta, grad, state, lr, number, donate=True)
            if taken:
                buffers = layout.join_buffers(backend, taken, buffers)
            return (theta, buffers, state), value

        return step

    def _diverged(self, batches: Iterator[tuple[Array, Array, Array | None, Array | None]], before: Snapshot) -> None:
        """Repeat the epoch up to the step whose loss is not finite, stay before it, and say where it began."""
        backend = self.backend
        self.restore(before)
        with backend.session(self.threads):
            for x, y, weight, rows in batches:
                last = self.snapshot()
                if math.isfinite(float(self._advance(x, y, weight, rows))):
                    continue
                self.restore(last)
                some = x if rows is None else backend.xp.take(x, rows, axis=0)
                run = Run(backend, True, (self.seed, self.step_count + 1, 0))
                p = self.layout.views(backend, self.theta, self.buffers)
                where = _first_not_finite(run, self.network, p, some) or "the loss"
                raise DivergedError(
                    f"training diverged at step {self.step_count + 1}: {where} is no longer finite. "
                    "The parameters from before that step were kept; try a smaller learning rate or clip_norm=1.0"
                )

    # ---- use ----------------------------------------------------------------------------------------------------

    def evaluate(
        self, x: Array, y: Array, *, sample_weight: Array | None = None, batch_size: int | None = None
    ) -> dict[str, float]:
        """The loss over the rows, and for a loss of classes the accuracy: the share (by weight) of rows that are right.

        `batch_size` bounds the rows that are computed at a time.
        """
        self.backend  # noqa: B018 - raises where there are no parameters
        _, x, y, weight = self._data(x, y, sample_weight)
        return self._evaluate(x, y, weight, batch_size)

    def predict(self, x: Array, *, batch_size: int | None = None) -> Array:
        """The network's outputs for the rows of `x`, in its library and on its device: (rows, ...).

        `batch_size` bounds the rows that are computed at a time.
        """
        self.backend  # noqa: B018 - raises where there are no parameters
        backend, x = self._rows(x, "x")
        with backend.session(self.threads):
            parts = [
                self._output(self.theta, self.buffers, take_rows(backend, (x,), part, None)[0])
                for part in self._parts(x, batch_size)
            ]
        return parts[0] if len(parts) == 1 else backend.xp.concat(parts)

    def _parts(self, x: Array, batch_size: int | None) -> list[Rows]:
        count = x.shape[0]
        size = count if batch_size is None else _whole("batch_size", batch_size, 1)
        return [(start, min(start + size, count)) for start in range(0, count, size)]

    def _output_function(self) -> Callable[..., Array]:
        backend, layout = self.backend, self._layout

        def outputs(theta: Array, buffers: Array, x: Array) -> Array:
            p = layout.views(backend, theta, buffers)

            def block(number: int, part: Rows) -> Array:
                (bx,) = take_rows(backend, (x,), part, None)
                return layout.network.forward(Run(backend), p, bx)[0]

            parts = list(backend.map_blocks(block, backend.blocks(x.shape[0], 2.0 * layout.size)))
            return parts[0] if len(parts) == 1 else backend.xp.concat(parts)

        return outputs

    def _score_function(self) -> Callable[..., Any]:
        backend, layout, loss = self.backend, self._layout, self.loss

        def score(
            theta: Array, buffers: Array, x: Array, y: Array, weight: Array | None, total: Any
        ) -> tuple[Array, Array | None]:
            """This part's share of the loss, and the weight of the rows that are right."""
            p = layout.views(backend, theta, buffers)

            def block(number: int, part: Rows) -> tuple[Array, Array | None]:
                run = Run(backend)
                bx, by, bw = take_rows(backend, (x, y, weight), part, None)
                output, _ = layout.network.forward(run, p, bx)
                right = loss.correct(run, output, by)
                if right is not None:
                    right = backend.xp.sum(right if bw is None else right * bw)
                return loss(run, output, by, bw, total)[0], right

            parts = list(backend.map_blocks(block, backend.blocks(x.shape[0], 2.0 * layout.size)))
            value, right = parts[0]
            for more, some in parts[1:]:
                value, right = value + more, None if right is None else right + some
            return value, right

        return score

    def _evaluate(self, x: Array, y: Array, weight: Array | None, batch_size: int | None) -> dict[str, float]:
        backend = self.backend
        with backend.session(self.threads):
            total = float(x.shape[0]) if weight is None else float(backend.xp.sum(weight))
            scores = []
            for part in self._parts(x, batch_size):
                bx, by, bw = take_rows(backend, (x, y, weight), part, None)
                scores.append(self._score(self.theta, self.buffers, bx, by, bw, total))
        result = {"loss": sum(backend.fetch([value for value, _ in scores]))}
        if scores[0][1] is not None:
            result["accuracy"] = sum(backend.fetch([right for _, right in scores])) / total
        return result

    def save(self, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write network, parameters, buffers, optimizer state and history to a .safetensors file, for `bp.load`.

        `metadata` is anything of yours that JSON can hold.
        """
        from bpnet.files import save

        save(self, path, self.metadata if metadata is None else metadata)

    # ---- checks -------------------------------------------------------------------------------------------------

    def _rows(self, x: Array, name: str) -> tuple[Backend, Array]:
        """`x` checked against the parameters."""
        if self._backend is not None:
            try:
                common(**{name: x, "the parameters": self.theta})
            except ArrayMismatchError as error:
                raise ArrayMismatchError(
                    f"{error}. The trainer's parameters stay where the first data was; bp.load(path, like=x) moves a saved model"
                ) from None
        backend, converted = check_x(x, name)
        if self._backend is None:
            return backend, converted
        check_rows(converted, self._layout.in_shape, name)
        if converted.dtype != self.theta.dtype:
            if converted is not x and x.dtype != converted.dtype:  # whole numbers follow the parameters
                return backend, backend.xp.astype(converted, self.theta.dtype)
            raise DTypeError(
                f"{name} holds {converted.dtype} values, but the parameters {self.theta.dtype}: convert {name}"
            )
        return backend, converted

    def _data(
        self, x: Array, y: Array, weight: Array | None, prefix: str = ""
    ) -> tuple[Backend, Array, Array, Array | None]:
        names = (f"{prefix}x", f"{prefix}y", f"{prefix}sample_weight")
        common(**dict(zip(names, (x, y, weight), strict=True)))
        backend, x = self._rows(x, names[0])
        if self._backend is None:
            self._build(backend, x)
        y = check_target(backend, self.loss, self._layout.out_shape, x, y, names[1])
        return backend, x, y, check_weight(backend, weight, x, names[2])

    def _validation(self, validation: Sequence[Array]) -> tuple[Array, Array, Array | None]:
        if not isinstance(validation, tuple | list) or len(validation) not in (2, 3):
            raise ShapeError("validation is not (x, y) or (x, y, sample_weight)")
        x, y, weight = (*validation, None)[:3]
        return self._data(x, y, weight, "validation ")[1:]


def _whole(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < least:
        raise OptionError(f"{name} is {value!r}; expected a whole number of at least {least}")
    return int(value.__index__())


def _flat(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from _flat(value, (*path, name))
        else:
            yield ".".join((*path, name)), value


def _first_not_finite(run: Run, layer: Layer, p: Params, x: Array, path: str = "") -> str | None:
    """The first layer, in the order of the forward pass, whose parameters or output are not finite."""
    xp = run.xp

    def finite(a: Array) -> bool:
        return bool(xp.all(xp.isfinite(a)))

    from bpnet.layers.composition import Sequential

    if isinstance(layer, Sequential):
        for name, child in layer.children:
            at = run.at(name) if child.stochastic else run
            found = _first_not_finite(at, child, p[name], x, f"{path}.{name}" if path else name)
            if found:
                return found
            x = child.forward(at, p[name], x)[0]
        return None
    where = f"layer {path!r} ({layer})" if path else str(layer)
    for name, value in [] if isinstance(layer, Composite) else p.items():
        if not finite(value):
            return f"{name} of {where}"
    return None if finite(layer.forward(run, p, x)[0]) else f"the output of {where}"
