"""Checkpoints in files."""

from bpnet.files.model import OPTIONS, damaged, read_checkpoint, write_checkpoint

__all__ = ["OPTIONS", "damaged", "read_checkpoint", "write_checkpoint"]
