"""What a trainer has learnt, as pictures: its decisions, its weights, and how predictions compare with the truth."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib import rcParams
from matplotlib.colors import to_rgb
from matplotlib.ticker import MaxNLocator

from bpnet.backends import Array, backend_of
from bpnet.errors import ArgumentError, DataError, DTypeError, OptionError, ShapeError, kind_of, plural, shown
from bpnet.metrics.base import kind_of_target
from bpnet.plots.curves import check_texts
from bpnet.plots.figures import MARKERS, PALETTE, figure, legend
from bpnet.table import clean
from bpnet.trainer import Trainer

GRID = 200
"""Points of a plane along each axis at which a network is asked."""
MOST_POINTS, MOST_UNITS, MOST_CELLS, MOST_QUANTITIES = 5_000, 64, 20, 12
"""Rows that are drawn, units whose weights are, classes whose counts are written, quantities that get axes."""


def host(values: Any, what: str) -> Array:
    """Values of any library, or a list of them, as a NumPy array; raises ArgumentError."""
    if hasattr(values, "shape") and not hasattr(values, "iloc"):  # columns of tables have one too
        return np.asarray(backend_of(values, what).to_host(values)) if not isinstance(values, np.ndarray) else values
    try:
        found = np.asarray(values)
    except (ValueError, TypeError) as error:
        raise ArgumentError(f"{what} is {kind_of(values)} that makes no array: {error}") from None
    if found.ndim == 0:
        raise ArgumentError(f"{what} is {kind_of(values)}; expected an array, or a list")
    return found


def quantities(values: Any, what: str) -> Array:
    """The same, as float64; raises DTypeError where they are no numbers."""
    found = host(values, what)
    if found.dtype.kind not in "biuf":
        raise DTypeError(f"{what} holds {found.dtype} values; expected numbers")
    return found.astype(np.float64)


def axes_of(given: Any, width: float, height: float) -> tuple[Any, Any]:
    """The axes to draw on, new ones or those that were given, and their figure."""
    if given is None:
        made = figure(width, height)
        return made, made.subplots()
    if not hasattr(given, "plot") or not hasattr(given, "figure"):
        raise ArgumentError(f"axes is {kind_of(given)}; expected axes of Matplotlib, as plt.subplots() makes")
    return given.figure, given


def some(count: int) -> Array:
    """Which of so many rows are drawn: all, or as many as a picture holds, the same ones every time."""
    if count <= MOST_POINTS:
        return np.arange(count)
    return np.sort(np.random.default_rng(0).permutation(count)[:MOST_POINTS])


# ---- decisions ------------------------------------------------------------------------------------------------------


def decision_boundary(trainer: Trainer, x: Any, y: Any, axes: Any) -> Any:
    """Regions of classes, or shades of a quantity, in a plane."""
    points = quantities(x, "x")
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ShapeError(f"x is of the shape {points.shape}; expected (rows, 2), points of the plane that is drawn")
    if not np.isfinite(points).all():
        raise DataError("x has values that are not finite, between which no plane can be drawn")
    target = None if y is None else quantities(y, "y")
    if target is not None and (target.ndim not in (1, 2) or len(target) != len(points)):
        if target.ndim not in (1, 2):
            raise ShapeError(f"y is of the shape {target.shape}; expected a label or a quantity for each row of x")
        raise ShapeError(f"y has {plural(len(target), 'row')} and x {len(points):,}; expected as many")
    low, high = points.min(axis=0), points.max(axis=0)
    room = np.where(high > low, 0.08 * (high - low), 0.5)
    ends = np.stack([low - room, high + room])
    across, down = (np.linspace(low, high, GRID) for low, high in ends.T.tolist())
    grid = np.stack([a.ravel() for a in np.meshgrid(across, down)], axis=1)
    kind, values = answers(trainer, grid)
    chosen = some(len(points))
    points, target = points[chosen], None if target is None else target[chosen]
    drawn, axes = axes_of(axes, 6.0, 4.6)
    plane = across, down, values.reshape(GRID, GRID, -1)
    if kind == "numbers":
        draw_quantity(axes, plane, points, target)
    else:
        draw_classes(axes, plane, points, target, trainer.classes)
    axes.set(xlabel="feature 0", ylabel="feature 1", xlim=ends[:, 0], ylim=ends[:, 1])
    return drawn


def answers(trainer: Trainer, grid: Array) -> tuple[str, Array]:
    """What a trainer says of points: ("classes", a share for each class) or ("numbers", a number)."""
    kind = kind_of_target(trainer.loss.single)
    if kind == "nothing":
        raise OptionError(f"the loss is {trainer.loss}, of whose outputs none says what the target is")
    backend, theta = trainer.backend, trainer.theta
    device = backend.device(theta)
    with backend.session(device=device):
        own = backend.from_host(grid, theta.dtype, device)
    outputs = trainer.predict(grid if trainer.device else own)
    own = backend_of(outputs)
    with own.session(device=own.device(outputs)):
        values = np.asarray(own.to_host(trainer.loss.prediction(own, outputs)), np.float64).reshape(len(grid), -1)
    if kind == "numbers" and values.shape[1] > 1:
        raise OptionError(f"the network has {values.shape[1]} outputs; expected one quantity, or classes")
    if kind == "labels":
        if values.shape[1] > 1:
            raise OptionError(f"the network has {values.shape[1]} outputs, each true or false; expected one")
        if trainer.loss.single.boundary == 0.0 and not trainer.loss.single.logits:
            values = 0.5 + 0.5 * np.tanh(values)  # of a margin, which turns at 0: for the shade alone
        values = np.concatenate([1.0 - values, values], axis=1)
    return ("numbers" if kind == "numbers" else "classes"), values


def draw_classes(axes: Any, plane: tuple[Array, Array, Array], points: Array, target: Any, names: Any) -> None:
    """Each class's region in its colour, the stronger the surer; lines where another becomes the likeliest."""
    across, down, shares = plane
    count = shares.shape[2]
    colours = np.asarray([to_rgb(PALETTE[k % len(PALETTE)]) for k in range(count)])
    ordered = np.sort(shares, axis=2)
    sure = ((ordered[:, :, -1] - 1.0 / count) / (1.0 - 1.0 / count)).clip(0.0, 1.0)
    region = shares.argmax(axis=2)
    image = np.concatenate([colours[region], (0.08 + 0.47 * sure)[:, :, None]], axis=2)
    extent = (across[0], across[-1], down[0], down[-1])
    axes.imshow(image, origin="lower", extent=extent, aspect="auto", interpolation="nearest")
    ink = rcParams["text.color"]
    for k in range(count):
        others = np.where(np.arange(count) == k, -np.inf, shares).max(axis=2)
        margin = shares[:, :, k] - others
        if (margin > 0).any() and (margin < 0).any() and (count > 2 or k == 1):
            axes.contour(across, down, margin, [0.0], colors=[ink], linewidths=1.2)
    if target is None:
        return
    labels = target.argmax(axis=1) if target.ndim == 2 and target.shape[1] > 1 else target.reshape(-1)
    entries = []
    for k in range(count):
        mine = points[labels == k]
        look = {"markersize": 5, "markeredgecolor": ink, "markeredgewidth": 0.6, "linestyle": "none"}
        said = str(names[k]) if names is not None and k < len(names) else f"class {k}"
        entries.append((axes.plot(*mine.T, MARKERS[k % len(MARKERS)], color=colours[k], **look)[0], said))
    if count <= 12:
        legend(axes, entries, framealpha=0.8)


def draw_quantity(axes: Any, plane: tuple[Array, Array, Array], points: Array, target: Any) -> None:
    """Shades of the predicted quantity, and points in the shade of the true one."""
    across, down, values = plane
    every = [values.ravel()] if target is None else [values.ravel(), target.reshape(-1)]
    levels = MaxNLocator(12).tick_values(min(v.min() for v in every), max(v.max() for v in every))
    shades = axes.contourf(across, down, values[:, :, 0], levels, cmap="viridis")
    if target is not None:
        ink = {"edgecolors": "white", "linewidths": 0.8}
        axes.scatter(*points.T, c=target.reshape(-1), s=24, cmap="viridis", norm=shades.norm, **ink)
    axes.figure.colorbar(shades, ax=axes, label="prediction" if target is None else "prediction; points: true")


# ---- weights --------------------------------------------------------------------------------------------------------


def weights(trainer: Trainer, shape: Any, axes: Any) -> Any:
    """What each unit of the first layer looks for, as an image."""
    slot = next((s for s in trainer.layout.parameters if s.path[-1] == "weight" and len(s.shape) == 2), None)
    if slot is None:
        raise OptionError("the network has no layer whose weight is a matrix, of which each column would be an image")
    matrix = leaf(trainer, slot.path)
    inputs, units = matrix.shape
    high, wide, *channels = image_shape(shape, inputs, slot.name)
    few = min(units, MOST_UNITS)
    columns = math.ceil(math.sqrt(few * high / wide))
    rows = math.ceil(few / columns)
    most = float(np.abs(matrix[:, :few]).max()) or 1.0
    tiles = np.full((rows * (high + 1) - 1, columns * (wide + 1) - 1, *channels), np.nan)
    for k in range(few):
        top, left = (k // columns) * (high + 1), (k % columns) * (wide + 1)
        tiles[top : top + high, left : left + wide] = matrix[:, k].reshape(high, wide, *channels)
    drawn, axes = axes_of(axes, 6.4, max(5.2 * len(tiles) / tiles.shape[1], 1.4) + 0.5)
    if channels:
        shown = np.concatenate([np.nan_to_num(0.5 + 0.5 * tiles / most), ~np.isnan(tiles[:, :, :1])], axis=2)
        axes.imshow(shown, interpolation="nearest")
    else:
        image = axes.imshow(tiles, cmap="PuOr", vmin=-most, vmax=most, interpolation="nearest")
        axes.figure.colorbar(image, ax=axes, shrink=0.8)
    axes.set_axis_off()
    of = f"{few} of {units:,} units" if few < units else plural(units, "unit")
    axes.set_title(f"{clean(slot.name)}: {of}", fontsize="medium", parse_math=False)
    return drawn


def leaf(trainer: Trainer, path: Sequence[str]) -> Array:
    """A parameter on the host."""
    found: Any = trainer.parameters
    for name in path:
        found = found[name]
    return host(found, ".".join(path)).astype(np.float64)


def image_shape(shape: Any, inputs: int, name: str) -> tuple[int, ...]:
    """The shape of the image that a unit sees: as it is given, or a square."""
    side = math.isqrt(inputs)
    if shape is None:
        if side * side != inputs:
            raise OptionError(f"{name} has {inputs:,} inputs, which are no square: pass shape=(height, width)")
        return side, side
    found = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    whole = all(isinstance(n, int) and n > 0 for n in found)
    if not whole or len(found) not in (2, 3) or math.prod(found) != inputs or found[2:] not in ((), (1,), (3,)):
        raise OptionError(
            f"shape is {shown(shape)}; expected (height, width) or (height, width, 3), {inputs:,} numbers in all"
        )
    return found[:2] if found[2:] == (1,) else found


# ---- predictions ----------------------------------------------------------------------------------------------------


def classes_of(values: Any, what: str) -> Array:
    """A class a row: as it is given, or the largest of several outputs."""
    found = host(values, what)
    if found.ndim == 2 and found.shape[1] > 1:
        return found.argmax(axis=1)
    if found.ndim == 2 and found.dtype.kind not in "f":
        return found[:, 0]
    if found.ndim != 1:
        raise ShapeError(f"{what} is of the shape {found.shape}; expected labels (rows,), or outputs (rows, classes)")
    return found


def confusion_matrix(y: Any, predicted: Any, names: Any, axes: Any) -> Any:
    """Counts of rows by their class and the predicted one, in shades of the share of the class's rows."""
    true, said = classes_of(y, "y"), classes_of(predicted, "predicted")
    if len(true) != len(said) or not len(true):
        raise ShapeError(
            f"y has {plural(len(true), 'row')} and predicted {len(said):,}; expected as many, at least one"
        )
    try:
        labels, codes = np.unique(np.concatenate([true, said]), return_inverse=True)
    except TypeError as error:
        raise DTypeError(f"y holds {true.dtype} values and predicted {said.dtype}: {error}") from None
    if names is not None:
        names = check_texts(names)
        if labels.dtype.kind in "biuf" and (labels == labels.astype(np.int64)).all() and labels.min() >= 0:
            if labels.max() >= len(names):
                raise OptionError(f"names has {plural(len(names), 'name')}, but there is a class {labels.max()}")
            codes = labels.astype(np.int64)[codes]
        else:
            order = {name: k for k, name in enumerate(names)}
            lacking = [str(label) for label in labels if str(label) not in order]
            if lacking:
                raise OptionError(f"names lacks {', '.join(lacking[:5])}; expected every class")
            codes = np.asarray([order[str(label)] for label in labels])[codes]
    else:
        names = [str(label) for label in labels]
    count = len(names)
    matrix = np.zeros((count, count), np.int64)
    np.add.at(matrix, (codes[: len(true)], codes[len(true) :]), 1)
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    side = min(max(3.2 + 0.42 * count, 4.2), 11.0)
    drawn, axes = axes_of(axes, side + 1.0, side)
    image = axes.imshow(shares, cmap="Blues", vmin=0.0, vmax=1.0, interpolation="nearest")
    axes.figure.colorbar(image, ax=axes, label="share of the true class", shrink=0.8)
    if count <= MOST_CELLS:
        size = max(4.0, min(10.0, 110.0 / (count + 3)))
        for i, j in np.argwhere(matrix):
            ink = "white" if shares[i, j] > 0.5 else "black"
            axes.text(j, i, f"{matrix[i, j]:,}", ha="center", va="center", color=ink, fontsize=size)
    at = range(count) if count <= 40 else range(0, count, math.ceil(count / 20))
    long = max(map(len, names)) > 4
    said_there = [clean(names[k]) for k in at]
    axes.set_xticks(at, said_there, rotation=90 if long and count > 3 else 0, parse_math=False)
    axes.set_yticks(at, said_there, parse_math=False)
    axes.set(xlabel="predicted", ylabel="true")
    axes.set_title(f"{matrix.trace() / len(true):.2%} of {plural(len(true), 'row')} right", fontsize="medium")
    return drawn


def predictions(y: Any, predicted: Any, names: Any, axes: Any) -> Any:
    """Predicted against true quantities; on the line they are equal."""
    true, said = quantities(y, "y"), quantities(predicted, "predicted")
    true, said = (v[:, None] if v.ndim == 1 else v for v in (true, said))
    if true.shape != said.shape or true.ndim != 2 or not true.size:
        raise ShapeError(f"y is of the shape {true.shape} and predicted {said.shape}; expected the same, (rows, k)")
    count = true.shape[1]
    if axes is not None and count > 1:
        raise OptionError(f"there are {count} quantities, but axes for one: leave axes out")
    names = None if names is None else check_texts(names)
    if names is not None and len(names) != count:
        raise OptionError(f"names has {plural(len(names), 'name')}; expected {count}, one for each quantity")
    shown = min(count, MOST_QUANTITIES)
    across = min(shown, 4)
    down = math.ceil(shown / across)
    if axes is None:
        drawn = figure(4.2 * across + 0.4 * (across == 1), 4.0 * down)
        every = drawn.subplots(down, across, squeeze=False).ravel().tolist()
    else:
        drawn, axes = axes_of(axes, 0.0, 0.0)
        every = [axes]
    for k, one in enumerate(every):
        if k >= shown:
            one.remove()
            continue
        name = "" if names is None else clean(names[k])
        draw_predictions(one, true[:, k], said[:, k], name or (f"quantity {k}" if count > 1 else ""))
    return drawn


def draw_predictions(axes: Any, true: Array, said: Array, name: str) -> None:
    """The points of one quantity, and its scores, which are of all rows."""
    known = np.isfinite(true) & np.isfinite(said)
    lost = int((~known).sum())
    true, said = true[known], said[known]
    if not len(true):
        axes.set(xlabel="predicted", ylabel="true")
        axes.set_title(f"{name}: no finite rows".removeprefix(": "), fontsize="medium", parse_math=False)
        return
    error, spread = said - true, float(((true - true.mean()) ** 2).sum())
    r2 = f"R² {1.0 - float((error**2).sum()) / spread:.3f}, " if spread > 0 else ""
    title = f"{name}: ".removeprefix(": ") + f"{r2}mean |error| {np.abs(error).mean():.3g}"
    chosen = some(len(true))
    ends = min(true.min(), said.min()), max(true.max(), said.max())
    if ends[0] == ends[1]:
        ends = ends[0] - 0.5, ends[1] + 0.5
    axes.plot(ends, ends, color=rcParams["text.color"], linewidth=1.0, linestyle="--", alpha=0.7)
    alpha = float(np.clip(400.0 / len(chosen), 0.15, 0.8))
    axes.plot(said[chosen], true[chosen], "o", markersize=3.5, color=PALETTE[0], alpha=alpha, markeredgewidth=0)
    notes = [f"{len(chosen):,} of {len(true):,} rows"] * (len(chosen) < len(true)) + [f"{lost:,} not finite"] * (
        lost > 0
    )
    axes.set(xlabel="predicted" + (f" ({', '.join(notes)})" if notes else ""), ylabel="true")
    axes.set_title(title, fontsize="medium", parse_math=False)
    axes.grid(alpha=0.3)
    axes.set_aspect("equal", adjustable="datalim")
