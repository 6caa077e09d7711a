"""The forward test: played on later bars only, as a hub would ask and fill, and stopped by what it is there to stop."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from array_heads import array_bundle
from encoder_bundles import encoder_bundle
from numpy.typing import ArrayLike, NDArray
from plain_bundles import momentum_bundle
from small_search import SYMBOLS, GarbledMarket, market, repo_of

from feature_repo.features import MINUTE_MS
from feature_repo.market import Market
from feature_repo.windows import CHANNELS, windows
from policies.bundle import Bundle, make_bundle
from policies.embedder import version_of
from policies.ensemble import make_ensemble
from policies.errors import BundleRefused, InvalidInput
from policies.head import Policy, PredictionFailed
from policies.heads import load_head
from policies.types import Context, Proposal
from train.backtest import backtest
from train.dataset import FeatureRows
from train.forward import HISTORY_BARS, ForwardTest, NotPlayable, trained_until_ms
from train.forward_figures import as_json, sentence_of, table_of, write_page
from train.forward_result import ForwardResult, ForwardSettings
from train.training_set import joined_rows

BARS = 3_000
LATER = 700  # bars that nobody was trained on


@cache
def whole() -> Market:
    return market(BARS)


def until_ms() -> int:
    return int(whole().bars("BTC").close_time_ms[-LATER - 1])


def trained(bundle: Bundle, **trained_on: Any) -> Bundle:
    """The same head, made from everything but the last bars."""
    said = trained_on or {"bars": {"from_ms": 0, "until_ms": until_ms()}}
    return make_bundle(replace(bundle.manifest, trained_on=said), bundle.files)


class Watched:
    """A head that remembers what it was shown; `answer` replaces what it would say."""

    def __init__(self, head: Policy, answer: Callable[[Context, Proposal], Proposal] | None = None) -> None:
        self._head, self._answer = head, answer
        self.shown: list[Context] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._head, name)

    def predict(self, obs: ArrayLike) -> NDArray[np.float64]:
        return self._head.predict(obs)

    def propose(self, context: Context) -> Proposal:
        self.shown.append(context)
        said = self._head.propose(context)
        return said if self._answer is None else self._answer(context, said)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def play(home: Path) -> Callable[..., ForwardResult]:
    repo = repo_of(home, whole().origin)

    def run(bundle: Bundle, embedder: Bundle | None = None, of: Market | None = None,
            load: Callable[[Bundle], Any] = load_head, **settings: Any) -> ForwardResult:
        asked = ForwardSettings(**{"symbols": SYMBOLS, "most_drawdown": 0.5, **settings})
        found = of or whole()
        used = repo if of is None else repo_of(home / str(len(list(home.iterdir()))), found.origin)
        return ForwardTest(found, used, bundle, asked, embedder, load).run(np.random.default_rng(0))

    return run


def test_it_earns_what_the_row_by_row_backtest_earns_on_the_same_rows(
        play: Callable[..., ForwardResult], home: Path) -> None:
    bundle = trained(momentum_bundle(threshold=0.5))
    found = play(bundle)
    assert found.passed, found.missed
    assert found.played is not None
    bars = {symbol: whole().bars(symbol).slice(BARS - LATER - HISTORY_BARS, BARS) for symbol in SYMBOLS}
    rows = joined_rows(whole(), repo_of(home, whole().origin), bars, lambda line: None)
    later = {symbol: FeatureRows(part.event_time_ms[-LATER:], part.values[-LATER:]) for symbol, part in rows.items()}
    assert later["BTC"].event_time_ms[0] == until_ms() + MINUTE_MS
    settings = ForwardSettings(SYMBOLS)
    expected = backtest(load_head(bundle), bars, later, settings.horizon_bars, settings.costs)
    assert len(expected.trades) > 20
    assert [(t.symbol, t.entry_time_ms, t.exit_time_ms, t.exit_reason) for t in found.played.report.trades] == [
        (t.symbol, t.entry_time_ms, t.exit_time_ms, t.exit_reason) for t in expected.trades]
    assert [t.net_return for t in found.played.report.trades] == pytest.approx(
        [t.net_return for t in expected.trades], rel=1e-12)
    assert found.played.rows == LATER * len(SYMBOLS)


def test_no_row_is_played_that_training_could_have_seen_and_none_knows_what_comes_later(
        play: Callable[..., ForwardResult]) -> None:
    seen: list[Watched] = []

    def load(bundle: Bundle) -> Watched:
        seen.append(Watched(load_head(bundle)))
        return seen[-1]

    bundle, change_ms = trained(array_bundle("window_v1", {"window": 20 * len(CHANNELS)})), until_ms() + 300 * MINUTE_MS
    first = play(bundle, load=load, most_bars=400)
    assert first.played is not None
    assert first.played.from_ms == until_ms() + MINUTE_MS
    play(bundle, load=load, most_bars=400, of=GarbledMarket(whole(), change_ms))
    before, after = ({(c.symbol, c.time_ms): c for c in watched.shown} for watched in seen)
    assert before.keys() == after.keys()
    assert min(time for _, time in before) > until_ms()
    assert len({time for _, time in before}) == 400
    for key, context in before.items():
        same = np.array_equal(context.features, after[key].features, equal_nan=True) and np.array_equal(
            context.arrays["window"], after[key].arrays["window"])
        assert same == (key[1] <= change_ms), key


def test_a_head_with_a_window_is_shown_the_bars_up_to_its_row(play: Callable[..., ForwardResult]) -> None:
    watched = Watched(load_head(trained(array_bundle("window_v1", {"window": 20 * len(CHANNELS)}))))
    found = play(trained(array_bundle("window_v1", {"window": 20 * len(CHANNELS)})), load=lambda _: watched,
                 symbols=("ETH",))
    assert found.played is not None
    assert found.played.unanswered == 0
    rows = windows(whole().bars("ETH"), 120)
    for context, row in zip(watched.shown[:LATER], rows[-LATER:], strict=True):
        assert np.array_equal(context.arrays["window"], row)


def test_a_head_with_an_embedding_is_played_with_its_own_embedder_and_no_other(
        play: Callable[..., ForwardResult]) -> None:
    encoder = encoder_bundle()
    bundle = trained(array_bundle("embedded_v1", {"market_embedding": 4}, version_of(encoder.policy_id)))
    found = play(bundle, encoder, symbols=("BTC",), most_bars=50)
    assert found.played is not None
    assert (found.played.rows, found.played.unanswered) == (50, 0)
    for other, given in ((None, "none"), (encoder_bundle(1), version_of(encoder_bundle(1).policy_id))):
        with pytest.raises(NotPlayable, match=f"{version_of(encoder.policy_id)}.* is {given}"):
            play(bundle, other, symbols=("BTC",), most_bars=50)


def test_the_end_of_training_is_the_latest_that_it_or_a_member_names() -> None:
    assert trained_until_ms(momentum_bundle()) is None
    told = {"bars": {"until_ms": 10}, "ranges": [{"test_until_ms": 30, "until": 99}, {"until_ms": True}],
            "until_ms": 20.5}
    assert trained_until_ms(trained(momentum_bundle(), **told)) == 30
    members = [trained(momentum_bundle("early"), until_ms=5), trained(momentum_bundle("late"), x={"until_ms": 50})]
    assert trained_until_ms(make_ensemble("both", members, [1, 1], trained_on={"until_ms": 7})) == 50


def test_without_a_range_the_last_quarter_is_played_and_a_strict_test_is_missed(
        play: Callable[..., ForwardResult]) -> None:
    found = play(momentum_bundle(), symbols=("BTC",))
    assert found.passed
    assert found.played is not None
    assert found.played.rows == BARS // 4
    assert "does not say" in found.demands[1].said
    assert "later bars" in {demand.name for demand in play(momentum_bundle(), strict=True).demands if not demand.met}


def test_without_later_bars_it_is_not_passed(play: Callable[..., ForwardResult]) -> None:
    found = play(trained(momentum_bundle(), until_ms=int(whole().bars("BTC").close_time_ms[-1])))
    assert not found.passed
    assert found.played is None
    assert found.missed == ("no bar with features is there that is later than its training",)
    assert sentence_of(found) == "nothing was played"


def test_too_deep_a_fall_and_too_small_a_profit_factor_are_missed(play: Callable[..., ForwardResult]) -> None:
    bundle = trained(momentum_bundle(threshold=0.5))
    found = play(bundle)
    assert found.played is not None
    fall, factor = found.played.figures.max_drawdown_percent, found.played.figures.profit_factor
    assert fall > 0
    for settings, name in (({"most_drawdown": 0.0099 * fall}, "drawdown"),
                           ({"least_profit_factor": factor * 1.01}, "profit factor"),
                           ({"least_profit_factor": 99.0}, "profit factor")):
        stopped = play(bundle, **settings)
        assert [demand.name for demand in stopped.demands if not demand.met] == [name]
    assert play(bundle, most_drawdown=0.0101 * fall, least_profit_factor=factor * 0.99).passed


def test_of_a_head_that_never_trades_nothing_was_tested_and_it_does_not_pass(
        play: Callable[..., ForwardResult]) -> None:
    silent = trained(momentum_bundle(threshold=90.0))
    found = play(silent, symbols=("BTC",), most_bars=50)
    assert found.missed == ("it never traded: nothing was tested",)
    assert found.played is not None
    assert np.isnan(found.played.figures.profit_factor)
    assert play(silent, symbols=("BTC",), most_bars=50, least_trades=0).passed
    assert not play(silent, symbols=("BTC",), most_bars=50, least_trades=0, least_profit_factor=0.1).passed


def test_so_many_trades_can_be_asked_for(play: Callable[..., ForwardResult]) -> None:
    bundle = trained(momentum_bundle(threshold=0.5))
    played = play(bundle).played
    assert played is not None
    trades = played.figures.trades
    assert play(bundle, least_trades=trades).passed
    assert play(bundle, least_trades=trades + 1).missed == (f"{trades} trades, at least {trades + 1} asked for",)


def test_a_head_that_changes_its_mind_is_found_out(play: Callable[..., ForwardResult]) -> None:
    calls: list[int] = []

    def wavering(context: Context, said: Proposal) -> Proposal:
        calls.append(1)
        return replace(said, confidence=1 / len(calls))

    found = play(trained(momentum_bundle()), symbols=("BTC",), load=lambda b: Watched(load_head(b), wavering))
    assert [demand.name for demand in found.demands if not demand.met] == ["deterministic"]


def test_rows_without_an_answer_are_counted_and_a_head_without_any_is_not_passed(
        play: Callable[..., ForwardResult]) -> None:
    def failing(context: Context, said: Proposal) -> Proposal:
        if context.time_ms > until_ms() + most * MINUTE_MS:
            raise PredictionFailed("no")
        return said

    for most, passes in ((10, True), (0, False)):
        found = play(trained(momentum_bundle()), symbols=("BTC",), load=lambda b: Watched(load_head(b), failing))
        assert found.played is not None
        assert (found.played.unanswered, found.passed) == (LATER - most, passes)


def test_limit_entries_are_not_played_as_if_they_were_filled_at_once(play: Callable[..., ForwardResult]) -> None:
    def limited(context: Context, said: Proposal) -> Proposal:
        return replace(said, action=replace(said.action, limit_offset_pct=0.001))

    with pytest.raises(NotPlayable, match="limit"):
        play(trained(momentum_bundle()), symbols=("BTC",), load=lambda b: Watched(load_head(b), limited))


def test_an_unsound_candidate_is_not_played(play: Callable[..., ForwardResult]) -> None:
    def refusing(bundle: Bundle) -> Policy:
        raise BundleRefused("weights are not finite")

    found = play(momentum_bundle(), load=refusing)
    assert (found.passed, found.played, found.missed) == (False, None, ("weights are not finite",))


@pytest.mark.parametrize(("judgement", "met"), [
    ({"deflated_sharpe": 0.96}, True), ({"deflated_sharpe": 0.94}, False), ({"deflated_sharpe": None}, False),
    ({}, False), ("good", False)])
def test_a_strict_test_reads_the_judgement_of_the_training(
        play: Callable[..., ForwardResult], judgement: Any, met: bool) -> None:
    bundle = trained(momentum_bundle(), until_ms=until_ms(), judgement=judgement)
    found = {demand.name: demand for demand in play(bundle, symbols=("BTC",), most_bars=5, strict=True).demands}
    assert found["deflated Sharpe"].met is met
    assert not found["profit factor"].met


def test_a_long_stretch_has_intervals_and_a_short_one_has_none(play: Callable[..., ForwardResult]) -> None:
    bundle = trained(momentum_bundle(threshold=0.5), until_ms=until_ms() - 1_500 * MINUTE_MS)
    long, short = (play(bundle, symbols=("BTC",), most_bars=most).played for most in (BARS, 300))
    assert long is not None
    assert short is not None
    interval = long.figures.profit_factor_interval
    assert interval is not None
    assert interval.low < long.figures.profit_factor < interval.high
    assert long.figures.drawdown_interval is not None
    assert (short.figures.profit_factor_interval, short.figures.drawdown_interval) == (None, None)


def test_the_report_is_plain_json_with_every_demand(play: Callable[..., ForwardResult], tmp_path: Path) -> None:
    found = play(trained(momentum_bundle(threshold=0.5)))
    page = write_page(tmp_path, found, {"market": "generated"})
    report = json.loads((tmp_path / "forward_test.json").read_text())
    assert report == {"rows": [], "market": "generated", **json.loads(json.dumps(as_json(found)))}
    assert [demand["name"] for demand in report["demands"]] == ["sound", "later bars", "answers", "deterministic",
                                                                "drawdown", "trades"]
    assert {entry["symbol"] for entry in report["by_symbol"]} == set(SYMBOLS)
    assert "Fall from the peak" in page.read_text()
    assert table_of(found).row_count == 6
    assert "profit factor" in sentence_of(found)


@pytest.mark.parametrize("settings", [
    {"symbols": ()}, {"symbols": ("BTC", "BTC")}, {"most_bars": 0}, {"most_drawdown": 0.0},
    {"most_drawdown": float("nan")}, {"least_profit_factor": -1.0}, {"least_profit_factor": float("nan")},
    {"least_trades": -1}])
def test_wrong_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(InvalidInput):
        ForwardSettings(**{"symbols": SYMBOLS, **settings})

