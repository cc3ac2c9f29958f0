"""What a picture of a training shows: the curves in each of its panels, as data that every way of drawing shares."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from bpnet.backends import Array
from bpnet.callbacks.history import unrecorded
from bpnet.errors import ArgumentError, RecordError, kind_of, shown
from bpnet.metrics.base import COLUMNS, larger_is_better
from bpnet.plots.scales import WIDE, Scale, scale_for

MOST_LEAVES = 6
"""Of so many parameters the norms are drawn; of more of them some, evenly from the first to the last."""
MOST_POINTS = 2000
"""Of a curve; one of more is thinned."""
LARGEST = 1e300
"""From here on a value is as good as infinite: no axis reaches from one end of float64 to the other."""

NOTHING = "nothing finite was recorded"
TITLES = {"lr": "learning rate"}

Role = Literal["training", "validation", "leaf"]


@dataclass(frozen=True)
class Curve:
    """A line: its name, whose it is, and its points, of which y may be NaN where nothing (finite) was recorded."""

    name: str
    role: Role
    x: Array
    y: Array

    @property
    def lonely(self) -> Array:
        """Where a point has no neighbour, so that a line alone would not show it."""
        known = np.isfinite(self.y)
        padded = np.concatenate([[False], known, [False]])
        return known & ~padded[:-2] & ~padded[2:]

    def thinned(self, most: int = MOST_POINTS) -> "Curve":
        """The same line of about `most` points at most, with every peak, valley and gap that a picture can show.

        Of each stretch the first, least, largest and last point are kept, and where there is one, a gap.
        """
        if len(self.y) <= most:
            return self
        kept = set()
        for part in np.array_split(np.arange(len(self.y)), max(most // 5, 1)):
            some = self.y[part]
            known = np.isfinite(some)
            if known.any():
                kept |= {part[np.nanargmin(some)], part[np.nanargmax(some)], part[known][0], part[known][-1]}
            if not known.all():
                kept.add(part[~known][0])
        chosen = np.asarray(sorted(kept))
        return Curve(self.name, self.role, self.x[chosen], self.y[chosen])


@dataclass(frozen=True)
class Panel:
    """A pair of axes: what is on the upright one, its scale, the curves, and the best epoch.

    `best` is (epoch, value): the number of the best epoch, and what the validation data's curve, or without it the
    training's, is there; the value may be NaN.
    """

    name: str
    title: str
    scale: Scale
    curves: tuple[Curve, ...]
    best: tuple[float, float] | None = None

    @property
    def named(self) -> bool:
        """Whether it takes words to say what its curves are."""
        return len(self.curves) > 1 or self.curves[0].role == "validation" or " (" in self.curves[0].name

    @property
    def ends(self) -> tuple[float, float] | None:
        """The least and the largest value that can be drawn; None where there is none."""
        values = np.concatenate([curve.y for curve in self.curves])
        found = values[np.isfinite(self.scale.place(values))]
        return (float(found.min()), float(found.max())) if len(found) else None


def numbers(records: Sequence[Any], name: str) -> Array:
    """A recorded quantity of every epoch; NaN where it is missing, is no number, or is not finite."""
    found = np.full(len(records), np.nan)
    for i, record in enumerate(records):
        value = record.get(name)
        if is_number(value) and abs(value) < LARGEST:
            found[i] = value
    return found


def is_number(value: Any) -> bool:
    """Whether a recorded value can be drawn."""
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def best_epoch(records: Sequence[Any], monitor: str | None = None) -> int | None:
    """The place of the epoch with the best `monitor`: by default the validation loss, or without it the loss."""
    names = ("val_loss", "loss") if monitor is None else (monitor,)
    for name in names:
        values = numbers(records, name)
        if np.isfinite(values).any():
            return int(np.nanargmax(values) if larger_is_better(name) else np.nanargmin(values))
    return None


def panels(
    records: Sequence[Any], names: Sequence[str] | None = None, monitor: str | None = None, best: int | None = None
) -> list[Panel]:
    """What is worth a picture: the loss, each metric, the learning rate where it changes, and norms, if any.

    `names` chooses some of them.  The best epoch is that by `monitor`, or the one at the place `best`.  Raises
    ArgumentError where `names` are no texts, and RecordError where one, or `monitor`, was not recorded.
    """
    keys = list(dict.fromkeys(key for record in records for key, value in record.items() if is_number(value)))
    groups: dict[str, list[str]] = {}
    for key in keys:
        if key not in COLUMNS or key in ("loss", "lr"):
            groups.setdefault(group_of(key), []).append(key)
    order = sorted(groups, key=lambda group: ("/" in groups[group][0], group == "lr"))  # losses and metrics first
    chosen = order if names is None else check_names(names, order)
    if not isinstance(monitor, str | None):
        raise ArgumentError(f"monitor is {kind_of(monitor)}; expected the name of a recorded quantity")
    if monitor is not None and monitor not in keys:
        raise RecordError(unrecorded(f"monitor is {shown(monitor)}, which was not recorded", monitor, keys))
    if best is None:
        best = best_epoch(records, monitor)
    epochs = np.asarray([float(record.get("epoch", i + 1)) for i, record in enumerate(records)])
    made = []
    for group in chosen:
        curves = tuple(curves_of(records, epochs, group, groups[group]))
        if group == "lr" and names is None and len(set(curves[0].y[np.isfinite(curves[0].y)].tolist())) < 2:
            continue
        title = TITLES.get(group, group.replace("_", " "))
        if len(curves) < len(groups[group]) and "/" in groups[group][0]:
            title += f" ({len(curves)} of {len(groups[group])})"
        made.append(panel_of(group, title, curves, best))
    return made


def group_of(key: str) -> str:
    """The panel that a recorded quantity is shown in."""
    return key.partition("/")[0].removeprefix("val_")


def check_texts(names: Any) -> list[str]:
    """A list of names; raises ArgumentError."""
    if isinstance(names, str) or not isinstance(names, Sequence) or not all(isinstance(n, str) for n in names):
        raise ArgumentError(f"names is {kind_of(names)}; expected a list of texts")
    return list(names)


def check_names(names: Any, known: Sequence[str]) -> list[str]:
    """The panels that are asked for; "val_loss" means that of the loss, "norm/0.weight" that of norms."""
    for name in check_texts(names):
        if group_of(name) not in known:
            raise RecordError(unrecorded(f"{name!r} was not recorded", name, known))
    return list(dict.fromkeys(map(group_of, names)))


def curves_of(records: Sequence[Any], epochs: Array, group: str, keys: Sequence[str]) -> Iterator[Curve]:
    """The lines of a panel."""
    if "/" in keys[0]:
        few = keys
        if len(keys) > MOST_LEAVES:
            few = [keys[round(i)] for i in np.linspace(0, len(keys) - 1, MOST_LEAVES)]
        for key in few:
            yield Curve(key.partition("/")[2], "leaf", epochs, numbers(records, key))
        return
    for key, role in ((group, "training"), (f"val_{group}", "validation")):
        if key in keys:
            y = numbers(records, key)
            lost = sum(is_number(record.get(key)) for record in records) - int(np.isfinite(y).sum())
            yield Curve(role + (f" ({lost:,} not finite)" if lost else ""), role, epochs, y)  # type: ignore[arg-type]


def panel_of(group: str, title: str, curves: tuple[Curve, ...], best: int | None) -> Panel:
    """The panel of a quantity, with the epoch at the place `best`."""
    values = np.concatenate([curve.y for curve in curves])
    log = not larger_is_better(group)
    if group == "lr":  # most of a cosine is seen best as it is
        log = bool(np.isfinite(values).any() and np.nanmedian(values) < np.nanmax(values) / WIDE)
    scale = scale_for(values.tolist(), log)
    if best is None or group == "lr" or curves[0].role == "leaf":
        return Panel(group, title, scale, curves)
    last = curves[-1]
    return Panel(group, title, scale, curves, (float(last.x[best]), float(last.y[best])))
