from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from feature_repo.generated import HORIZON, GeneratedMarket, oracle_direction
from policies.bars import Bars
from policies.errors import InvalidInput, UnknownEntity
from policies.fills import simulate_brackets

TP, SL = 0.010, 0.007


def traded(bars: Bars, direction: NDArray[np.int64]) -> tuple[list[float], float]:
    """(net returns of the trades of one slot, share of its free bars on which a trade was entered)."""
    at = np.flatnonzero(direction[:-1])
    fills = simulate_brackets(bars, at + 1, direction[at], 5.0, TP, SL, HORIZON)
    returns: list[float] = []
    free_from, free_bars = 0, 0
    for k in np.flatnonzero(fills.finished):
        if at[k] >= free_from:
            returns.append(float(fills.net_return_on_margin[k]))
            free_bars += int(at[k]) - free_from + 1
            free_from = int(fills.exit_index[k])
    return returns, len(returns) / free_bars


def profit_factor(returns: list[float]) -> float:
    values = np.array(returns)
    return float(values[values > 0].sum() / -values[values < 0].sum())


def follow_the_last_15_bars(bars: Bars) -> NDArray[np.int64]:
    direction = np.zeros(len(bars), np.int64)
    direction[15:] = np.sign(bars.close[15:] - bars.close[:-15])
    return direction


def book(seed: int, signal: float) -> tuple[list[float], list[float], float]:
    """(oracle's returns, momentum's returns, oracle's share of free bars) over three symbols."""
    market = GeneratedMarket(seed, signal, bars=30_000)
    oracle: list[float] = []
    momentum: list[float] = []
    shares = []
    for symbol in ("BTC", "ETH", "SOL"):
        bars = market.bars(symbol)
        returns, share = traded(bars, oracle_direction(bars))
        oracle += returns
        momentum += traded(bars, follow_the_last_15_bars(bars))[0]
        shares.append(share)
    return oracle, momentum, float(np.mean(shares))


@pytest.mark.parametrize("seed", [0, 1, 2, 7])
def test_oracle_earns_three_to_four_and_momentum_loses(seed: int) -> None:
    oracle, momentum, share = book(seed, signal=1.0)
    assert 3 < profit_factor(oracle) < 4
    assert profit_factor(momentum) < 1
    assert share >= 0.15


@pytest.mark.parametrize("seed", [0, 1])
def test_without_signal_nobody_has_an_edge(seed: int) -> None:
    oracle, momentum, _ = book(seed, signal=0.0)
    assert profit_factor(oracle) < 1
    assert profit_factor(momentum) < 1


def test_without_signal_returns_have_no_mean_after_any_bar_and_volume_is_the_same() -> None:
    with_signal, without = (GeneratedMarket(4, signal, bars=40_000).bars("ETH") for signal in (1.0, 0.0))
    assert (with_signal.volume == without.volume).all()
    after = np.log(without.close[HORIZON:] / without.close[:-HORIZON]) * oracle_direction(without)[:-HORIZON]
    chosen = after[after != 0]
    # Windows of ten bars overlap, so a tenth of the trades is counted as independent.
    assert abs(chosen.mean()) < 4 * chosen.std() / np.sqrt(len(chosen) / HORIZON)


def test_without_signal_the_price_is_a_martingale() -> None:
    bars = GeneratedMarket(8, signal=0.0, bars=40_000).bars("BTC")
    gains = bars.close / bars.open - 1
    assert abs(gains.mean()) < 4 * gains.std() / np.sqrt(len(gains))


def test_signal_gives_back_a_tagged_move_over_the_next_bars_and_not_before() -> None:
    with_signal, without = (GeneratedMarket(9, signal, bars=400).bars("BTC") for signal in (1.0, 0.0))
    planted = np.log(with_signal.close / with_signal.open) - np.log(without.close / without.open)
    first = int(np.argmax(np.abs(planted) > 1e-9))
    move = np.log(without.close / without.open)[first - 1]
    assert np.sign(planted[first]) == -np.sign(move)
    assert without.volume[first - 1] == without.volume[:first].max()


def test_longer_run_begins_with_the_shorter_one() -> None:
    short, long = (GeneratedMarket(5, bars=n).bars("HYPE") for n in (500, 2_000))
    for name in ("open_time_ms", "open", "high", "low", "close", "volume", "funding_rate"):
        assert (getattr(long, name)[:500] == getattr(short, name)).all(), name


def test_oracle_sees_closed_bars_only() -> None:
    bars = GeneratedMarket(6, bars=2_000).bars("BTC")
    assert (oracle_direction(bars)[:1_200] == oracle_direction(bars.slice(0, 1_200))).all()


def test_volatility_clusters_volume_follows_it_and_symbols_hardly_move_together() -> None:
    market = GeneratedMarket(0, bars=20_000)
    returns = {s: np.diff(np.log(market.bars(s).close)) for s in ("BTC", "ETH")}
    hourly = np.abs(returns["BTC"][: 19_980]).reshape(-1, 60).mean(axis=1)
    volume = market.bars("BTC").volume[1:19_981].reshape(-1, 60).mean(axis=1)
    assert np.corrcoef(hourly[1:], hourly[:-1])[0, 1] > 0.3
    assert np.corrcoef(hourly, volume)[0, 1] > 0.5
    assert 0 < np.corrcoef(returns["BTC"], returns["ETH"])[0, 1] < 0.3


def test_same_seed_same_bars_another_seed_others() -> None:
    one, same, other = (GeneratedMarket(seed, bars=300).bars("SOL").close for seed in (1, 1, 2))
    assert (one == same).all()
    assert (one != other).all()


def test_bad_arguments_are_refused() -> None:
    for arguments in ({"signal": float("nan")}, {"bars": 0}, {"start_ms": 1}):
        with pytest.raises(InvalidInput):
            GeneratedMarket(0, **arguments)
    with pytest.raises(UnknownEntity, match="DOGE"):
        GeneratedMarket(0).bars("DOGE")
