"""`make forward_test`: play a candidate on bars later than its training, and say whether it may go further.

    python -m ci.forward_test --home var --path var/models/candidate_linear.pt

Ends with 0 if it passed; 3 if it did not, so that a chain stops; 1 if it could not be played; 2 for wrong arguments.
The report is HOME/reports/forward_test.json with a page beside it.
"""

from __future__ import annotations

import logging
import sys
import time
import warnings
from contextlib import suppress
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from feature_repo.market import KINDS, Market, symbols_in
from feature_repo.store import OFFLINE_ONLY, FeatureRepo
from policies.bundle import Bundle, read_bundle
from policies.embedder import version_of
from policies.errors import BundleRefused, HubError, InvalidInput
from policies.keyed_random import generator
from policies.registry import PolicyFolder
from train.commands import NOT_PASSED
from train.forward import ForwardTest, needed_embedding
from train.forward_figures import REPORT, sentence_of, table_of, write_page
from train.forward_result import ForwardResult, ForwardSettings
from train.training_set import open_market

EMBEDDER_FILE = "embedder.pt"  # that a search leaves beside its candidates


def forward_tested(home: Path, bundle: Bundle, market: Market, settings: ForwardSettings,
                   embedder: Bundle | None = None) -> ForwardResult:
    """The test of one candidate with what lies in a home: its feature store, and the embedder if none is given."""
    repo = FeatureRepo(home, OFFLINE_ONLY, market.origin)
    repo.apply()
    wanted = needed_embedding(bundle)
    if embedder is None and wanted:
        embedder = kept_embedder(home, wanted)
    return ForwardTest(market, repo, bundle, settings, embedder).run(generator(0, "forward test", bundle.policy_id))


def kept_embedder(home: Path, version: str) -> Bundle | None:
    """The embedder of this version that the hub of a home has stored, or that a search has left beside its heads."""
    stored = PolicyFolder(home / "embedders")
    for policy_id in stored.ids():
        if version_of(policy_id) == version:
            return stored.get(policy_id)
    with suppress(BundleRefused):
        beside = read_bundle(home / "models" / EMBEDDER_FILE)
        return beside if version_of(beside.policy_id) == version else None
    return None


def symbols_of(bundle: Bundle, coins: str) -> tuple[str, ...]:
    """Those asked for, or those that it was trained on."""
    trained: Any = bundle.manifest.trained_on.get("symbols", ())
    chosen = symbols_in(coins) if coins else tuple(map(str, trained)) if isinstance(trained, list | tuple) else ()
    if not chosen:
        raise InvalidInput("COINS", "given, as the manifest names no symbols", coins)
    return chosen


def read_candidate(path: Path) -> Bundle:
    try:
        return read_bundle(path)
    except BundleRefused as refusal:
        click.echo(f"{path} is refused: {refusal}")
        sys.exit(NOT_PASSED)


@click.command()
@click.option("--home", type=click.Path(path_type=Path, resolve_path=True), envvar="HUB_HOME", default=Path("var"),
              show_default=True)
@click.option("--path", type=click.Path(exists=True, path_type=Path), required=True, help="Of a packed bundle.")
@click.option("--embedder", type=click.Path(exists=True, path_type=Path), default=None,
              help="Of the packed embedder it takes; by default looked for in the home.")
@click.option("--market", type=click.Choice(["auto", *KINDS]), default="auto", show_default=True)
@click.option("--data-dir", envvar="HUB_DATA_DIR", default=None, help="Folder of recorded bars.")
@click.option("--coins", default="", help="Separated by commas; by default those of its training.")
@click.option("--lookback", default=ForwardSettings.most_bars, show_default=True,
              help="Bars of each symbol at most, the first ones after training.")
@click.option("--min-pf", default=0.0, show_default=True, help="Profit factor that is demanded; 0: none.")
@click.option("--min-trades", default=ForwardSettings.least_trades, show_default=True,
              help="Trades that are demanded, so that something was tested; 0: none.")
@click.option("--max-dd", default=0.04, show_default=True, help="Fall of allotted capital that is allowed.")
@click.option("--strict", is_flag=True, help="Demand a profit factor of 1.5 and the judgement of its training too.")
@click.option("--seed", default=7, show_default=True, help="Of a generated market.")
@click.option("--signal", default=1.0, show_default=True, help="Planted edge of a generated market.")
@click.option("--generated-bars", default=43_200, show_default=True)
@click.option("--report", "name", default=REPORT, show_default=True, help="Its name below HOME/reports.")
def main(home: Path, path: Path, embedder: Path | None, market: str, data_dir: str | None, coins: str, lookback: int,
         min_pf: float, min_trades: int, max_dd: float, strict: bool, seed: int, signal: float, generated_bars: int,
         name: str) -> None:
    """Play a candidate on bars later than its training."""
    warnings.filterwarnings("ignore")
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    console, began = Console(width=None if sys.stdout.isatty() else 160, highlight=False), time.monotonic()
    try:
        bundle = read_candidate(path)
        settings = ForwardSettings(symbols_of(bundle, coins), lookback, min_pf, max_dd, strict, min_trades)
        opened = open_market(market, data_dir, settings.symbols, seed, signal, generated_bars)
        console.print(opened.describe(), soft_wrap=True)
        result = forward_tested(home, bundle, opened, settings, None if embedder is None else read_bundle(embedder))
    except InvalidInput as error:
        raise click.UsageError(str(error)) from error
    except HubError as error:
        raise click.ClickException(str(error)) from error
    console.print(table_of(result))
    console.print(sentence_of(result), soft_wrap=True)
    page = write_page(home / "reports", result, {"market": opened.describe(), "path": str(path),
                                                 "seconds": time.monotonic() - began}, name)
    console.print(f"{'passed' if result.passed else 'not passed'}; report {page}", soft_wrap=True)
    sys.exit(0 if result.passed else NOT_PASSED)


if __name__ == "__main__":
    main()
