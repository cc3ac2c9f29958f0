"""Functions of arrays, compiled: traced to a graph, fused into kernels, laid out in memory, and listed as commands.

README.md beside this file says which module does what, and follows a step through all of them.
"""

import time

BEGAN = time.time()
"""When this process began to import what is here."""
