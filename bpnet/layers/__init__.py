"""Layers: each one's forward pass and derivative stand side by side, on any array library."""
