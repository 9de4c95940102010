"""Set before anything is imported: Triton's interpreter, and what Ctrl-C does.

Triton reads its variable when it is imported, and torch and transformers import it where it is installed. A
shell starts its background jobs with SIGINT ignored, and a test that interrupts itself would wait for ever.
"""

from __future__ import annotations

import os
import signal

os.environ["TRITON_INTERPRET"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)
