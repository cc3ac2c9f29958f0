"""A trained model as a C header and an object file, by bpnet's own compiler."""

import hashlib
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bpnet.backends import Array, Backend
from bpnet.backends.tracing import TracingBackend, leaves_of, rebuilt
from bpnet.compiler.build import build
from bpnet.compiler.graph import Graph
from bpnet.compiler.symbols import NotTraceableError
from bpnet.compiler.trace import reason, trace
from bpnet.errors import ExportError
from bpnet.layer import Run
