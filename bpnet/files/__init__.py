"""Checkpoints in files."""

from bpnet.files.model import OPTIONS, Checkpoint, damaged, read_checkpoint, write_checkpoint

__all__ = ["OPTIONS", "Checkpoint", "damaged", "read_checkpoint", "write_checkpoint"]
