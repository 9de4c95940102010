"""Set before anything is imported: Triton's kernels run in its interpreter, on the CPU.

Triton reads the variable when it is imported, and torch and transformers import it where it is installed.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"
