"""All that writes files, each as a function of the file's name, for tests of what a failing disk leaves of them."""

import contextlib
import io
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpnet as bp
from support.syscalls import mark


class Refused(Exception):
    """A command ended with another status than 0."""

    def __init__(self, status: int, said: str) -> None:
        super().__init__(status, said)
        self.status, self.said = status, said

    def __str__(self) -> str:
        return f"status {self.status}: {self.said}"


def command(*args: Any) -> None:
    """Run `bpnet ...` in this process."""
    cli = pytest.importorskip("bpnet.cli", reason="the command line is not installed")
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            cli.app([str(arg) for arg in args], prog_name="bpnet")
        except SystemExit as ended:
            if ended.code:
                raise Refused(int(ended.code), err.getvalue()) from None


@lru_cache(maxsize=1)
def data() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((24, 3)).astype("float32")
    return x, (x[:, 0] > 0).astype("int64")


def network() -> bp.Sequential:
    return bp.Sequential(bp.Dense(4, "tanh"), bp.Dense(2))


@lru_cache(maxsize=1)
def trainer() -> bp.Trainer:
    made = bp.Trainer(network(), "cross_entropy", bp.SGD(0.1), seed=1, compile=False)
    made.fit(*data(), epochs=2, batch_size=8, progress=False)
    return made


@lru_cache(maxsize=1)
def table() -> Any:
    x, y = data()
    columns = {"a": x[:, 0].tolist(), "b": x[:, 1].tolist(), "kind": ["yes" if label else "no" for label in y]}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return bp.train_table(columns, target="kind", epochs=2, progress=False), columns


@dataclass(frozen=True)
class Writer:
    """`write(path)` writes the file or folder `target` of a folder.

    Where something is to be there before, `prepare(path)` puts it there, or else a file with the bytes `old`.  A judge
    says what is wrong with a folder, {name: content}, or gives None: `judge(files, before, new, ended)` where `before`
    and `new` are the folders before and after an undisturbed writing, and `ended` whether it has returned.
    """

    name: str
    target: str
    write: Callable[[Path], None]
    old: bytes = b"what was there before"
    needs: tuple[str, ...] = ()
    prepare: Callable[[Path], Any] | None = None
    judge: Callable[[Mapping[str, bytes], Mapping[str, bytes], Mapping[str, bytes], bool], str | None] | None = None

    def wrong(
        self, files: Mapping[str, bytes], before: Mapping[str, bytes], new: Mapping[str, bytes], ended: bool
    ) -> str | None:
        if self.judge is not None:
            return self.judge(files, before, new, ended)
        found = files.get(self.target)
        if found == new[self.target] or (not ended and found == before.get(self.target)):
            return None
        return f"{self.target} holds {'nothing' if found is None else found[:40]}... ({len(found or b'')} bytes)"

    @property
    def missing(self) -> str:
        """The first package without which it can't be tried."""
        return next((name for name in self.needs if find_spec(name) is None), "")

    def put_before(self, path: Path) -> None:
        if self.prepare is None:
            path.write_bytes(self.old)
        else:
            self.prepare(path)


def contents(state: Mapping[str, bytes | None]) -> dict[str, bytes]:
    """The files of a folder, without those that are not complete, and locks."""
    return {
        path: content
        for path, content in state.items()
        if content is not None and not Path(path).name.startswith((".bpnet-", ".lock"))
    }


def _whole_models(
    files: Mapping[str, bytes], before: Mapping[str, bytes], new: Mapping[str, bytes], ended: bool
) -> str | None:
    """Every file of a folder of models is one, and once the training has ended the last ones are there."""
    for name, content in files.items():
        if not _is_model(content):
            return f"{name} is no model: {len(content)} bytes"
    if ended and not set(new) <= set(files):
        return f"there are {sorted(files)}; expected {sorted(new)}"
    return None


def _a_model(
    files: Mapping[str, bytes], before: Mapping[str, bytes], new: Mapping[str, bytes], ended: bool
) -> str | None:
    """A model of a training of its own, which took other seconds."""
    found = files.get("model.safetensors")
    if (not ended and found == before.get("model.safetensors")) or (found is not None and _is_model(found)):
        return None
    return f"model.safetensors holds {'nothing' if found is None else found[:40]}..."


@lru_cache(maxsize=4096)
def _is_model(content: bytes) -> bool:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".safetensors") as file:
        file.write(content)
        file.flush()
        try:
            bp.load(file.name)
        except bp.errors.FileFormatError:
            return False
    return True


def _lines(
    files: Mapping[str, bytes], before: Mapping[str, bytes], new: Mapping[str, bytes], ended: bool
) -> str | None:
    """A table of epochs has its first two lines; those that were appended are not promised to be on the disk."""
    found = files.get("log.csv")
    if found == before.get("log.csv"):
        return "there is no new table" if ended else None
    rows = (found or b"").decode("utf-8", "replace").split("\n")
    wanted = new["log.csv"].decode().split("\n")[0]
    if len(rows) < 3 or rows[0] != wanted or rows[1].count(",") != wanted.count(","):
        return f"log.csv holds {(found or b'')[:200]!r}"
    return None


def fit(epochs: int = 3, **options: Any) -> bp.Trainer:
    made = bp.Trainer(network(), "cross_entropy", bp.Adam(0.1), seed=1, compile=False)
    made.fit(*data(), epochs=epochs, batch_size=8, progress=False, **options)
    return made


def _each_epoch(path: Path) -> None:
    fit(callbacks=[bp.ModelCheckpoint(path / "{epoch}.safetensors", monitor=None, keep=2)])


def _log(path: Path) -> None:
    fit(callbacks=[bp.CSVLogger(path)])


def _checkpoints(path: Path) -> None:
    from bpnet.files.folder import Folder

    write = Folder.write

    def marked(self: Any, checkpoint: Any, number: int, keep: int) -> str:
        name = write(self, checkpoint, number, keep)
        mark(path.parent, f"step {number}")
        return name

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Folder, "write", marked)
        fit(checkpoint=path, every=2, keep=2, resume=True)


def _predictions(path: Path) -> None:
    from bpnet.cli.writing import Writer

    with Writer(path, 600, ("yes", "no")) as writer:
        writer.write({"kind": ["yes", "no"] * 300, "number": [0.1 * i for i in range(600)]})


def _numbers(path: Path) -> None:
    from bpnet.cli.writing import Writer

    with Writer(path, 600) as writer:
        writer.write({"number": [0.1 * i for i in range(600)]})


def _train(path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        command("train", _source(path), "--target", "kind", "--epochs", "2", "--output", path)


def _predict(path: Path) -> None:
    command("predict", _model(path), _source(path), "--output", path)


def _source(path: Path) -> Path:
    """A table in a folder beside that which is looked at."""
    source = path.parent.parent / "source.csv"
    if not source.exists():
        columns = table()[1]
        rows = [f"{a},{b},{kind}" for a, b, kind in zip(*columns.values(), strict=True)]
        source.write_text("\n".join(["a,b,kind", *rows * 4]) + "\n")
    return source


def _model(path: Path) -> Path:
    saved = path.parent.parent / "source.safetensors"
    if not saved.exists():
        table()[0].save(saved)
    return saved


def _export(path: Path) -> None:
    command("export", _model(path), "--to", "numpy", "--out", path)


@lru_cache(maxsize=1)
def _figures() -> Any:
    from bpnet.report import figures

    model, columns = table()
    return figures(model, columns, importance=False)


WRITERS = [
    Writer("Trainer.save", "model.safetensors", lambda path: trainer().save(path)),
    Writer("TableModel.save", "model.safetensors", lambda path: table()[0].save(path)),
    Writer(
        "fit(checkpoint=)", "run", _checkpoints, judge=_whole_models,
        prepare=lambda path: fit(1, checkpoint=path, every=2, keep=2),
    ),
    Writer("ModelCheckpoint", "run", _each_epoch, prepare=_each_epoch, judge=_whole_models),
    Writer("CSVLogger", "log.csv", _log, old=b"epoch,x\n", judge=_lines),
    Writer("report", "report.html", lambda path: _figures().html(path)),
    Writer("plot .png", "plot.png", lambda path: trainer().history.plot(path), needs=("matplotlib",)),
    Writer("plot .txt", "plot.txt", lambda path: trainer().history.plot(path)),
    Writer("to_onnx", "model.onnx", lambda path: bp.files.to_onnx(trainer(), path), needs=("onnx",)),
    Writer("to_numpy_source", "model.py", lambda path: bp.files.to_numpy_source(trainer(), path)),
    Writer("predictions .npy", "predictions.npy", _numbers),
    Writer("predictions .csv", "predictions.csv", _predictions),
    Writer("predictions .jsonl", "predictions.jsonl", _predictions),
    Writer("predictions .parquet", "predictions.parquet", _predictions, needs=("pyarrow",)),
    Writer("bpnet train", "model.safetensors", _train, needs=("typer",), judge=_a_model),
    Writer("bpnet predict", "predictions.csv", _predict, needs=("typer",)),
    Writer("bpnet export", "model.py", _export, needs=("typer",)),
]  # fmt: skip
