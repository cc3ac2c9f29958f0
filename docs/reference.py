"""The reference: a page for each family, whose docstrings mkdocstrings fills in, and a table of the whole catalogue."""

import re
from collections.abc import Sequence

from bpnet import data, distributed, errors, files, plots, typing
from bpnet.cli.info import describe_catalogue
from bpnet.cli.terminal import JSON
from docs.docstrings import prose

BASES = {
    "activations": "Activation",
    "initializers": "initializers.Initializer lsuv",
    "losses": "Loss ElementwiseLoss RowLoss Head",
    "penalties": "Penalty",
    "optimizers": "Optimizer ElementwiseOptimizer",
    "schedules": "Schedule find_learning_rate LearningRateCurve",
    "metrics": "metrics.Metric metrics.total",
    "callbacks": "Callback",
}
"""What is beside a family's catalogue: the classes that one of your own derives from, and functions."""

OTHERS = {
    "Trainer": "Trainer load History inspect Inspection Summary",
    "Tables": "train_table search_table TableModel Schema Target MLPClassifier MLPRegressor report",
    "Data": "data",
    "Distributed": "distributed",
    "Files": "files",
    "Plots": "plots",
    "Core": "value_and_grad row_losses minimize layout_of Layout reference backends typing",
    "Protocol": "Layer Composite Leaf Run Rng testing check_gradients GradientReport check_backend BackendReport",
    "Errors": "errors",
}
"""The other pages, and what they describe."""

MEMBERS: dict[str, Sequence[str]] = {
    "backends": ("backend_of", "get"),
    "data": data.__all__,
    "distributed": distributed.__all__,
    "errors": [name for name in vars(errors) if name.endswith(("Error", "Warning"))],
    "files": files.__all__,
    "initializers": (),
    "metrics": (),
    "plots": plots.__all__,
    "report": ("figures", "Figures"),
    "testing": (),
    "typing": [*(name for name in vars(typing) if re.fullmatch("Any[A-Z].*|.+Name", name)), "Precision"],
}
"""What is described of a module."""

MORE = {"Trainer": {"inherited_members": "true"}, "errors": {"show_bases": "true"}}
"""More options of mkdocstrings."""


def pages() -> dict[str, str]:
    """Every page of the reference, by its place in docs/."""
    found = describe_catalogue()
    made = {"catalogue": table(found)}
    for family, entries in found.items():
        classes = sorted({entry["class"] for entry in entries.values()}, key=str.lower)
        made[family] = "".join(
            [
                f"# {family.capitalize()}\n\n",
                described(family) if family in MEMBERS else "",
                *(described(path_of(family, name), members=()) for name in classes),
                *map(described, BASES.get(family, "").split()),
            ]
        )
    for title, what in OTHERS.items():
        made[title.lower()] = f"# {title}\n\n" + "".join(map(described, what.split()))
    return {f"reference/{name}.md": text for name, text in made.items()}


def path_of(family: str, name: str) -> str:
    """The name by which a class of the catalogue is reached from `bpnet`."""
    return f"{family}.{name}" if family in MEMBERS else name


def described(name: str, members: Sequence[str] | None = None) -> str:
    """What makes mkdocstrings describe bpnet.<name>, with these members; None stands for all that are public."""
    members = MEMBERS.get(name, members)
    options = {} if members is None else {"members": list(members) or "false"}
    options |= MORE.get(name, {})
    if name in MEMBERS and not members:  # a module whose page has a title already
        options["show_root_heading"] = "false"
    text = f"::: bpnet.{name}\n" + "    options:\n" * bool(options)
    return text + "".join(f"      {option}: {value}\n" for option, value in options.items()) + "\n"


def table(found: JSON) -> str:
    """The catalogue, a table for each family."""
    text = "# Catalogue\n\nWhat `bpnet info --catalogue` lists.\n\n"
    for family, entries in found.items():
        text += (
            f"## {family.capitalize()}\n\n| name | class, and its options | what it is | paper |\n|---|---|---|---|\n"
        )
        for name, entry in entries.items():
            made = f"[{entry['class']}][bpnet.{path_of(family, entry['class'])}]({prose(entry['options'])})"
            cells = (f"`{name}`", made, prose(entry["says"]), prose(entry["paper"]))
            text += f"| {' | '.join(cell.replace('|', '&#124;') for cell in cells)} |\n"
        text += "\n"
    return text
