"""Columns by their names, as users give them: with commas between, as patterns, with a letter wrong."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase

from bpnet.cli.dataset import Request
from bpnet.cli.terminal import names
from bpnet.errors import DataError, OptionError


class Names:
    """The names of the columns of a data set, and what users mean by them."""

    def __init__(self, name: str, found: Sequence[str], hint: str = "") -> None:
        self.name = name
        self.position: dict[str, int] = {}
        for i, column in enumerate(found):
            if column in self.position:
                same = f"column {column!r}" if column.strip() else "column without a name"
                raise DataError(f"{name} has more than one {same}: numbers {self.position[column] + 1} and {i + 1}")
            if not column.startswith("__index_level_"):  # as pandas calls the names of rows, which are no column
                self.position[column] = i
        self.hint = hint if len(found) == 1 else ""

    def title(self, name: str) -> str:
        """What messages call a column: by its number where it has no name."""
        return f"column {name!r}" if name.strip() else f"column {self.position[name] + 1} (unnamed)"

    def __str__(self) -> str:
        return names(name if name.strip() else self.title(name) for name in self.position) + self.hint

    def find(self, name: str) -> str:
        """The column of that name, with or without blanks around it; raises DataError."""
        if name in self.position:
            return name
        bare = [known for known in self.position if known.strip() == name]
        if len(bare) == 1:
            return bare[0]
        close = get_close_matches(name, self.position, n=1)
        meant = f"did you mean {close[0]!r}? " if close else ""
        raise DataError(f"{self.name} has no column {name!r}: {meant}it has {self}")

    def select(self, given: Iterable[str]) -> list[str]:
        """The columns that names mean, also several with commas between, and patterns such as `bill_*`."""
        found: list[str] = []
        for text in given:
            parts = [text] if text in self.position else [part.strip() for part in text.split(",")]
            for part in parts:
                some = [name for name in self.position if any(c in part for c in "*?") and fnmatchcase(name, part)]
                found += [name for name in some or [self.find(part)] if name not in found]
        return found

    def chosen(self, request: Request) -> tuple[list[str], list[str], list[str]]:
        """Target, features and keys of a request; raises OptionError or DataError where they don't fit together."""
        targets = self.select(request.targets)
        if not targets and request.labelled:
            which = "with the true values" if request.evaluates else "to predict"
            raise OptionError(f"--target must name the column of {self.name} {which}: {self}")
        drop, keys = self.select(request.drop), self.select(request.keys)
        for name in targets:
            if name in drop:
                raise OptionError(f"--drop {name} is the target, which can't be left out")
        if missing := [repr(name) for name in request.known or () if name not in self.position]:
            these = f"column{'s' * (len(missing) > 1)} {names(missing)}"
            raise DataError(f"{self.name} lacks the {these} of the model{self.hint}")
        if request.known is not None:
            features = list(request.known)
        elif request.features:
            features = self.select(request.features)
            for name in targets:
                if name in features:
                    raise OptionError(f"--features has {name!r}, which is the target")
            features = [name for name in features if name not in drop]
        else:
            features = [name for name in self.position if name not in (*targets, *drop)]
        strange = [name for name in request.types if name not in (*targets, *features)]
        for name in strange:
            self.find(name)  # which refuses it
            raise OptionError(f"--types says what {name!r} is, which is neither a feature nor the target")
        if not (features or keys) and targets:
            raise DataError(beside(self.name, targets))
        return targets, features, keys


def beside(name: str, targets: Sequence[str]) -> str:
    """That there is nothing to learn from."""
    return f"{name} has no column beside the target {', '.join(map(repr, targets))} to learn from"
