"""What a power cut may leave of a folder: a model of a file system that promises no more than POSIX does.

    log = trace(save, folder).calls
    for after, state in crashes(before, log, rng, limit): ...       # state: {path: bytes, or None for a folder}

On the disk is what was there before, and what `fsync` has put there: of a file its bytes, of a folder its names.  All
else that was done since is there or isn't, in every combination, whatever the order was, where these are few enough,
else in none, all, and random ones.  A write that was not synced may be there in half, or as zeros of the same length.
A rename is there as a whole or not at all, as everywhere; a new folder is lost with all in it as long as the folder
above it was not synced.
"""

import itertools
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support.syscalls import Call

State = Mapping[str, bytes | None]
"""By the path from the folder that is looked at: the bytes of a file; None of a folder, whose own path is "."."""


@dataclass
class _File:
    synced: bytes = b""
    pending: list[Call] = field(default_factory=list)


@dataclass
class _Folder:
    names: dict[str, Any] = field(default_factory=dict)
    """As they are on the disk: _File or _Folder."""
    current: dict[str, Any] = field(default_factory=dict)
    pending: list[tuple[tuple[str, Any], ...]] = field(default_factory=list)
    """What was done to names since: (name, what it stands for now, or None), of a rename for both names at once."""


def state_of(folder: str | os.PathLike[str]) -> dict[str, bytes | None]:
    """What is in a folder."""
    root = Path(folder)
    found: dict[str, bytes | None] = {".": None}
    for path in sorted(root.rglob("*")):
        assert not path.is_symlink(), "there is no model of links"
        found[str(path.relative_to(root))] = None if path.is_dir() else path.read_bytes()
    return found


def restore(state: State, folder: str | os.PathLike[str]) -> None:
    """Make an empty folder one with that in it."""
    for path, content in sorted(state.items()):
        target = Path(folder) / path
        if content is None:
            target.mkdir(exist_ok=True)
        else:
            target.write_bytes(content)


class Disk:
    """A folder, what is done to it, and what of that is on the disk."""

    def __init__(self, root: str | os.PathLike[str], before: State) -> None:
        self.root, self.top = os.path.realpath(root), _Folder()
        for path, content in sorted(before.items()):
            if path != ".":
                above, name = self._find(os.path.join(self.root, path))
                made = _Folder() if content is None else _File(content)
                above.names[name] = above.current[name] = made

    def _find(self, path: str) -> tuple[_Folder, str]:
        *folders, name = os.path.relpath(path, self.root).split(os.sep)
        place = self.top
        for part in folders:
            place = place.current[part]
        return place, name

    def _at(self, path: str) -> Any:
        if path == self.root:
            return self.top
        above, name = self._find(path)
        return above.current[name]

    def _rename(self, above: _Folder, *changes: tuple[str, Any]) -> None:
        for name, made in changes:
            above.current.pop(name, None)
            if made is not None:
                above.current[name] = made
        above.pending.append(changes)

    def do(self, call: Call) -> None:
        """What a call did; nothing where it failed."""
        if call.result < 0 or not call.changes:
            return
        if call.name == "fsync":
            self._sync(self._at(call.paths[0]))
            return
        if call.name == "write":
            self._at(call.paths[0]).pending.append(call)
            return
        above, name = self._find(call.paths[0])
        if call.name == "open" and not call.made:
            above.current[name].pending.append(Call("truncate", call.paths))
        elif call.name == "truncate":
            above.current[name].pending.append(call)
        elif call.name == "open":
            self._rename(above, (name, _File()))
        elif call.name == "mkdir":
            self._rename(above, (name, _Folder()))
        elif call.name in ("unlink", "rmdir"):
            self._rename(above, (name, None))
        else:
            assert call.name == "rename", call
            beside, other = self._find(call.paths[1])
            assert beside is above, "there is no model of a rename from one folder to another"
            self._rename(above, (name, None), (other, above.current[name]))

    def _sync(self, what: Any) -> None:
        if isinstance(what, _File):
            for call in what.pending:
                what.synced = applied(what.synced, call, "whole")
        else:
            what.names = dict(what.current)
        what.pending = []

    def crashed(self, rng: Any, limit: int, matters: Any = lambda path: True) -> Iterator[dict[str, bytes | None]]:
        """What a power cut now may leave, each once; more than `limit` combinations are drawn by `rng`.

        Of a file that does not matter (`matters(path)`) only what is synced is looked at.
        """
        seen = set()
        folders = [*self._folders(self.top)]
        choices = [(False, True)] * sum(len(folder.pending) for folder in folders)
        for choice in _chosen(choices, rng, limit):
            taken = iter(choice)
            names: dict[int, dict[str, Any]] = {}
            for folder in folders:
                entries = dict(folder.names)
                for changes in folder.pending:
                    if next(taken):
                        for name, made in changes:
                            entries.pop(name, None)
                            if made is not None:
                                entries[name] = made
                names[id(folder)] = entries
            files: dict[str, _File] = {}
            state: dict[str, bytes | None] = {".": None}
            _walk(self.top, "", names, files, state)
            unsure = [path for path, file in files.items() if file.pending and matters(path)]
            ways = [
                ("none", "whole") if call.name == "truncate" else ("none", "half", "zeros", "whole")
                for path in unsure
                for call in files[path].pending
            ]
            for way in _chosen(ways, rng, limit):
                left = iter(way)
                found = dict(state)
                for path in unsure:
                    content = files[path].synced
                    for call in files[path].pending:
                        content = applied(content, call, next(left))
                    found[path] = content
                key = tuple(sorted(found.items()))
                if key not in seen:
                    seen.add(key)
                    yield found

    def _folders(self, folder: _Folder) -> Iterator[_Folder]:
        """Those that are or were there."""
        yield folder
        of_changes = [made for changes in folder.pending for _, made in changes]
        below = [*folder.names.values(), *folder.current.values(), *of_changes]
        for what in {id(each): each for each in below}.values():
            if isinstance(what, _Folder):
                yield from self._folders(what)


def _walk(
    folder: _Folder, path: str, names: dict[int, dict[str, Any]], files: dict[str, _File], state: dict[str, Any]
) -> None:
    for name, what in names[id(folder)].items():
        own = os.path.join(path, name)
        if isinstance(what, _Folder):
            state[own] = None
            _walk(what, own, names, files, state)
        else:
            files[own], state[own] = what, what.synced


def applied(content: bytes, call: Call, way: str) -> bytes:
    """What a file holds after a write or a truncation that has got to the disk in one of these ways."""
    if way == "none":
        return content
    if call.name == "truncate":
        return content[: call.offset].ljust(call.offset, b"\0")
    data = {
        "whole": call.data,
        "half": call.data[: len(call.data) // 2],
        "zeros": bytes(len(call.data)),
    }[way]
    content = content.ljust(call.offset, b"\0")
    return content[: call.offset] + data + content[call.offset + len(data) :]


def _chosen(choices: Sequence[Sequence[Any]], rng: Any, limit: int) -> Iterator[tuple[Any, ...]]:
    """All combinations, or the first, the last and random ones of them."""
    if math.prod(map(len, choices)) <= limit:
        yield from itertools.product(*choices)
        return
    yield tuple(some[0] for some in choices)
    yield tuple(some[-1] for some in choices)
    for _ in range(limit - 2):
        yield tuple(some[int(rng.integers(len(some)))] for some in choices)
