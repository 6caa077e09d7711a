"""The page of all features, from the list that the code uses.

    python -m ci.feature_table > docs/features.md
"""

from __future__ import annotations

from collections.abc import Sequence

from feature_repo.features import (
    ARRAYS,
    GROUPS,
    MISSING,
    SECOND_MS,
    SERVICES,
    VERSION_FEATURE,
    ArrayGroup,
    FeatureGroup,
    FeatureList,
    FeatureSpec,
)

INTRO = """# Features

Written by `python -m ci.feature_table > docs/features.md` from `feature_repo/features.py`; a test compares the two.

A feature is one number. A group is what comes from one source, is written as one row and goes stale as one. Each row
has an event time: when it became known. A decision sees, of each group, the newest row that was known then and is not
older than the group's ttl. A service is a fixed, ordered selection of features. None of its required groups may be
absent or stale; where an optional group is, its features are empty and its indicator is 1.

- window: how far back the value looks, in rows of its source (bars for candles, seconds for trades).
- scale: a typical magnitude, fixed, by which similarity searches divide.
- stationary: whether its distribution should be the same on any quiet day. Only such features count for drift.
- c is a close, c[-5] the close five bars before, r the log return of one bar, v60 the realised volatility of 60 bars.
"""
ARRAY_INTRO = """An array group has one feature, an array of float32, and belongs to no service. A head that wants it
says in its manifest how many numbers it takes: always the last ones. It is not asked while the array is absent or
stale; other heads go on.
"""
COLUMNS = ("feature", "formula", "unit", "window", "source", "scale", "stationary")


def page() -> str:
    """The whole page, Markdown, ending in a newline."""
    groups = [_group_part(group) for group in GROUPS.values()]
    services = [_service_part(service) for service in SERVICES]
    arrays = [_array_part(group) for group in ARRAYS.values()]
    parts = [INTRO, *services, "## Groups", "", *groups, "## Array groups", "", ARRAY_INTRO, *arrays]
    return "\n".join(parts).rstrip("\n") + "\n"


def _service_part(service: FeatureList) -> str:
    counts = [(group, len(names)) for group, names in service.groups.items()]
    parts = [f"## Service {service.name}", "", f"{len(service)} numbers.", ""]
    for title, chosen in (("Required", service.required_groups), ("Optional", service.optional_groups)):
        listed = ", ".join(f"{group} ({count})" for group, count in counts if group in chosen)
        parts.append(f"- {title} groups, with the number of features taken: {listed or 'none'}.")
    missing = [spec for spec in service.specs if spec.group == MISSING]
    if missing:
        parts += ["", "Indicators of what is missing:", "", *_table(missing)]
    return "\n".join([*parts, ""])


def _group_part(group: FeatureGroup) -> str:
    taken = [service.name for service in SERVICES if group.name in service.groups]
    kept = "" if group.online else " It is not stored: it comes with a request."
    return "\n".join([
        f"### {group.name}", "", f"{group.description[0].upper()}{group.description[1:]}.{kept}", "",
        f"- ttl: {group.ttl_ms / SECOND_MS:g} s", f"- services: {', '.join(taken) or 'none'}", "",
        *_table(group.specs, in_service=True), ""])


def _array_part(group: ArrayGroup) -> str:
    version = f", beside it the text `{VERSION_FEATURE}`" if group.versioned else ""
    kept = "by version, for training" if group.versioned else "not at all: bars give it"
    return "\n".join([
        f"### {group.name}", "", f"{group.description[0].upper()}{group.description[1:]}.", "",
        f"- feature: `{group.feature}`, at most {group.most} numbers{version}",
        f"- taken of it: a multiple of {group.step}", f"- ttl: {group.ttl_ms / SECOND_MS:g} s",
        f"- kept in the offline store: {kept}", ""])


def _table(specs: Sequence[FeatureSpec], in_service: bool = False) -> list[str]:
    """in_service: add which services have each feature."""
    head = [*COLUMNS, *(["services"] if in_service else [])]
    return [_line(head), _line(["---"] * len(head)), *(_line(_cells(spec, in_service)) for spec in specs)]


def _cells(spec: FeatureSpec, in_service: bool) -> list[str]:
    cells = [f"`{spec.name}`", f"`{spec.formula}`", spec.unit, str(spec.window), spec.source, f"{spec.scale:g}",
             "yes" if spec.stationary else "no"]
    services = ", ".join(service.name for service in SERVICES if spec.name in service.names) or "none"
    return [*cells, services] if in_service else cells


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


if __name__ == "__main__":
    print(page(), end="")
