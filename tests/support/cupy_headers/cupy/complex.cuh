// In the place of CuPy's, which needs Thrust: bpnet has no complex numbers.
#pragma once
