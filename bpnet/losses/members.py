"""The loss of an ensemble whose members lie side by side in one network."""

from dataclasses import dataclass
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.errors import OptionError, ShapeError
from bpnet.layer import Run, Shape
from bpnet.losses.base import Loss
from bpnet.losses.regression import MeanSquaredError
from bpnet.registry import resolve

ALIKE = ("labels", "probabilities", "distributions", "least", "positive", "logits", "predicts", "boundary")
"""What is true of the targets of all members is true of those of the ensemble."""


@dataclass(frozen=True, repr=False)
class Members(Loss):
    r"""l = mean over members of l_m, the loss of each, of outputs (rows, k, ...) and targets (rows, ...).

    dl/doutput_m = dl_m/doutput_m / k.  So each of k members learns by itself, as if it were alone, and what the
    ensemble says is the mean of what they predict: probabilities, or numbers (Gorishniy, Kotelnikov and Babenko 2025).
    That is what metrics, the accuracy among them, are of; the loss of an evaluation is the mean over members too.

        bp.Trainer(bp.Sequential(bp.BatchEnsemble(8, 64, "relu", "random_signs"), bp.MemberDense(8, 10)),
                   bp.Members("cross_entropy"))

    Targets and their weights are those of `inner`, the loss of one.  Raises ShapeError where the network has no axis of
    members.
    """

    inner: Loss

    example = (MeanSquaredError(),)

    def __post_init__(self) -> None:
        self._set(inner=resolve(Loss, "the loss of Members", self.inner))
        if isinstance(self.inner, Members):
            raise OptionError("the loss of Members is Members itself; expected that of one member")
        if self.inner.reduction == "sum":
            self._set(reduction="sum")
        super().__post_init__()
        self._set(**{name: getattr(self.inner, name) for name in ALIKE})

    def __repr__(self) -> str:
        reduction = "" if self.reduction == self.inner.reduction else f", reduction={self.reduction!r}"
        return f"Members({self.inner}{reduction})"

    @property
    def ignore_index(self) -> int | None:
        """The label whose rows count nowhere, where the loss has such."""
        found: int | None = getattr(self.inner, "ignore_index", None)
        return found

    def target_shape(self, out_shape: Shape) -> Shape:
        if len(out_shape) < 2:
            raise ShapeError(
                f"Members needs outputs of several members, (k, units), but the network gives {out_shape} per row: end "
                "it with MemberDense(k, units)"
            )
        return self.inner.target_shape(out_shape[1:])

    def _apart(self, run: Run, output: Array, *of_rows: Array | None) -> list[Any]:
        """Every member's row as a row of its own, beside what is of its row."""
        xp, (rows, k) = run.xp, output.shape[:2]
        found: list[Any] = [xp.reshape(output, (rows * k, *output.shape[2:]))]
        for x in of_rows:
            if x is not None:
                x = xp.broadcast_to(xp.expand_dims(x, axis=1), (rows, k, *x.shape[1:]))
                x = xp.reshape(x, (rows * k, *x.shape[2:]))
            found.append(x)
        return found

    def __call__(self, run: Run, output: Array, target: Array, weight: Array | None, total: Any) -> tuple[Array, Array]:
        each, targets, weights = self._apart(run, output, target, weight)
        value, dy = self.inner(run, each, targets, weights, total * output.shape[1])
        return value, run.xp.reshape(dy, output.shape)

    def rows(self, run: Run, output: Array, target: Array) -> Array:
        each = self.inner.rows(run, *self._apart(run, output, target))
        return run.xp.mean(run.xp.reshape(each, output.shape[:2]), axis=1)

    @property
    def single(self) -> Loss:
        return self.inner

    def pooled(self, b: Backend, output: Array) -> Array:
        return self.inner.average(b, output)

    def prediction(self, b: Backend, output: Array) -> Array:
        return self.inner.prediction(b, self.pooled(b, output))

    def correct(self, run: Run, output: Array, target: Array) -> Array | None:
        return self.inner.correct(run, self.pooled(run.backend, output), target)
