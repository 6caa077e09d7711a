"""Step: hand the best candidate that passed its forward test to the running hub, with its embedder if it has one.

    python -m train.nightly.register_step --home var --forward FOLDER --made FOLDER --out FOLDER

Ends with 0; 4 if a hub runs and refused it; 6 if none runs, and says how to hand it over later.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from policies.bundle import Bundle, read_bundle
from policies.types import NO_EMBEDDING
from train.commands import AWAY, REFUSED
from train.handover import HandoverFailed, HubDoor
from train.nightly.forward_step import EMBEDDER


def passed_in(folder: Path) -> list[Path]:
    """The candidates that passed."""
    results = [json.loads(path.read_bytes()) for path in sorted(folder.glob("forward_*.json"))]
    return [Path(found["path"]) for found in results if found["passed"]]


def rank_of(bundle: Bundle) -> tuple[bool, float, float, str]:
    """The less the better, as `train.candidates.ranked`, by the judgement in the manifest; without one it is last.

    All were judged on the bars of their training; the forward test, which is short, only says who may go further.
    """
    told = bundle.manifest.trained_on
    judgement = _mapping(told.get("judgement"))
    confidence = judgement.get("deflated_sharpe")
    least = _mapping(_mapping(judgement.get("head")).get("profit_factor_interval")).get("low")
    return (told.get("passed") is not True, -round(confidence, 3) if isinstance(confidence, int | float) else 1.0,
            -least if isinstance(least, int | float) else 1.0, bundle.manifest.alias)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def best_of(paths: Iterable[Path]) -> tuple[Path, Bundle]:
    """At least one path is given."""
    opened = [(path, read_bundle(path)) for path in paths]
    return min(opened, key=lambda one: rank_of(one[1]))


def hand_over(door: HubDoor, bundle: Bundle, embedder: Path) -> str:
    """Register it; what there is to say about it. Raises HandoverFailed."""
    said = ""
    version = bundle.manifest.embedding_version
    if version != NO_EMBEDDING and embedder.exists():
        why_not = door.use_embedder(read_bundle(embedder))
        said = f"; its embedding is not in use ({why_not}): hub embedding use {version} --force" if why_not else ""
    door.register(bundle)
    return said


@click.command()
@click.option("--home", type=click.Path(path_type=Path), required=True)
@click.option("--hub-url", default="http://127.0.0.1:8000", show_default=True)
@click.option("--forward", type=click.Path(path_type=Path), required=True, help="Of the finished forward tests.")
@click.option("--made", type=click.Path(path_type=Path), multiple=True, help="Of the steps that made candidates.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for registered.json.")
def main(home: Path, hub_url: str, forward: Path, made: tuple[Path, ...], out: Path) -> None:
    """Hand over the best candidate that passed."""
    path, bundle = best_of(passed_in(forward))
    door, alias = HubDoor(hub_url.rstrip("/"), home), bundle.manifest.alias
    if door.status() is None:
        click.echo(f"no hub of this home answers at {door.url}: hub register --path {path}")
        sys.exit(AWAY)
    try:
        said = f"registered {alias}" + hand_over(door, bundle, path.parent / EMBEDDER)
    except HandoverFailed as error:
        click.echo(f"{alias} was not taken: {error}")
        sys.exit(REFUSED)
    (out / "registered.json").write_text(json.dumps(
        {"alias": alias, "policy_id": bundle.policy_id, "path": str(path), "said": said}))
    click.echo(said)


if __name__ == "__main__":
    main()
