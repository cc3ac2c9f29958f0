"""Pictures: curves of a training, the diagram of a network, what a trainer has learnt; as figures and as text."""

import io
import re
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from bpnet.errors import (
    ArgumentError,
    DataError,
    DTypeError,
    MissingExtraError,
    NotBuiltError,
    OptionError,
    RecordError,
    ShapeError,
)
from bpnet.plots import curves, diagram, scales, terminal

NAN = float("nan")
LOSS, VAL = [2.0, 1.0, 0.5, 0.2, 0.1], [2.5, 1.5, 1.0, 1.1, 1.3]


@pytest.fixture(name="mpl")
def matplotlib_without_a_screen() -> Any:
    matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed")
    matplotlib.use("Agg")
    return matplotlib


def history(**columns: list[Any]) -> bp.History:
    """A history with these quantities; None is of an epoch that has none."""
    count = max(map(len, columns.values()))
    records = []
    for i in range(count):
        record = {"epoch": i + 1, "step": 10 * i, "lr": 0.1, "matmul_precision": "float32", "seconds": 0.1}
        records.append(record | {name: values[i] for name, values in columns.items() if values[i] is not None})
    return bp.History(records)


class Stream(io.StringIO):
    def __init__(self, terminal: bool = False, encoding: str = "utf-8") -> None:
        super().__init__()
        self.terminal, self.code = terminal, encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self.code

    def isatty(self) -> bool:
        return self.terminal


def text_of(made: bp.History, monkeypatch: pytest.MonkeyPatch, stream: Stream | None = None, **options: Any) -> str:
    """What a history draws on standard output."""
    stream = stream or Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    assert made.plot(terminal=True, **options) is None
    return stream.getvalue()


# ---- figures of curves ----------------------------------------------------------------------------------------------


def test_curves_are_the_records(mpl: Any) -> None:
    made = history(
        loss=LOSS, val_loss=VAL, f1=[0.1, 0.2, 0.3, 0.4, 0.5], lr=[0.1, 0.1, 0.1, 0.05, 0.01],
        **{f"gradient_norm/{k}.weight": [1.0] * 5 for k in range(9)},
    )  # fmt: skip
    figure = made.plot()
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "f1", "learning rate", "gradient norm (6 of 9)"]
    assert {axes.get_xlabel() for axes in figure.axes} == {"epoch"}
    loss = figure.axes[0]
    lines = {line.get_label(): line for line in loss.lines}
    for name, values in (("training", LOSS), ("validation", VAL)):
        assert lines[name].get_xydata().tolist() == [[i + 1, value] for i, value in enumerate(values)]
    styles = {(line.get_color(), line.get_linestyle(), line.get_marker()) for line in map(lines.get, lines)}
    assert len({style[1] for style in styles if style[1] != "None"}) >= 2, "colour alone does not tell them apart"
    assert lines["best epoch 3: 1"].get_xydata().tolist() == [[3.0, 1.0]]
    assert loss.get_yscale() == "log"
    assert figure.axes[1].get_yscale() == "linear"
    leaves = [line.get_label() for line in figure.axes[3].lines]
    assert (leaves[0], leaves[-1]) == ("0.weight", "8.weight")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is None or pyplot.get_fignums() == [], "no figure of pyplot's"
    again = made.plot(names=["val_loss", "lr"], monitor="f1", figure=figure)
    assert again is figure
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "learning rate"]
    assert "best epoch 5: 1.3" in [line.get_label() for line in figure.axes[0].lines]


def test_files(tmp_path: Path, mpl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    made = history(loss=LOSS, val_loss=VAL)
    assert isinstance(made.plot("a.png"), mpl.figure.Figure)
    assert made.plot(Path("a.txt")) is None
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    assert made.plot()._repr_png_().startswith(b"\x89PNG"), "what a notebook shows"
    assert Path("a.txt").read_text(encoding="utf-8").startswith("loss   ")

    def fail(*args: Any, **options: Any) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fail)
    before = Path("a.png").read_bytes()
    with pytest.raises(RuntimeError, match="no ink"):
        made.plot("a.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.txt"]
    assert Path("a.png").read_bytes() == before


def test_what_can_not_be_drawn(mpl: Any) -> None:
    made = history(loss=LOSS)
    for wrong, error, said in [
        ({"path": "a.doc"}, OptionError, r"path is 'a\.doc': expected a file that ends in one of .*\.png.*\.txt"),
        ({"path": "a.png", "terminal": True}, OptionError, "terminal is True, but there is a path too"),
        ({"path": "a.txt", "figure": 5}, OptionError, "path is a.txt, a file of text, but there is a figure too"),
        ({"figure": 5}, ArgumentError, "figure is of type int; expected a figure of Matplotlib"),
        ({"names": "loss"}, ArgumentError, "names is of type str; expected a list of texts"),
        ({"names": ["los"]}, RecordError, "'los' was not recorded: did you mean 'loss'"),
        ({"monitor": "val_loss"}, RecordError, "monitor is 'val_loss', which was not recorded"),
    ]:
        with pytest.raises(error, match=said):
            made.plot(**wrong)
    with pytest.raises(DataError, match="the history has no epochs"):
        bp.History().plot()
    with pytest.raises(OSError, match="there is no folder"):
        made.plot("nowhere/a.png")


def test_what_is_not_finite_is_a_gap_that_is_counted(mpl: Any) -> None:
    made = history(loss=[2.0, NAN, 1.0, float("inf"), 0.5, 0.4], val_loss=[3.0, None, None, 2.0, None, None])
    (axes,) = made.plot().axes
    training, validation = axes.lines[:2]
    assert training.get_label() == "training (2 not finite)"
    assert validation.get_label() == "validation", "what is not recorded is nothing wrong"
    assert np.isnan(training.get_ydata()).tolist() == [False, True, False, True, False, False]
    assert training.get_marker() != "None", "which a point between gaps needs to be seen"
    (axes,) = history(loss=[NAN, NAN]).plot().axes
    assert [text.get_text() for text in axes.texts] == ["nothing finite was recorded"]


def test_one_epoch(mpl: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (axes,) = history(loss=[0.5], val_loss=[0.7]).plot().axes
    assert axes.get_xlim() == (0.5, 1.5)
    assert [line.get_marker() for line in axes.lines[:2]] == ["o", "s"]
    drawn = text_of(history(loss=[0.5], val_loss=[0.7]), monkeypatch)
    assert "●" in drawn
    assert re.search(r"^ +1 +epoch$", drawn, flags=re.MULTILINE)


# ---- what curves show -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "values", "kind"),
    [
        ("loss", [2.0, 1.0, 0.1], "log"),
        ("loss", [1e30, 1.0, 1e-19], "log"),
        ("loss", [2.0, 1.9, 1.8], "linear"),
        ("loss", [1.0, 0.5, 0.0], "linear"),
        ("loss", [0.5, -1.0, -2.0], "linear"),
        ("loss", [5000.0, 300.0, -1.0, -1.5, -1.6, -1.7, -1.8], "symlog"),
        ("accuracy", [0.05, 0.5, 0.99], "linear"),
        ("r2", [-1e6, -10.0, 0.2, 0.3, 0.5, 0.6], "symlog"),
        ("lr", [1e-3 * (1 + np.cos(np.pi * i / 20)) + 1e-7 for i in range(20)], "linear"),
        ("lr", [0.1**i for i in range(5)], "log"),
        ("loss", [NAN, NAN], "linear"),
        ("loss", [3.0, 3.0], "linear"),
    ],
)
def test_an_axis_is_logarithmic_where_that_shows_more(name: str, values: list[float], kind: str) -> None:
    (panel,) = curves.panels(history(**{name: values}).epochs, [name])
    assert panel.scale.kind == kind
    if panel.ends is not None:
        low, high = panel.ends
        marks = panel.scale.ticks(low, high)
        assert len(marks) <= 12
        assert all(low <= mark <= high for mark in marks)
        placed = panel.scale.place(np.linspace(low, high, 9))
        assert (np.diff(placed) > 0).all() or low == high


def test_a_long_history_is_thinned_and_keeps_every_spike_and_gap() -> None:
    y = np.exp(-np.arange(10_000) / 2000.0)
    y[7777], y[1234], y[5000] = 30.0, 1e-9, NAN
    curve = curves.Curve("training", "training", np.arange(10_000.0), y)
    thin = curve.thinned(1000)
    assert len(thin.y) <= 1000
    for place in (0, 1234, 5000, 7777, 9999):
        (at,) = np.flatnonzero(thin.x == place)
        np.testing.assert_equal(thin.y[at], y[place])
    assert (np.diff(thin.x) > 0).all()


def test_ticks_are_few_and_round_whatever_the_range() -> None:
    for low, high in [(0.0, 1e-300), (1e308, 1.7e308), (-1.7e308, 1.7e308), (1.0, 1.0 + 1e-15), (0.0, 7.0)]:
        marks = scales.ticks(low, high)
        assert 1 <= len(marks) <= 9
        assert all(low <= mark <= high for mark in marks)
    assert scales.ticks(0.0, 7.0) == [0.0, 2.0, 4.0, 6.0]


# ---- text -----------------------------------------------------------------------------------------------------------


def test_a_terminal_plot(monkeypatch: pytest.MonkeyPatch) -> None:
    made = history(loss=[4.0, 3.0, 2.0, 1.0, 1.5], val_loss=[4.0, 3.5, 3.0, 2.5, 2.0])
    drawn = text_of(made, monkeypatch, Stream(encoding="ascii"))
    assert (
        drawn
        == """\
loss   *** training   ooo validation   @ best epoch 5: 2
  4 +ooooo                                                                     :
    |   **ooooooooo                                                            :
3.5 +       *****  ooooooooo                                                   :
    |            ****       oooooooooo                                         :
  3 +                ******           oooooooooooooo                           :
2.5 +                      ******                   oooooooooooooo             :
    |                            ******                           ooooooooo    :
  2 +                                  ******                              oooo@
    |                                        *****                             :
1.5 +                                             ****                     *****
    |                                                 *****       *********    :
  1 +                                                      *******             :
    ++-----------------+------------------+------------------+------------------
     1                 2                  3                  4             epoch
"""
    )


def test_text_is_as_wide_as_it_may_be_and_coloured_in_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    made = history(loss=LOSS, val_loss=VAL, f1=[0.1, 0.2, 0.3, 0.4, 0.5], **{"norm/a": LOSS, "norm/b": VAL})
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    plain = text_of(made, monkeypatch)
    assert "\x1b" not in plain
    coloured = text_of(made, monkeypatch, Stream(True))
    assert "\x1b[38;5;" in coloured
    bare = re.sub(r"\x1b\[[\d;]*m", "", coloured)
    assert [line.rstrip() for line in bare.split("\n")] == plain.split("\n")
    for name, value in (("NO_COLOR", "1"), ("TERM", "dumb")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert text_of(made, patch, Stream(True)) == plain
    for width in (8, 24, 40, 80, 100, 250):
        for plain_text in (False, True):
            lines = terminal.lines_of(curves.panels(made.epochs), width, plain=plain_text)
            assert max(map(terminal.length, lines)) <= max(width, terminal.NARROWEST)
    lines = terminal.lines_of(curves.panels(made.epochs), 80, most=20)
    assert len(lines) <= 20, "as many panels as there is room for"


def test_a_spike_of_one_epoch_in_ten_thousand_is_seen() -> None:
    y = [1.0] * 10_000
    y[5000] = 7.0
    lines = terminal.written(terminal.lines_of(curves.panels(history(loss=y).epochs), 80, plain=True)).split("\n")
    assert lines[1].count("*") == 1
    assert abs(lines[1].index("*") - 43) <= 2


def test_without_matplotlib_it_draws_in_the_terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delitem(sys.modules, "bpnet.plots.figures", raising=False)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    assert history(loss=LOSS).plot() is None
    assert bp.Dense(3).plot(np.ones((1, 2))) is None
    assert "loss   ● best epoch 5: 0.1" in stream.getvalue()
    assert "→ 3  9 parameters" in stream.getvalue()
    for needs in (lambda: history(loss=LOSS).plot(tmp_path / "a.png"), lambda: bp.plots.confusion_matrix([0], [0])):
        with pytest.raises(MissingExtraError, match="drawing needs Matplotlib"):
            needs()


# ---- networks -------------------------------------------------------------------------------------------------------

NETWORK = bp.Sequential(
    bp.Dense(8, "relu"),
    bp.Parallel("identity", bp.Sequential(bp.Dense(4), bp.Dropout(0.2))),
    bp.Residual(bp.Shared(bp.Dense(12), "f")),
    bp.Shared(bp.Dense(12), "f"),
    *[bp.Dense(12, "tanh")] * 3,
)
PICTURE = """\
Sequential: 708 parameters
          ┌───────┐
          │ input │
          │   5   │
          └───┬───┘
              │
   ┌──────────┴──────────┐
   │  Dense(8, 'relu')   │
   │ → 8  48 parameters  │
   └──────────┬──────────┘
              │
 ┌────────────┴──┐
 │    ┌──────────┴──────────┐
 │    │      Dense(4)       │
 │    │ → 4  36 parameters  │
 │    └──────────┬──────────┘
 │               │
 │       ┌───────┴───────┐
 │       │ Dropout(0.2)  │
 │       │      → 4      │
 │       └───────┬───────┘
 └────────────┬──┘
         (concat 12)
              │
              ├─────────────┐
  ┌───────────┴───────────┐ │
  │       shared: f       │ │
  │       Dense(12)       │ │
  │ → 12  156 parameters  │ │
  └───────────┬───────────┘ │
              │             │
             (+)────────────┘
              │
   ┌──────────┴──────────┐
   │ shared: f, as above │
   │      Dense(12)      │
   │        → 12         │
   └──────────┬──────────┘
              │
┌─────────────┼─────────────┐
│ 3 times     │             │
│ ┌───────────┴───────────┐ │
│ │   Dense(12, 'tanh')   │ │
│ │ → 12  156 parameters  │ │
│ └───────────┬───────────┘ │
│             │             │
└─────────────┴─────────────┘
"""


def test_the_diagram_of_a_network(tmp_path: Path, mpl: Any) -> None:
    assert NETWORK.plot(np.ones((2, 5)), tmp_path / "net.txt") is None
    assert (tmp_path / "net.txt").read_text(encoding="utf-8") == PICTURE
    figure = NETWORK.plot(np.ones((2, 5)))
    words = {text.get_text() for text in figure.axes[0].texts}
    assert {"Dense(8, 'relu')", "→ 8  48 parameters", "concat 12", "+", "shared: f, as above", "3 times"} <= words
    assert figure.axes[0].get_title() == "Sequential: 708 parameters"
    bare = {text.get_text() for text in NETWORK.plot().axes[0].texts}
    assert "Dense(8, 'relu')" in bare
    assert not any("→" in text for text in bare), "a network alone knows no shapes"


def test_several_inputs_have_boxes_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    net = bp.Sequential(bp.Inputs(numbers="identity", city=bp.Embedding(9, 2)), bp.Dense(1))
    net.plot({"numbers": np.ones((2, 3)), "city": np.zeros(2, np.int32)}, terminal=True)
    assert (
        stream.getvalue()
        == """\
Sequential: 24 parameters
+---------+          +-------+
| numbers |          | city  |
|    3    |          |   1   |
+----+----+          +---+---+
     |                   |
     |        +----------+----------+
     |        |   Embedding(9, 2)   |
     |        | > 2  18 parameters  |
     |        +----------+----------+
     +------------+------+
             (concat 5)
                  |
        +---------+---------+
        |     Dense(1)      |
        | > 1  6 parameters |
        +-------------------+
"""
    )


def test_no_box_lies_on_another_nor_a_line_in_one() -> None:
    from support.networks import Draw

    for seed in range(6):
        problem = Draw(seed).problem()
        block = diagram.described(problem.network).block
        taken: set[tuple[int, int]] = set()
        inside: set[tuple[int, int]] = set()
        for box in block.boxes:
            assert -block.left <= box.x < box.x + box.width - 1 <= block.right
            assert 0 <= box.y < box.y + box.height <= block.height
            if box.kind != "frame":
                cells = {(x, y) for x in range(box.x, box.x + box.width) for y in range(box.y, box.y + box.height)}
                assert not cells & taken, f"seed {seed}"
                taken |= cells
                edge = box.kind != "join"
                inside |= {
                    (x, y) for x, y in cells
                    if edge and box.x < x < box.x + box.width - 1 and box.y < y < box.y + box.height - 1
                }  # fmt: skip
        for line in block.lines:
            for (x0, y0), (x1, y1) in pairwise(line):
                assert x0 == x1 or y0 == y1
                xs, ys = range(min(x0, x1), max(x0, x1) + 1), range(min(y0, y1), max(y0, y1) + 1)
                assert not {(x, y) for x in xs for y in ys} & inside, f"seed {seed}"


def test_a_terminal_that_is_too_narrow_gets_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream()
    monkeypatch.setattr(sys, "stdout", stream)
    bp.Sequential(bp.Parallel(*[bp.Dense(40 + k, "relu") for k in range(9)])).plot(np.ones((1, 5)), terminal=True)
    lines = stream.getvalue().split("\n")
    assert lines[3] == "    0 Dense(40, 'relu')  → 40  240 parameters"
    assert max(map(len, lines)) <= 80


# ---- what has been learnt -------------------------------------------------------------------------------------------


NAMES = ["$\\foo$", "_hidden", "\x1b[31mred\u202e\n"]


def test_names_are_shown_as_they_are(mpl: Any, tmp_path: Path) -> None:
    """Without what a terminal obeys; no mathematics, and none is left out because of a _ before it."""
    trainer = linear(np.ones((2, 3)), np.zeros(3), "cross_entropy")
    trainer.classes = NAMES
    x = np.asarray([[0.0, 0.0], [1.0, 2.0], [2.0, 1.0]])
    decisions = bp.plots.decision_boundary(trainer, x, [0, 1, 2])
    made = history(**{f"norm/{name}": LOSS for name in NAMES}, **dict.fromkeys(NAMES[:1], LOSS))
    figures = decisions, made.plot(), bp.plots.predictions(x[:, :1], x[:, :1], names=NAMES[:1])
    shown = ["$\\foo$", "_hidden", "[31mred"]
    assert [t.get_text().strip() for t in decisions.axes[0].get_legend().get_texts()] == shown
    for figure in figures:
        figure.draw_without_rendering()  # lays out every text
    network = bp.Inputs(**dict.fromkeys(NAMES, bp.Dense(2)))
    for draw, name in ((network.plot, "network.txt"), (made.plot, "curves.txt")):
        draw(path=tmp_path / name)
        assert not set("\x1b\u202e") & set((tmp_path / name).read_text())


def linear(weight: Any, bias: Any, loss: str, like: Any = np.float64) -> bp.Trainer:
    """A trainer whose network is x W + b."""
    weight, bias = np.asarray(weight, like), np.asarray(bias, like)
    trainer = bp.Trainer(bp.Dense(weight.shape[1]), loss).build(np.ones((1, len(weight)), like))
    trainer.parameters = {"weight": weight, "bias": bias}
    return trainer


def test_a_decision_boundary_lies_where_classes_are_as_likely(mpl: Any) -> None:
    x = np.random.default_rng(0).uniform(-2.0, 2.0, (60, 2))
    for trainer in (
        linear([[0.0, 3.0], [0.0, 0.0]], [0.0, -3.0], "cross_entropy"),  # x_0 = 1
        linear([[3.0], [0.0]], [-3.0], "binary_cross_entropy_with_logits"),
        linear([[3.0], [0.0]], [-3.0], "hinge", np.float32),
    ):
        trainer.classes = ["left", "right"]
        figure = bp.plots.decision_boundary(trainer, x, (x[:, 0] > 1).astype(int))
        (axes,) = figure.axes
        (contour,) = [c for c in axes.collections if hasattr(c, "get_paths")]
        np.testing.assert_allclose(np.concatenate([p.vertices[:, 0] for p in contour.get_paths()]), 1.0, atol=0.02)
        image = axes.images[0].get_array()
        assert tuple(image[0, 0, :3]) != tuple(image[0, -1, :3])
        assert [t.get_text() for t in axes.get_legend().get_texts()] == ["left", "right"]
        assert sum(len(line.get_xdata()) for line in axes.lines) == 60
        assert image.shape[2] == 4
        assert image[0, 0, 3] > image[0, np.argmin(np.abs(np.linspace(*axes.get_xlim(), 200) - 1.0)), 3], "surer"


@pytest.mark.parametrize("name", ["strict", "torch"])
def test_arrays_of_any_library_are_drawn(name: str, library: Any, mpl: Any) -> None:
    backend = library(name)
    x, y = np.random.default_rng(0).uniform(-2.0, 2.0, (20, 2)).astype(np.float32), np.arange(20) % 2
    trainer = bp.Trainer(bp.Dense(2), "cross_entropy", compile=False).build(backend.array(x))
    figure = bp.plots.decision_boundary(trainer, backend.array(x), backend.array(y))
    assert sum(len(line.get_xdata()) for line in figure.axes[0].lines) == 20
    matrix = bp.plots.confusion_matrix(backend.array(y), trainer.predict(backend.array(x)))
    assert sum(int(text.get_text()) for text in matrix.axes[0].texts) == 20
    assert bp.plots.weights(trainer, (1, 2)).axes[0].images


def test_the_shades_of_a_quantity(mpl: Any) -> None:
    trainer = linear([[2.0], [1.0]], [5.0], "mse")
    x = np.random.default_rng(0).uniform(0.0, 1.0, (30, 2))
    axes, bar = bp.plots.decision_boundary(trainer, x, (x @ [2.0, 1.0] + 5.0)[:, None]).axes
    assert bar.get_ylabel() == "prediction; points: true"
    low, high = bar.get_ylim()
    assert low <= 5.1 < 7.9 <= high
    own = mpl.figure.Figure().subplots()
    assert bp.plots.decision_boundary(trainer, x, axes=own) is own.figure
    assert axes.get_xlabel() == own.get_xlabel() == "feature 0"


def test_first_layer_weights_are_images(mpl: Any) -> None:
    weight = np.arange(36.0).reshape(9, 4) - 18.0
    trainer = linear(weight, np.zeros(4), "mse")
    figure = bp.plots.weights(trainer)
    (image,) = figure.axes[0].images
    tiles = np.ma.filled(image.get_array(), NAN)
    np.testing.assert_array_equal(tiles[:3, :3], weight[:, 0].reshape(3, 3))
    np.testing.assert_array_equal(tiles[4:, 4:], weight[:, 3].reshape(3, 3))
    assert np.isnan(tiles[3]).all()
    assert image.get_clim() == (-18.0, 18.0), "zero lies in the middle"
    assert bp.plots.weights(trainer, (1, 3, 3)).axes[0].images[0].get_array().shape[2] == 4
    with pytest.raises(OptionError, match=r"shape is \(2, 5\); expected \(height, width\) .*, 9 numbers in all"):
        bp.plots.weights(trainer, (2, 5))
    with pytest.raises(OptionError, match="2 inputs, which are no square: pass shape="):
        bp.plots.weights(linear([[1.0], [1.0]], [0.0], "mse"))


@pytest.mark.parametrize("how", ["labels", "outputs", "texts"])
def test_a_confusion_matrix_counts(how: str, mpl: Any) -> None:
    names = ["ash", "birch", "oak"]
    y, said = np.array([0, 0, 0, 1, 2, 2]), np.array([0, 0, 1, 1, 2, 0])
    given = {
        "labels": (y.tolist(), said),
        "outputs": (y[:, None], np.eye(3)[said] - 5.0),
        "texts": ([names[k] for k in y], np.array(names)[said]),
    }[how]
    axes = bp.plots.confusion_matrix(*given, names=names).axes[0]
    counts = {text.get_position()[::-1]: text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "2", (0, 1): "1", (1, 1): "1", (2, 2): "1", (2, 0): "1"}
    np.testing.assert_allclose(axes.images[0].get_array().sum(axis=1), 1.0)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == names
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert axes.get_title() == "66.67% of 6 rows right"


def test_true_against_predicted_quantities(mpl: Any) -> None:
    y = np.random.default_rng(0).normal(size=(6000, 2))
    figure = bp.plots.predictions(y, y + np.array([0.0, 1.0]), names=["speed", "height"])
    assert [axes.get_title() for axes in figure.axes] == [
        "speed: R² 1.000, mean |error| 0", f"height: R² {1 - 1 / y[:, 1].var():.3f}, mean |error| 1",
    ]  # fmt: skip
    line, points = figure.axes[1].lines
    np.testing.assert_array_equal(*line.get_data())
    assert len(points.get_xdata()) == 5000
    np.testing.assert_allclose(points.get_xdata(), points.get_ydata() + 1.0)
    assert figure.axes[1].get_xlabel() == "predicted (5,000 of 6,000 rows)"
    (axes,) = bp.plots.predictions([1.0, NAN, 2.0], [1.0, 2.0, 3.0]).axes
    assert axes.get_xlabel() == "predicted (1 not finite)"


def test_what_can_not_be_shown_of_a_trainer(mpl: Any) -> None:
    trainer, x = linear(np.ones((3, 2)), [0.0, 0.0], "cross_entropy"), np.ones((4, 2))
    plane = linear(np.ones((2, 2)), [0.0, 0.0], "mse")
    for draw, error, said in [
        (lambda: bp.plots.decision_boundary(bp.Dense(2), x), ArgumentError, "trainer is of type Dense; expected a bpn"),
        (lambda: bp.plots.weights(bp.Trainer(bp.Dense(2), "mse")), NotBuiltError, "no parameters yet"),
        (lambda: bp.plots.decision_boundary(trainer, np.ones((4, 3))), ShapeError, r"\(4, 3\); expected \(rows, 2\)"),
        (lambda: bp.plots.decision_boundary(plane, [[NAN, 1.0]]), DataError, "not finite"),
        (lambda: bp.plots.decision_boundary(plane, x), OptionError, "2 outputs; expected one quantity, or classes"),
        (lambda: bp.plots.decision_boundary(plane, x, [1, 2]), ShapeError, "y has 2 rows and x 4"),
        (lambda: bp.plots.confusion_matrix([0, 1], [0]), ShapeError, "y has 2 rows and predicted 1"),
        (lambda: bp.plots.confusion_matrix([0, 5], [0, 1], names=["a", "b"]), OptionError, "there is a class 5"),
        (lambda: bp.plots.confusion_matrix(["x"], ["y"], names=["x"]), OptionError, "names lacks y"),
        (lambda: bp.plots.predictions(x, x, axes=5), OptionError, "2 quantities, but axes for one"),
        (lambda: bp.plots.predictions(x[:, 0], x[:, 0], axes=5), ArgumentError, "axes is of type int"),
        (lambda: bp.plots.history([1.0]), ArgumentError, "history is of type list; expected a bpnet History"),
        (lambda: bp.plots.predictions(["a"], [1.0]), DTypeError, "y holds <U1 values; expected numbers"),
        (lambda: bp.plots.predictions([[1.0], [1.0, 2.0]], [1.0]), ArgumentError, "makes no array"),
        (lambda: bp.plots.confusion_matrix("abc", [1]), ArgumentError, "y is of type str; expected an array"),
        (lambda: bp.plots.confusion_matrix([0], [0], names=5), ArgumentError, "names is of type int"),
        (lambda: bp.plots.predictions(x, x[:, :1]), ShapeError, r"\(4, 2\) and predicted \(4, 1\)"),
    ]:
        with pytest.raises(error, match=said):
            draw()


# ---- while it trains ------------------------------------------------------------------------------------------------


def fitted(callbacks: list[Any], epochs: int = 4) -> bp.Trainer:
    x = np.random.default_rng(0).normal(size=(24, 3))
    trainer = bp.Trainer(bp.Dense(1), "mse", "sgd", compile=False)
    trainer.fit(x, x[:, :1], epochs=epochs, batch_size=12, validation=(x, x[:, :1]), callbacks=callbacks)
    return trainer


def shown_in(text: str) -> list[str]:
    """What a terminal shows after a text: its lines, without blanks at their ends."""
    rows, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[\d*[A-Z]|\r|\n|[^\x1b\r\n]+", text):
        if part == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif part == "\r":
            column = 0
        elif part[0] != "\x1b":
            rows[row] = rows[row][:column].ljust(column) + part + rows[row][column + len(part) :]
            column += len(part)
        elif part[-1] == "A":
            row -= int(part[2:-1])
        else:
            rows[row] = rows[row][:column]
            if part[-1] == "J":
                del rows[row + 1 :]
    return [line.rstrip() for line in rows]


def test_a_terminal_shows_curves_that_grow_in_their_place(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stream(True)
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setattr("time.monotonic", iter(range(1000, 9999)).__next__)  # every step and epoch is drawn
    trainer = fitted(["live_plot"])
    text = stream.getvalue()
    assert 2 <= text.count("loss   ") <= 4, "one drawing an epoch at most"
    assert text.count("1/2") == 4, "and one bar"
    rows = shown_in(text)
    want = terminal.written(terminal.lines_of(curves.panels(trainer.history.epochs), 79)).split("\n")
    assert rows[: len(want)] == [row.rstrip() for row in want]
    assert rows[len(want)].startswith("epoch   4  loss ")
    assert rows[len(want) + 1 :] == [""]


def test_a_file_gets_a_line_an_epoch_and_the_curves_at_the_end() -> None:
    stream = Stream()
    fitted([bp.LivePlot(stream=stream)])
    lines = stream.getvalue().split("\n")
    assert [line[:9] for line in lines[:5]] == ["epoch   1", "epoch   2", "epoch   3", "epoch   4", "loss   ⠤⠤"]
    assert "\x1b" not in stream.getvalue()


def test_a_notebook_shows_one_figure_that_changes(monkeypatch: pytest.MonkeyPatch, mpl: Any) -> None:
    kernel = type("OutStream", (Stream,), {"__module__": "ipykernel.iostream"})
    monkeypatch.setattr(sys, "stdout", kernel())
    shown: list[Any] = []
    handle = SimpleNamespace(update=lambda figure: shown.append((figure, figure.axes[0].lines[0].get_xdata().tolist())))

    def display(first: Any, display_id: bool) -> Any:
        shown.append(first)
        return handle

    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    monkeypatch.setattr("time.monotonic", iter(range(1000, 9999)).__next__)
    live = bp.LivePlot(["loss"], seconds=0.0)
    fitted([live])
    first, *updates = shown
    assert str(first) == ""
    assert {figure for figure, _ in updates} == {live.figure}
    grown = [points for _, points in updates]
    assert all(points == list(range(1, len(points) + 1)) for points in grown)
    assert (len(grown) >= 2, len(grown[-1])) == (True, 4)
