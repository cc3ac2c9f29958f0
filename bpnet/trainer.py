"""The trainer: the one object with state.  All it does is call pure functions, keep results, and tell callbacks."""

import itertools
import math
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from threading import get_ident
from typing import Any, NoReturn

from bpnet.backends import Array, Backend, backend_of, check_device, common_backend, definitions, device_named
from bpnet.backends.base import PRECISIONS, State
from bpnet.backends.interrupts import current, end_sessions
from bpnet.backpropagation import take_rows, type_of
from bpnet.callbacks import Callback, History, Progress, default_stream, end, redraws
from bpnet.data import check_finite, check_rows, check_target, check_weight, check_x, is_whole
from bpnet.errors import (
    ArgumentError,
    ArrayMismatchError,
    BpnetWarning,
    DivergedError,
    DTypeError,
    NotBuiltError,
    OptionError,
    OutOfMemoryError,
    ShapeError,
    kind_of,
    plural,
)
from bpnet.feeding import Batch, Data, HostData, bytes_a_row, host_data, in_order, out_of_memory, parts, shuffled
from bpnet.layer import Layer, Run, check_layer, leaves
from bpnet.layers.activation import Sigmoid, Softmax
from bpnet.layers.composition import last_activation
from bpnet.layout import Layout, layout_of
from bpnet.losses import BinaryCrossEntropyWithLogits, Loss
from bpnet.optimizers import Optimizer
from bpnet.options import check_range, choice, flag, number, whole
from bpnet.protocol import check_network
from bpnet.registry import resolve
from bpnet.steps import Carry, Views, broken, first_not_finite, not_finite, outputs, scores, training_step
from bpnet.turns import Turn, reads, trains, writes
from bpnet.typing import AnyArray, LossName, OptimizerName, Precision

Snapshot = tuple[Carry, int]
"""Parameters, buffers, optimizer state, and the step count, at one moment."""

WORK_OF_A_CALL = 2e6
"""Floating-point operations that the Python around a step takes the time of."""

COUNTED = 2**24
"""Most rows that are evaluated at a time: float32 counts no further exactly."""
CHECKED = 32
"""Checked steps from one look at all that they carry on, and copy of it, to the next: each takes a quarter of the time
of a small step."""

LEAST_EVALUATED = 8192
"""Rows of held-out data that are evaluated at a time, where batches are smaller."""


class Trainer:
    """Trains a network on arrays of any library, on the device where they lie.

    An interrupt (Ctrl-C) at any moment leaves parameters, buffers, optimizer state and `step_count` of one step, from
    which training goes on.  One thread trains it at a time; whoever uses it from another then gets a BusyError.

    Parameters
    ----------
    network : a layer, most often `Sequential(...)`
    loss : a name ("cross_entropy", "mse", ...) or a `Loss`
    optimizer : a name ("adam", "adamw", "sgd") or an `Optimizer`
    seed : of start values, shuffling and dropout; the same seed gives the same result bit for bit on the same library
    clip_norm : largest Euclidean norm of the gradient; None for no limit
    threads : processor threads to use at most (NumPy), None for all; the result does not depend on it
    precision : of the products of float32 matrices: "float32"; or for CuPy arrays on a GPU with tensor cores "tf32", of
        numbers rounded to 11 significant bits, or "bfloat16", to 8.  Sums, parameters, the optimizer's state and the
        loss are float32 in any case, and so is what passes between layers, but in a row of dense layers bfloat16.
        Products of float64 are float64.
    device : "cupy" trains NumPy arrays, memory-mapped files among them, on the current CUDA device, "cupy:1" on the
        second: data that take at most half of its free memory are put there once, others stream through it batch by
        batch while it computes; predictions come back as NumPy arrays.  (Also "torch" or "jax": the device on which
        these make arrays.)  None computes where the data lie.
    micro_batch : most rows that are computed at a time: the gradient of a larger batch is summed up over parts, where
        the whole does not fit in memory; other parts draw other dropout masks

    Attributes
    ----------
    history : a `History` with one record an epoch
    metadata : a dict, what was saved beside the network where the trainer was loaded from a file
    classes : what a classifier's outputs stand for, in their order; assignable, and kept in the file
    step_count : how many training steps have been done
    stop : set to True by a callback, it ends `fit` after the epoch
    parameters, theta, buffers, state, layout, backend : what the first data give rise to, each described below
    network, loss, optimizer, and all other arguments : as they were given, names resolved to objects
    """

    _step: Callable[..., Any]
    _outputs: Callable[..., Any]
    _scores: Callable[..., Any]
    _plain: dict[Callable[..., Any], Callable[..., Any]]

    def __init__(
        self,
        network: Layer,
        loss: LossName | Loss,
        optimizer: OptimizerName | Optimizer = "adam",
        *,
        seed: int = 0,
        clip_norm: float | None = None,
        threads: int | None = None,
        precision: Precision = "float32",
        device: str | None = None,
        micro_batch: int | None = None,
    ) -> None:
        self.network = check_layer("network", network)
        self.loss = resolve(Loss, "loss", loss)
        self.optimizer = resolve(Optimizer, "optimizer", optimizer)
        self.seed = whole("seed", seed, 0)
        self.clip_norm = None if clip_norm is None else number("clip_norm", clip_norm, 0.0, math.inf, closed="neither")
        self.threads = None if threads is None else whole("threads", threads, 1)
        self.precision = choice("precision", precision, PRECISIONS)
        self.device = None if device is None else check_device(device)
        self.micro_batch = None if micro_batch is None else whole("micro_batch", micro_batch, 1)
        self._check_parts(self.network.couples_rows)
        self.history = History()
        self.metadata: dict[str, Any] = {}
        """What `save` was given beside the network, where this trainer was loaded from a file."""
        self.classes: Sequence[Any] | None = None
        """What a classifier's outputs stand for, if it was said: text or numbers, in their order.  Kept in the file."""
        self.stop = False
        self._state, self._turn = State(None, 0), Turn()
        self._built: tuple[Backend, Layout] | None = None
        self._known: tuple[Any, ...] | None = None
        """The kind of batch that `step` took last as it came."""
        self._known_x: tuple[Any, ...] | None = None
        """The same of `predict`."""
        self._good: Snapshot | None = None
        """Where `step` goes back to."""
        self._checked: tuple[Any, int] = (None, 0)
        """What the last checked step left, and its number: others may have changed it since."""
        self._sound: tuple[Any, int] = (None, 0)
        """The same of what was found to have no NaN."""

    def __repr__(self) -> str:
        size = "no parameters yet"
        if self._built is not None:
            backend, layout = self._built
            size = f"{plural(layout.size, 'parameter')} ({backend.name}), {plural(self.step_count, 'step')} done"
        return f"<Trainer of {self.network}, {self.loss}, {self.optimizer}: {size}>"

    @reads
    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled functions, which are made again; of what another thread may then train, a copy."""
        made = (
            "_step",
            "_outputs",
            "_scores",
            "_plain",
            "_state",
            "_turn",
            "_known",
            "_known_x",
            "_good",
            "_checked",
            "_sound",
        )
        kept = {name: value for name, value in vars(self).items() if name not in made}
        (carry, count), history = self._state.now, History(list(self.history))
        carry = carry if self._built is None else self._copy(carry)
        return kept | {"_carry": carry, "step_count": count, "history": history}

    def __setstate__(self, state: dict[str, Any]) -> None:
        missing = {"precision": "float32", "device": None, "micro_batch": None}
        own: dict[str, Any] = missing | {"classes": None} | state
        self._state, self._turn = State(own.pop("_carry", None), own.pop("step_count")), Turn()
        vars(self).update(own, _known=None, _known_x=None, _good=None, _checked=(None, 0), _sound=(None, 0))
        if self._built is not None:
            self._adopt(*self._built, self._carry)

    @property
    def step_count(self) -> int:
        """How many steps the parameters are the result of."""
        count: int = self._state.now[1]
        return count

    @step_count.setter
    @writes
    def step_count(self, count: int) -> None:
        self._state.now = self._state.now[0], count

    @property
    def _carry(self) -> Carry:
        carry: Carry = self._state.now[0]
        return carry

    @_carry.setter
    def _carry(self, carry: Carry) -> None:
        self._state.now = carry, self._state.now[1]

    # ---- parameters ---------------------------------------------------------------------------------------------

    @trains
    def build(self, x: AnyArray) -> "Trainer":
        """Draw start values for rows like those of `x`, in its library, on its device, of its floating type.

        Called by the first `fit` or `step`; called again, it starts afresh.  Raises ShapeError where a layer or the
        loss does not fit, OptionError or DTypeError where the precision does not, and OptionError where an option is
        too small or too large for the type of `x`.
        """
        data = self._fed(x, "x") if self._feeds(x) else Data(*check_x(x), None, None)
        self._build(data.backend, self._new_layout(x), data.like, history=History())
        return self

    def _layout_for(self, x: Array) -> Layout:
        return self._new_layout(x) if self._built is None else self._built[1]

    def _new_layout(self, x: Array) -> Layout:
        check_network(self.network, x, self.loss, self.optimizer)
        layout = layout_of(self.network, tuple(int(n) for n in x.shape[1:]))
        self.loss.target_shape(layout.out_shape)
        self._check_parts(self.network.updates_buffers)
        return layout

    def _check_parts(self, whole: bool) -> None:
        if whole and self.micro_batch is not None:
            raise OptionError(
                f"micro_batch is {self.micro_batch}, but a layer of the network (such as BatchNorm) needs all rows of "
                "a batch at once: leave it out, and take a smaller batch_size"
            )

    def _build(self, backend: Backend, layout: Layout, x: Array, **more: Any) -> None:
        device = backend.device(x)
        self._check_type(backend, x)
        last = last_activation(self.network)
        if self._built is None and self.loss.logits and isinstance(last, Sigmoid | Softmax):
            binary = isinstance(last, Sigmoid) and isinstance(self.loss, BinaryCrossEntropyWithLogits)
            text = (
                f"the network ends in {last}, but {self.loss} takes logits and makes probabilities of them itself, so "
                "that it learns badly: leave the last activation out"
            )
            text += ", or take the loss 'binary_cross_entropy'" if binary else ""
            warnings.warn(text, BpnetWarning, stacklevel=4)  # named is the line that calls fit, step or build
        self._check_precision(backend, device, x.dtype)
        try:
            starts = layout.start(self.seed)
            theta, buffers = (backend.from_host(start, x.dtype, device) for start in starts)
            with backend.session(self.threads, device):
                state = self.optimizer.init(backend, theta)
        except OutOfMemoryError:
            raise
        except backend.oom_errors as error:  # MemoryError among them
            size = plural(layout.size, "parameter")
            raise OutOfMemoryError(f"no memory for {size} of the network and the optimizer's state: {error}") from error
        self._adopt(backend, layout, (theta, buffers, state), 0, **more)

    def _check_type(self, backend: Backend, like: Array) -> None:
        """Raise OptionError where an option is too small or too large for the type of `like`."""
        numbers = type_of(backend, like)
        for part in (self.network, self.loss, self.optimizer):
            part.check_type(*numbers)
        check_range("clip_norm", min(self.clip_norm or 0.0, 1.0), *numbers)  # one that is large changes no gradient

    def _check_precision(self, backend: Backend, device: Any, dtype: Any) -> None:
        if self.precision == "float32":
            return
        if dtype != backend.xp.float32:
            raise DTypeError(
                f"precision is {self.precision!r}, which is of products of float32 values, but x holds {dtype} ones: "
                "convert x to float32, or leave precision out"
            )
        if self.precision not in backend.precisions(device):
            hint = "" if backend.name == "cupy" else "Pass CuPy arrays, or device='cupy' and NumPy's: "
            raise OptionError(
                f"precision is {self.precision!r}, which products of {backend.name} arrays do not have here; expected "
                f"'float32'. {hint}tf32 and bfloat16 are for CuPy arrays on an NVIDIA GPU of compute capability 8.0 or "
                "newer, with nvmath-python: pip install 'bpnet-xp[cuda13]', or cuda12 for an older driver"
            )

    def _adopt(self, backend: Backend, layout: Layout, carry: Carry, count: int | None = None, **more: Any) -> None:
        self._check_type(backend, carry[0])
        views = Views(layout)
        step = training_step(
            layout, views, self.loss, self.optimizer, self.seed, self.clip_norm, self.precision, self.micro_batch
        )
        plain = step, outputs(layout, views, self.precision), scores(layout, views, self.loss, self.precision)
        compiled = [backend.compile(function, donate=function is step) for function in plain]
        vars(self).update(  # all or nothing, whatever interrupt comes
            _built=(backend, layout),
            _known=None,
            _known_x=None,
            _good=None,
            _checked=(None, 0),
            _state=State(carry, self.step_count if count is None else count),
            _step=compiled[0],
            _outputs=compiled[1],
            _scores=compiled[2],
            _plain=dict(zip(compiled, plain, strict=True)),
            **more,
        )

    def _work(self, rows: int, steps: int = 1) -> float:
        """Floating-point operations of all steps so far and so many more, had they all been of so many rows.

        So it depends on nothing but the data, and a training that is taken up again goes on as if never interrupted.
        """
        return (self.step_count + steps) * self._cost(rows)

    def _cost(self, rows: int) -> float:
        """The same of one step."""
        size = 0 if self._built is None else self._built[1].size
        return 6.0 * size * rows + WORK_OF_A_CALL

    def _session(self, rows: int, steps: int = 1) -> AbstractContextManager[None]:
        """What must hold while this trainer computes so many steps of so many rows."""
        backend = self._have()[0]
        return backend.session(self.threads, backend.device(self._carry[0]), self._work(rows, steps))

    def _have(self) -> tuple[Backend, Layout]:
        if self._built is None:
            raise NotBuiltError(
                "the trainer has no parameters yet: they are made from the first data, by fit(x, y) or build(x)"
            )
        return self._built

    @property
    def backend(self) -> Backend:
        """The library that the parameters belong to."""
        return self._have()[0]

    @property
    def layout(self) -> Layout:
        """Where each parameter lies in `theta`."""
        return self._have()[1]

    @property
    def theta(self) -> Array:
        """All trained parameters, one vector.  A step may write to it, so copy what must stay."""
        self._have()
        return self._carry[0]

    @property
    def buffers(self) -> Array:
        """All values that are kept but not trained, one vector."""
        self._have()
        return self._carry[1]

    @property
    def state(self) -> tuple[Array, ...]:
        """The optimizer's state: arrays of any shape, most of them vectors like `theta`."""
        self._have()
        return self._carry[2]

    @property
    def parameters(self) -> dict[str, Any]:
        """The trained parameters, nested by layer: {"0": {"weight": ..., "bias": ...}, ...}.  Assignable."""
        return self.layout.views(self.backend, self.theta)

    @parameters.setter
    @writes
    def parameters(self, tree: Mapping[str, Any]) -> None:
        backend, layout = self._have()
        if not isinstance(tree, Mapping):
            raise ArgumentError(f"parameters is {kind_of(tree)}; expected a nested dict, as trainer.parameters gives")
        have = {slot.name: slot for slot in layout.parameters}
        given = dict(leaves(tree))
        if given.keys() != have.keys():
            wrong = sorted(given.keys() ^ have.keys())
            raise ShapeError(f"parameters differ from the network's in {', '.join(wrong)}; expected {', '.join(have)}")
        for name, value in given.items():
            shown = "parameters" + "".join(f"[{part!r}]" for part in name.split("."))
            common_backend({shown: value, "the trainer's parameters": self.theta})
            if tuple(value.shape) != have[name].shape:
                raise ShapeError(f"{shown} has the shape {tuple(value.shape)}; expected {have[name].shape}")
            if value.dtype != self.theta.dtype:
                raise DTypeError(f"{shown} holds {value.dtype} values; expected {self.theta.dtype}")
        theta = backend.copy(backend.detach(layout.join(backend, tree)))
        self._carry = (theta, *self._carry[1:])

    @reads
    def snapshot(self) -> Snapshot:
        """A copy of parameters, buffers, optimizer state and step count."""
        return self._copy((self.theta, self.buffers, self.state)), self.step_count

    @writes
    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot."""
        whole_of = (tuple, 2), (tuple, 3), (tuple, len(self.state))  # a snapshot, its carry, its optimizer's state
        part: Any = snapshot
        for (kind, length), inner in zip(whole_of, (0, 2, None), strict=True):
            if not isinstance(part, kind) or len(part) != length:
                raise ArgumentError(f"snapshot is {kind_of(snapshot)}, but not what this trainer's snapshot() gave")
            part = part if inner is None else part[inner]
        carry, step_count = snapshot
        whole("the snapshot's step count", step_count, 0)
        names = ("parameters", "buffers", *["optimizer state"] * len(self.state))
        for name, kept, own in zip(names, (*carry[:2], *carry[2]), (*self._carry[:2], *self.state), strict=True):
            common_backend({f"the snapshot's {name}": kept, f"the trainer's {name}": own})
            if kept.shape != own.shape:
                raise ShapeError(
                    f"the snapshot's {name} has the shape {tuple(kept.shape)}, the trainer's {tuple(own.shape)}: it is "
                    "of another network"
                )
            if kept.dtype != own.dtype:
                raise DTypeError(f"the snapshot's {name} holds {kept.dtype} values, the trainer's {own.dtype}")
        self._known = None
        self._state.now = self._copy(carry), step_count

    def _copy(self, carry: Carry) -> Carry:
        copy = self.backend.copy
        theta, buffers, state = carry
        return copy(theta), copy(buffers), tuple(copy(s) for s in state)

    # ---- training -----------------------------------------------------------------------------------------------

    def step(self, x: AnyArray, y: AnyArray, sample_weight: AnyArray | None = None, *, check: bool = True) -> Array:
        """One training step on the batch x, y; the loss before the step, a 0-d array on the device.

        `check=False` trusts the values (no NaN, labels in range), so that the host need not wait for a device, and
        looks at no result; types and shapes are checked always.

        Otherwise a loss or parameters that are no longer finite raise DivergedError, and after every 32nd step so do
        buffers and optimizer state: the trainer is then back where it was found good last, at most 32 steps ago.
        """
        outer, turn, known = current.session, self._turn, self._known
        if turn.lock.locked():
            raise turn.refused("step")
        try:  # as `trains`, which takes a tenth of the time of a small step
            with turn.lock:
                turn.taken, turn.thread = turn.taken + 1, get_ident()
                if check is False and sample_weight is None and known is not None and _kind(x, y) == known[0]:
                    _, backend, device, cost = known
                    with backend.session(self.threads, device, (self._state.now[1] + 1) * cost):
                        return self._advance(x, y, None, None)
                return self._first_step(x, y, sample_weight, flag("check", check))
        except BaseException:
            end_sessions(outer)
            raise

    def _first_step(self, x: Array, y: Array, sample_weight: Array | None, check: bool) -> Array:
        """A step on a batch that is to be looked at, or is of another kind than the last."""
        backend = backend_of(x)
        device = backend.device(x)
        with backend.session(self.threads, device, self._work(_rows_of(x))):
            data = self._data(x, y, sample_weight, values=check)
            if self._built is None:
                self._build(data.backend, self._layout_for(data.x), data.like)
            if data.x is x and data.y is y and data.backend is backend:  # nor need the next of this kind be converted
                kind = _kind(x, y)
                self._known = None if kind is None else (kind, backend, device, self._cost(_rows_of(x)))
            with self._session(data.count):
                data = data.moved()
                if not check:
                    return self._advance(data.x, data.y, data.weight, None)
                return self._checked_step(data)

    def _checked_step(self, data: Data) -> Array:
        """One step, and a look at what came of it."""
        good = self._good
        if good is None or self._checked[0] is not self._carry or self._checked[1] != self.step_count:
            good = self._good = self.snapshot()
        value = self._advance(data.x, data.y, data.weight, None)
        due = self.step_count - good[1] >= CHECKED
        if not self._is_sound(value, self._vectors() if due else [self.theta], good):
            self._raise_diverged(good, value, data.x, data.y, None)
        if due:
            self._good = self.snapshot()
        self._checked = self._carry, self.step_count
        return value

    @trains
    def fit(
        self,
        x: AnyArray,
        y: AnyArray,
        *,
        epochs: int = 1,
        batch_size: int = 256,
        validation: Sequence[AnyArray] | None = None,
        sample_weight: AnyArray | None = None,
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
        sample_weight : (rows,) how much each row counts against the others: any scale will do
        shuffle : another order of the rows in every epoch, drawn from the seed
        callbacks : told after steps and epochs
        progress : a bar; None shows it in a terminal and in a notebook

        Raises ShapeError, DTypeError, DataError or ArrayMismatchError on unfit data, and DivergedError when a loss, a
        parameter, a buffer or the optimizer's state is no longer finite; all of them are then those from before the
        step in which that began.  Where only the loss of the validation data is NaN, they are those from before the
        epoch.
        """
        epochs, batch_size = whole("epochs", epochs, 1), whole("batch_size", batch_size, 1)
        shuffle = flag("shuffle", shuffle)
        progress = None if progress is None else flag("progress", progress)
        told = _check_callbacks(callbacks)
        data = self._data(x, y, sample_weight)
        held_out = None if validation is None else self._validation(validation, data)
        if self._built is None:
            self._build(data.backend, self._layout_for(data.x), data.like)
        with self._session(data.count):
            data = data.settled()
            held_out = None if held_out is None else held_out.settled()
        if redraws(default_stream()) if progress is None else progress:
            told.insert(0, Progress())
        steps = -(-data.count // batch_size)
        self.stop = False
        begun: list[Callback] = []
        try:
            for callback in told:
                callback.on_train_begin(self, epochs, steps)
                begun.append(callback)
            for _ in range(epochs):
                started, before = time.perf_counter(), self.snapshot()
                record = self._epoch(data, batch_size, shuffle, told, before)
                if held_out is not None:
                    scores = self._validate(held_out, self.micro_batch or max(batch_size, LEAST_EVALUATED), before)
                    record |= {f"val_{name}": value for name, value in scores.items()}
                record["seconds"] = time.perf_counter() - started
                self.history.epochs.append(record)
                for callback in told:
                    callback.on_epoch_end(self, record)
                if self.stop:
                    break
        except BaseException as error:
            end(begun, self, error)
            raise
        end(begun, self)
        return self.history

    def _epoch(
        self, data: Data, batch_size: int, shuffle: bool, told: list[Callback], before: Snapshot
    ) -> dict[str, Any]:
        backend, xp = self.backend, self.backend.xp
        epoch = len(self.history)
        order = shuffled(self.seed, epoch, data.count) if shuffle else None
        alone = isinstance(data, HostData) or any(map(_wants_steps, told))
        alone = alone or current.reference or not self.optimizer.traceable
        together = 1 if alone else backend.max_steps_per_launch
        if order is None:
            if 1 < together <= data.count // batch_size:
                order = in_order(data.count)
            else:
                together = 1
        losses: list[Array] = []
        totals: list[Array] = []
        work = self._work(min(batch_size, data.count), -(-data.count // batch_size))
        with backend.session(self.threads, backend.device(self.theta), work):
            for i, (loss, bw, rows) in enumerate(self._steps(data, batch_size, order, together)):
                losses.append(loss)
                if bw is not None:
                    totals.append(xp.sum(bw if rows is None else xp.take(bw, rows)))
                for callback in told:
                    callback.on_step_end(self, i + 1)
            with backend.session(device=backend.device(self.theta)):
                sums = [xp.sum(vector) for vector in self._vectors()]
                known = backend.fetch([*losses, *sums, *totals])
                values, sizes = known[: len(losses)], known[len(losses) + len(sums) :]
                finite = all(map(math.isfinite, values)) and (
                    all(map(math.isfinite, known)) or self._is_sound(losses[-1], self._vectors(), before)
                )
        if not finite:
            self._diverged(data.batches(batch_size, order), before, work)
        sizes = sizes or [min(batch_size, data.count - i * batch_size) for i in range(len(values))]
        mean = sum(v * n for v, n in zip(values, sizes, strict=True)) / sum(sizes)
        lr = self.optimizer.learning_rate(self.step_count - 1)
        precision = "float64" if self.theta.dtype == xp.float64 else self.precision
        return {"epoch": epoch + 1, "step": self.step_count, "loss": mean, "lr": lr, "precision": precision}

    def _validate(self, held_out: Data, batch_size: int, before: Snapshot) -> dict[str, float]:
        """The scores; where the loss is NaN, go back to `before`."""
        try:
            return self._evaluate(held_out, batch_size)
        except DivergedError as error:
            step = self.step_count
            self.restore(before)
            raise DivergedError(
                f"training diverged at step {step} or before, as the validation data show: {error}. {self._was_kept()}"
            ) from error

    def _was_kept(self) -> str:
        """What was gone back to."""
        backend, xp = self.backend, self.backend.xp
        with backend.session(device=backend.device(self.theta)):
            broken = any(bool(xp.any(xp.isnan(vector))) for vector in self._vectors())
        begin = f"The parameters, buffers and optimizer state from before step {self.step_count + 1}"
        if broken:
            return f"{begin} had NaN already, and still have: go back to others, or build afresh"
        return f"{begin} were kept"

    def _steps(
        self, data: Data, batch_size: int, order: Any, together: int
    ) -> Iterator[tuple[Array, Array | None, Array | None]]:
        """Do the steps of an epoch, `together` at a time where the backend can: their losses, weights and rows."""
        for x, y, weight, rows in data.batches(together * batch_size, order):
            if together == 1:
                yield self._advance(x, y, weight, rows), weight, rows
                continue
            assert rows is not None
            full = rows.shape[0] == together * batch_size
            losses = self._several(x, y, weight, rows, together) if full else None
            for i, (start, stop) in enumerate(parts(rows.shape[0], batch_size)):
                some = rows[start:stop]
                yield self._advance(x, y, weight, some) if losses is None else losses[i], weight, some

    def _several(
        self, x: Array, y: Array | None, weight: Array | None, rows: Array, count: int
    ) -> Sequence[Array] | None:
        """`count` steps on equal parts of the rows at once; None, and nothing done, where the backend can't."""
        try:
            each = [self._numbers(self.step_count + i) for i in range(count)]
        except Exception:  # a schedule's, of a step before which others are to be done
            return None
        return self.backend.run_steps(self._step, self._state, (x, y, weight, rows), each)

    def _numbers(self, step: int) -> tuple[Any, int]:
        """What the optimizer makes of the number of the step after so many, and that number."""
        return self.optimizer.hyperparameters(self.optimizer.learning_rate(step), step + 1), step + 1

    def _advance(self, x: Array, y: Array | None, weight: Array | None, rows: Array | None) -> Array:
        """One step on the batch, which is known to be good."""
        state, step = self._state, self._state.now[1]
        assert self._built is not None
        backend = self._built[0]
        numbers, number = self._numbers(step)
        try:
            if current.reference or not self.optimizer.traceable:
                plain, backend = self._plain[self._step], definitions(backend) if current.reference else backend
                carry, value = plain(backend, state.now[0], x, y, weight, rows, numbers, number)
                state.now = carry, number
                return value
            return backend.advance(self._step, state, (x, y, weight, rows, numbers, number), number)
        except backend.oom_errors as error:
            raise self._out_of_memory(error, (x if rows is None else rows).shape[0], training=True) from error

    def _out_of_memory(self, error: Exception, rows: int, training: bool) -> OutOfMemoryError:
        traceback.clear_frames(error.__traceback__)  # which hold what had been made
        backend, layout = self._have()
        return out_of_memory(error, backend, layout, self._carry[0], rows, training)

    def _forward(self, function: Callable[..., Any], x: Array, *args: Any) -> Any:
        """function(theta, buffers, x, *args), `function` being `_outputs` or `_scores`."""
        theta, buffers, _ = self._carry
        try:
            if current.reference:
                return self._plain[function](definitions(self.backend), theta, buffers, x, *args)
            return function(theta, buffers, x, *args)
        except self.backend.oom_errors as error:
            raise self._out_of_memory(error, x.shape[0], training=False) from error

    def _vectors(self, carry: Carry | None = None) -> list[Array]:
        """All that goes from step to step, but what is empty."""
        theta, buffers, state = self._carry if carry is None else carry
        return [array for array in (theta, buffers, *state) if 0 not in array.shape]

    def _is_sound(self, value: Array, vectors: Sequence[Array], before: Snapshot) -> bool:
        """Whether a loss is finite, and vectors are but for what was infinite `before`, such as a bias of -inf.

        A finite sum tells at once, in one pass for each and one wait for all; but finite values may have another.
        """
        xp = self.backend.xp
        with self.backend.session(device=self.backend.device(self.theta)):
            value, *sums = self.backend.fetch([value, *[xp.sum(vector) for vector in vectors]])
            if not math.isfinite(value):
                return False
            if all(map(math.isfinite, sums)):
                return True
            pairs = zip(vectors, self._vectors(before[0]), strict=False)  # of theta alone in most steps
            return not any(bool(xp.any(broken(xp, *pair))) for pair in pairs)

    def _diverged(self, batches: Iterator[Batch], before: Snapshot, work: float) -> None:
        """Repeat the epoch up to the step after which something is not finite."""
        backend = self.backend
        self.restore(before)
        with backend.session(self.threads, backend.device(self.theta), work):
            for x, y, weight, rows in batches:
                last = self.snapshot()
                value = self._advance(x, y, weight, rows)
                if not self._is_sound(value, self._vectors(), last):
                    self._raise_diverged(last, value, x, y, rows)
        self.restore(before)
        raise DivergedError(
            "training diverged, though not when repeated; all is as it was before the epoch, which began at step "
            f"{self.step_count + 1}"
        )

    def _raise_diverged(self, good: Snapshot, value: Array, x: Array, y: Array | None, rows: Array | None) -> NoReturn:
        """Go back to `good` from what a step on the batch left, and say what is not finite there, and where."""
        backend, layout, xp = self.backend, self.layout, self.backend.xp
        step, (theta, buffers, state) = self.step_count, self._carry
        self.restore(good)
        hint = "try a smaller learning rate, clip_norm=1.0, or inputs and targets of a smaller scale"
        with backend.session(device=backend.device(self.theta)):
            x, y = take_rows(backend, (x, y), (0, (x if rows is None else rows).shape[0]), rows)
            run = Run(backend, True, (self.seed, step, 0), context=backend.context(self.precision))
            p = layout.views(backend, self.theta, self.buffers)
            infinite = dict(not_finite(backend, layout, layout.parameters, self.theta))
            kept = dict(not_finite(backend, layout, layout.buffers, buffers, self.buffers))
            if infinite and math.isfinite(float(value)):  # then those are as they were meant
                where = next(iter(kept.values()), None)
            else:
                where = first_not_finite(run, self.network, p, x, infinite | kept)
            if where is None and not math.isfinite(float(value)):
                where = "the loss"
                if self.step_count == step - 1:
                    output = self.network.forward(run, p, x)[0]
                    compared = [output] if y is None or y.dtype != output.dtype else [output, y]
                    sizes = [float(xp.max(xp.abs(a))) for a in compared]
                    hint = f"every output is, so it may not be what {self.loss} expects"
                    if max(sizes) > 0.5 * float(xp.finfo(output.dtype).max) ** 0.5:
                        hint = (
                            f"outputs and targets of up to {max(sizes):.1g} are too large for {self.loss}: scale the "
                            "inputs and the targets down, or try a smaller learning rate"
                        )
            if where is None:
                named = (*self.optimizer.state_names, *("state",) * len(state))
                vectors = [
                    (f"{type(self.optimizer).__name__}'s {n} of ", s, own)
                    for n, s, own in zip(named, state, self.state, strict=False)
                ]
                found = (
                    f"{what}{name}"
                    for what, vector, own in [*vectors, ("", theta, self.theta)]
                    for _, name in not_finite(backend, layout, layout.parameters, vector, own)
                )
                where = next(found, "something that is carried from step to step")
        raise DivergedError(
            f"training diverged at step {step}: {where} is no longer finite; {hint}. {self._was_kept()}"
        )

    def _check_sound(self) -> None:
        """Raise where a parameter is NaN, which the library may keep from the output; looks once at the same ones."""
        backend, xp = self.backend, self.backend.xp
        if self._sound[0] is self._carry and self._sound[1] == self.step_count:
            return
        vectors = [vector for vector in self._carry[:2] if vector.shape[0]]
        with backend.session(device=backend.device(self.theta)):
            sums = backend.fetch([xp.sum(vector) for vector in vectors])
            if not all(map(math.isfinite, sums)) and any(bool(xp.any(xp.isnan(vector))) for vector in vectors):
                self._raise_not_a_number("what the network gives", None)
        self._sound = self._carry, self.step_count

    def _raise_not_a_number(self, what: str, x: Array | None) -> NoReturn:
        """Say where the NaN comes from that rows of x gave, or would give."""
        backend, layout = self.backend, self.layout
        with backend.session(device=backend.device(self.theta)):
            leaves = dict(not_finite(backend, layout, layout.parameters, self.theta))
            leaves |= not_finite(backend, layout, layout.buffers, self.buffers)
            where = next(iter(leaves.values()), "what comes of it")
            if x is not None:
                p = layout.views(backend, self.theta, self.buffers)
                where = (
                    first_not_finite(Run(backend, context=backend.context(self.precision)), self.network, p, x, leaves)
                    or where
                )
        raise DivergedError(
            f"{what} is NaN, though x is finite: {where} is not finite. Go back to parameters that are, or where all "
            "are, to values of a smaller scale"
        )

    # ---- use ----------------------------------------------------------------------------------------------------

    @reads
    def evaluate(
        self, x: AnyArray, y: AnyArray, *, sample_weight: AnyArray | None = None, batch_size: int | None = None
    ) -> dict[str, float]:
        """The loss over the rows, and for a loss of classes the accuracy: the share (by weight) of rows that are right.

        `batch_size` bounds the rows that are computed at a time.  Raises DivergedError where the loss is NaN, as from
        parameters that are; one that is infinite is a result.
        """
        self._have()
        return self._evaluate(self._data(x, y, sample_weight), batch_size)

    def predict(self, x: AnyArray, *, batch_size: int | None = None) -> Array:
        """The network's outputs for the rows of `x`, in its library and on its device: (rows, ...).

        `batch_size` bounds the rows that are computed at a time.  Raises DivergedError where an output is NaN, as from
        parameters that are; one that is infinite is a result.
        """
        built = self._have()[0]
        outer, turn, known = current.session, self._turn, self._known_x
        taken = turn.taken
        if turn.lock.locked() and turn.thread != get_ident():
            raise turn.refused("predict")
        try:  # as `reads`: see `step`
            if batch_size is None and known is not None and _kind(x) == known[0]:
                _, backend, device, cost = known
                with backend.session(self.threads, device, (self._state.now[1] + 1) * cost):
                    if built.drops_nan:
                        self._check_sound()
                    result, total = self._forward(self._outputs, x)
                    (sum_of_all,) = built.fetch((total,))
            else:
                result, sum_of_all = self._first_outputs(x, batch_size)
            if not math.isfinite(sum_of_all):
                self._check_outputs(x, result)
        except BaseException:
            end_sessions(outer)
            raise
        if turn.taken != taken:
            raise turn.refused("predict")
        return result

    def _first_outputs(self, x: Array, batch_size: int | None) -> tuple[Array, float]:
        """The outputs for rows of another kind than the last, or batch by batch, and the sum of rows and outputs."""
        built, backend = self._have()[0], backend_of(x)
        device = backend.device(x)
        size = self.micro_batch if batch_size is None else batch_size
        with backend.session(self.threads, device, self._work(_rows_of(x))):
            fed = self._feeds(x)
            rows = x if fed else self._rows(x, "x", values=False)[1]
            if built.drops_nan:
                self._check_sound()
            if size is None and not fed:
                kind = _kind(x) if rows is x else None
                self._known_x = None if kind is None else (kind, backend, device, self._cost(_rows_of(x)))
                result, total = self._forward(self._outputs, rows)
                return result, built.fetch([total])[0]
            data = self._fed(x, "x") if fed else Data(built, rows, None, None)
            with self._session(data.count):
                parts: list[Array] = []
                totals: list[Array] = []
                for bx, *_ in data.batches(size):
                    part, total = self._forward(self._outputs, bx)
                    if fed and parts:  # while this one is computed
                        parts[-1] = built.to_host(parts[-1])
                    parts.append(part)
                    totals.append(total)
                parts[-1] = built.to_host(parts[-1]) if fed else parts[-1]
                sums = built.fetch(totals)
            return (parts[0] if len(parts) == 1 else backend.xp.concat(parts)), sum(sums)

    def _check_outputs(self, x: Array, result: Array) -> None:
        """Raise where x is not finite, or the outputs for it are not numbers."""
        backend = backend_of(x)
        built, xp = self._have()[0], backend.xp
        with backend.session(device=backend.device(x)):
            fed = self._feeds(x)
            rows = x if fed else self._rows(x, "x", values=False)[1]
            check_finite(backend, rows, "x")
            wrong = xp.any(xp.reshape(xp.isnan(result), (result.shape[0], -1)), axis=1)
            if bool(xp.any(wrong)):
                first = int(xp.argmax(xp.astype(wrong, xp.int32)))
                row = rows[first : first + 1, ...]
                row = built.from_host(row, self.theta.dtype, built.device(self.theta)) if fed else row
                self._raise_not_a_number("what the network gives", row)

    def _evaluate(self, data: Data, batch_size: int | None) -> dict[str, float]:
        backend = self.backend
        if backend.drops_nan:
            self._check_sound()
        with self._session(data.count):
            total = data.total()
            size = self.micro_batch if batch_size is None else batch_size
            size = min(data.most() if size is None else whole("batch_size", size, 1), COUNTED)
            found = [self._forward(self._scores, x, y, weight, total) for x, y, weight, _ in data.batches(size)]
            values, rights, counted = zip(*found, strict=True)
            losses = backend.fetch(values)
            result = {"loss": sum(losses)}
            if math.isnan(result["loss"]):
                first = next(i for i, value in enumerate(losses) if not math.isfinite(value))
                self._raise_not_a_number("the loss", next(itertools.islice(data.batches(size), first, None))[0])
            if rights[0] is not None:
                rows = data.count if counted[0] is None else sum(backend.fetch(counted))
                result["accuracy"] = sum(backend.fetch(rights)) / rows
        return result

    @reads
    def save(self, path: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
        """Write network, parameters, buffers, optimizer state and history to a .safetensors file, for `bp.load`.

        `metadata` is anything of yours that JSON can hold.  A file that was there is replaced once the new one is whole
        and on the disk, and gives it its permissions; where `path` is a link, the file it points to is replaced.
        """
        from bpnet.files import save

        save(self, path, self.metadata if metadata is None else metadata)

    # ---- checks -------------------------------------------------------------------------------------------------

    def _rows(self, x: Array, name: str, values: bool = True) -> tuple[Backend, Array]:
        """`x` checked by itself and against the parameters."""
        backend, converted = check_x(x, name, values)
        if self._built is None:
            return backend, converted
        theta = self._carry[0]
        if backend is not self._built[0] or backend.device(converted) != backend.device(theta):
            try:
                common_backend({name: converted, "the trainer's parameters": theta})
            except ArrayMismatchError as error:
                raise ArrayMismatchError(f"{error}; bp.load(path, like={name}) brings a saved model there") from None
        check_rows(converted, self._built[1].in_shape, name)
        if converted.dtype == theta.dtype:
            return backend, converted
        if x.dtype != converted.dtype:  # whole numbers follow the parameters
            return backend, backend.xp.astype(x, theta.dtype)
        raise DTypeError(f"{name} holds {x.dtype} values, but the parameters {theta.dtype}: convert {name}")

    def _data(
        self,
        x: Array,
        y: Array,
        weight: Array | None,
        names: tuple[str, str, str] = ("x", "y", "sample_weight"),
        values: bool = True,
    ) -> Data:
        """The data checked by itself and against the parameters, where there are any."""
        backend = common_backend({names[0]: x, names[1]: y}, {names[2]: weight})
        with backend.session(self.threads, backend.device(x)):
            data = (
                self._fed(x, names[0], values) if self._feeds(x) else Data(*self._rows(x, names[0], values), None, None)
            )
            layout = self._layout_for(x)
            typed = data.typed()
            data.y = check_target(backend, self.loss, layout.out_shape, typed, y, names[1], names[0], values)
            if weight is not None:
                data.weight = check_weight(backend, weight, typed, names[2], values)
        return data

    def _feeds(self, x: Array) -> bool:
        """Whether `x` is of NumPy and computed with elsewhere; raises ArrayMismatchError where it can't be."""
        if self.device is None:
            return False
        backend, (wanted, device) = backend_of(x), device_named(self.device)
        if backend is wanted:
            where = backend.device(x)
            if device is not None and where != device:
                raise ArrayMismatchError(
                    f"x lies on {where}, but the trainer's device is {self.device!r}: move x there"
                )
            return False
        if backend.name != "numpy":
            raise ArrayMismatchError(
                f"x is an array of {backend.name}, but the trainer's device is {self.device!r}: pass an array of NumPy "
                f"or {wanted.name}"
            )
        return True

    def _fed(self, x: Array, name: str, values: bool = True) -> HostData:
        """`x`, an array of NumPy, checked as `_rows` does; of whole numbers nothing is converted yet."""
        assert self.device is not None
        backend, device = device_named(self.device)
        data = host_data(backend, x, name, values, None if self._built is None else self.theta, self.threads, device)
        layout = self._layout_for(x)
        check_rows(x, layout.in_shape, name)
        data.a_row = bytes_a_row(layout, int(data.like.dtype.itemsize))
        return data

    def _validation(self, validation: Any, data: Data) -> Data:
        if not isinstance(validation, tuple | list):
            raise ArgumentError(f"validation is {kind_of(validation)}; expected (x, y) or (x, y, sample_weight)")
        if len(validation) not in (2, 3):
            raise ShapeError(
                f"validation has {plural(len(validation), 'part')}; expected (x, y) or (x, y, sample_weight)"
            )
        x, y, weight = (*validation, None)[:3]
        names = ("validation[0]", "validation[1]", "validation[2]")
        backend = common_backend({names[0]: x, "x": data.x})
        whole_numbers = is_whole(backend, x)
        if whole_numbers and not self._feeds(x):
            x = backend.xp.astype(x, data.x.dtype)
        held_out = self._data(x, y, weight, names)
        check_rows(x, tuple(data.x.shape[1:]), names[0])
        if whole_numbers:
            held_out.like = data.like
        if held_out.like.dtype != data.like.dtype:
            raise DTypeError(f"{names[0]} holds {x.dtype} values, but x {data.x.dtype}: convert one of them")
        return held_out


def _kind(*arrays: Any) -> tuple[Any, ...] | None:
    """All of a batch that decides whether it fits and must be converted, but for its values; None: not arrays."""
    try:
        if len(arrays) == 1:
            (x,) = arrays
            return type(x), x.dtype, x.shape, x.device
        x, y = arrays
        return type(x), x.dtype, x.shape, x.device, type(y), y.dtype, y.shape, y.device
    except AttributeError:
        return None


def _rows_of(x: Any) -> int:
    """The rows of what may not be an array yet."""
    try:
        shape = getattr(x, "shape", ())
    except RuntimeError as error:  # PyTorch's of a nested tensor
        raise ArrayMismatchError(f"x is {kind_of(x)} and has no shape; expected a plain array") from error
    return int(shape[0]) if shape else 1


def _wants_steps(callback: Callback) -> bool:
    """Whether it is to be told after every step, before the next."""
    return callback.before_next_step and getattr(callback.on_step_end, "__func__", None) is not Callback.on_step_end


def _check_callbacks(callbacks: Any) -> list[Callback]:
    if not isinstance(callbacks, list | tuple):
        raise ArgumentError(f"callbacks is {kind_of(callbacks)}; expected a list of callbacks")
    for i, callback in enumerate(callbacks):
        if not isinstance(callback, Callback):
            hint = "an instance of it" if isinstance(callback, type) else "a bpnet Callback"
            raise ArgumentError(f"callbacks[{i}] is {kind_of(callback)}; expected {hint}")
    return list(callbacks)
