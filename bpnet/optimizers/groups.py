"""Other options, another optimizer or none for some leaves, by name."""

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fnmatch import translate
from functools import lru_cache
from typing import Any

from bpnet.backends.base import Array, Backend
from bpnet.errors import ArgumentError, OptionError, kind_of
from bpnet.layout import Layout, Slot
from bpnet.optimizers.base import Evaluate, Optimizer, State
from bpnet.options import few
from bpnet.registry import resolve


@dataclass(frozen=True)
class Part:
    """Some leaves of a layout: a layout of their own, and where they lie in the whole vector."""

    layout: Layout
    runs: tuple[slice, ...]

    def of(self, backend: Backend, vector: Array) -> Array:
        """Their part of a vector like theta, one after the other."""
        found = [vector[run] for run in self.runs]
        return found[0] if len(found) == 1 else backend.concat(found)


@lru_cache(maxsize=64)
def _fitting(patterns: tuple[str, ...]) -> list[Callable[[str], Any]]:
    """For each pattern, what says whether a name fits it."""
    return [re.compile(translate(pattern)).match for pattern in patterns]


def together(backend: Backend, parts: Sequence[Part], vectors: Sequence[Array]) -> Array:
    """The whole vector of the parts' own: the inverse of `Part.of`."""
    pieces: list[tuple[int, Array]] = []
    for part, vector in zip(parts, vectors, strict=True):
        start = 0
        for run in part.runs:
            size = run.stop - run.start
            pieces.append((run.start, vector[start : start + size]))
            start += size
    ordered = [piece for _, piece in sorted(pieces, key=lambda piece: piece[0])]
    return ordered[0] if len(ordered) == 1 else backend.concat(ordered)


def part_of(layout: Layout, slots: Sequence[Slot]) -> Part | None:
    """The part of these leaves, in their order in `layout`; None where there are none."""
    found: list[slice] = []
    for slot in slots:
        if found and found[-1].stop == slot.part.start:
            found[-1] = slice(found[-1].start, slot.part.stop)
        else:
            found.append(slot.part)
    return Part(layout.part(slots), tuple(found)) if slots else None


@dataclass(frozen=True)
class Grouped(Optimizer):
    """`base`, but for leaves by name: with other options, by another optimizer, or frozen.

        bp.Grouped(bp.AdamW(1e-3), groups={"*.bias": {"lr": 1e-4}, "0.*": None, "9.weight": bp.SGD(0.1)})

    A leaf is in the first group whose pattern fits its name, as `trainer.layout` has it: "0.weight".  In a pattern *
    stands for any text, ? for a character, [ab] for a or b.  A group has options that replace those of `base`, an
    optimizer of its own, or None: then its leaves stay as they are.  Each group is an optimizer with a state of its
    own, which sees no other parameters; so norms, as of `Clip` inside, are those of the group.
    """

    base: Optimizer
    groups: Any
    """As given; kept as pairs of a pattern and an optimizer, or None."""

    example = ("sgd", (("*.bias", None),))

    def __post_init__(self) -> None:
        self._set(base=resolve(Optimizer, "base", self.base))
        pairs = self.groups.items() if isinstance(self.groups, Mapping) else self.groups
        if not isinstance(self.groups, Mapping | list | tuple) or not all(
            isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], str) for pair in pairs
        ):
            raise ArgumentError(
                f"groups is {kind_of(self.groups)}; expected a dict from patterns of names to options, optimizers or "
                'None: {"*.bias": {"lr": 1e-4}}'
            )
        pairs = few("groups", list(pairs))
        self._set(groups=tuple((pattern, self._of_group(pattern, value)) for pattern, value in pairs))

    def _of_group(self, pattern: str, value: Any) -> Optimizer | None:
        if value is None:
            return None
        what = f"groups[{pattern!r}]"
        if not isinstance(value, Mapping):
            other: Optimizer = resolve(Optimizer, what, value)
            return other
        known = [f.name for f in fields(self.base)]  # type: ignore[arg-type]
        for name in value:
            if name not in known:
                raise OptionError(f"{what} has the option {name!r}; {self.base} has {', '.join(known)}")
        changed: Optimizer = replace(self.base, **value)  # type: ignore[type-var]
        return changed

    @property
    def lr(self) -> Any:  # type: ignore[override]
        return self.base.lr

    @property
    def traceable(self) -> bool:  # type: ignore[override]
        return all(optimizer is None or optimizer.traceable for optimizer in self._members)

    @property
    def _members(self) -> tuple[Optimizer | None, ...]:
        return self.base, *(optimizer for _, optimizer in self.groups)

    @property
    def state_names(self) -> tuple[str, ...]:
        return tuple(name for member in self._members if member is not None for name in member.state_names)

    def state_names_of(self, layout: Layout) -> tuple[str, ...]:
        pairs = [(p, m) for p, m in zip(self._parts(layout), self._members, strict=True) if p is not None]
        return tuple(
            name for part, member in pairs if member is not None for name in member.state_names_of(part.layout)
        )

    def learning_rate(self, step: int) -> float:
        return self.base.learning_rate(step)

    def hyperparameters_at(self, step: int, lr_scale: float = 1.0) -> tuple[Any, ...]:
        return tuple(() if member is None else member.hyperparameters_at(step, lr_scale) for member in self._members)

    def _parts(self, layout: Layout) -> list[Part | None]:
        """Of `base`, and of each group; found once for a layout."""
        patterns = tuple(pattern for pattern, _ in self.groups)
        found = layout.parted.get(patterns)
        if found is None:
            slots: list[list[Slot]] = [[] for _ in self._members]
            fits = _fitting(patterns)
            for slot in layout.parameters:
                slots[next((i for i, fit in enumerate(fits, 1) if fit(slot.name)), 0)].append(slot)
            found = layout.parted.setdefault(patterns, [part_of(layout, some) for some in slots])
        return found

    def init(self, backend: Backend, layout: Layout, theta: Array) -> State:
        names = [slot.name for slot in layout.parameters]
        patterns = tuple(pattern for pattern, _ in self.groups)
        for pattern, fit in zip(patterns, _fitting(patterns), strict=True):
            if not any(map(fit, names)):
                raise OptionError(f"groups: no parameter fits {pattern!r}; they are {', '.join(names)}")
        state: State = ()
        for part, member in zip(self._parts(layout), self._members, strict=True):
            if part is not None and member is not None:
                own = member.init(backend, part.layout, backend.copy(part.of(backend, theta)))
                called = member.state_names_of(part.layout)
                if len(own) != len(called):
                    has = f"{member} has {len(own)} arrays of state, but state_names {called}"
                    raise OptionError(f"{has}: in groups each needs a name")
                state += own
        return state

    def _each(self, layout: Layout, state: State) -> list[tuple[int, Part, Optimizer | None, State]]:
        """The parts, each with its number, its optimizer and its state."""
        found, start = [], 0
        for i, (part, member) in enumerate(zip(self._parts(layout), self._members, strict=True)):
            if part is not None:
                count = 0 if member is None else len(member.state_names_of(part.layout))
                found.append((i, part, member, state[start : start + count]))
                start += count
        return found

    def update(
        self, backend: Backend, layout: Layout, theta: Array, grad: Array, state: State,
        hyperparameters: tuple[Any, ...], evaluate: Evaluate | None = None,
    ) -> tuple[Array, State]:  # fmt: skip
        each = self._each(layout, state)
        parts = [part for _, part, _, _ in each]
        before = [part.of(backend, theta) for part in parts]
        after: list[Array] = []
        kept: State = ()
        for k, (i, part, member, own) in enumerate(each):
            if member is None:
                after.append(before[k])
                continue

            def at(values: Array, k: int = k, part: Part = part) -> tuple[Array, Array]:
                assert evaluate is not None
                value, whole = evaluate(together(backend, parts, [*before[:k], values, *before[k + 1 :]]))
                return value, part.of(backend, whole)

            grads = part.of(backend, grad)
            args = backend, part.layout, before[k], grads, own, hyperparameters[i], None if evaluate is None else at
            values, own = member.update(*args)
            after.append(values)
            kept += own
        return together(backend, parts, after), kept

    def by_rows(self, layout: Layout, state: State, tables: Collection[str]) -> tuple[Layout | None, ...]:
        found: tuple[Layout | None, ...] = ()
        for _, part, member, own in self._each(layout, state):
            names = [slot.name for slot in part.layout.parameters if slot.name in tables]
            found += member.by_rows(part.layout, own, names) if names and member is not None else (None,) * len(own)
        return found

    def evaluation(self, backend: Backend, layout: Layout, theta: Array, state: State) -> Array:
        each = self._each(layout, state)
        own = [part.of(backend, theta) for _, part, _, _ in each]
        seen = [
            values if member is None else member.evaluation(backend, part.layout, values, kept)
            for values, (_, part, member, kept) in zip(own, each, strict=True)
        ]
        if all(a is b for a, b in zip(own, seen, strict=True)):
            return theta
        return together(backend, [part for _, part, _, _ in each], seen)

    def restart(self, backend: Backend, layout: Layout, theta: Array, state: State) -> State:
        return tuple(
            array
            for _, part, member, kept in self._each(layout, state)
            if member is not None
            for array in member.restart(backend, part.layout, part.of(backend, theta), kept)
        )
