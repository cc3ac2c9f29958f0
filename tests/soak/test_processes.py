"""Processes of other hash seeds, and as many at once as there are: all bits are the same."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from support.children import added, child
from support.soak import Soak

HERE = Path(__file__).parent


def test_bits_do_not_depend_on_the_process(soak: Soak, tmp_path: Path) -> None:
    """Of trainings, plain and compiled, of tables and estimators, and of saved files."""
    count = soak.count(20, 4)

    def run(number: int) -> dict[str, object]:
        folder = tmp_path / str(number)
        folder.mkdir()
        seed = str(number % 10 * 1001)
        return child(HERE / "repeated.py", folder, timeout=600, PYTHONHASHSEED=seed)

    with ThreadPoolExecutor(2) as pool:
        found = added(pool.map(run, range(count)))
    hashes = found.get("found", [])
    failures = found["failures"] + [
        f"{name} differs in process {i}" for i, one in enumerate(hashes) for name in one if one[name] != hashes[0][name]
    ]
    soak.record("processes", count, failures, f"{len(hashes[0]) if hashes else 0} results and files in each")
