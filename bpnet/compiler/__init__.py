"""Functions of arrays, compiled: traced to a graph, fused into kernels, laid out in memory, and listed as commands.

ops.py       the operations that there are, and how each target spells them
graph.py     operations on symbols
trace.py     a function is called once with symbols, and leaves its graph
fuse.py      which operations share one kernel
memory.py    where every array lies
build.py     all of it together: a function as a list of commands
commands.py  what a target is given: fused kernels, products, gathers of rows
verify.py    checks of what these stages hand on
interpret.py commands carried out by NumPy: what every target is to give
random.py    keep-masks are values: what they are made of
llvm/        commands as machine code, and the threads that carry it out
"""
