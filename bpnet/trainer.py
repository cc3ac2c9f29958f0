"""The trainer: the one object with state.  All it does is call pure functions, keep results, and tell callbacks."""

import itertools
import math
import os
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from threading import get_ident
from typing import Any

from bpnet.backends import Array, Backend, backend_of, check_device, device_named, get
from bpnet.backends.base import PRECISIONS, State
from bpnet.backends.interrupts import current, end_sessions
from bpnet.callbacks import Callback, History, Progress, check_callbacks, default_stream, end, needs_each_step, redraws
from bpnet.checkpoint import Checkpoint
from bpnet.compatibility import (
    check_compile,
    check_micro_batch,
    check_options,
    check_parameters,
    check_precision,
    layout_for,
    warn_of_probabilities,
)
from bpnet.data.loader import Batch, Loader, parts, row_order
from bpnet.data.memory import out_of_memory
from bpnet.data.prepare import Expected, named, prepare, validation_data
from bpnet.divergence import Diagnosis, has_nan, is_finite_step, what_was_kept
from bpnet.errors import ArgumentError, BuiltError, DivergedError, NotBuiltError, OptionError, OutOfMemoryError, plural
from bpnet.layer import Layer, check_layer
from bpnet.layout import Layout
from bpnet.locking import TrainingLock, locked
from bpnet.losses import Loss
from bpnet.optimizers import Optimizer
from bpnet.options import choice, flag, number, whole
from bpnet.registry import resolve
from bpnet.step import Carry, Snapshot, Views, check_snapshot, copied, outputs, scores, start, training_step, vectors

WORK_OF_A_CALL = 2e6
"""Floating-point operations that the Python around a step takes the time of."""
COUNTED = 2**24
"""Most rows that are evaluated at a time: float32 counts no further exactly."""
CHECKED = 32
"""Checked steps from one look at all that they carry on, and copy of it, to the next: each takes a quarter of the time
of a small step."""
LEAST_EVALUATED = 8192
"""Rows of held-out data that are evaluated at a time, where batches are smaller."""


@dataclass
class Recent:
    """What a trainer knows of its last calls, so that the next of the same kind need not look again."""

    batch: tuple[Any, ...] | None = None
    """The kind of batch that `step` took as it came, with backend, device and cost."""
    inputs: tuple[Any, ...] | None = None
    """The same of `predict`."""
    good: Snapshot | None = None
    """Where `step` goes back to."""
    checked: Any = None
    """What the last checked step left: others may have set it since."""
    sound: Any = None
    """What was found to have no NaN."""


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
    device : "cuda" trains NumPy arrays, memory-mapped files among them, with CuPy on the current CUDA device, "cuda:1"
        on the second: data that take at most half of its free memory are put there once, others stream through it batch
        by batch while it computes; predictions come back as NumPy arrays.  None computes where the data lie.
    micro_batch : most rows that are computed at a time: the gradient of a larger batch is summed up over parts, where
        the whole does not fit in memory; other parts draw other dropout masks
    compile : "auto" compiles steps and predictions where that pays: NumPy's by the `jit` extra once there has been work
        for a second or two, JAX's as a whole, CuPy's steps as captured graphs.  True compiles from the first call on,
        and is an error where that can't be done; False runs them operation by operation.

    Attributes
    ----------
    history : a `History` with one record an epoch
    metadata : a dict, what was saved beside the network where the trainer was loaded from a file
    classes : what a classifier's outputs stand for, in their order: text or numbers; assignable, and kept in the file
    step_count : how many training steps have been done
    stop : set to True by a callback, it ends `fit` after the epoch
    parameters, theta, buffers, state, layout, backend : what the first data give rise to, each described below
    network, loss, optimizer, and all other arguments : as they were given, names resolved to objects
    """

    _step: Callable[..., Any]
    _outputs: Callable[..., Any]
    _scores: Callable[..., Any]

    def __init__(
        self,
        network: Layer,
        loss: str | Loss,
        optimizer: str | Optimizer = "adam",
        *,
        seed: int = 0,
        clip_norm: float | None = None,
        threads: int | None = None,
        precision: str = "float32",
        device: str | None = None,
        micro_batch: int | None = None,
        compile: bool | str = "auto",
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
        check_micro_batch(self.micro_batch, self.network.couples_rows)
        self.compile = check_compile(compile)
        self.history, self.stop = History(), False
        self.metadata: Mapping[str, Any] = {}
        self.classes: Sequence[Any] | None = None
        self._built: tuple[Backend, Layout] | None = None
        self._state, self._lock, self._recent = State(None, 0), TrainingLock(), Recent()

    def __repr__(self) -> str:
        size = "no parameters yet"
        if self._built is not None:
            backend, layout = self._built
            size = f"{plural(layout.size, 'parameter')} ({backend.name}), {plural(self.step_count, 'step')} done"
        return f"<Trainer of {self.network}, {self.loss}, {self.optimizer}: {size}>"

    @locked("read")
    def __getstate__(self) -> dict[str, Any]:
        """Without the compiled functions, which are made again; of what another thread may then train, a copy."""
        made = ("_step", "_outputs", "_scores", "_state", "_lock", "_recent")
        rest = {name: value for name, value in vars(self).items() if name not in made}
        now = self._state.now if self._built is None else self.snapshot()
        return rest | {"now": now, "history": History(list(self.history))}

    def __setstate__(self, state: dict[str, Any]) -> None:
        carry, count = state.pop("now")
        vars(self).update(state, _state=State(carry, count), _lock=TrainingLock(), _recent=Recent())
        if self._built is not None:
            self._set_state(*self._built, carry, count)

    # ---- state --------------------------------------------------------------------------------------------------

    @locked("train")
    def build(self, x: Array) -> "Trainer":
        """Draw start values for rows like those of `x`, in its library, on its device, of its floating type.

        The first `fit` or `step` does so by itself.  Raises ShapeError where a layer or the loss does not fit,
        OptionError or DTypeError where the precision does not, OptionError where an option is too small or too large
        for the type of `x`, and BuiltError where there are parameters already.
        """
        if self._built is not None:
            raise BuiltError(
                "the trainer has parameters already: make another Trainer to start afresh, or take trainer.snapshot() "
                "before the training, to which trainer.restore(snapshot) goes back"
            )
        self._start(self._prepare({"x": x}))
        return self

    def _start(self, data: Loader) -> None:
        warn_of_probabilities(self.network, self.loss)
        check_precision(self.precision, data.backend, data.like)
        carry = start(data.layout, self.optimizer, self.seed, data.backend, data.like, self.threads)
        self._set_state(data.backend, data.layout, carry, 0)

    def _set_state(self, backend: Backend, layout: Layout, carry: Carry, count: int) -> None:
        check_options(backend, carry[0], self.network, self.loss, self.optimizer, self.clip_norm)
        views = Views(layout)
        step = training_step(
            layout, views, self.loss, self.optimizer, self.seed, self.clip_norm, self.precision, self.micro_batch
        )
        vars(self).update(  # all or nothing, whatever interrupt comes
            _built=(backend, layout),
            _state=State(carry, count),
            _recent=Recent(),
            _step=backend.compile(step, donate=True, choice=self.compile),
            _outputs=backend.compile(outputs(layout, views, self.precision), choice=self.compile),
            _scores=backend.compile(scores(layout, views, self.loss, self.precision), choice=self.compile),
        )

    def _have(self) -> tuple[Backend, Layout]:
        if self._built is None:
            raise NotBuiltError(
                "the trainer has no parameters yet: they are made from the first data, by fit(x, y) or build(x)"
            )
        return self._built

    @property
    def step_count(self) -> int:
        """How many steps the parameters are the result of."""
        count: int = self._state.now[1]
        return count

    @step_count.setter
    @locked("set")
    def step_count(self, count: int) -> None:
        self._state.now = self._state.now[0], count

    @property
    def _carry(self) -> Carry:
        self._have()
        carry: Carry = self._state.now[0]
        return carry

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
        return self._carry[0]

    @property
    def buffers(self) -> Array:
        """All values that are kept but not trained, one vector."""
        return self._carry[1]

    @property
    def state(self) -> tuple[Array, ...]:
        """The optimizer's arrays."""
        return self._carry[2]

    @property
    def parameters(self) -> dict[str, Any]:
        """The trained parameters, nested by layer: {"0": {"weight": ..., "bias": ...}, ...}.  Assignable."""
        return self.layout.views(self.backend, self.theta)

    @parameters.setter
    @locked("set")
    def parameters(self, tree: Mapping[str, Any]) -> None:
        backend, layout = self._have()
        (theta, *rest), count = self._state.now
        check_parameters(tree, layout, theta)
        self._state.now = (backend.copy(backend.detach(layout.join(backend, tree))), *rest), count

    @locked("read")
    def snapshot(self) -> Snapshot:
        """A copy of parameters, buffers, optimizer state and step count."""
        return copied(self.backend, self._carry), self.step_count

    @locked("set")
    def restore(self, snapshot: Snapshot) -> None:
        """Go back to a snapshot."""
        check_snapshot(snapshot, self._carry)
        self._recent.batch = None
        self._state.now = copied(self.backend, snapshot[0]), snapshot[1]

    @locked("read")
    def save(self, path: str | os.PathLike[str], metadata: Mapping[str, Any] | None = None) -> None:
        """Write network, parameters, buffers, optimizer state and history to a .safetensors file, for `bp.load`.

        `metadata` is anything of yours that JSON can hold.  A file that was there is replaced once the new one is whole
        and on the disk, and gives it its permissions; where `path` is a link, the file it points to is replaced.

        Raises NotBuiltError before the first fit, ArgumentError where `metadata` is not JSON, and PathError, which is
        an OSError, where the file can't be written.
        """
        from bpnet.files import OPTIONS, write_checkpoint

        (carry, count), to_host = self.snapshot(), self.backend.to_host
        arrays = [to_host(array) for array in (*carry[:2], *carry[2])]
        saved = Checkpoint(self.layout, self.loss, self.optimizer, arrays, count)
        saved.options = {name: getattr(self, name) for name in OPTIONS}
        saved.history, saved.classes = self.history.epochs, self.classes
        saved.metadata = self.metadata if metadata is None else metadata
        write_checkpoint(path, saved)

    # ---- training -----------------------------------------------------------------------------------------------

    def step(self, x: Array, y: Array, sample_weight: Array | None = None, *, check: bool = True) -> Array:
        """One training step on the batch x, y; the loss before the step, a 0-d array on the device.

        `check=False` trusts the values (no NaN, labels in range), so that the host need not wait for a device, and
        looks at no result; types and shapes are checked always.

        Otherwise a loss or parameters that are no longer finite raise DivergedError, and after every 32nd step so do
        buffers and optimizer state: the trainer is then back where it was found good last, at most 32 steps ago.
        """
        outer, own, known = current.session, self._lock, self._recent.batch
        if own.lock.locked():
            raise own.refused("step")
        try:  # as `locked("train")`, which takes a tenth of the time of a small step
            with own.lock:
                own.count, own.thread = own.count + 1, get_ident()
                if check is False and sample_weight is None and known is not None and _kind(x, y) == known[0]:
                    _, backend, device, cost = known
                    with backend.session(self.threads, device, (self._state.now[1] + 1) * cost, self.compile):
                        return self._advance(x, y, None, None)
                return self._first_step(x, y, sample_weight, flag("check", check))
        except BaseException:
            end_sessions(outer)
            raise

    def _first_step(self, x: Array, y: Array, sample_weight: Array | None, check: bool) -> Array:
        """A step on a batch that is to be looked at, or is of another kind than the last."""
        backend = backend_of(x)
        device = backend.device(x)
        with backend.session(self.threads, device):
            data = self._prepare(named(x, y, sample_weight), values=check)
            if self._built is None:
                self._start(data)
            if data.x is x and data.y is y and not data.streams:  # nor need the next of this kind be converted
                self._recent.batch = _kind(x, y), backend, device, self._cost(data.count)
            with self._session(data.count):
                batch = data.whole_batch()
                return self._checked_step(*batch) if check else self._advance(*batch)

    def _checked_step(self, *batch: Any) -> Array:
        """One step, and a look at what came of it."""
        backend, recent, state = self.backend, self._recent, self._state
        good = recent.good
        if good is None or recent.checked is not state.now:
            good = recent.good = self.snapshot()
        value = self._advance(*batch)
        due = state.now[1] - good[1] >= CHECKED
        if not is_finite_step(backend, value, vectors(state.now[0]) if due else [state.now[0][0]], good[0]):
            raise self._diverged(good, value, batch)
        if due:
            recent.good = self.snapshot()
        recent.checked = state.now
        return value

    @locked("train")
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
        progress = redraws(default_stream()) if progress is None else flag("progress", progress)
        told = check_callbacks(callbacks)
        data, held_out = self._prepare(named(x, y, sample_weight)), None
        if validation is not None:
            held_out = self._prepare(validation_data(validation), Expected(data.layout, data.like, "x"))
        if self._built is None:
            self._start(data)
        with self._session(data.count):
            data = data.cached()
            held_out = None if held_out is None else held_out.cached()
        if progress:
            told.insert(0, Progress())
        self.stop = False
        begun: list[Callback] = []
        try:
            for callback in told:
                callback.on_train_begin(self, epochs, -(-data.count // batch_size))
                begun.append(callback)
            for _ in range(epochs):
                started, before = time.perf_counter(), self.snapshot()
                record = self._epoch(data, batch_size, shuffle, told, before)
                if held_out is not None:
                    found = self._validate(held_out, self.micro_batch or max(batch_size, LEAST_EVALUATED), before)
                    record |= {f"val_{name}": value for name, value in found.items()}
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
        self, data: Loader, batch_size: int, shuffle: bool, told: list[Callback], before: Snapshot
    ) -> dict[str, Any]:
        backend, xp = self.backend, self.backend.xp
        epoch, steps = len(self.history), -(-data.count // batch_size)
        together = backend.max_steps_per_launch
        if data.streams or data.count < together * batch_size or any(map(needs_each_step, told)):
            together = 1
        order = row_order(self.seed, epoch, data.count, shuffle) if shuffle or together > 1 else None
        losses: list[Array] = []
        totals: list[Array] = []
        with self._session(min(batch_size, data.count), steps):
            for i, (loss, bw, rows) in enumerate(self._steps(data, batch_size, order, together)):
                losses.append(loss)
                if bw is not None:
                    totals.append(xp.sum(bw if rows is None else xp.take(bw, rows)))
                for callback in told:
                    callback.on_step_end(self, i + 1)
            with self._looking():
                after = vectors(self._carry)
                known = backend.fetch([*losses, *[xp.sum(array) for array in after], *totals])
            values, sizes = known[: len(losses)], known[len(losses) + len(after) :]
            finite = all(map(math.isfinite, values)) and (
                all(map(math.isfinite, known)) or is_finite_step(backend, losses[-1], after, before[0])
            )
            if not finite:
                self._repeat(data.batches(batch_size, order), before)
        sizes = sizes or [min(batch_size, data.count - i * batch_size) for i in range(len(values))]
        mean = sum(v * n for v, n in zip(values, sizes, strict=True)) / sum(sizes)
        lr = self.optimizer.schedule(self.step_count - 1)
        precision = "float64" if self.theta.dtype == xp.float64 else self.precision
        return {"epoch": epoch + 1, "step": self.step_count, "loss": mean, "lr": lr, "precision": precision}

    def _steps(
        self, data: Loader, batch_size: int, order: Any, together: int
    ) -> Iterator[tuple[Array, Array | None, Array | None]]:
        """Do the steps of an epoch, `together` by one launch where the backend can: their losses, weights and rows."""
        for x, y, weight, rows in data.batches(together * batch_size, order):
            if together == 1:
                yield self._advance(x, y, weight, rows), weight, rows
                continue
            assert rows is not None
            full = rows.shape[0] == together * batch_size
            losses = self._run_steps(x, y, weight, rows, together) if full else None
            for i, (first, last) in enumerate(parts(rows.shape[0], batch_size)):
                some = rows[first:last]
                yield self._advance(x, y, weight, some) if losses is None else losses[i], weight, some

    def _run_steps(
        self, x: Array, y: Array | None, weight: Array | None, rows: Array, count: int
    ) -> Sequence[Array] | None:
        """`count` steps on equal parts of the rows by one launch; None, and nothing done, where the backend can't."""
        try:
            each = [self._hyperparameters(self.step_count + i) for i in range(count)]
        except Exception:  # a schedule's, of a step before which others are to be done
            return None
        return self.backend.run_steps(self._step, self._state, (x, y, weight, rows), each)

    def _hyperparameters(self, step: int) -> tuple[Any, int]:
        """What the optimizer makes of the number of the step after so many, and that number."""
        return self.optimizer.numbers(self.optimizer.schedule(step), step + 1), step + 1

    def _advance(self, x: Array, y: Array | None, weight: Array | None, rows: Array | None) -> Array:
        """One step on the batch, which is known to be good."""
        state, step = self._state, self._state.now[1]
        assert self._built is not None
        backend = self._built[0]
        numbers, number = self._hyperparameters(step)
        try:
            return backend.advance(self._step, state, (x, y, weight, rows, numbers, number), number)
        except backend.oom_errors as error:
            raise self._out_of_memory(error, (x if rows is None else rows).shape[0], training=True) from error

    def _out_of_memory(self, error: Exception, rows: int, training: bool) -> OutOfMemoryError:
        traceback.clear_frames(error.__traceback__)  # which hold what had been made
        return out_of_memory(error, self.backend, self.layout, self.theta, rows, training)

    # ---- divergence ---------------------------------------------------------------------------------------------

    def _looking(self) -> AbstractContextManager[None]:
        """What must hold while values are looked at."""
        backend = self.backend
        return backend.session(device=backend.device(self.theta))

    def _repeat(self, batches: Iterator[Batch], before: Snapshot) -> None:
        """Repeat an epoch up to the step after which something is not finite, and raise what says so."""
        backend = self.backend
        self.restore(before)
        for batch in batches:
            last = self.snapshot()
            value = self._advance(*batch)
            if not is_finite_step(backend, value, vectors(self._carry), last[0]):
                raise self._diverged(last, value, batch)
        self.restore(before)
        raise DivergedError(
            "training diverged, though not when repeated; all is as it was before the epoch, which began at step "
            f"{self.step_count + 1}"
        )

    def _diagnosis(self) -> Diagnosis:
        return Diagnosis(*self._have(), self.loss, self.optimizer, self.seed, self.precision)

    def _diverged(self, good: Snapshot, value: Array, batch: tuple[Any, ...]) -> DivergedError:
        """Go back to `good` from what a step on the batch left, and say what is not finite there, and where."""
        after = self._state.now
        self.restore(good)
        x, y, _, rows = batch
        with self._looking():
            return self._diagnosis().diverged(self._state.now, after, value, x, y, rows)

    def _not_a_number(self, what: str, x: Array | None) -> DivergedError:
        with self._looking():
            return self._diagnosis().not_a_number(what, self._carry, x)

    def _check_sound(self) -> None:
        """Raise where a parameter is NaN, which the library may keep from the output; looks once at the same ones."""
        now = self._state.now
        if self._recent.sound is not now:
            if has_nan(self.backend, vectors((*now[0][:2], ()))):
                raise self._not_a_number("what the network gives", None)
            self._recent.sound = now

    # ---- use ----------------------------------------------------------------------------------------------------

    @locked("read")
    def evaluate(
        self, x: Array, y: Array, *, sample_weight: Array | None = None, batch_size: int | None = None
    ) -> dict[str, float]:
        """The loss over the rows, and for a loss of classes the accuracy: the share (by weight) of rows that are right.

        `batch_size` bounds the rows that are computed at a time.  Raises DivergedError where the loss is NaN, as from
        parameters that are; one that is infinite is a result.
        """
        self._have()
        return self._evaluate(self._prepare(named(x, y, sample_weight)), batch_size)

    def _evaluate(self, data: Loader, batch_size: int | None) -> dict[str, float]:
        backend = self.backend
        with self._session(data.count):
            if backend.drops_nan:
                self._check_sound()
            total = data.total_weight()
            size = self.micro_batch if batch_size is None else batch_size
            size = min(data.largest_batch() if size is None else whole("batch_size", size, 1), COUNTED)
            found = [self._forward(self._scores, x, y, weight, total) for x, y, weight, _ in data.batches(size)]
            values, rights, counted = zip(*found, strict=True)
            losses = backend.fetch(values)
            result = {"loss": sum(losses)}
            if math.isnan(result["loss"]):
                first = next(i for i, value in enumerate(losses) if not math.isfinite(value))
                raise self._not_a_number("the loss", next(itertools.islice(data.batches(size), first, None))[0])
            if rights[0] is not None:
                rows = data.count if counted[0] is None else sum(backend.fetch(counted))
                result["accuracy"] = sum(backend.fetch(rights)) / rows
        return result

    def _validate(self, held_out: Loader, batch_size: int, before: Snapshot) -> dict[str, float]:
        """The scores; where the loss is NaN, go back to `before`."""
        try:
            return self._evaluate(held_out, batch_size)
        except DivergedError as error:
            step = self.step_count
            self.restore(before)
            raise DivergedError(
                f"training diverged at step {step} or before, as the validation data show: {error}. "
                f"{what_was_kept(self.backend, self._state.now)}"
            ) from error

    def predict(self, x: Array, *, batch_size: int | None = None) -> Array:
        """The network's outputs for the rows of `x`, in its library and on its device: (rows, ...).

        `batch_size` bounds the rows that are computed at a time.  Raises DivergedError where an output is NaN, as from
        parameters that are; one that is infinite is a result.
        """
        built = self._have()[0]
        outer, own, known = current.session, self._lock, self._recent.inputs
        count = own.count
        if own.lock.locked() and own.thread != get_ident():
            raise own.refused("predict")
        try:  # as `locked("read")`: see `step`
            if batch_size is None and known is not None and _kind(x) == known[0]:
                _, backend, device, cost = known
                with backend.session(self.threads, device, (self._state.now[1] + 1) * cost, self.compile):
                    if built.drops_nan:
                        self._check_sound()
                    result, total = self._forward(self._outputs, x)
                    (sum_of_all,) = built.fetch((total,))
            else:
                result, sum_of_all = self._predict(x, self.micro_batch if batch_size is None else batch_size)
            if not math.isfinite(sum_of_all):
                self._check_outputs(x, result)
        except BaseException:
            end_sessions(outer)
            raise
        if own.count != count:
            raise own.refused("predict")
        return result

    def _predict(self, x: Array, size: int | None) -> tuple[Array, float]:
        """The outputs for rows of another kind than the last, or batch by batch, and the sum of rows and outputs."""
        backend = backend_of(x)
        device = backend.device(x)
        with backend.session(self.threads, device):
            data = self._prepare({"x": x}, values=False)
            if size is None and data.x is x and not data.streams:
                self._recent.inputs = _kind(x), backend, device, self._cost(data.count)
            results: list[Array] = []
            totals: list[Array] = []
            with self._session(data.count):
                if data.backend.drops_nan:
                    self._check_sound()
                for bx, *_ in data.batches(size):
                    result, total = self._forward(self._outputs, bx)
                    if data.streams and results:  # while this one is computed
                        results[-1] = data.backend.to_host(results[-1])
                    results.append(result)
                    totals.append(total)
                results[-1] = data.backend.to_host(results[-1]) if data.streams else results[-1]
                total = sum(data.backend.fetch(totals))
            return (results[0] if len(results) == 1 else backend.xp.concat(results)), total

    def _check_outputs(self, x: Array, result: Array) -> None:
        """Raise where x is not finite, or the outputs for it are not numbers."""
        backend = backend_of(x)
        xp = backend.xp
        with backend.session(device=backend.device(x)):
            self._prepare({"x": x})  # which looks at its values
            wrong = xp.any(xp.reshape(xp.isnan(result), (result.shape[0], -1)), axis=1)
            if bool(xp.any(wrong)):
                first = int(xp.argmax(xp.astype(wrong, xp.int32)))
                row = self._prepare({"x": x[first : first + 1, ...]}).whole_batch()[0]
                raise self._not_a_number("what the network gives", row)

    def _forward(self, function: Callable[..., Any], x: Array, *args: Any) -> Any:
        """function(theta, buffers, x, *args), `function` being `_outputs` or `_scores`."""
        theta, buffers, _ = self._state.now[0]
        try:
            return function(theta, buffers, x, *args)
        except self.backend.oom_errors as error:
            raise self._out_of_memory(error, x.shape[0], training=False) from error

    # ---- what calls have in common ------------------------------------------------------------------------------

    def _prepare(self, given: Mapping[str, Any], expected: Expected | None = None, values: bool = True) -> Loader:
        """x, y and weight as batches: see `prepare`."""
        fits: Any = expected
        if fits is None:
            fits = partial(layout_for, self.network, self.loss, self.micro_batch)
            fits = fits if self._built is None else Expected(self._built[1], self._state.now[0][0])
        return prepare(given, self.loss, fits, device=self.device, threads=self.threads, values=values)

    def _cost(self, rows: int) -> float:
        """Floating-point operations of a step of so many rows."""
        return 6.0 * self.layout.size * rows + WORK_OF_A_CALL

    def _session(self, rows: int, steps: int = 1) -> AbstractContextManager[None]:
        """What must hold while this trainer computes so many steps of so many rows.

        Compiling pays after some work: that of all steps so far and of these, had they all been of so many rows.  So it
        depends on the data alone, and a training that is taken up again goes on as if never interrupted.
        """
        backend, work = self.backend, (self.step_count + steps) * self._cost(rows)
        return backend.session(self.threads, backend.device(self.theta), work, self.compile)


def load(
    path: str | os.PathLike[str],
    like: Array | None = None,
    *,
    device: str | None = None,
    compile: bool | str = "auto",
) -> Trainer:
    """The trainer that `Trainer.save` wrote, ready to predict, evaluate or train on.

    Its parameters lie where `like` lies, in its library, or on the `device` that the trainer is to have ("cuda",
    "cuda:1": see `Trainer`); without these they are NumPy arrays.  Numbers keep the type they were saved in.  Products
    have the precision that they were trained with where the library has it, else float32.  A layer of the user's own
    must have been defined (imported) before.

    Raises FileNotFoundError or another OSError where no file can be read, FileFormatError where it is no bpnet model or
    is damaged: a single changed bit is noticed, DTypeError where the library has no numbers of the saved type, and
    OptionError where an option does not fit that type.
    """
    from bpnet.files import damaged, read_checkpoint

    if like is not None and device is not None:
        raise ArgumentError("both like and device say where the parameters are to lie: pass one of them")
    backend, place = (get("numpy"), None) if device is None else device_named(check_device(device))
    if like is not None:
        backend = backend_of(like, "like")
        place = backend.device(like)
    saved = read_checkpoint(path)
    with damaged(path):
        network, options = saved.layout.network, dict(saved.options)
        trainer = Trainer(network, saved.loss, saved.optimizer, device=device, compile=compile, **options)
        dtype = getattr(backend.xp, str(saved.vectors[0].dtype))
        theta, buffers, *state = (  # one after the other, so that few are there twice
            backend.from_host(saved.vectors.pop(0), dtype, place) for _ in range(len(saved.vectors))
        )
        if trainer.precision not in backend.precisions(backend.device(theta)):
            trainer.precision = "float32"
    trainer.history, trainer.metadata, trainer.classes = History(saved.history), saved.metadata, saved.classes
    try:
        trainer._set_state(backend, saved.layout, (theta, buffers, tuple(state)), saved.step_count)
    except OptionError as error:  # the file is sound
        raise OptionError(f"{os.fspath(path)} can't be loaded: {error}") from None
    return trainer


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
