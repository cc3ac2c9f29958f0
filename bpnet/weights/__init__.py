"""Weights from and to other libraries, where the same network was written in both."""
