"""Which market the hub runs on, settled once at start so that every process opens the same one."""

from __future__ import annotations

from dataclasses import dataclass

from feature_repo.generated import GeneratedMarket
from feature_repo.market import ChosenMarket, Market, choose_market
from hub.config import HubConfig


@dataclass(frozen=True)
class MarketChoice:
    """kind: files, hyperliquid or generated. data_dir: of the files. reason: why this kind, for people."""

    kind: str
    data_dir: str | None
    symbols: tuple[str, ...]
    seed: int
    signal: float
    generated_bars: int
    reason: str
    hyperliquid_url: str | None = None
    fear_greed_url: str = ""

    @property
    def recorded(self) -> bool:
        """Whether its bars are all there already, so that the clock replays them."""
        return self.kind != "hyperliquid"

    def open(self) -> Market:
        if self.kind == "generated":
            market = GeneratedMarket(self.seed, self.signal, self.symbols, self.generated_bars)
            return ChosenMarket(market, self.reason)
        return choose_market(self.data_dir, self.kind, symbols=self.symbols, hyperliquid_url=self.hyperliquid_url)


def settle(config: HubConfig, data_dir: str | None) -> tuple[MarketChoice, Market]:
    """The configured market, opened; `auto` is files if there is a data_dir, else Hyperliquid if it answers, else
    generated.
    """
    asked = config.market
    if asked.kind == "generated":
        name, reason = "generated", "asked for by configuration"
    else:
        found = choose_market(data_dir, None if asked.kind == "auto" else asked.kind, symbols=asked.symbols,
                              hyperliquid_url=asked.hyperliquid_url or None)
        name, reason = found.name, found.reason
    choice = MarketChoice(name, data_dir, asked.symbols, asked.seed, asked.signal, asked.generated_bars, reason,
                          asked.hyperliquid_url or None, asked.fear_greed_url)
    # A generated market is opened anew, so that it has the configured seed, signal and length.
    return choice, choice.open() if name == "generated" else found
