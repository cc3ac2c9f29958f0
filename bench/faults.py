"""README's table of faults, made of the runs of the soak suite that are kept among the results.

python -m pytest -m soak --soak-results bench/results/DATE-CPU-soak.json      (with -k: some of its rows)
python -m bench report
"""

from __future__ import annotations

import json
from pathlib import Path

from bench.report import Record, processor

BEGIN, END = "<!-- soak:begin -->", "<!-- soak:end -->"


def latest(folder: Path) -> Record | None:
    """Of every fault the latest row, as of the latest run; samples don't count."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    runs = [result for result in found if "soak" in result and not result["sample"]]
    if not runs:
        return None
    runs.sort(key=lambda result: str(result["machine"]["date"]))
    rows = {row["fault"]: row for result in runs for row in result["soak"]}
    return {"machine": runs[-1]["machine"], "soak": sorted(rows.values(), key=lambda row: int(row["place"]))}


def table(result: Record) -> str:
    """Every fault with how many cases were tried, and how many failed; the files have what was seen besides."""
    rows = ["| fault | cases | failures |", "|---|---:|---:|"]
    rows += [f"| {row['title']} | {row['cases']:,} | {row['failures']:,} |" for row in result["soak"]]
    machine = result["machine"]
    where = f"{processor(result)}, {machine['cores']} cores; Python {machine['python']}, {machine['system']}"
    return "\n".join(rows) + f"\n\nOn {where}; {machine['date']}."


def filled(text: str, folder: Path) -> str:
    """`text` with the table between its markers, where it has these and there is a run."""
    result = latest(folder)
    if result is None or BEGIN not in text:
        return text
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n\n{table(result)}\n\n{END}{rest.split(END)[1]}"
