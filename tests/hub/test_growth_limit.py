"""The limit on a process's memory."""

from __future__ import annotations

import subprocess
import sys


def test_more_than_allowed_is_refused_by_the_process_itself_and_less_is_not() -> None:
    code = ("from hub.growth_limit import limit_growth\n"
            "limit_growth(2**28)\nbytearray(2**26)\nprint('little')\n"
            "try:\n    bytearray(2**29)\nexcept MemoryError:\n    print('much')\n"
            "limit_growth(2**40)\n"
            "try:\n    bytearray(2**29)\nexcept MemoryError:\n    print('still')")
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stdout.split() == ["little", "much", "still"]
