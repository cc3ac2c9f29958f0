"""Docstrings as Markdown: formulas keep their stars, lists of options become lists, and names of bpnet lead to it."""

import re

import bpnet

OPTION = re.compile(r"(\w+(?:, \w+)*(?:, and [a-z ]+)?) : (.*)")
"""A line that begins what is said of an option, or of several."""
CODE = re.compile(r"(``.+?``|`[^`]+`)")
NAME = re.compile(r"`(?:bp\.|bpnet\.)?(\w+)`")


def as_markdown(text: str) -> str:
    """A docstring as Markdown."""
    lines = text.splitlines()
    out: list[str] = []
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        in_option = indented and any(out) and _option_above(lines, number)
        if set(line) == {"-"} and out:  # under a heading: Parameters, Attributes
            out[-1:] = [f"**{out[-1]}**", ""]
        elif found := OPTION.fullmatch(line):
            names = ", ".join(f"`{name}`" if " " not in name else name for name in found[1].split(", "))
            out += ["", names, f":   {prose(found[2])}"]
        elif in_option:
            out.append("    " + prose(line.strip()))
        else:
            out.append(line if indented else prose(line))
    return "\n".join(out)


def _option_above(lines: list[str], number: int) -> bool:
    """Whether the indented line goes on with what is said of an option."""
    while number > 0 and lines[number].startswith("    "):
        number -= 1
    return OPTION.fullmatch(lines[number]) is not None


def prose(line: str) -> str:
    """A line of text: what Markdown would take for emphasis or a tag is none, and a public name is a link."""
    parts = CODE.split(line)
    for i, part in enumerate(parts):
        if i % 2 == 0:
            start = re.match(r"\s*[-*] ", part)
            kept = start[0] if start and i == 0 else ""
            plain = re.sub(r"([*_$\[\]])", r"\\\1", part[len(kept) :])
            parts[i] = kept + plain.replace("<", "&lt;")
        elif (found := NAME.fullmatch(part)) and found[1] in bpnet.__all__:
            parts[i] = f"[{part}][bpnet.{found[1]}]"
    return "".join(parts)
