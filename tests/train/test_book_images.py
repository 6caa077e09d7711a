"""Images of books: what was known at each step, nothing that was received later, and food for the auto-encoder."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest

from feature_repo.book import Books
from feature_repo.feeds.recorded import RecordedFeeds
from train.book_images import COLUMNS, ImageSettings, book_images, book_rows
from train.mae_settings import MaeSettings
from train.mae_training import fit_mae
from train.mae_windows import WindowSet

SETTINGS = ImageSettings(step_ms=1_000, steps=8, oldest_ms=3_000)


def books(count: int = 300, seed: int = 0, levels: int = 20) -> Books:
    """One about every 0.5 s; some lack a side or deep levels, some are crossed, and the feed is silent for 20 s."""
    rng = np.random.default_rng(seed)
    time_ms = 1_700_000_000_123 + np.cumsum(rng.integers(100, 900, count)).astype(np.int64)
    time_ms[count // 2:] += 20_000
    mid = 100 * np.exp(np.cumsum(rng.normal(0, 1e-4, count)))[:, None]
    gaps = np.cumsum(rng.exponential(0.01, (2, count, levels)) + 1e-4, axis=2)
    sizes = rng.exponential(10, (2, count, levels)) + 0.1
    bid, ask = mid - gaps[0], mid + gaps[1]
    for side, size in ((bid, sizes[0]), (ask, sizes[1])):
        short = rng.random(count) < 0.1
        side[short, levels // 2:] = size[short, levels // 2:] = np.nan
    bid[7], sizes[0][7] = np.nan, np.nan
    bid[40] = bid[40] + 5.0
    return Books("BTC", time_ms, bid, sizes[0], ask, sizes[1])


def test_images_equal_those_built_step_by_step() -> None:
    given = books()
    images = book_images(given, SETTINGS)
    rows, known = book_rows(given)
    expected = {}
    for end in range(1_700_000_001_000, int(given.event_time_ms[-1]) + 1, 1_000):
        parts = []
        for moment in range(end - 7_000, end + 1, 1_000):
            received = np.flatnonzero(given.event_time_ms <= moment)
            if len(received) and moment - given.event_time_ms[received[-1]] <= 3_000 and known[received[-1]]:
                parts.append(rows[received[-1]])
        if len(parts) == 8:
            expected[end] = np.array(parts)
    assert images.end_ms.tolist() == list(expected)
    assert np.array_equal(images.values, np.array(list(expected.values())))
    assert 30 < len(images) < 150


def test_a_book_received_later_changes_no_image() -> None:
    given, cut = books(), 200
    changed = {name: np.concatenate([getattr(given, name)[:cut], getattr(books(seed=9), name)[cut:]])
               for name in ("bid_price", "bid_size", "ask_price", "ask_size")}
    before, after = (book_images(b, SETTINGS) for b in (given, dataclasses.replace(given, **changed)))
    for one, other in ((before, after), (after, before)):
        early = one.end_ms < given.event_time_ms[cut]
        assert np.array_equal(one.end_ms[early], other.end_ms[other.end_ms < given.event_time_ms[cut]])
        assert np.array_equal(one.values[early], other.values[other.end_ms < given.event_time_ms[cut]])
    assert early.sum() > 20


def test_a_row_holds_distance_and_size_of_each_level_of_both_sides() -> None:
    given = Books("BTC", np.array([1_000]), np.array([[99.0, 98.0, np.nan]]), np.array([[1.0, 2.0, np.nan]]),
                  np.array([[101.0, 103.0, 104.0]]), np.array([[3.0, 4.0, 5.0]]))
    (row,), (known,) = book_rows(given)
    assert known
    named = dict(zip(COLUMNS, row.tolist(), strict=True))
    assert len(COLUMNS) == 80
    assert named["bid_distance_bps_0"] == pytest.approx(100)
    assert named["ask_distance_bps_1"] == pytest.approx(300)
    assert named["bid_log_size_1"] == pytest.approx(np.log1p(98 * 2))
    assert (named["bid_distance_bps_2"], named["bid_log_size_2"]) == (pytest.approx(200), 0.0)
    assert (named["ask_distance_bps_19"], named["ask_log_size_19"]) == (pytest.approx(400), 0.0)


def test_no_books_give_no_images() -> None:
    given = books()
    for count in (0, 1, 3):
        images = book_images(given.take(np.arange(count)), SETTINGS)
        assert (len(images), images.values.shape) == (0, (0, 8, 80))


def test_the_auto_encoder_learns_from_images(tmp_path: Path) -> None:
    images = book_images(books(1_200), SETTINGS)
    parted = images.end_ms[len(images) * 2 // 3]
    fit, validation = images.values[images.end_ms < parted], images.values[images.end_ms >= parted + 8_000]
    settings = MaeSettings(seq_len=8, patch_bars=2, channels=80, scaling="each", d_model=16, nhead=2, encoder_layers=1,
                           decoder_layers=1, embedding=4, epochs=10, batch=16, learning_rate=5e-3, threads=1)
    fitted = fit_mae(WindowSet.of(fit), WindowSet.of(validation), settings, tmp_path)
    assert fitted.epochs[-1].fit_loss < fitted.epochs[0].fit_loss
    assert np.isfinite(fitted.matrix).all()


@pytest.mark.skipif("HUB_DATA_DIR" not in os.environ, reason="HUB_DATA_DIR is not set")
def test_recorded_books_give_images_without_a_gap() -> None:
    given = RecordedFeeds(Path(os.environ["HUB_DATA_DIR"])).books("BTC")
    assert given is not None
    images = book_images(given, ImageSettings())
    assert len(images) > 100
    assert np.isfinite(images.values).all()
    assert (images.values[:, :, 0] > 0).all()
