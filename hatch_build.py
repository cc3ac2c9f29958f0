"""What PyPI shows: README with links that lead somewhere from there, and the project's addresses.

The address of the repository is in one place, the environment's BPNET_REPOSITORY, which the release workflow sets to
that of the repository it runs in.  Links then lead to the files of the version's tag.  Where it is not set, as when
somebody builds bpnet on their own machine, there are no addresses, and what would be a broken link is plain text.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

RELATIVE = re.compile(r"(!?)\[([^\]]*)\]\((?!https?:|#)([^)]*)\)")
"""A Markdown link or image: whether it is an image, its text, and a target that is a file of the repository."""


def with_absolute_links(page: str, repository: str, tag: str) -> str:
    """`page` with every target that is a file of `repository` at `tag`; without a repository, with no such target."""

    def absolute(link: re.Match[str]) -> str:
        image, text, target = link.groups()
        if repository:
            return f"{image}[{text}]({repository}/{'raw' if image else 'blob'}/{tag}/{target})"
        return "" if image else text

    return RELATIVE.sub(absolute, page)


class PackageMetadata(MetadataHookInterface):
    """Fills in `readme` and `urls`.  A wheel that is built of an sdist takes both from there instead."""

    def update(self, metadata: dict[str, Any]) -> None:
        repository = os.environ.get("BPNET_REPOSITORY", "").rstrip("/")
        tag = f"v{metadata['version']}"
        page = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = with_absolute_links(page, repository, tag)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        if repository:
            metadata["urls"] = {
                "Source": repository,
                "Documentation": f"{repository}/blob/{tag}/README.md",
                "Changelog": f"{repository}/blob/{tag}/CHANGELOG.md",
                "Issues": f"{repository}/issues",
            }
