"""The catalogue's figures for people: a line an entry, and what there is to say of all."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

from bench.report import heading as about

Line = dict[str, Any]

SHORT = {"torch": "torch", "compile": "compile", "jax": "jax"}
GOAL, LEAST = 1.3, 0.9
NAME, CELL = 34, 8


def heading(peers: list[str], batches: list[int]) -> str:
    """What the columns are."""
    groups = "".join(f"{f'batch {b}':>{CELL * (len(peers) + 2)}}" for b in batches)
    cells = "".join(f"{text:>{CELL}}" for text in ["us", "best", *(SHORT.get(p, p) for p in peers)])
    return (
        "A training step: bpnet's microseconds; a peer's time over bpnet's, median of rounds, and that of the best\n"
        f"{'':{NAME}}{groups}\n{'':{NAME}}{cells * len(batches)}"
    )


def ratio(line: Line, peer: str, batch: int) -> float | None:
    """A peer's time over bpnet's; None where it was not timed."""
    found: float | None = line["contenders"].get(peer, {}).get("times", {}).get(str(batch), {}).get("ratio")
    return found


def best(line: Line, peers: list[str], batch: int) -> float | None:
    """The ratio of the fastest of the peers."""
    found = [r for p in peers if (r := ratio(line, p, batch)) is not None]
    return min(found) if found else None


def line(line: Line, peers: list[str], batches: list[int]) -> str:
    """One entry, with the reasons below why somebody was not timed."""
    cells = []
    for batch in batches:
        own = line["contenders"].get("bpnet", {}).get("times", {}).get(str(batch))
        cells.append(f"{own['us']:>{CELL}.0f}" if own else f"{'-':>{CELL}}")
        values = [best(line, peers, batch), *(ratio(line, p, batch) for p in peers)]
        cells += [f"{'-':>{CELL}}" if value is None else f"{value:>{CELL}.2f}" for value in values]
    text = f"{line['kind']} {line['name']}".ljust(NAME) + "".join(cells)
    reasons = [f"{'':4}{line['failed']}"] if "failed" in line else []
    for name, answer in line["contenders"].items():
        reasons += [f"{'':4}{name}: {answer[why]}" for why in ("failed", "absent", "disagrees") if why in answer]
    return "\n".join([text, *reasons])


def summary(record: dict[str, Any]) -> str:
    """The geometric means, the races that were lost, and what was not timed."""
    peers, batches, entries = record["peers"], record["batches"], record["entries"]
    parts = []
    for kind in [*dict.fromkeys(e["kind"] for e in entries), None]:
        some = [e for e in entries if kind is None or e["kind"] == kind]
        means = []
        for peer in ["best", *peers]:
            values = [
                r for e in some for b in batches
                if (r := best(e, peers, b) if peer == "best" else ratio(e, peer, b)) is not None
            ]  # fmt: skip
            means.append(f"{peer} {statistics.geometric_mean(values):.2f} ({len(values)})" if values else f"{peer} -")
        parts.append(f"{kind or 'all'}: {', '.join(means)}")
    races = [(r, e, b) for e in entries for b in batches if (r := best(e, peers, b)) is not None]
    lost = sorted((r, f"{e['name']} at {b}", fastest(e, peers, b)) for r, e, b in races if r < 1.0)
    bad = [text for r, text, _ in lost if r < LEAST]
    without = [e["name"] for e in entries if all(best(e, peers, b) is None for b in batches)]
    return "\n".join(
        [
            f"geometric means of the ratios to the best peer (goal {GOAL}) and to each, by kind, over all batches:",
            *parts,
            f"lost {len(lost)} of {len(races)} races, {len(bad)} below {LEAST}:",
            *(f"  {r:.2f}  {text}, to {peer}" for r, text, peer in lost),
            f"timed against nobody: {', '.join(without) or 'none'}",
            f"{record['seconds']:.0f} s",
        ]
    )


def page(folder: Path) -> str:
    """For the page about the results: the whole of each run."""
    parts = []
    for path in sorted(folder.glob("*.json")):
        result = json.loads(path.read_text(encoding="utf-8"))
        if record := result.get("catalogue"):
            of = record["peers"], record["batches"]
            table = "\n".join([heading(*of), *(line(e, *of) for e in record["entries"])])
            where = about({"threads": record["threads"], **result})
            parts.append(f"[{path.stem}]({path.name}): {where}.\n\n```text\n{table}\n\n{summary(record)}\n```")
    return "\n\n".join(parts) or "Not run."


def fastest(line: Line, peers: list[str], batch: int) -> str:
    """The name of the best peer."""
    return min((p for p in peers if ratio(line, p, batch) is not None), key=lambda p: ratio(line, p, batch) or 0.0)
