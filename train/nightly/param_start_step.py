"""Step: hand the start of the parameter learners, as the search for levels left it, to the running hub.

    python -m train.nightly.param_start_step --home var --made FOLDER --out FOLDER

Ends with 0; 4 if a hub runs and refused it; 6 if none runs, and says how to hand it over later.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from train.commands import AWAY, REFUSED
from train.handover import HandoverFailed, HubDoor

FILE = "param_start.json"


@click.command()
@click.option("--home", type=click.Path(path_type=Path), required=True)
@click.option("--hub-url", default="http://127.0.0.1:8000", show_default=True)
@click.option("--made", type=click.Path(path_type=Path), required=True, help="Of the finished search.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for param_started.json.")
def main(home: Path, hub_url: str, made: Path, out: Path) -> None:
    """Have the hub begin from what was found."""
    path, door = made / FILE, HubDoor(hub_url.rstrip("/"), home)
    if not path.exists():
        raise click.ClickException(f"the search left no {FILE}")
    if door.status() is None:
        click.echo(f"no hub of this home answers at {door.url}: hub params start --path {path}")
        sys.exit(AWAY)
    try:
        answer = door.begin_params_from(json.loads(path.read_bytes()), "found by the nightly search")
    except HandoverFailed as error:
        click.echo(f"{FILE} was not taken: {error}")
        sys.exit(REFUSED)
    said = f"the hub's parameter learners begin from {answer.get('start_id', FILE)}"
    (out / "param_started.json").write_text(json.dumps({"path": str(path), "said": said}))
    click.echo(said)


if __name__ == "__main__":
    main()
