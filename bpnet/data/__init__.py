"""From what a user passes to batches on a device: checks, conversion, streaming."""
