"""What a job learns from: the bars of its symbols, the features at their closes, joined once, and what names both."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property

from feature_repo.market import Market
from feature_repo.store import FeatureRepo
from policies.bars import Bars
from train.dataset import FeatureRows
from train.kept_bars import digests_of
from train.steps import key_of
from train.training_set import joined_rows


class Joined:
    """bars: by symbol. The join takes seconds and is made anew for every job that asks: sentiment, funding or books may
    have been added since, and the bars would not tell."""

    def __init__(self, market: Market, repo: FeatureRepo, bars: Mapping[str, Bars]) -> None:
        self._market, self._repo, self.bars = market, repo, bars

    @cached_property
    def rows(self) -> dict[str, FeatureRows]:
        """By symbol, everything that was known at the close of each bar."""
        self._repo.apply()
        return joined_rows(self._market, self._repo, self.bars, lambda line: None)

    @cached_property
    def digest(self) -> str:
        """16 hex digits that name all bars and rows."""
        return key_of(digests_of(self.bars), {symbol: rows.digest for symbol, rows in self.rows.items()})
