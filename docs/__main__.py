"""Builds the site in build/site: `python -m docs`, and with `--serve` shows it at http://localhost:8000.

Pages are run first, and with the pictures that they draw and the reference put into build/pages, which are plain
Markdown; Zensical makes HTML of that.
"""

import shutil
import subprocess
import sys

from docs import pages, reference

ROOT = pages.HERE.parent
SOURCE, SITE = ROOT / "build" / "pages", ROOT / "build" / "site"


def main(*options: str) -> int:
    """Write build/pages and build/site; 0 if all is well."""
    shutil.rmtree(SOURCE, ignore_errors=True)
    shutil.copytree(pages.HERE, SOURCE, ignore=shutil.ignore_patterns("*.py", "__pycache__", "templates"))
    for path in pages.pages():
        if missing := pages.missing(path):
            print(f"{path} is shown without being run: {', '.join(missing)} is not installed")
            continue
        for name, picture in pages.run(path).items():
            (SOURCE / path.relative_to(pages.HERE)).with_name(name).write_bytes(picture)
    for place, text in reference.pages().items():
        (SOURCE / place).parent.mkdir(exist_ok=True)
        (SOURCE / place).write_text(text, encoding="utf-8")
    command = ["serve"] if "--serve" in options else ["build", "--clean", "--strict"]
    code = subprocess.run([sys.executable, "-m", "zensical", *command], cwd=ROOT).returncode
    if code == 0 and command[0] == "build":
        print(f"The site is in {SITE}: open {SITE / 'index.html'} in a browser.")
    return code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
