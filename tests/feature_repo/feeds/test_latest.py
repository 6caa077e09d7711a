from __future__ import annotations

import numpy as np
import pytest

from feature_repo.feeds.events import Book, Mid, Quote, Trade
from feature_repo.feeds.latest import Ages, LatestMarket, TradeTape

T0 = 1_750_000_020_000
EMPTY = np.empty((0, 2))


def trade(time_ms: int, trade_id: int, received_ms: int | None = None, symbol: str = "BTC") -> Trade:
    return Trade(symbol, time_ms, time_ms if received_ms is None else received_ms, 100.0, 1.0, "buy", trade_id)


def test_age_counts_from_the_start_until_something_is_heard() -> None:
    ages = Ages([("bbo", "BTC"), ("bbo", "ETH")], T0)
    ages.touch("bbo", "ETH", T0 + 70)
    ages.touch("bbo", "DOGE", T0 + 70)
    assert ages.at(T0 + 100) == {("bbo", "BTC"): 100, ("bbo", "ETH"): 30}
    assert ages.at(T0 + 60) == {("bbo", "BTC"): 60, ("bbo", "ETH"): 0}


def test_trade_that_comes_again_is_known_even_at_the_same_moment() -> None:
    tape = TradeTape(1_000)
    assert [tape.add(trade(T0, 1)), tape.add(trade(T0, 2)), tape.add(trade(T0, 1)), tape.add(trade(T0 + 1, 1))] == [
        True, True, False, True]
    assert [one.trade_id for one in tape.since(T0)] == [1, 2, 1]
    assert [one.trade_id for one in tape.since(T0 + 1)] == [1]


def test_old_trades_are_let_go_and_do_not_come_back() -> None:
    tape = TradeTape(1_000)
    for place in range(5_000):
        assert tape.add(trade(T0 + place, place))
        assert len(tape.since(0)) <= 1_001
    assert not tape.add(trade(T0, 0, T0 + 5_000))
    assert not tape.add(trade(T0 + 10, 99, T0 + 5_000)), "older than what was let go"


def test_flood_of_trades_is_bounded_by_number() -> None:
    tape = TradeTape(10**9, most=100)
    for place in range(500):
        tape.add(trade(T0 + place, place))
    assert [one.trade_id for one in tape.since(0)] == list(range(400, 500))


@pytest.mark.parametrize("seed", range(10))
def test_tape_equals_the_sorted_set_of_what_came(seed: int) -> None:
    rng = np.random.default_rng(seed)
    tape = TradeTape(10_000)
    came = {(T0 + int(rng.integers(50)), int(rng.integers(30))) for _ in range(300)}
    order = [*came, *came]
    rng.shuffle(order)  # type: ignore[arg-type]
    taken = sum(tape.add(trade(int(time_ms), int(trade_id), T0 + 100)) for time_ms, trade_id in order)
    assert taken == len(came)
    assert [(one.time_ms, one.trade_id) for one in tape.since(0)] == sorted(came)


def test_newest_state_by_the_venues_time_stays() -> None:
    market = LatestMarket(("BTC",), ("l2Book", "bbo", "allMids"), 1_000, T0)
    for time_ms in (T0 + 5, T0 + 9, T0 + 7):
        market.set_book(Book("BTC", time_ms, T0 + 50, EMPTY, EMPTY))
        market.set_quote(Quote("BTC", time_ms, T0 + 50, 1.0, 1.0, None, None))
    market.set_mids({"BTC": Mid("BTC", T0 + 60, 5.0), "DOGE": Mid("DOGE", T0 + 60, 5.0)})
    book, quote, mid = market.book("BTC"), market.quote("BTC"), market.mid("BTC")
    assert book is not None and quote is not None and mid is not None  # noqa: PT018
    assert (book.time_ms, quote.time_ms, mid.price) == (T0 + 9, T0 + 9, 5.0)
    assert market.mid("DOGE") is None
    assert market.ages(T0 + 100) == {("l2Book", "BTC"): 50, ("bbo", "BTC"): 50, ("allMids", "BTC"): 40}


def test_repeated_and_foreign_trades_are_counted() -> None:
    market = LatestMarket(("BTC",), ("trades",), 1_000, T0)
    for one in (trade(T0, 1), trade(T0, 1), trade(T0, 2, symbol="DOGE")):
        market.add_trade(one)
    assert len(market.trades("BTC", 0)) == 1
    assert market.counters() == {"repeated_trades": 1, "unexpected": 1}
