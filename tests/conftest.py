"""Set before anything is imported: Triton's interpreter, and what Ctrl-C does. And how examples are made up.

Triton reads its variable when it is imported, and torch and transformers import it where it is installed. A
shell starts its background jobs with SIGINT ignored, and a test that interrupts itself would wait for ever.
A busy machine may stop any test for half a second, which hypothesis would take for a fault of the code.
The same examples are tried each time, so that a green suite stays green; HYPOTHESIS_PROFILE=explore looks for
new ones.
"""

from __future__ import annotations

import os
import signal

from hypothesis import settings

os.environ["TRITON_INTERPRET"] = "1"
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("helixflow", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "helixflow"))
