"""What each strategy trades on in a backtest: one plain rule each, on features of `decision_v1` and nothing else.

They stand in for strategies that only the bot knows, so that levels can be compared on entries of their kind: what a
rule earns is not what the bot's own strategy earns. Arbitrage has none: it needs the prices of two venues, and bars of
one symbol hold one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policies.errors import InvalidInput

Columns = Mapping[str, NDArray[np.float64]]  # by feature, (N,)
OFFSETS = (0.0, 0.0002, 0.0005, 0.0010)  # of an entry limit from the last close; 0 is an entry at market


@dataclass(frozen=True)
class Rule:
    """text: for people. reads: the features of it. signed: (N,) whose sign is the side. where: (N,) whether it trades;
    NaN makes it False. offsets: limit offsets that are tried, the first one of which it starts with.
    """

    text: str
    reads: tuple[str, ...]
    signed: Callable[[Columns], NDArray[np.float64]]
    where: Callable[[Columns], NDArray[np.bool_]]
    offsets: tuple[float, ...] = OFFSETS

    def directions(self, columns: Columns) -> NDArray[np.int8]:
        """(N,) +1 long, -1 short, 0 no trade."""
        for name in self.reads:
            if name not in columns:
                raise InvalidInput("columns", f"with {', '.join(self.reads)}", sorted(columns))
        with np.errstate(invalid="ignore"):
            wanted = self.where(columns)
            return np.where(wanted, np.sign(self.signed(columns)), 0.0).astype(np.int8)


RULES: Mapping[str, Rule] = {
    "momentum": Rule(
        "with the return of 15 minutes where it exceeds one standard deviation and that of 60 goes the same way",
        ("ret_15", "ret_60"), lambda c: c["ret_15"],
        lambda c: (np.abs(c["ret_15"]) > 1.0) & (c["ret_15"] * c["ret_60"] > 0)),
    "breakout": Rule(
        "towards the end of the range of 60 minutes at which the close lies, on more volume than usual",
        ("position_60", "volume_ratio_5"), lambda c: c["position_60"],
        lambda c: (np.abs(c["position_60"]) > 0.95) & (c["volume_ratio_5"] > 0)),
    "scalping": Rule(
        "against the return of 5 minutes where it exceeds one and a half standard deviations",
        ("ret_5",), lambda c: -c["ret_5"], lambda c: np.abs(c["ret_5"]) > 1.5),
    "sniping": Rule(
        "against a single minute of more than two and a half standard deviations on high volume",
        ("ret_1", "volume_z_1"), lambda c: -c["ret_1"],
        lambda c: (np.abs(c["ret_1"]) > 2.5) & (c["volume_z_1"] > 2.0)),
    "market_making": Rule(
        "a resting limit against the last minute, whatever it was beyond a quarter of a standard deviation",
        ("ret_1",), lambda c: -c["ret_1"], lambda c: np.abs(c["ret_1"]) > 0.25, OFFSETS[1:]),
}
