"""The forward test: what a finished candidate does on bars that are later than everything it was made from.

A candidate is loaded as a hub would load it, asked row by row as a hub would ask it, and its brackets are filled by the
market engine in one slot per symbol, costs in. What it earned is a figure; what it must not be is unsound, different
from one time to the next, silent, or the cause of a deep fall. On so few bars a profit factor proves nothing, so by
default none is demanded: the hub gives a new policy a tenth at most, and its gates judge it live.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from feature_repo.features import MARKET_EMBEDDING, MINUTE_MS, WINDOW
from feature_repo.market import Market
from feature_repo.store import FeatureRepo
from feature_repo.transforms import LOOKBACK_BARS
from feature_repo.windows import WINDOW_BARS
from policies.bars import Bars
from policies.bundle import Bundle, read_bundle
from policies.embedder import Embedder, load_embedder, version_of
from policies.errors import BundleRefused, HubError
from policies.head import Levels, Policy
from policies.loader import load_checked, require_checked
from policies.manifest import ENSEMBLE
from policies.types import Context, Portfolio, Proposal
from train.backtest import EQUITY, BacktestReport
from train.dataset import FeatureRows
from train.forward_figures import figures_of
from train.forward_result import Demand, ForwardResult, ForwardSettings, Played, demands_of
from train.signals import Signals, backtest_signals
from train.training_set import joined_rows, live_start_ms, window_rows

ASKED_AGAIN = 200  # rows, backwards, for whether the answers are the same
UNKNOWN_SHARE = 0.25  # of the bars, the last ones, for a candidate that does not say what it was made from
HISTORY_BARS = max(LOOKBACK_BARS, WINDOW_BARS + 1)  # before the first row that is played

_TIMES = ("until_ms", "_until_ms")


class NotPlayable(HubError):
    """A candidate that cannot be asked here, though nothing is wrong with it."""

    code = "not_playable"


def trained_until_ms(bundle: Bundle) -> int | None:
    """The end of the last bar that a policy or one of its members was made from, validation and test included.

    It is the latest time in `trained_on`, at any depth, under a name that is `until_ms` or ends with `_until_ms`.
    """
    found, left = [], [bundle]
    while left:
        one = left.pop()
        found += _times_in(one.manifest.trained_on)
        if one.manifest.kind == ENSEMBLE:
            left += [read_bundle(content) for content in one.files.values()]
    return max(found, default=None)


def needed_embedding(bundle: Bundle) -> str:
    """The version of the embeddings that it takes; "" if it takes none."""
    return bundle.manifest.embedding_version if MARKET_EMBEDDING in bundle.manifest.arrays else ""


class ForwardTest:
    """repo: whose join makes the rows; only its offline store is used. embedder: the one that the candidate was made
    for, if it takes embeddings. load: from a bundle to a served head, BundleRefused if it is not sound.
    """

    def __init__(self, market: Market, repo: FeatureRepo, bundle: Bundle, settings: ForwardSettings,
                 embedder: Bundle | None = None, load: Callable[[Bundle], Policy] = load_checked) -> None:
        self._market, self._repo, self._bundle, self._settings = market, repo, bundle, settings
        self._embedder, self._load = embedder, load

    def run(self, rng: np.random.Generator) -> ForwardResult:
        """rng: of the intervals. NotPlayable if the candidate needs what is not here."""
        try:
            head = self._load(self._bundle)
        except BundleRefused as refusal:
            return self._result(None, None, [Demand("sound", False, str(refusal))])
        until_ms = trained_until_ms(self._bundle)
        played = self._played(head, until_ms, rng)
        demands = [Demand("sound", True, "a process of its own has loaded and checked it"),
                   *demands_of(played, until_ms, self._bundle, self._settings)]
        return self._result(until_ms, played, demands)

    def _result(self, until_ms: int | None, played: Played | None, demands: Sequence[Demand]) -> ForwardResult:
        manifest = self._bundle.manifest
        return ForwardResult(self._bundle.policy_id, manifest.alias, manifest.kind, until_ms, played, tuple(demands))

    def _played(self, head: Policy, until_ms: int | None, rng: np.random.Generator) -> Played | None:
        runs = {symbol: self._run(symbol, until_ms) for symbol in self._settings.symbols}
        runs = {symbol: found for symbol, found in runs.items() if len(found[0]) > found[1]}
        if not runs:
            return None
        embedder = self._opened_embedder()
        rows = joined_rows(self._market, self._repo, {symbol: bars for symbol, (bars, _) in runs.items()},
                           lambda line: None)
        asked: list[tuple[Context, Proposal | None]] = []
        for symbol, (bars, first) in runs.items():
            since = int(np.searchsorted(rows[symbol].event_time_ms, bars.close_time_ms[first]))
            part = FeatureRows(rows[symbol].event_time_ms[since:], rows[symbol].values[since:])
            asked += [(context, _answer(head, context)) for context in self._contexts(bars, part, head, embedder)]
        if not asked:
            return None
        report = self._filled({symbol: bars for symbol, (bars, _) in runs.items()}, asked)
        from_ms = min(context.time_ms for context, _ in asked)
        stop_ms = max(int(bars.close_time_ms[-1]) for bars, _ in runs.values())
        again = asked[::-max(1, len(asked) // ASKED_AGAIN)]
        return Played(from_ms, stop_ms, len(asked), sum(answer is None for _, answer in asked),
                      sum(_answer(head, context) != answer for context, answer in again), report,
                      figures_of(report, from_ms, stop_ms, MINUTE_MS, rng))

    def _run(self, symbol: str, until_ms: int | None) -> tuple[Bars, int]:
        """Bars with enough of them before the first that is played, and that one's place, which may be their end."""
        run = self._market.bars(symbol, start_ms=live_start_ms(self._market, until_ms, 2 * HISTORY_BARS))
        if until_ms is None:
            first = len(run) - int(UNKNOWN_SHARE * len(run))
        else:
            first = int(np.searchsorted(run.close_time_ms, until_ms, "right"))
        begin = max(0, first - HISTORY_BARS)
        return run.slice(begin, min(len(run), first + self._settings.most_bars)), first - begin

    def _opened_embedder(self) -> Embedder | None:
        wanted = needed_embedding(self._bundle)
        if not wanted:
            return None
        given = "none" if self._embedder is None else version_of(self._embedder.policy_id)
        if self._embedder is None or given != wanted:
            raise NotPlayable(f"{self._bundle.manifest.alias} takes embeddings of version {wanted}, and the embedder "
                              f"that is given is {given}: it cannot be asked without its own")
        require_checked(self._embedder)
        return load_embedder(self._embedder)

    def _contexts(self, bars: Bars, rows: FeatureRows, head: Policy, embedder: Embedder | None) -> list[Context]:
        """What the hub would show the head at each row. Rows without a whole window are left out for those who take
        one."""
        arrays: dict[str, NDArray[np.float32]] = {}
        if head.arrays:
            whole = np.searchsorted(bars.close_time_ms, rows.event_time_ms) >= WINDOW_BARS
            rows = FeatureRows(rows.event_time_ms[whole], rows.values[whole])
            arrays[WINDOW] = window_rows(bars, rows.event_time_ms, WINDOW_BARS)
        if embedder is not None:
            arrays[MARKET_EMBEDDING] = embedder.embed(arrays[WINDOW][:, -embedder.window:])
        taken = {group: arrays[group] for group in head.arrays}
        return [Context(bars.symbol, self._settings.strategy, time_ms, tuple(values), {"bars": time_ms},
                        Portfolio(EQUITY), arrays={group: values_of[place] for group, values_of in taken.items()})
                for place, (time_ms, values) in enumerate(zip(rows.event_time_ms.tolist(), rows.values.tolist(),
                                                              strict=True))]

    def _filled(self, bars: Mapping[str, Bars], asked: Sequence[tuple[Context, Proposal | None]]) -> BacktestReport:
        if any(answer is not None and answer.action.limit_offset_pct > 0 for _, answer in asked):
            raise NotPlayable(f"{self._bundle.manifest.alias} asks for limit entries; only entries at the market's "
                              f"price are played")
        unanswered = Levels()
        columns = [(answer.action.direction.sign, answer.action.size_fraction, answer.action.leverage,
                    answer.action.tp_pct, answer.action.sl_pct) if answer is not None else
                   (0, 0.0, unanswered.leverage, unanswered.tp_pct, unanswered.sl_pct) for _, answer in asked]
        direction, *others = (np.array(column, np.float64) for column in zip(*columns, strict=True))
        return backtest_signals(bars, np.array([context.symbol for context, _ in asked]),
                                np.array([context.time_ms for context, _ in asked], np.int64),
                                Signals(direction.astype(np.int64), *others), self._settings.horizon_bars,
                                self._settings.costs)


def _answer(head: Policy, context: Context) -> Proposal | None:
    """None where the hub would go on without this head."""
    try:
        return head.propose(context)
    except HubError:
        return None


def _times_in(trained_on: Mapping[str, Any]) -> list[int]:
    found: list[int] = []
    left: list[Any] = [trained_on]
    while left:
        one = left.pop()
        if isinstance(one, Mapping):
            left += one.values()
            found += [value for name, value in one.items() if isinstance(value, int) and not isinstance(value, bool)
                      and isinstance(name, str) and (name == _TIMES[0] or name.endswith(_TIMES[1]))]
        elif isinstance(one, list | tuple):
            left += one
    return found
