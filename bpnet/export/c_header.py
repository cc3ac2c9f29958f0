"""The C header of a compiled model: what it takes and gives, declared and in words."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from textwrap import indent, wrap
from typing import TYPE_CHECKING

from bpnet.tabular.dates import CYCLES
from bpnet.tabular.schema import Feature, Schema

if TYPE_CHECKING:
    from bpnet.compiler.llvm.ahead import Constant, Entry, Input
    from bpnet.compiler.llvm.processor import Processor

TYPES = {"float32": "float", "float64": "double", "int32": "int32_t"}
COUNTS = {"predict": "outputs", "predict_proba": "probabilities", "predict_class": "labels"}
"""What the number of results for a row is called, by function."""
WIDTH = 114
"""Of lines in a comment."""

START = """\
{about}
#ifndef {NAME}_H
#define {NAME}_H

#include <stdint.h>{more}

#ifdef __cplusplus
extern "C" {{
#endif

{macros}

/* The same in the object: the two belong together where {name}_hash is {NAME}_HASH. */
{constants}

/* What functions return. */
enum {{
    {NAME}_OK = 0,
    {NAME}_BAD_ARGUMENT = 1, /* a null pointer, or rows below 0; y is as it was */
    {NAME}_NO_MEMORY = 2, /* y is as it was */
    {NAME}_NO_PROCESSOR = 3, /* this processor lacks instructions that the code has; y is as it was */
    {NAME}_BAD_INPUT = 4, /* {wrong} */
    {NAME}_BAD_OUTPUT = 5 /* a result is not a number, of a row that is sound; all other rows are right */
}};

/* Whether this processor has all instructions that the code has. */
int32_t {name}_supported(void);

/* Bytes of a workspace for so many rows, which may begin at any address and is for one call at a time.  More than
   {block} rows need no more than these. */
int64_t {name}_workspace_bytes(int64_t rows);
"""
END = """
#ifdef __cplusplus
}}
#endif

#endif /* {NAME}_H */
"""


@dataclass(frozen=True)
class Interface:
    """What a header declares: arrays of rows by their names, functions, constants, and of a table the columns."""

    name: str
    title: str
    processor: "Processor"
    block: int
    dtype: str
    inputs: Sequence[tuple[str, "Input"]]
    entries: Sequence["Entry"]
    says: dict[str, str]
    """Of each function, what it gives."""
    constants: dict[str, "Constant"]
    columns: "Columns | None" = None

    @property
    def text(self) -> str:
        names = {"name": self.name, "NAME": self.name.upper()}
        helpers = "" if self.columns is None else self.columns.functions(self.name, TYPES[self.dtype])
        more = "\n#include <string.h>" if "strcmp" in helpers else ""
        told = {"about": self._about(), "macros": self._macros(), "constants": self._constants(), "more": more}
        start = START.format(**names, **told, wrong=self._wrong(), block=f"{self.block:,}")
        return start + "".join(map(self._declared, self.entries)) + helpers + END.format(**names)

    def _about(self) -> str:
        needs = sorted({entry.rpartition(":")[0] for entry in self.processor.needs})
        lines = [
            f"{self.name}: {self.title}",
            "",
            f"Compiled by bpnet {self.constants['version']} for {self.processor.triple}"
            + (f" with {' '.join(needs)}." if needs else "."),
            "Functions may be called by any number of threads at once: they have no state, and start no threads.",
        ]
        if self.columns is not None:
            lines += ["", *self.columns.lines([name for name, _ in self.inputs])]
        text = "\n".join(wrapped(line) for line in lines)
        return f"/* {indent(text, '   ').strip()} */"

    def _macros(self) -> str:
        upper = self.name.upper()
        single = {key: value for key, value in self.constants.items() if isinstance(value, int | str)}
        lines = [f'"{value}"' if isinstance(value, str) else str(value) for value in single.values()]
        lines = [f"#define {upper}_{key.upper()} {line}" for key, line in zip(single, lines, strict=True)]
        names = self.constants.get("class_names")
        return "\n".join([*lines, *([f"#define {upper}_CLASSES {len(names)}"] if isinstance(names, list) else [])])

    def _constants(self) -> str:
        return "\n".join(f"extern const {_kind(value, f'{self.name}_{key}')};" for key, value in self.constants.items())

    def _wrong(self) -> str:
        found = []
        for name, each in self.inputs:
            if each.dtype != "int32":
                found.append(f"infinity in {name}" if each.accepts_nan else f"NaN or infinity in {name}")
            elif each.codes is not None:
                found.append(f"none of 0 ... {each.codes - 1} in {name}")
        text = f"{' or '.join(found) or 'not returned'}; all rows without are right"
        return "\n       ".join(wrap(text, 80))

    def _declared(self, entry: "Entry") -> str:
        kind, count = "int32_t" if entry.whole else TYPES[self.dtype], f"{self.name}_{COUNTS[entry.name]}".upper()
        arrays = "".join(f"const {TYPES[each.dtype]} *{name}, " for name, each in self.inputs)
        takes = f"{arrays}int64_t rows, {kind} *y"
        size = " and ".join(f"{name}[rows * {each.features}]" for name, each in self.inputs)
        comment = wrapped(f"y[rows * {count}] <- {self.says[entry.name]}, from {size}; y is no part of what is read.")
        function, indented = f"{self.name}_{entry.name}", indent(comment, "   ").strip()
        return f"\n/* {indented} */\nint {function}({takes});\nint {function}_in({takes}, void *workspace);\n"


class Columns:
    """What the header says of the columns of a table, and what is done with their values before the network."""

    def __init__(self, schema: Schema) -> None:
        self.schema = schema
        self.names = dict(zip(schema.features, identifiers([f.name for f in schema.features]), strict=True))

    @cached_property
    def values(self) -> dict[str, "Constant"]:
        """The known values of categories, as the object has them."""
        found: dict[str, Constant] = {}
        for feature in (f for f in self.schema.categories if f.values):
            textual = isinstance(feature.values[0], str)
            found[f"values_{self.names[feature]}"] = list(feature.values if textual else map(float, feature.values))
        return found

    def lines(self, arrays: Sequence[str]) -> list[str]:
        """What belongs where in a row, column by column; `arrays` are called so, first that of numbers."""
        lines, number, code = ["In a row are these columns; a number that is missing is NaN:"], 0, 0
        for feature in self.schema.features:
            if feature.kind == "category":
                known = ", ".join(f"{i} {value}" for i, value in enumerate(feature.values, 2))
                what = f"0 missing, 1 not known{', ' if known else ''}{known}"
                lines.append(f"  {arrays[-1]}[{code}]  {feature.name}: {what}")
                code += 1
                continue
            for title in feature.numbers:
                lines.append(f"  {arrays[0]}[{number}]  {title}{_reading(feature, title)}")
                number += 1
        return lines

    def functions(self, name: str, kind: str) -> str:
        """Functions that make of a column's value what belongs into a row."""
        return "".join(self._function(feature, name, kind) for feature in self.schema.features)

    def _function(self, feature: Feature, name: str, kind: str) -> str:
        own = self.names[feature]
        if _is_scaled(feature):
            body = f"    return ({kind})((value - {_real(feature.origin)}) / {_real(feature.unit)});\n"
            return f"\nstatic inline {kind} {name}_number_{own}(double value) {{\n{body}}}\n"
        if feature.kind != "category" or not feature.values:
            return ""
        array, textual = f"{name}_values_{own}", isinstance(feature.values[0], str)
        given = "const char *value" if textual else "double value"
        missing = "value == NULL || value[0] == 0" if textual else "value != value"
        equal = f"strcmp(value, {array}[i]) == 0" if textual else f"value == {array}[i]"
        return (
            f"\nstatic inline int32_t {name}_code_{own}({given}) {{\n"
            f"    int32_t i;\n"
            f"    if ({missing}) return 0;\n"
            f"    for (i = 0; i < {len(feature.values)}; ++i)\n"
            f"        if ({equal}) return i + 2;\n"
            f"    return 1;\n"
            f"}}\n"
        )


def identifiers(names: Sequence[str]) -> list[str]:
    """Names as they can be the ends of names in C, all different, in capitals too."""
    found: list[str] = []
    for name in names:
        made = re.sub(r"\W", "_", name, flags=re.ASCII)
        while made.upper() in map(str.upper, found):
            made += "_"
        found.append(made)
    return found


def wrapped(line: str) -> str:
    """A line of a comment, which nothing in it ends, as several."""
    plain = "".join(c if c.isprintable() else " " for c in line)
    plain = plain.replace("*/", "* /").replace("/*", "/ *").replace("??", "? ?")
    hanging = " " * (len(line) - len(line.lstrip()) + 4) if line.startswith(" ") else ""
    return "\n".join(wrap(plain, WIDTH, subsequent_indent=hanging)) or ""


def _kind(value: "Constant", name: str) -> str:
    if isinstance(value, int):
        return f"int64_t {name}"
    if isinstance(value, str):
        return f"char {name}[{len(value) + 1}]"
    return f"char *const {name}[{len(value)}]" if isinstance(value[0], str) else f"double {name}[{len(value)}]"


def _real(value: float) -> str:
    return repr(float(value)) if value >= 0.0 else f"({float(value)!r})"


def _is_scaled(feature: Feature) -> bool:
    return feature.kind == "number" and (feature.origin != 0.0 or feature.unit != 1.0)


def _reading(feature: Feature, title: str) -> str:
    """How a number comes of a value of its column."""
    if feature.kind == "boolean":
        return ": 1 if true, 0 if false"
    if feature.kind == "number":
        return f": (value - {feature.origin!r}) / {feature.unit!r}" if _is_scaled(feature) else ""
    part, of_day = title.removeprefix(f"{feature.name}."), {"month": "January", "weekday": "Monday", "day": "the first"}
    of, _, wave = part.rpartition("_")
    if part == "days":
        return f": days since 1970-01-01, with the fraction of the day, minus {feature.origin!r}"
    zone = f", as clocks show it in {feature.zone}" if feature.zone else ""
    if of not in CYCLES:
        return f": its {part}{zone}"
    start = f", counted from 0 for {of_day[of]}" if of in of_day else ""
    return f": {wave} of 2 pi / {CYCLES[of]:g} times its {of}{start}{zone}"
