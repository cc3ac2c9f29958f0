"""What was recorded of each epoch."""

import importlib
import os
from collections.abc import Collection, Iterator, Sequence
from typing import Any, Protocol

from bpnet.callbacks.base import Record
from bpnet.errors import ArgumentError, RecordError, closest, kind_of, shown
from bpnet.table import html_table

MOST_ROWS, FIRST_ROWS = 60, 10
"""How many epochs a notebook shows, and how many of them are the first."""


class Later(Protocol):
    """Records that can be made."""

    def __len__(self) -> int: ...

    def made(self) -> list[Record]: ...


class History:
    """One record an epoch: `history["val_loss"]` is a list over the epochs, `history.epochs` the records."""

    def __init__(self, epochs: list[Record] | None = None) -> None:
        if epochs is not None and not (isinstance(epochs, list) and all(isinstance(e, dict) for e in epochs)):
            raise ArgumentError(f"epochs is {kind_of(epochs)}; expected a list of records, each a dict")
        self._epochs: list[Record] | Later = [] if epochs is None else epochs

    @classmethod
    def later(cls, records: "Later") -> "History":
        """One whose records are made once somebody looks at them: those of a file may be many."""
        made = cls()
        made._epochs = records
        return made

    @property
    def epochs(self) -> list[Record]:
        """The records."""
        if not isinstance(self._epochs, list):
            self._epochs = self._epochs.made()
        return self._epochs

    @epochs.setter
    def epochs(self, records: list[Record]) -> None:
        self._epochs = records

    def __getitem__(self, name: str) -> list[Any]:
        names = {key for record in self.epochs for key in record}
        if not isinstance(name, str):
            raise ArgumentError(
                f"history[{shown(name)}]: expected the name of a recorded quantity, such as 'loss'; the records of the "
                "epochs are history.epochs"
            )
        if name not in names:
            raise RecordError(unrecorded(f"{shown(name)} was not recorded", name, sorted(names)))
        return [record.get(name) for record in self.epochs]

    def __len__(self) -> int:
        return len(self._epochs)

    def __iter__(self) -> Iterator[Record]:
        return iter(self.epochs)

    def plot(
        self,
        path: str | os.PathLike[str] | None = None,
        *,
        names: Sequence[str] | None = None,
        monitor: str | None = None,
        terminal: bool = False,
        figure: Any = None,
    ) -> Any:
        """Curves of the loss, the metrics, the learning rate and norms over the epochs: see `bpnet.plots.history`."""
        draw = importlib.import_module("bpnet.plots").history
        return draw(self, path, names=names, monitor=monitor, terminal=terminal, figure=figure)

    def __repr__(self) -> str:
        return "\n".join(["History", *(f"  {describe(record)}" for record in self.epochs)])

    def _repr_html_(self) -> str:
        """A row an epoch; of a long training the first and the last."""
        names = list(dict.fromkeys(name for record in self.epochs for name in _told(record)))
        rows = [[_cell(record, name) for name in ("epoch", *names, "lr", "seconds")] for record in self.epochs]
        if len(rows) > MOST_ROWS:
            left_out = len(rows) - MOST_ROWS
            rows[FIRST_ROWS : FIRST_ROWS + left_out] = [[f"... {left_out:,}", *[""] * (len(names) + 2)]]
        return html_table(("epoch", *names, "lr", "seconds"), rows, left=0)


def _told(record: Record) -> Sequence[str]:
    """The quantities that a line shows: norms and the like, which have a slash in their names, are too many."""
    hidden = ("lr", "seconds")
    return [
        name for name, value in record.items() if isinstance(value, float) and name not in hidden and "/" not in name
    ]


def _cell(record: Record, name: str) -> str:
    value = record.get(name)
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else f"{value}"


def describe(record: Record) -> str:
    """A record in one line."""
    values = [f"{name} {record[name]:#.4g}" for name in _told(record)]
    return "  ".join([f"epoch {record['epoch']:>3}", *values, f"{record['seconds']:.2f} s"])


def unrecorded(text: str, name: str, names: Collection[str]) -> str:
    """`text`, what was recorded instead, and which of it was probably meant."""
    meant = closest(name, names)
    hint = f"did you mean {meant!r}? " if meant else ""
    return f"{text}: {hint}recorded are {', '.join(names)}" if names else f"{text}: no epoch has ended yet"
