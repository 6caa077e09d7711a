"""docs/features.md is what its generator prints, and the generator leaves nothing out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from ci.feature_table import COLUMNS, page
from feature_repo.features import GROUPS, SERVICES, SPECS

ROOT = Path(__file__).parents[2]


def test_the_page_is_what_the_generator_prints() -> None:
    printed = subprocess.run([sys.executable, "-m", "ci.feature_table"], cwd=ROOT, capture_output=True, check=True)
    assert printed.stdout == page().encode()
    assert (ROOT / "docs" / "features.md").read_text() == page(), "write it anew: its first lines say how"


def test_every_feature_group_and_service_is_on_the_page() -> None:
    lines = page().splitlines()
    rows = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines if line.startswith("| `")]
    assert {row[0].strip(" `") for row in rows} == set(SPECS) | {n for service in SERVICES for n in service.names}
    assert {len(row) for row in rows} == {len(COLUMNS), len(COLUMNS) + 1}
    for group in GROUPS:
        assert f"### {group}" in lines
    for service in SERVICES:
        assert f"## Service {service.name}" in lines
