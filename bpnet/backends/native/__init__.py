"""Machine code for whole functions of arrays, by LLVM: how the NumPy backend compiles with the `jit` extra.

graph.py     a function is called once with symbols for arrays, and what it does to them is written down
schedule.py  which operations share one pass over memory, and where every array lies
passes.py    what such a pass does, in the form from which its machine code is made
loops.py     a pass as machine code
arithmetic.py  operations on numbers and vectors of them
products.py  matrix products as machine code
team.py      threads that wait awake and take pieces of whatever is next
plan.py      all of it together: a function that has been compiled for arguments of certain shapes
code.py      loops, vectors and the compiler
cache.py     machine code kept on disk
"""
