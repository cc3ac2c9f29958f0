"""The process that one method lives in, ``python -m bench.tables.child``: it learns table after table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bench.child import serve, versions
from bench.machine import clock, others
from bench.tables.methods import METHODS, learn, warm_up
from bench.tables.sets import Table, loss, split


class Session:
    """One method, and the table that it was given last."""

    def __init__(self, order: dict[str, Any]) -> None:
        self.folder, self.threads, self.method = Path(order["folder"]), order["threads"], METHODS[order["name"]]
        self.tables: dict[str, Table] = {}

    def warm(self) -> dict[str, Any]:
        """Import all that is needed, by a table that doesn't count; the versions of it."""
        table = warm_up()
        learn(self.method, table, table, 0, self.threads, clock)
        return {"versions": versions()}

    def learn(self, table: str, seed: int) -> dict[str, Any]:
        """Train and test on a table with a seed, which also decides which rows are held out."""
        if table not in self.tables:
            self.tables = {table: Table.read(self.folder / f"{table}.npz")}
        train, test = split(self.tables[table], seed)
        begun, fitted, ended, found = learn(self.method, train, test, seed, self.threads, clock)
        return {
            "loss": round(loss(found, test.target), 6),
            "rows": len(train),
            "fit_s": round(fitted[0] - begun[0], 4),
            "cpu_s": round(fitted[1] - begun[1], 4),
            "predict_s": round(ended[0] - fitted[0], 4),
            "busy": others(begun),
        }


if __name__ == "__main__":
    serve(Session)
