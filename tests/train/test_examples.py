"""Rows of a search: everything that any head may see of them, each with a whole window, and nothing later than it."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from encoder_bundles import encoder_bundle
from small_search import SYMBOLS, WINDOW, GarbledMarket, market, repo_of

from feature_repo.features import DECISION_V1, MINUTE_MS
from feature_repo.generated import START_MS
from feature_repo.windows import CHANNELS
from policies.bars import Bars
from policies.embedder import load_embedder
from policies.errors import InvalidInput
from policies.fills import Costs
from train.dataset import Brackets, FeatureRows, label_rows
from train.examples import Examples, build_examples, every
from train.training_set import bars_until, joined_rows

CUT_MS = START_MS + 800 * MINUTE_MS
FEATURES = len(DECISION_V1.names)


@cache
def rows_of(garbled: bool = False) -> tuple[dict[str, Bars], dict[str, FeatureRows]]:
    of = GarbledMarket(market(1_200), CUT_MS) if garbled else market(1_200)
    with tempfile.TemporaryDirectory() as home:
        bars = bars_until(of, SYMBOLS, None, 1_200)
        return bars, joined_rows(of, repo_of(Path(home), of.origin), bars, lambda line: None)


@cache
def examples(garbled: bool = False, window_bars: int = WINDOW) -> Examples:
    bars, rows = rows_of(garbled)
    return build_examples(bars, rows, DECISION_V1.names, DECISION_V1.may_be_missing, window_bars, Brackets(), Costs())


def test_rows_come_in_the_order_of_time_and_symbol() -> None:
    found = examples()
    order = np.lexsort((found.symbol, found.event_time_ms))
    assert np.array_equal(order, np.arange(len(found)))
    assert set(found.symbol.tolist()) == set(SYMBOLS)
    assert found.values.dtype == np.float32


def test_each_row_has_its_own_features_window_and_label() -> None:
    found, (bars, rows) = examples(), rows_of()
    whole = {symbol: label_rows(bars[symbol], rows[symbol], Brackets(), Costs()) for symbol in SYMBOLS}
    for place in (0, 1, 777, len(found) - 1):
        symbol, time_ms = str(found.symbol[place]), int(found.event_time_ms[place])
        own = int(np.flatnonzero(whole[symbol].event_time_ms == time_ms)[0])
        assert np.array_equal(found.values[place, :FEATURES], whole[symbol].values[own].astype(np.float32),
                              equal_nan=True)
        assert found.returns[place].tolist() == [whole[symbol].long_return[own], whole[symbol].short_return[own]]
        assert found.classes[place] == whole[symbol].classes[own]
        assert found.known_ms[place] == whole[symbol].known_ms[own] > time_ms
        last = int(np.searchsorted(bars[symbol].close_time_ms, time_ms))
        newest = found.windows[place].reshape(WINDOW, len(CHANNELS))[-1]
        assert newest[3] == pytest.approx(np.log(bars[symbol].close[last] / bars[symbol].close[last - 1]), abs=1e-7)
        assert newest[4] == pytest.approx(np.log1p(bars[symbol].volume[last]), rel=1e-6)


@pytest.mark.parametrize("window_bars", [10, 120])
def test_every_row_has_its_whole_window_and_a_bar_before_it(window_bars: int) -> None:
    found, (bars, _) = examples(window_bars=window_bars), rows_of()
    for symbol in SYMBOLS:
        first = int(found.event_time_ms[found.symbol == symbol][0])
        assert int(np.searchsorted(bars[symbol].close_time_ms, first)) >= window_bars
    assert found.windows.shape == (len(found), window_bars * len(CHANNELS))
    assert np.isfinite(found.windows).all()


def test_later_bars_change_no_bit_of_what_was_known() -> None:
    kept, other = examples(), examples(garbled=True)
    known, known_there = kept.known_ms <= CUT_MS, other.known_ms <= CUT_MS
    assert known.sum() > 1_000
    for name in ("symbol", "event_time_ms", "known_ms", "values", "classes", "returns"):
        assert getattr(kept, name)[known].tobytes() == getattr(other, name)[known_there].tobytes(), name
    assert not np.array_equal(kept.returns[~known][:500], other.returns[~known_there][:500])


def test_a_head_sees_the_columns_that_it_wants_in_the_order_of_the_served_row() -> None:
    embedder = load_embedder(encoder_bundle(bars=WINDOW))
    found = examples().with_embedding(embedder)
    places = np.array([3, 0, 40])
    parts = {"features": found.values[places, :FEATURES], "window": found.windows[places],
             "embedding": found.values[places, FEATURES:FEATURES + embedder.size]}
    for embedding in (False, True):
        for window in (False, True):
            layout = found.layout(embedding, window)
            wanted = ["features", *["embedding"] * embedding, *["window"] * window]
            seen = found.seen(places, layout)
            assert seen.shape == (3, layout.width)
            assert np.array_equal(seen, np.hstack([parts[name] for name in wanted]), equal_nan=True)
    labelled = found.labelled(places, found.layout(True, False))
    assert labelled.classes.tolist() == found.classes[places].tolist()
    assert np.array_equal(labelled.returns, found.returns[places])


def test_an_embedding_is_that_of_the_rows_own_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.examples.EMBEDDED_AT_ONCE", 100)  # the parts are put together again
    embedder, plain = load_embedder(encoder_bundle(bars=WINDOW)), examples()
    found = plain.with_embedding(embedder)
    assert np.array_equal(found.windows, plain.windows)
    for place in (0, 99, 100, len(found) - 1):
        alone = embedder.embed(plain.windows[place:place + 1])[0]
        assert found.values[place, FEATURES:FEATURES + embedder.size].tobytes() == alone.tobytes()


def test_an_embedder_for_other_windows_or_a_second_one_is_refused() -> None:
    with pytest.raises(InvalidInput, match=r"embedder\.window"):
        examples().with_embedding(load_embedder(encoder_bundle(bars=WINDOW + 1)))
    embedder = load_embedder(encoder_bundle(bars=WINDOW))
    with pytest.raises(InvalidInput, match=r"embedder\.window"):
        examples().with_embedding(embedder).with_embedding(embedder)


def test_labels_are_kept_with_their_times() -> None:
    found = examples()
    labels = found.labels()
    assert np.array_equal(labels.known_ms, found.known_ms)
    assert np.array_equal(np.column_stack([labels.long_return, labels.short_return]), found.returns)
    assert labels.values.shape == (len(found), 0)


@pytest.mark.parametrize(("count", "most"), [(10, 3), (10, 10), (10, 50), (1_001, 100), (20_000, 12_000), (7, 1)])
def test_chosen_places_are_spread_evenly_and_no_more_than_asked_for(count: int, most: int) -> None:
    places = np.arange(count) * 3
    chosen = every(places, most)
    assert 0 < len(chosen) <= most
    assert len(chosen) >= min(most, count) / 2
    assert set(chosen.tolist()) <= set(places.tolist())
    gaps = np.diff(np.searchsorted(places, chosen))
    assert (gaps > 0).all()
    assert gaps.size == 0 or gaps.max() <= 2 * -(-count // most)


@pytest.mark.parametrize("symbols", [2, 3, 4, 6])
@pytest.mark.parametrize("share", [2, 3, 4, 5])
def test_chosen_places_favour_no_symbol_whatever_the_share(symbols: int, share: int) -> None:
    """Rows of all symbols stand side by side: a fixed step would see some symbols alone."""
    places = np.arange(12_000)
    counts = np.bincount(every(places, len(places) // share) % symbols, minlength=symbols)
    fair = counts.sum() / symbols
    assert (np.abs(counts - fair) <= 0.15 * fair).all(), counts


def test_the_same_places_are_chosen_again() -> None:
    assert np.array_equal(every(np.arange(999), 100), every(np.arange(999), 100))
