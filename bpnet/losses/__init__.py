"""Loss functions: each one's value, and its derivative with respect to the network's output, from one pass.

`base` says what a loss is; the others are in files by what their targets are.
"""
