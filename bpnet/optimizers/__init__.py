"""Optimizers, and what is put around them.  `base.py` says what one is."""
