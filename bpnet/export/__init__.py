"""Trained models in the formats of others: each is made from the list of operations that `record` finds."""
