"""Models in files."""

from bpnet.files.model import load, save

__all__ = ["load", "save"]
