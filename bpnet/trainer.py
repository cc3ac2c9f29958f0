"""The trainer: the one object with state.  All it does is call pure functions, keep results, and tell callbacks."""

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from threading import get_ident
from typing import TYPE_CHECKING, Any

from bpnet.backends import Array, check_device
from bpnet.backends.base import PRECISIONS
from bpnet.backends.interrupts import current, end_sessions
from bpnet.callbacks.base import Callback, check_callbacks
from bpnet.callbacks.history import History
from bpnet.callbacks.progress import Progress, Resumed, default_stream, redraws
from bpnet.compatibility import (
    check_compile,
    check_micro_batch,
    check_options,
    check_precision,
    layout_for,
    warn_of_probabilities,
)
from bpnet.data.loader import Loader
from bpnet.data.prepare import Expected, is_stream, kind, named, place_of, prepare, validation_data
from bpnet.distributed.base import LONG, Communicator, agreed, failing, tell
from bpnet.engine import Engine
from bpnet.errors import BuiltError, plural
from bpnet.fitting import Training, checked_saving
from bpnet.layer import Layer, check_layer
from bpnet.layout import arranged
from bpnet.locking import TrainingLock, check_memory, locked
from bpnet.losses.base import Loss
from bpnet.metrics.base import Metric, check_metrics
from bpnet.optimizers.base import Optimizer
from bpnet.options import choice, flag, number, whole
from bpnet.penalties import Penalty, check_penalties
from bpnet.registry import resolve
from bpnet.state import HasState
from bpnet.step import start
from bpnet.typing import AnyArray, AnyInput, CallbackName, LossName, MetricName, OptimizerName, Precision

if TYPE_CHECKING:
    from bpnet.data.streams.stream import Stream

FIXED = {
    *("network", "loss", "optimizer", "seed", "clip_norm", "penalties", "threads", "precision", "device"),
    *("micro_batch", "compile"),
}
"""What a trainer that has parameters was made for."""


class Trainer(HasState):
    """Trains a network on arrays of any library, on the device where they lie.

    An interrupt (Ctrl-C) at any moment leaves parameters, buffers, optimizer state and `step_count` of one step, from
    which training goes on.  One thread trains it at a time; whoever uses it from another then gets a BusyError.

    Parameters
    ----------
    network : a layer, most often `Sequential(...)`
    loss : a name ("cross_entropy", "mse", ...) or a `Loss`
    optimizer : a name ("adam", "adamw", "sgd", ...) or an `Optimizer`
    seed : of start values, shuffling and dropout; the same seed gives the same result bit for bit on the same library
    clip_norm : largest Euclidean norm of the gradient; None for no limit
    penalties : terms of parameters that training adds to the loss, such as [bp.L2(1e-4)]
    threads : most processor threads to use (NumPy), None for OMP_NUM_THREADS or else all, which ranks of one host
        share; no result depends on it
    precision : of the products of float32 matrices: "float32"; or for CuPy arrays on a GPU with tensor cores "tf32", of
        numbers rounded to 11 significant bits, or "bfloat16", to 8.  Sums, parameters, the optimizer's state and the
        loss are float32 in any case, and so is what passes between layers, but in a row of dense layers bfloat16.
        Products of float64 are float64.
    device : "cuda" trains NumPy arrays, memory-mapped files among them, with CuPy on the current CUDA device, "cuda:1"
        on the second, "torch" and "jax" where these make arrays: data that take at most half of the free memory are put
        there once, others stream through it batch by batch while it computes; predictions are NumPy arrays again.  None
        computes where the data lie.
    micro_batch : most rows that are computed at a time: the gradient of a larger batch is summed up over parts, where
        the whole does not fit in memory; each row draws the same numbers (dropout's mask) in whatever part it is
    compile : "auto" compiles steps and predictions where that pays: NumPy's by the `jit` extra once there has been
        enough work, counted in operations, JAX's as a whole, CuPy's steps as captured graphs.  True compiles from the
        first call on, and is an error where nothing can be compiled (`explain` lists what of a step is not); False runs
        them operation by operation.
    distributed : train together with other processes, each of which has its part of every batch: "mpi" with those that
        `mpiexec` has started, "nccl" with a GPU each, or options such as `bp.distributed.MPI(rows="own")`.  The result
        is that of one process with the same batches, but for how sums are rounded, and for a `BatchNorm` that is not
        synchronised

    Attributes
    ----------
    history : a `History` with one record an epoch
    metadata : a dict, what was saved beside the network where the trainer was loaded from a file
    classes : what a classifier's outputs stand for, in their order: text or numbers; assignable, and kept in the file
    step_count : how many training steps have been done
    rank, ranks : which of the processes that train together this is, from 0 on, and how many there are; 0 and 1 alone
    communicator : how they communicate, or None
    lr_scale : a factor of the learning rate, 1 at the start; assignable
    step_loss : within `fit`, the loss of the step that callbacks are told of: an array on the device, else None
    stop : set to True by a callback, it ends `fit` after the epoch
    parameters, theta, buffers, state, layout, backend : what the first data give rise to, each described below
    network, loss, optimizer, and all other arguments : as they were given, names resolved to objects; once there are
        parameters, they stay as they are
    """

    def __init__(
        self,
        network: Layer,
        loss: LossName | Loss,
        optimizer: OptimizerName | Optimizer = "adam",
        *,
        seed: int = 0,
        clip_norm: float | None = None,
        penalties: Sequence[Penalty] = (),
        threads: int | None = None,
        precision: Precision = "float32",
        device: str | None = None,
        micro_batch: int | None = None,
        compile: bool | str = "auto",
        distributed: Any = None,
    ) -> None:
        self._engine: Engine | None = None
        self._lock = TrainingLock()
        self.distributed = distributed
        self.network = check_layer("network", network)
        self.loss = resolve(Loss, "loss", loss)
        self.optimizer = resolve(Optimizer, "optimizer", optimizer)
        self.seed = whole("seed", seed, 0)
        self.clip_norm = None if clip_norm is None else number("clip_norm", clip_norm, 0.0, math.inf, closed="neither")
        self.penalties = check_penalties(penalties)
        self.threads = None if threads is None else whole("threads", threads, 1)
        self.precision = choice("precision", precision, PRECISIONS)
        self.device = None if device is None else check_device(device)
        self._share_host()
        self.micro_batch = None if micro_batch is None else whole("micro_batch", micro_batch, 1)
        check_micro_batch(self.micro_batch, self.network.couples_rows)
        self.compile = check_compile(compile)
        self.history, self.stop = History(), False
        self.metadata = {}
        self.classes = None
        self.step_loss: Array = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIXED and self.__dict__.get("_engine") is not None:
            raise BuiltError(
                f"{name} can't be set any more, since the trainer has parameters: make another trainer, whose "
                "parameters can be set to these"
                + ("; lr_scale changes the learning rate" if name == "optimizer" else "")
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        size = "no parameters yet"
        if self._engine is not None:
            parameters, steps = plural(self.layout.size, "parameter"), plural(self.step_count, "step")
            size = f"{parameters} ({self.backend.name}), {steps} done"
        return f"<Trainer of {self.network}, {self.loss}, {self.optimizer}: {size}>"

    # ---- state --------------------------------------------------------------------------------------------------

    @locked("train")
    def build(self, x: AnyInput) -> "Trainer":
        """Draw start values for rows like those of `x`, in its library, on its device, of its floating type.

        The first `fit` or `step` does so by itself.  Raises ShapeError where a layer or the loss does not fit,
        OptionError or DTypeError where the precision does not, OptionError where an option is too small or too large
        for the type of `x`, and BuiltError where there are parameters already.
        """
        if self._engine is not None:
            raise BuiltError(
                "the trainer has parameters already: make another Trainer to start afresh, or take trainer.snapshot() "
                "before the training, to which trainer.restore(snapshot) goes back"
            )
        self._start(self._prepare({"x": x}))
        return self

    def _start(self, data: Loader, starts: tuple[Any, Any] | None = None) -> Engine:
        """Begin with parameters and buffers of the host, or draw them."""
        warn_of_probabilities(self.network, self.loss)
        check_precision(self.precision, data.backend, data.like)
        check_options(data.backend, data.like, self)
        carry = start(data.layout, self.optimizer, self.seed, data.backend, data.like, self.threads, starts)
        return self._set_state(data.backend, data.layout, carry, 0)

    # ---- training -----------------------------------------------------------------------------------------------

    def step(self, x: AnyInput, y: AnyArray, sample_weight: AnyArray | None = None, *, check: bool = True) -> Array:
        """One training step on the batch x, y; the loss before the step, a 0-d array on the device.

        `check=False` trusts the values (no NaN; labels, and numbers for an `Embedding`, in range), so that the
        host need not wait for a device, and looks at no result; types and shapes are checked always.

        Otherwise a loss or parameters that are no longer finite raise DivergedError, and after every 32nd step so do
        buffers and optimizer state: the trainer is then back where it was found good last, at most 32 steps ago.  With
        a sparse `Embedding`, of which no step is to look at all, these are every 1,024th step, and as many.

        Several ranks call it together, with the same batch, or with rows="own" each with its part of it.  An error that
        is raised before they have met, as on unfit data, ends them all.
        """
        outer, own, engine = current.session, self._lock, self._engine
        if own.lock.locked():
            raise own.refused("step")
        try:  # as `locked("train")`, which takes a tenth of the time of a small step
            with own.lock:
                own.count, own.thread = own.count + 1, get_ident()
                known = None if engine is None or sample_weight is not None else engine.known_batch
                if known is None or engine is None or kind(x, y) != known[0]:
                    return self._step(x, y, sample_weight, flag("check", check))
                _, backend, device, cost, names = known
                if names is not None:
                    x = tuple([x[name] for name in names])
                work = (engine.state.now[1] + 1) * cost
                if check is not False and flag("check", check):
                    with backend.session(self.threads, device):
                        engine.check_values(x, y)
                        with backend.session(self.threads, device, work, self.compile):
                            return engine.checked_step(x, y, None, None)
                with backend.session(self.threads, device, work, self.compile):
                    return engine.advance(x, y, None, None)
        except BaseException as error:
            end_sessions(outer)
            tell(self.communicator, error)
            check_memory(error, "step")
            raise

    def _step(self, x: Array, y: Array, sample_weight: Array | None, check: bool) -> Array:
        """A step on a batch of another kind than the last."""
        backend, device = place_of(self.network, x)
        with backend.session(self.threads, device):
            data = self._prepare(named(x, y, sample_weight), values=check)
            engine = self._engine or self._start(data)
            if engine.ranked is not None and not engine.ranked.steps:
                import_module("bpnet.distributed.agreeing").same_state(engine)
            known, names = kind(x, y), None
            if isinstance(x, dict):
                names = tuple(name for name, *_ in arranged(self.network.takes, x, "x"))
                x = tuple(x[name] for name in names)
            parts = zip(data.x, x, strict=True) if isinstance(x, tuple) else ((data.x, x),)
            same = (
                data.y is y and all(a is b for a, b in parts) and not data.maps
            )  # whose files are looked at each time
            if known is not None and same and data.weight is None and not data.streams:  # nor convert the next
                engine.known_batch = known, backend, device, engine.cost(data.count), names
            with engine.session(data.count):
                batch = data.whole_batch()
                return engine.checked_step(*batch) if check else engine.advance(*batch)

    @locked("train")
    def fit(
        self,
        x: "AnyInput | Stream",
        y: AnyArray | None = None,
        *,
        epochs: int = 1,
        batch_size: int = 256,
        validation: "Sequence[Any] | Stream | None" = None,
        sample_weight: AnyArray | None = None,
        shuffle: bool | Callable[[int], Any] = True,
        drop_last: bool = False,
        metrics: Sequence[MetricName | Metric] = (),
        callbacks: Sequence[CallbackName | Callback] = (),
        progress: bool | None = None,
        checkpoint: str | os.PathLike[str] | None = None,
        every: int | None = None,
        keep: int = 3,
        resume: bool = False,
    ) -> History:
        """Train for `epochs` passes over the rows of x, y in batches of `batch_size`; calling it again goes on.

        Parameters
        ----------
        x : (rows, ...) float32 or float64; whole numbers become float32, but where the network begins with an
            `Embedding`.  For a network that begins with `Inputs` a dict, or a tuple, of such arrays.  What is missing
            may be NaN where the network begins with a layer that knows of it, such as `NumericInput`
            Or a `bpnet.data.stream`, which has y and the weights too, of data that need not fit in memory
        y : targets as the loss wants them: labels (rows,), or values in the shape of the network's output
        validation : (x, y), (x, y, sample_weight) or a stream, evaluated after every epoch
        sample_weight : (rows,) how much each row counts against the others: any scale will do
        shuffle : another order of the rows in every epoch, drawn from the seed; or a function that is given how many
            epochs there have been and gives the numbers of as many rows as x has, in the order in which they are to
            come, a vector of whole numbers that NumPy can take: some may come twice and others not, as in a bootstrap
        drop_last : whether the rows that are left over in an epoch, fewer than `batch_size`, are left out of it; where
            there are no others, they are a batch
        metrics : names or objects of `bpnet.metrics`, recorded after every epoch: of all rows of x and y, by one more
            pass over them, as "accuracy", and of the validation data as "val_accuracy"
        callbacks : names, such as "early_stopping", or objects, called after steps and epochs
        progress : a bar; None shows it in a terminal and in a notebook
        checkpoint : a folder for checkpoints: files for `bpnet.load` from which the training can go on where it was
            interrupted, in the midst of an epoch too, and end with the bits of one that never was (but for `seconds` in
            the history).  One training at a time uses it.
            Ctrl-C, SIGTERM and SIGHUP then wait for the step and a checkpoint, and end it by KeyboardInterrupt, or the
            program by SystemExit; a second Ctrl-C ends it at once
        every : steps from one checkpoint to the next, None for one after every epoch; there is one at the end, too
        keep : how many of the last checkpoints are kept; besides them best.safetensors is after the epoch with the
            smallest loss, that of the validation data where there are some
        resume : go on from the newest checkpoint in the folder, whose state the trainer then has, or begin where there
            is none; `epochs` are those of the whole training.  Data and options must be those that it was begun with

        Raises ShapeError, DTypeError, DataError or ArrayMismatchError on unfit data, and DivergedError when a loss, a
        parameter, a buffer or the optimizer's state is no longer finite; all of them are then those from before the
        step in which that began.  Where only the loss of the validation data is NaN, they are those from before the
        epoch, or those with which it was resumed.  About checkpoints: OptionError where the folder holds another
        training, BusyError where another process uses it, PathError where nothing can be written, FileFormatError where
        none of several can be read; one of several that is damaged is passed over with a BpnetWarning.

        Of several ranks (see `distributed`) all call it alike, and `batch_size` is that of all together: each computes
        its part.  They end with the same parameters and history.  Of callbacks those that write are the first rank's,
        which alone writes checkpoints too, and any rank may stop all.  What one raises alone, such as an error in a
        callback, ends the others by RankError.
        """

        def begun() -> tuple[int, Engine, Loader, Loader | None, dict[str, Any]]:
            """How many epochs; the engine, which may be new; data to train on and for validation; the other options."""
            count, more = whole("epochs", epochs, 1), dict[str, Any](batch_size=whole("batch_size", batch_size, 1))
            more["saving"] = saving = checked_saving(checkpoint, every, keep, resume)
            more["shuffle"] = shuffle if callable(shuffle) else flag("shuffle", shuffle)
            shown = redraws(default_stream()) if progress is None else flag("progress", progress)
            more |= {"drop_last": flag("drop_last", drop_last), "listeners": check_callbacks(callbacks)}
            if shown and not any(isinstance(listener, Progress) for listener in more["listeners"]):
                more["listeners"].insert(0, Progress())
            if shown and saving is not None and saving.resume:
                more["listeners"].insert(0, Resumed(saving.folder.path))
            given, other = named(x, y, sample_weight), None if validation is None else validation_data(validation)
            data = self._prepare(given)
            held_out = None if other is None else self._prepare(other, Expected(data.layout, data.like, "x"))
            more["metrics"] = check_metrics(metrics, self.loss, data.layout.out_shape)
            return count, self._engine or self._start(data), data, held_out, more

        ranks = self.communicator or Communicator()
        with failing(ranks):
            epochs, engine, data, held_out, more = agreed(ranks, begun)
            with engine.session(data.count):
                data = data.cached()
                held_out = None if held_out is None else held_out.cached()
            training = Training(self, engine, data, held_out, **more)
            engine.set_epoch(training.steps)
            training.run(epochs)
        return self.history

    # ---- use ----------------------------------------------------------------------------------------------------

    @locked("read")
    def evaluate(
        self,
        x: "AnyInput | Stream",
        y: AnyArray | None = None,
        *,
        sample_weight: AnyArray | None = None,
        batch_size: int | None = None,
        metrics: Sequence[MetricName | Metric] = (),
    ) -> dict[str, Any]:
        """The loss over the rows, and for a loss of classes the accuracy: the share (by weight) of rows that are right.

        `metrics` are names or objects of `bpnet.metrics`, given besides.  `batch_size` bounds the rows that are
        computed at a time.  Raises DivergedError where the loss is NaN, as from parameters that are; one that is
        infinite is a result.
        """
        engine, data = self._have(), self._prepare(named(x, y, sample_weight))
        size = self.micro_batch if batch_size is None else whole("batch_size", batch_size, 1)
        with engine.ranks.phase("an evaluation", LONG):  # as by a callback
            return engine.evaluate(data, size, check_metrics(metrics, self.loss, engine.layout.out_shape))

    @locked("train")
    def explain(self, x: AnyInput, y: AnyArray, sample_weight: AnyArray | None = None) -> str:
        """What a training step on a batch like x, y does: command by command, with sizes, and what isn't compiled.

        The text shows itself at a prompt; in a script, print it.  Like the first step, it draws start values where
        there are none yet.
        """
        data = self._prepare(named(x, y, sample_weight))
        return (self._engine or self._start(data)).explain(data)

    def predict(self, x: "AnyInput | Stream", *, batch_size: int | None = None, check: bool = True) -> Array:
        """The network's outputs for the rows of `x`, in its library and on its device: (rows, ...).

        `batch_size` bounds the rows that are computed at a time.  Raises DivergedError where an output is NaN, as from
        parameters that are; one that is infinite is a result.  `check=False` looks at no value, and waits for none.
        """
        outer, own, engine, check = current.session, self._lock, self._have(), check is True or flag("check", check)
        count, known = own.count, engine.known_inputs
        if own.lock.locked() and own.thread != get_ident():
            raise own.refused("predict")
        try:  # as `locked("read")`: see `step`
            if batch_size is None and known is not None and kind(x) == known[0]:
                _, backend, device, cost = known
                session = backend.session(self.threads, device, (engine.state.now[1] + 1) * cost, self.compile)
                with session, engine.ranks.phase("a prediction", LONG):
                    if check:
                        engine.check_nan()
                    result, total = engine.forward(engine.outputs, x)
                    (total,) = backend.fetch((total,)) if check else (0.0,)
            else:
                with engine.ranks.phase("a prediction", LONG):
                    result, total = self._predict(x, self.micro_batch if batch_size is None else batch_size, check)
            if not math.isfinite(total):
                self._check_outputs(x, result)
        except BaseException as error:
            end_sessions(outer)
            check_memory(error, "predict")
            raise
        if own.count != count:
            raise own.refused("predict")
        return result

    def _predict(self, x: Array, size: int | None, check: bool) -> tuple[Array, float]:
        """The outputs for rows of another kind than the last, or batch by batch; the sum of all, where it is wanted."""
        if is_stream(x):
            return self._have().predict_stream(self._prepare({"x": x}, values=check), size, check), 0.0
        engine, (backend, device), codes = self._have(), place_of(self.network, x), self.network.takes is not None
        with backend.session(self.threads, device):
            data = self._prepare({"x": x}, values=codes and check)
            if size is None and data.x is x and not (data.streams or codes or data.maps):
                engine.known_inputs = kind(x), backend, device, engine.cost(data.count)
            results, total = engine.predict(data, size, check)
            return (results[0] if len(results) == 1 else backend.xp.concat(results)), total

    def _check_outputs(self, x: Array, result: Array) -> None:
        """Raise where x is not finite, or the outputs for it are not numbers."""
        backend, device = place_of(self.network, x)
        xp = backend.xp
        with backend.session(device=device):
            self._prepare({"x": x})  # which looks at its values
            wrong = xp.any(xp.reshape(xp.isnan(result), (result.shape[0], -1)), axis=1)
            if bool(xp.any(wrong)):
                first = int(xp.argmax(xp.astype(wrong, xp.int32)))
                row = self._prepare({"x": x}, values=False).rows(first, first + 1)
                raise self._have().not_a_number("what the network gives", row)

    def _prepare(self, given: Mapping[str, Any], expected: Expected | None = None, values: bool = True) -> Loader:
        """x, y and weight as batches: see `prepare`."""
        fits: Any = expected or partial(layout_for, self.network, self.loss, self.optimizer, self.micro_batch)
        if expected is None and self._engine is not None:
            fits = Expected(self._engine.layout, self._engine.carry[0])
        options: dict[str, Any] = {"device": self.device, "threads": self.threads, "values": values}
        options["ratios"] = self.communicator is None or self.communicator.rows == "same"
        return prepare(given, self.network, self.loss, fits, **options)
