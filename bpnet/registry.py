"""Names for classes of options: `"relu"` for `ReLU()`, and a JSON description of a network for a file.

Each family (layer, loss, optimizer, schedule) derives from `Registered`; a class enters the catalogue when it is
defined, so a user's own layer can be saved and loaded too.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache
from typing import Any, ClassVar, TypeVar, cast

from bpnet.errors import ArgumentError, FileFormatError, OptionError, UnknownNameError, kind_of
from bpnet.names import define, define_all
from bpnet.options import check_range

S = TypeVar("S", bound="Registered")

_classes: dict[str, dict[str, list[type["Registered"]]]] = {}
"""By kind and name: the classes that have it, the last defined last."""
_called: dict[tuple[str, str], list[type["Registered"]]] = {}
"""By kind and a name that can stand for it: the classes that have it, the last defined last."""


class Registered:
    """Base of a family of frozen dataclasses that have names."""

    kind: ClassVar[str]
    names: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    """Names that stand for this class, each with the options it implies; without any, the class's own name does."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Methods that a subclass must define."""
    example: ClassVar[tuple[Any, ...]] = ()
    """Arguments of an example, fit for rows of 12 features, where options have no defaults."""
    star: ClassVar[str | None] = None
    """The option that the constructor takes as `*args`, if one is."""

    def __init_subclass__(cls, kind: str | None = None, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        cls.names = cls.__dict__.get("names", {})
        if kind is not None:
            cls.kind = kind
            _classes[kind] = {}
        else:
            if not cls.__module__.startswith("bpnet."):
                for name in (cls.__name__, *cls.names):  # bpnet's own come first: the later counts
                    define(cls.kind, name)
            taken = _classes[cls.kind].setdefault(cls.__name__, [])
            for former in taken[-1:]:
                own = former.__qualname__, cls.__name__  # which is all that one has at first that comes with a pickle
                if former.__module__ != cls.__module__ or cls.__qualname__ not in own:
                    raise OptionError(
                        f"there is a {cls.kind} called {cls.__name__} already, in {former.__module__}: files name "
                        "classes, so choose another name"
                    )
            taken.append(cls)
            for name in cls.names or (cls.__name__,):
                _called.setdefault((cls.kind, name), []).append(cls)

    def _set(self, **values: Any) -> None:
        """Store options that have been checked in a frozen instance."""
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _check(self, **checks: Callable[[str, Any], Any]) -> None:
        """Check options, each by a function of its name and value that gives the value to store, as `options` has."""
        self._set(**{name: check(name, getattr(self, name)) for name, check in checks.items()})

    def check_type(self, dtype: str, smallest: float, largest: float) -> None:
        """Raise OptionError where an option can't be used with arrays of the type called `dtype`.

        `smallest` and `largest` are the positive normal numbers between which those of the type lie.  Only options that
        bpnet's own classes declare are looked at: what others mean, nobody else knows (1e300 may be no limit).
        """
        for option in fields(self):  # type: ignore[arg-type]
            for part in flattened(getattr(self, option.name)):
                if isinstance(part, Registered):
                    part.check_type(dtype, smallest, largest)
                elif (
                    isinstance(part, float)
                    and part
                    and not smallest <= abs(part) <= largest
                    and _declared_by(type(self), option).__module__.startswith("bpnet.")
                ):
                    check_range(f"{option.name} of {self}", part, dtype, smallest, largest)


def _declared_by(cls: type, option: Any) -> type:
    """The class, of this one and its bases, that has the option first."""
    return [c for c in cls.__mro__ if option in vars(c).get("__dataclass_fields__", {}).values()][-1]


def flattened(value: Any) -> Iterator[Any]:
    """What is in nested tuples, in their order."""
    if not isinstance(value, tuple):
        yield value
        return
    for part in value:
        if isinstance(part, tuple):
            yield from flattened(part)
        else:
            yield part


def parts_of(value: Any, base: type[S]) -> Iterator[S]:
    """`value` and all in its options, and in theirs, that is an instance of `base`."""
    for part in flattened(value):
        if isinstance(part, Registered):
            if isinstance(part, base):
                yield part
            for option in fields(part):  # type: ignore[arg-type]
                yield from parts_of(getattr(part, option.name), base)


def catalogue(base: type[Registered]) -> dict[str, tuple[type[Registered], Mapping[str, Any]]]:
    """Every name by which a class derived from `base` can be called, with the options the name stands for."""
    found: dict[str, tuple[type[Registered], Mapping[str, Any]]] = {}
    for name, having in list(_classes[base.kind].items()):  # another thread may define more
        cls = _last(having, base)
        if cls is not None and not name.startswith("_"):
            for alias, options in (cls.names or {name: {}}).items():
                found[alias] = (cls, options)
    return found


def _last(having: Iterable[type[Registered]], base: type[Registered]) -> Any:
    """Of classes with one name the last that derives from `base` and can be made, or None.

    What comes with a pickle is an empty class at first, and stays one where there is the class already.
    """
    known = [cls for cls in having if issubclass(cls, base) and "__dataclass_params__" in vars(cls)]
    return known[-1] if known else None


def own_catalogue(base: type[Registered]) -> dict[str, tuple[type[Registered], Mapping[str, Any]]]:
    """The `catalogue` of what bpnet itself has, all of it."""
    define_all()
    return {name: found for name, found in catalogue(base).items() if found[0].__module__.startswith("bpnet.")}


def examples(base: type[S]) -> dict[str, S]:
    """An example of everything in bpnet's own catalogue that derives from `base`, by its name."""
    return {name: cast(S, cls(*cls.example, **options)) for name, (cls, options) in own_catalogue(base).items()}


def resolve(base: type[S], what: str, value: "str | S") -> S:
    """An instance of `base` from a name or an instance; raises UnknownNameError with a suggestion, or ArgumentError."""
    if not isinstance(value, str):
        return instance(base, what, value, f"a name or a bpnet {base.__name__.lower()}")
    define(base.kind, value)
    cls = _last(_called.get((base.kind, value), []), base)
    if cls is None:
        define_all()
        known: dict[str, Any] = catalogue(base)
        raise UnknownNameError(what, value, (name for name, (cls, _) in known.items() if has_defaults(cls)))
    if not has_defaults(cls):
        raise OptionError(
            f"{what} is {value!r}, which has options without defaults: pass an object, {cls.__name__}(...)"
        )
    return cast(S, _called_so(cls, value))


@cache
def _called_so(cls: Any, name: str) -> Any:
    """The object that a name stands for."""
    return cls(**cls.names.get(name, {}))


def instance(base: type[S], what: str, value: Any, expected: str) -> S:
    """`value` where it is an instance of `base`, by which what is known of it can be found again.

    Raises ArgumentError.
    """
    if isinstance(value, base):
        made: Any = type(value)
        _check_methods(made)
        own = vars(made).get("__dataclass_params__")  # not those of a base, which has not all of the options
        if own is None or not own.frozen:
            raise ArgumentError(
                f"the {base.kind} {made.__name__} is no frozen dataclass: write @dataclass(frozen=True) above it"
            )
        try:
            _hash(value)
        except TypeError as error:
            raise ArgumentError(f"the options of {value} can't be hashed: use tuples, not lists or arrays") from error
        return value
    hint = f", {value.__name__}(...)" if isinstance(value, type) and issubclass(value, base) else ""
    raise ArgumentError(f"{what} is {kind_of(value)}; expected {'an instance' if hint else expected}{hint}")


@cache
def _check_methods(cls: type[Registered]) -> None:
    """Raise ArgumentError where a method is missing that the bases of a user's class leave to it."""
    for owner in cls.__mro__:
        for name in vars(owner).get("needs", ()):
            if next(vars(c)[name] for c in cls.__mro__ if name in vars(c)) is vars(owner)[name]:
                raise ArgumentError(f"the {cls.kind} {cls.__name__} has no {name}: define it, as {owner.__name__} says")


def _hash(value: Any) -> None:
    """Raise TypeError where `value` can't be hashed; what is in it, and has been asked before, is not asked again."""
    for option in fields(value):
        for part in flattened(getattr(value, option.name)):
            if not isinstance(part, Registered):
                hash(part)
            elif "_hashed" not in getattr(part, "__dict__", ()):
                _hash(part)
    with suppress(AttributeError):  # of a class with slots
        object.__setattr__(value, "_hashed", True)


@cache
def has_defaults(cls: Any) -> bool:
    """Whether a name alone is enough to make one."""
    return all(f.default is not MISSING or f.default_factory is not MISSING for f in fields(cls))


def describe(value: Any) -> Any:
    """A Registered object as JSON values, from which `restore` makes an equal.

    Raises ArgumentError where an option is a function, which no file holds.
    """
    if isinstance(value, Registered):
        base = type(value).__mro__[1].__name__
        options = {f.name: getattr(value, f.name) for f in fields(value) if f.init}  # type: ignore[arg-type]
        for name, option in options.items():
            if callable(option) and not isinstance(option, Registered):
                raise ArgumentError(
                    f"{value} can't be saved, since its {name} is a function and files hold no code: write a class of "
                    f"your own, a frozen dataclass that derives from bp.{base}"
                )
        return {value.kind: type(value).__name__, **{name: describe(option) for name, option in options.items()}}
    if isinstance(value, tuple | list):
        return [describe(v) for v in value]
    return value


@cache
def _options(cls: Any) -> frozenset[str]:
    """The names of what its constructor takes."""
    return frozenset(f.name for f in fields(cls) if f.init)


def restore(value: Any) -> Any:
    """The object that `describe` described; raises FileFormatError where a class or option is not known."""
    if isinstance(value, list):
        return tuple(restore(v) for v in value)
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    if kind not in _classes:
        raise FileFormatError(f"the file describes an unknown kind of object: {kind!r}")
    name, options = value[kind], {k: restore(v) for k, v in value.items() if k != kind}
    define(kind, name)
    having = _classes[kind].get(name)
    if not having:
        raise FileFormatError(
            f"the file uses the {kind} {name!r}, which is not defined: import the module that defines it first"
        )
    cls: Any = _last(having, Registered) or having[-1]
    strange = options.keys() - _options(cls)
    if strange:
        raise FileFormatError(f"the file describes a {name} with the option {min(strange)!r}, which it does not have")
    try:
        star = options.pop(cls.star, ()) if cls.star else ()
        return cls(*star, **options)
    except (TypeError, ValueError) as error:
        raise FileFormatError(f"the file describes a {name} that can't be made: {error}") from error
