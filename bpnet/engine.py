"""A network on one library and device: its functions, compiled, and the state that its steps move on.

What is passed in has been checked, and nobody else is at work meanwhile: both are the trainer's business.
"""

import itertools
import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from bpnet.backends import Array, Backend, definitions
from bpnet.backends.base import State
from bpnet.backends.interrupts import current
from bpnet.backpropagation import loss_and_gradient
from bpnet.collected import Collected
from bpnet.data.checks import check_input, check_target, detached
from bpnet.data.loader import Batch, Loader, counting, taken
from bpnet.distributed.base import Communicator, on_all_ranks, raise_first
from bpnet.divergence import Diagnosis, has_nan, is_finite_step
from bpnet.errors import DivergedError
from bpnet.layer import Input, Layer, Params, row_count
from bpnet.layout import Layout, accepting
from bpnet.losses.base import Loss
from bpnet.metrics.base import Metric
from bpnet.optimizers.base import Optimizer
from bpnet.penalties import Penalty
from bpnet.registry import parts_of
from bpnet.schedules import Schedule, in_epochs, schedules_of
from bpnet.step import Carry, Snapshot, Views, copied, is_elementwise, outputs, scores, training_step, vectors
from bpnet.table import Text
from bpnet.trying import forward_error, step_error

if TYPE_CHECKING:
    from bpnet.distributed.step import RankedStep, Share
    from bpnet.sparse import SparseStep

WORK_OF_A_CALL = 2e6
"""Floating-point operations that the Python around a step takes the time of."""
COUNTED = 2**24
"""Most rows that are evaluated at a time: float32 counts no further exactly."""
CHECKED = 32
"""Checked steps from one look at all that they carry on, and copy of it, to the next: each takes a quarter of the time
of a small step.  With sparse tables there are the square of it."""


@dataclass(eq=False)
class Engine:
    """Of one trainer, from its first data on."""

    backend: Backend
    layout: Layout
    state: State
    loss: Loss
    optimizer: Optimizer
    seed: int
    clip_norm: float | None
    penalties: tuple[Penalty, ...]
    threads: int | None
    precision: str
    micro_batch: int | None
    compile: bool | str
    ranks: Communicator = field(default_factory=Communicator)

    lr_scale: float = 1.0  # by which every learning rate is multiplied
    # what `Trainer.step` took last as it came: its kind, backend, device, cost, and of a dict the names in their order
    known_batch: tuple[Any, ...] | None = None
    known_inputs: tuple[Any, ...] | None = None  # the same of `Trainer.predict`
    good: Snapshot | None = None  # where checked steps go back to
    checked: Any = None  # the state that the last one left: it may have been set since
    without_nan: Any = None  # the state that was found to have none
    scoring: dict[tuple[Metric, ...], Callable[..., Any]] = field(default_factory=dict)  # by what it gives besides

    def __post_init__(self) -> None:
        layout, views, backend = self.layout, Views(self.layout), self.backend
        for penalty in self.penalties:
            penalty.slots(layout)  # or the error that there are none
        names = "layout", "loss", "seed", "precision", "micro_batch", "clip_norm", "penalties"
        options: dict[str, Any] = {"views": views} | {name: getattr(self, name) for name in names}
        options["grad_buffers"] = [] if is_elementwise(self.optimizer) else None
        self.checks = schedules_of((layout.network, self.penalties))
        self.schedules = tuple(self.checks)  # of options of layers and penalties
        gradient = self.plain_gradient = partial(loss_and_gradient, **options, schedules=self.schedules)
        self.sparse: SparseStep | None = None
        if any(getattr(layer, "sparse", False) for layer in parts_of(layout.network, Layer)):
            from bpnet.sparse import sparse_step

            given = self.penalties, backend, self.compile, self.carry[2]
            self.sparse = sparse_step(layout, self.optimizer, gradient, *given)
        self.ranked: RankedStep | None = None
        if not self.ranks.alone:
            self.ranked = import_module("bpnet.distributed.step").ranked_step(self)
        step: Any = self.sparse or training_step(layout, self.optimizer, gradient)
        plain = outputs(layout, views, self.precision)
        self.outputs = backend.compile(plain, choice=self.compile)
        self.step: Callable[..., Any]
        self.move: Callable[..., Any] = backend.advance
        if self.sparse is not None and not backend.traces:
            self.step, self.move = partial(step, backend), self.sparse.advance
        elif self.optimizer.traceable:
            self.step = backend.compile(step, donate=True, choice=self.compile)
        else:
            self.gradient = compiled = backend.compile(gradient, choice=self.compile)
            self.step = partial(training_step(layout, self.optimizer, lambda _, *args: compiled(*args)), backend)
            self.move = partial(Backend.advance, backend)
        self.plain: dict[Any, Any] = {self.step: step, self.outputs: plain}  # what `bp.reference` runs
        self.views = views
        # with the length of an epoch in their schedules, once that is known
        self.scheduled, self.of_others = self.optimizer, self.schedules
        self.diagnosis = Diagnosis(backend, layout, self.loss, self.optimizer, self.seed, self.precision)

    # ---- state --------------------------------------------------------------------------------------------------

    @property
    def carry(self) -> Carry:
        carry: Carry = self.state.now[0]
        return carry

    @property
    def count(self) -> int:
        return self.state.now[1]

    def evaluated(self) -> Array:
        """The parameters to predict with."""
        theta, _, state = self.carry
        with self.looking():
            return self.optimizer.evaluation(self.backend, self.layout, theta, state)

    def set_parameters(self, tree: Params) -> None:
        """Go on from other parameters, which may be anybody's arrays."""
        backend, ((_, buffers, state), count) = self.backend, self.state.now
        with self.looking():
            theta = backend.copy(backend.detach(self.layout.join(backend, tree)))
            state = self.optimizer.restart(backend, self.layout, theta, state)
        self.state.now = (theta, buffers, state), count

    def snapshot(self) -> Snapshot:
        return copied(self.backend, self.carry), self.count

    def restore(self, snapshot: Snapshot) -> None:
        self.known_batch = None
        self.state.now = copied(self.backend, snapshot[0]), snapshot[1]

    # ---- what must hold while it computes -----------------------------------------------------------------------

    def cost(self, rows: int) -> float:
        """Floating-point operations of a step of so many rows."""
        return 6.0 * (self.layout.size if self.sparse is None else self.sparse.dense) * rows + WORK_OF_A_CALL

    def session(self, rows: int, steps: int = 1) -> AbstractContextManager[None]:
        """For so many steps of so many rows.

        Compiling pays after some work: that of all steps so far and of these, had they all been of so many rows.  So it
        depends on the data alone, and a training that is taken up again goes on as if never interrupted.
        """
        backend, work = self.backend, (self.count + steps) * self.cost(rows)
        return backend.session(self.threads, backend.device(self.carry[0]), work, self.compile)

    def looking(self) -> AbstractContextManager[None]:
        """While values are looked at."""
        return self.backend.session(device=self.backend.device(self.carry[0]))

    # ---- training -----------------------------------------------------------------------------------------------

    def hyperparameters(self, step: int) -> tuple[Any, Any]:
        """What the optimizer makes of the number of the step after so many; that number, and those of schedules."""
        own = self.scheduled.hyperparameters_at(step, self.lr_scale)
        return own, (step + 1, *self.values(step).values()) if self.schedules else step + 1

    def values(self, step: int) -> dict[Schedule, float]:
        """What the schedules of layers and penalties give for the step after so many."""
        pairs = zip(self.schedules, self.of_others, strict=True)
        return {own: self.checks[own](bound(step)) for own, bound in pairs}

    def set_epoch(self, steps: int) -> None:
        """That an epoch has so many steps, to schedules that count them."""
        self.scheduled, self.of_others = in_epochs((self.optimizer, self.schedules), steps)

    @contextmanager
    def some_epoch(self) -> Iterator[None]:
        """While a step is looked at, an epoch has one step to schedules that have not been told."""
        before = self.scheduled, self.of_others
        try:
            self.scheduled, self.of_others = in_epochs(before, 1)
            yield
        finally:
            self.scheduled, self.of_others = before

    def advance(
        self, x: Input, y: Array | None, weight: Array | None, rows: Array | None, share: "Share | None" = None
    ) -> Array:
        """One step on the batch, of which this rank has that `share` where it is no whole one; the loss before it."""
        state, backend = self.state, self.backend
        if backend.has_streams:
            backend.follow(state)
        count = state.now[1] + 1
        own = self.scheduled.hyperparameters_at(count - 1, self.lr_scale)
        numbers, number = self.hyperparameters(count - 1) if self.schedules else (own, count)
        try:
            args = x, y, weight, rows, numbers, number
            if self.ranked is not None:
                return self.ranked.advance(state, args, share, count)
            if current.reference:
                carry, value = self.plain[self.step](definitions(backend), state.now[0], *args)
                state.now = carry, count
                return value
            return self.move(self.step, state, args, count)
        except backend.oom_errors as error:
            raise step_error(self, error, (x, y, weight, rows)) from error

    def run_steps(
        self, x: Input, y: Array | None, weight: Array | None, rows: Array, count: int
    ) -> Sequence[Array] | None:
        """`count` steps on equal parts of the rows by one launch; None, and nothing done, where the backend can't."""
        try:
            each = [self.hyperparameters(self.count + i) for i in range(count)]
        except Exception:  # a schedule's, of a step before which others are to be done
            return None
        self.backend.follow(self.state)
        return self.backend.run_steps(self.step, self.state, (x, y, weight, rows), each)

    def check_values(self, x: Input, y: Array) -> None:
        """Raise where a batch of a kind that fits has values that can't be used."""
        takes = self.layout.network.takes
        several = zip(takes, x, strict=True) if isinstance(takes, tuple) else [(("", takes), x)]
        for ((name, codes), array), accepts_nan in zip(several, accepting(self.layout.network), strict=True):
            what = f"x[{name if name.isdecimal() else repr(name)}]" if name else "x"
            check_input(self.backend, detached(self.backend, array, what), what, codes, accepts_nan)
        check_target(self.backend, self.loss, self.layout.out_shape, row_count(x), self.carry[0].dtype, y)

    def checked_step(self, *batch: Any) -> Array:
        """One step, and a look at what came of it."""
        state, good = self.state, self.good
        if good is None or self.checked is not state.now:
            good = self.good = self.snapshot()
        value = self.advance(*batch)
        due = state.now[1] - good[1] >= (CHECKED if self.sparse is None else CHECKED**2)
        carry, written = state.now[0], None if due or self.sparse is None else self.sparse.written
        if not is_finite_step(self.backend, value, vectors(carry) if due else [carry[0]], good[0], written):
            raise self._diverged(good, value, batch)
        if due:
            self.good = self.snapshot()
        self.checked = state.now
        return value

    # ---- divergence ---------------------------------------------------------------------------------------------

    def repeat(self, batches: Iterator[Any], before: Snapshot) -> None:
        """Repeat steps from `before` up to the one after which something is not finite, and raise what says so."""
        left = self.state.now
        self.restore(before)
        for batch in batches:
            last = self.snapshot()
            value = self.advance(*batch)
            if not is_finite_step(self.backend, value, vectors(self.carry), last[0]):
                raise self._diverged(last, value, batch)
        self.restore(before)
        with self.looking():
            what = self.diagnosis.first_changed(left[0], before[0]) or "a loss"
        error = DivergedError(
            f"training diverged: after step {left[1]} {what} is no longer finite, though it is when the steps are "
            "repeated, so a callback may have changed it; all is as it was before the epoch, or where it was resumed: "
            f"before step {self.count + 1}"
        )
        raise on_all_ranks(error, self.ranks)

    def check_callbacks(self, before: Any) -> None:
        """Raise where callbacks have put NaN into the state that was `before`, and go back to that."""
        left = self.state.now
        with self.looking():
            if not has_nan(self.backend, vectors(left[0])) or has_nan(self.backend, vectors(before[0])):
                return
            what = self.diagnosis.first_changed(left[0], before[0])
        self.known_batch, self.state.now = None, before
        raise DivergedError(
            f"training diverged at step {before[1]}: a callback has put NaN into {what}. "
            f"The parameters, buffers and optimizer state that step {before[1]} left were kept"
        )

    def _diverged(self, good: Snapshot, value: Array, batch: Batch) -> DivergedError:
        """Go back to `good` from what a step on the batch left, and say what is not finite there, and where."""
        self.ranks.check()  # a sum that was given up is no divergence
        left = self.state.now
        self.restore(good)
        with self.looking():
            if self.ranked is not None:
                batch = self.ranked.whole_batch()
            error = self.diagnosis.diverged(self.state.now, left, value, batch, self.values(left[1] - 1))
        return on_all_ranks(error, self.ranks)

    def not_a_number(self, what: str, x: Input | None) -> DivergedError:
        """The error that says where the NaN comes from that rows of x gave, or would give."""
        with self.looking():
            return self.diagnosis.not_a_number(what, self.carry, x)

    def check_nan(self) -> None:
        """Raise where a parameter is NaN, and the library may keep that from the output; looks once at the same."""
        now = self.state.now
        if self.backend.drops_nan and self.without_nan is not now:
            if has_nan(self.backend, vectors((self.evaluated(), now[0][1], ()))):
                raise self.not_a_number("what the network gives", None)
            self.without_nan = now

    # ---- use ----------------------------------------------------------------------------------------------------

    def forward(self, function: Callable[..., Any], x: Input, *args: Any) -> Any:
        """function(theta, buffers, x, *args), `function` being `outputs` or `scores`."""
        self.backend.follow(self.state)
        theta, buffers, state = self.state.now[0]
        theta = self.optimizer.evaluation(self.backend, self.layout, theta, state)
        try:
            if current.reference:
                return self.plain[function](definitions(self.backend), theta, buffers, x, *args)
            return function(theta, buffers, x, *args)
        except self.backend.oom_errors as error:
            raise forward_error(self, error, function, x, *args) from error

    def explain(self, data: Loader) -> str:
        """What a step on all rows of the data does."""
        from bpnet.compiler.commands import FIRST

        (theta, buffers, state), batch = self.carry, data.whole_batch()
        state_names = (*self.optimizer.state_names_of(self.layout), *("state",) * len(state))
        given = [("theta", theta), ("buffers", buffers), *zip(state_names, state, strict=False)]
        with self.some_epoch():
            hyperparameters, number = self.hyperparameters(self.count)
        function, args = self.step, (self.carry, *batch, hyperparameters, number)
        last = ["the loss"]
        if not self.optimizer.traceable:
            function, args = self.gradient, (theta, buffers, *batch, number)
            given, last = given[:2], ["the loss", "the gradient", "the buffers"]
        with self.session(data.count):
            plain = self.compile is False or current.reference
            explain = partial(Backend.explain, self.backend) if plain else self.backend.explain
            if self.ranked is not None:
                return Text(self.ranked.explain(explain, batch, self.carry, hyperparameters, number))
            text = explain(function, args) if self.sparse is None else self.sparse.explain(explain, function, args)
        takes, (x, *others) = self.layout.network.takes, batch
        given += (
            [(f"x[{n!r}]", a) for (n, _), a in zip(takes, x, strict=True)] if isinstance(takes, tuple) else [("x", x)]
        )
        given += zip(("y", "sample_weight", "rows"), others, strict=True)
        names = [name for name, array in given if array is not None] + last
        text = re.sub(r"\bmemory (\d+)", lambda found: names[int(found[1]) - FIRST], text)
        if not self.optimizer.traceable:
            text += f"\nnot compiled: update of {self.optimizer}, which says so by its `traceable`"
        return Text(text)

    def predict(self, data: Loader, size: int | None, check: bool) -> tuple[list[Array], float]:
        """The outputs batch by batch, on the host where the data were, and the sum of all rows and outputs.

        Without `check` there is no sum, and nobody waits for a device unless the data stream through it.
        """
        results: list[Array] = []
        totals: list[Array] = []
        to_host = self.backend.to_host
        with self.session(data.count):
            if check:
                self.check_nan()
            for x, *_ in data.batches(size):
                self.ranks.beat()
                result, total = self.forward(self.outputs, x)
                if data.streams and results:  # while this one is computed
                    results[-1] = to_host(results[-1])
                results.append(data.own(result))
                totals.append(total)
            if data.streams:
                results[-1] = to_host(results[-1])
            return results, sum(self.backend.fetch(totals)) if check else 0.0

    def predict_stream(self, data: Any, size: int | None, check: bool) -> Array:
        """The outputs for the rows of a stream; raises DivergedError where one is NaN."""
        results, total = self.predict(data, data.largest_batch() if size is None else size, check)
        if not math.isfinite(total):
            row = data.first_nan(results)
            if row is not None:
                raise self.not_a_number("what the network gives", data.rows(row, row + 1))
        return data.joined(results)

    def scores(self, metrics: tuple[Metric, ...]) -> Callable[..., Any]:
        """The compiled function of that name with these metrics."""
        if metrics not in self.scoring:
            plain = scores(self.layout, self.views, self.loss, self.precision, metrics)
            self.scoring[metrics] = self.backend.compile(plain, choice=self.compile)
            self.plain[self.scoring[metrics]] = plain
        return self.scoring[metrics]

    def evaluate(
        self, data: Loader, size: int | None, metrics: tuple[Metric, ...] = (), ranks: Communicator | None = None
    ) -> dict[str, Any]:
        """The loss, for a loss of classes the accuracy, and metrics; raises DivergedError where the loss is NaN.

        With `ranks` each of them has a part of the rows, and all know the result.
        """
        backend, function = self.backend, self.scores(metrics)
        found: list[Any] = []
        collected = Collected(backend, metrics, backend.device(self.carry[0]))
        with self.session(data.count):
            self.check_nan()
            size = min(data.largest_batch() if size is None else size, COUNTED)
            count: float = data.count
            batches, weight, gather = partial(data.batches, size), data.total_weight(), None
            if ranks is not None:
                made = import_module("bpnet.distributed.agreeing").evaluation
                batches, count, weight, gather = made(ranks, data, size)
            total = self.loss.total(weight)
            for x, y, of_rows, _ in map(partial(taken, backend), batches()):
                self.ranks.beat()
                *numbers, statistics = self.forward(function, x, y, of_rows, total)
                found.append(numbers)
                collected.add(statistics)
            values = iter(backend.fetch([value for numbers in found for value in numbers if value is not None]))
            found = [[None if value is None else next(values) for value in numbers] for numbers in found]
            own, passed = [value for value, *_ in found], data.passed()
            if gather is not None:
                found, passed = gather(found, passed, collected)
            losses, rights, counted = zip(*found, strict=True)
            result: dict[str, Any] = {"loss": sum(losses)}
            if passed is not None:  # how much there was is known only now
                count = passed[0]
                result["loss"] *= total / self.loss.total(counting(passed[1]))
            if math.isnan(result["loss"]):
                first, error = next((i for i, value in enumerate(own) if not math.isfinite(value)), None), None
                if first is not None:
                    x = taken(backend, next(itertools.islice(batches(), first, None)))[0]
                    error = self.not_a_number("the loss", x)
                raise_first(ranks, error)
            if rights[0] is not None:
                result["accuracy"] = sum(rights) / (count if counted[0] is None else sum(counted))
            return result | collected.results(self.loss)
