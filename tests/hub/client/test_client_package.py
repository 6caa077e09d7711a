"""What importing the client brings along."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_importing_the_client_brings_in_nothing_of_the_server() -> None:
    code = "import sys, hub.client; print('\\n'.join(sys.modules))"
    modules = set(subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True,
                                 check=True).stdout.split())
    assert not modules & {"ray", "numpy", "pandas", "pydantic", "fastapi", "annotated_types", "orjson", "redis"}
    of_the_hub = {name for name in modules if name.startswith(("hub.", "router", "sentry", "feature_repo", "train"))}
    assert {name for name in of_the_hub if not f"{name}.".startswith("hub.client.")} == set()
    of_the_policies = {name.removeprefix("policies.") for name in modules if name.startswith("policies.")}
    assert of_the_policies == {"types", "errors", "breaker"}
