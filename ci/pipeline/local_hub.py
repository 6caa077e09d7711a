"""A hub of the chain's own, for machines without one: an empty home, free ports, one plain head as the incumbent."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from ci.chaos.target import ChaosHub, heads
from ci.pipeline.held import held, until_let_go
from ci.pipeline.settings import PipelineSettings, setting_options
from ci.pipeline.step import notes_folder
from hub.engine import end_leftovers
from hub.home import Home

MODULE, NOTE = "ci.pipeline.local_hub", "local_hub.json"


@contextmanager
def local_hub(settings: PipelineSettings) -> Iterator[tuple[str, Path]]:
    """Its URL and its home, for the length of the block. Policies come from the artefacts that the settings name."""
    ready, log = notes_folder(settings.home) / NOTE, settings.home / "logs" / "local_hub.log"
    with held(MODULE, arguments(settings), ready, log) as note:
        yield note["url"], Path(note["home"])


def arguments(settings: PipelineSettings) -> list[str]:
    names = ("home", "artefacts", "s3_endpoint_url", "market", "data_dir", "coins", "seed", "signal", "generated_bars")
    return [part for name in names if (value := str(getattr(settings, name)))
            for part in (f"--{name.replace('_', '-')}", value)]


def environment_of(settings: PipelineSettings) -> dict[str, str]:
    """HUB_ variables beside those of every such hub."""
    kind = settings.market if settings.market != "auto" else "files" if settings.data_dir else "auto"
    return {"HUB_DATA_DIR": settings.data_dir, "HUB_MARKET__KIND": kind,
            "HUB_MARKET__SYMBOLS": json.dumps(settings.symbols),
            "HUB_MARKET__SEED": str(settings.seed), "HUB_MARKET__SIGNAL": str(settings.signal),
            "HUB_MARKET__GENERATED_BARS": str(settings.generated_bars),
            "HUB_STORAGE__ARTEFACTS_URL": settings.artefacts, "HUB_STORAGE__S3_ENDPOINT_URL": settings.s3_endpoint_url}


@click.command()
@setting_options
def main(settings: PipelineSettings) -> None:
    """Serve until the standard input ends."""
    home = Home(settings.home / "hub")
    end_leftovers(home)
    shutil.rmtree(home.root, ignore_errors=True)
    home.create()
    with ChaosHub(home, Path(settings.data_dir), environment_of(settings)) as hub:
        hub.register(heads()[0])
        until_let_go(notes_folder(settings.home) / NOTE, {"url": hub.url, "home": str(home.root)})


if __name__ == "__main__":
    main()
