"""Where bars come from: one small protocol, and the choice among recorded files, the public API and a generated run."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from feature_repo.features import MINUTE_MS
from feature_repo.files import FileMarket
from feature_repo.generated import SYMBOLS, GeneratedMarket
from feature_repo.hyperliquid import HyperliquidMarket
from policies.bars import Bars
from policies.errors import HubError, InvalidInput

KINDS = ("files", "hyperliquid", "generated")

# Of a recorded or generated run, what comes before is for training and what comes after is replayed.
TRAINING_SHARE = 0.6
_THOUSANDS = re.compile("k[A-Z0-9]+")  # Hyperliquid's perpetuals of a thousand coins, such as kPEPE


class Market(Protocol):
    """A source of one-minute bars. Asking twice for the same closed range gives the same bars."""

    @property
    def name(self) -> str: ...

    @property
    def symbols(self) -> tuple[str, ...]: ...

    @property
    def origin(self) -> str:
        """Of what market these bars are, as a name for a folder: rows of two markets are never kept together."""
        ...

    @property
    def folder(self) -> Path | None:
        """Where what else was recorded lies beside recorded bars; None for a market that is not recorded."""
        ...

    def bars(self, symbol: str, start_ms: int | None = None, stop_ms: int | None = None) -> Bars:
        """Closed bars with open time in [start_ms, stop_ms); without limits, all there are."""
        ...

    def describe(self) -> str:
        """One line for people: what is served, from where, and why this market."""
        ...


class ChosenMarket:
    """A market and the reason why it was chosen."""

    def __init__(self, market: Market, reason: str) -> None:
        self.market, self.reason = market, reason

    @property
    def name(self) -> str:
        return self.market.name

    @property
    def symbols(self) -> tuple[str, ...]:
        return self.market.symbols

    @property
    def origin(self) -> str:
        return self.market.origin

    @property
    def folder(self) -> Path | None:
        return self.market.folder

    def bars(self, symbol: str, start_ms: int | None = None, stop_ms: int | None = None) -> Bars:
        return self.market.bars(symbol, start_ms, stop_ms)

    def describe(self) -> str:
        return f"{self.market.describe()}; {self.reason}"


def symbols_in(text: str) -> tuple[str, ...]:
    """The symbols of what a user wrote, such as "BTC, eth": in capitals, but for the k of Hyperliquid's thousands.

    A name that is missing between two commas is ""; whoever uses the symbols refuses it.
    """
    names = [name.strip() for name in text.split(",")]
    return tuple(name if _THOUSANDS.fullmatch(name) else name.upper() for name in names)


def choose_market(data_dir: str | None, kind: str | None = None, *, symbols: Sequence[str] | None = None,
                  venue: str | None = None, seed: int = 0, hyperliquid_url: str | None = None,
                  timeout_s: float = 3.0) -> ChosenMarket:
    """Files if there is a data_dir, else Hyperliquid if it answers within timeout_s, else a generated market.

    A `kind` that is asked for is given or refused: another one never takes its place silently.
    """
    if kind is not None and kind not in KINDS:
        raise InvalidInput("market.kind", f"one of {', '.join(KINDS)}", kind)
    if kind == "files" and not data_dir:
        raise InvalidInput("market.data_dir", "a folder of recorded bars, because the market's kind is files", data_dir)
    asked = "asked for by configuration" if kind else ""
    if data_dir and kind in (None, "files"):
        return ChosenMarket(FileMarket(Path(data_dir), venue, symbols), asked or "HUB_DATA_DIR is set")
    if kind == "generated":
        return ChosenMarket(GeneratedMarket(seed, symbols=symbols or SYMBOLS), asked)
    market = HyperliquidMarket(symbols or SYMBOLS, base_url=hyperliquid_url, timeout_s=timeout_s)
    try:
        market.probe(timeout_s)
    except HubError as error:
        if kind == "hyperliquid":
            raise
        return ChosenMarket(GeneratedMarket(seed, symbols=symbols or SYMBOLS),
                            f"HUB_DATA_DIR is not set and Hyperliquid did not answer ({error})")
    return ChosenMarket(market, asked or "HUB_DATA_DIR is not set and Hyperliquid answered")


def replay_range(market: Market, symbols: Sequence[str]) -> tuple[int, int, int]:
    """(start, end of training = start of the replay, end) in ms, of the time that all symbols have bars for."""
    runs = [market.bars(symbol) for symbol in symbols]
    start = max(int(bars.open_time_ms[0]) for bars in runs)
    stop = min(int(bars.close_time_ms[-1]) for bars in runs)
    split = start + int((stop - start) * TRAINING_SHARE) // MINUTE_MS * MINUTE_MS
    return start, split, stop
