"""Data larger than memory: where rows are read from, in which order, and how they come to a training."""
