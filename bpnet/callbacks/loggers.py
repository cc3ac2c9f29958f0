"""Where records of epochs can go: a table in a file, TensorBoard, MLflow."""

import csv
import importlib
import io
import os
import time
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from bpnet.callbacks.base import Callback, Record
from bpnet.disk import append, checked_path, make_folder, open_ordinary, write_atomically
from bpnet.errors import MissingExtraError, PathError, path_error

if TYPE_CHECKING:
    from bpnet.trainer import Trainer


class CSVLogger(Callback):
    """A table of the epochs in a file: a line with the names of the quantities, and a line an epoch.

    The table is that of `trainer.history`, so a training that goes on, from a file too, goes on in its table, and a
    table of another training that was there is replaced.  A line is appended at the end of each epoch and handed to the
    system at once, which may lose the last ones in a power cut.  At the first epoch, and where one has a quantity that
    was not there before, the table is written anew, as a whole or not at all; what an epoch lacks is left empty.

    Raises PathError, which is an OSError, where nothing can be written, or where there is a file that is no such table.
    """

    only_first = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = checked_path(path)

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        self.columns: Sequence[str] = ()
        make_folder(os.path.dirname(self.path))
        if not os.path.lexists(self.path):
            return
        try:
            with open_ordinary(self.path) as file:
                begin = file.read(len(FIRST))
        except OSError as error:
            raise path_error(f"{self.path} can't be read", error) from error
        if begin not in (b"", FIRST):
            raise PathError(f"{self.path} is there and no table of epochs, so it is left alone: choose another name")

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        if not record.keys() <= set(self.columns) or not os.path.exists(self.path):
            records = [*trainer.history]
            self.columns = list(dict.fromkeys(("epoch", *(name for each in records for name in each))))
            with write_atomically(self.path, "w", encoding="utf-8", newline="") as file:
                file.write(_lines([dict(zip(self.columns, self.columns, strict=True)), *records], self.columns))
            return
        append(self.path, _lines([record], self.columns).encode())


FIRST = b"epoch"
"""How a table of epochs begins."""


def _lines(records: Iterable[Record], columns: Sequence[str]) -> str:
    text = io.StringIO()
    csv.DictWriter(text, columns, lineterminator="\n").writerows(records)
    return text.getvalue()


class TensorBoard(Callback):
    """The numbers of every epoch's record for TensorBoard, which shows the files in `folder`: `tensorboard --logdir`.

    Each is a scalar by its name in the record, over the epochs.  Raises MissingExtraError without the package
    tensorboard, of which neither TensorFlow nor PyTorch is needed.
    """

    only_first = True

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = checked_path(folder)
        self._module("summary.writer.event_file_writer")

    @staticmethod
    def _module(name: str) -> Any:
        return _imported(f"tensorboard.{name}", "TensorBoard(...)", "tensorboard")

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        make_folder(self.folder)
        self._writer = self._module("summary.writer.event_file_writer").EventFileWriter(self.folder)

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        summary = self._module("compat.proto.summary_pb2").Summary
        event = self._module("compat.proto.event_pb2").Event
        values = [summary.Value(tag=name, simple_value=value) for name, value in _numbers(record).items()]
        self._writer.add_event(event(wall_time=time.time(), step=record["epoch"], summary=summary(value=values)))
        self._writer.flush()

    def on_train_end(self, trainer: "Trainer") -> None:
        self._writer.close()


class MLflow(Callback):
    """The numbers of every epoch's record as metrics of MLflow, over the epochs.

        with mlflow.start_run(run_name="wide"):
            trainer.fit(x, y, epochs=10, callbacks=[bp.MLflow()])

    They go into the run that is active; where none is, into one of its own, which has network, loss, optimizer and seed
    as parameters and ends with the training: as "KILLED" where that was interrupted, as "FAILED" where something
    raised.  Raises MissingExtraError without the package mlflow or mlflow-skinny.
    """

    only_first = True

    def __init__(self) -> None:
        self._module()

    @staticmethod
    def _module() -> Any:
        return _imported("mlflow", "MLflow()", "mlflow")

    def on_train_begin(self, trainer: "Trainer", epochs: int, steps: int) -> None:
        mlflow = self._module()
        self._own, self._status = mlflow.active_run() is None, "FINISHED"
        if self._own:
            mlflow.start_run()
            options = {name: getattr(trainer, name) for name in ("network", "loss", "optimizer", "seed")}
            try:
                mlflow.log_params({name: str(value)[:LONGEST] for name, value in options.items()})
            except BaseException:  # who could not begin is not told of the end
                mlflow.end_run("FAILED")
                raise

    def state_dict(self) -> dict[str, Any]:
        return {"run": self._module().active_run().info.run_id if self._own else None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on in the run that the training had, instead of the one that has just begun."""
        if self._own and state["run"] is not None:
            mlflow = self._module()
            begun = mlflow.active_run().info.run_id
            mlflow.end_run("KILLED")
            mlflow.delete_run(begun)
            mlflow.start_run(run_id=state["run"])

    def on_epoch_end(self, trainer: "Trainer", record: Record) -> None:
        self._module().log_metrics(_numbers(record), step=record["epoch"])

    def on_exception(self, trainer: "Trainer", error: BaseException) -> None:
        self._status = "FAILED" if isinstance(error, Exception) else "KILLED"

    def on_train_end(self, trainer: "Trainer") -> None:
        if self._own:
            self._module().end_run(self._status)


LONGEST = 500
"""Characters of a parameter that every version of MLflow takes."""


def _imported(module: str, what: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(what, package, package) from error


def _numbers(record: Record) -> dict[str, float]:
    """What of a record is a number, but for that of the epoch."""
    return {name: float(value) for name, value in record.items() if type(value) in (int, float) and name != "epoch"}
