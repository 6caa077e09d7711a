"""`/metrics` for Prometheus, built from the fold at each scrape. Label sets are bounded: roles, parts, configured
symbols, feature groups and registered policies (the newest 50), never ids of decisions or free text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric, SummaryMetricFamily
from prometheus_client.registry import Collector

from hub.status import feature_ages, percentiles
from policies.types import Judgement

if TYPE_CHECKING:
    from hub.service import HubService

MOST_POLICIES = 50


def exposition(service: HubService, ages: dict[str, dict[str, int] | None]) -> tuple[bytes, str]:
    """(body, content type)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_HubCollector(service, ages))
    return generate_latest(registry), CONTENT_TYPE_LATEST


class _HubCollector(Collector):
    def __init__(self, service: HubService, ages: dict[str, dict[str, int] | None]) -> None:
        self._service, self._ages = service, ages

    def collect(self) -> Iterator[Metric]:
        state, seen = self._service.state, self._service.seen
        yield _gauge("hub_ledger_position", "Rows folded", float(state.position))
        yield _gauge("hub_epoch", "Number of the epoch", float(state.epoch.number))
        yield _gauge("hub_book_drawdown_percent", "Fall of equity from its peak", state.book.drawdown_percent)
        yield _gauge("hub_book_no_new_risk", "1 while the book's breaker is tripped", float(state.book.tripped))
        in_use = GaugeMetricFamily("hub_embedding_in_use", "1, with the version of the embedding", labels=["version"])
        in_use.add_metric([state.embedding.version], 1.0)
        yield in_use
        yield _gauge("hub_open_slots", "Slots that hold a trade", float(len(state.open_slots)))
        decisions = CounterMetricFamily("hub_decisions", "Answered by this replica", labels=["role", "effect"])
        for (role, effect), count in seen.decisions.items():
            decisions.add_metric([role, effect], count)
        yield decisions
        by_part: Counter[str] = Counter()
        for (part, _), count in seen.degraded.items():
            by_part[part.split(" ")[0]] += count
        degraded = CounterMetricFamily("hub_degraded", "Answers that named a degraded part", labels=["part"])
        for part, count in by_part.items():
            degraded.add_metric([part], count)
        yield degraded
        yield CounterMetricFamily("hub_outcomes", "Outcomes recorded by this replica", value=seen.outcomes["recorded"])
        yield CounterMetricFamily("hub_conflicts", "Decisions made again after a conflict", value=seen.conflicts)
        yield from self._latency()
        yield from self._heads()
        yield from self._features()

    def _features(self) -> Iterator[Metric]:
        yield _gauge("hub_features_readable", "1 if the online store answers",
                     float(all(groups is not None for groups in self._ages.values())))
        age = GaugeMetricFamily("hub_feature_age_seconds", "Since the newest row", labels=["symbol", "group"])
        for entry in feature_ages(self._ages):
            if entry["age_ms"] is not None:
                age.add_metric([entry["symbol"], entry["group"]], entry["age_ms"] / 1_000)
        yield age

    def _latency(self) -> Iterator[Metric]:
        for name, value in percentiles(list(self._service.seen.latencies_ms)).items():
            yield _gauge(f"hub_decision_latency_{name}_ms", "Of the last 5,000 decisions", value)
        summary = SummaryMetricFamily("hub_decision_latency_ms", "Decision latency")
        seen = self._service.seen  # over all: a count that stood still at the window's size would read as no traffic
        summary.add_metric([], sum(seen.decisions.values()), seen.latency_total_ms)
        yield summary

    def _heads(self) -> Iterator[Metric]:
        state = self._service.state
        families = {name: GaugeMetricFamily(f"hub_head_{name}", text, labels=["policy_id", "alias"]) for name, text in (
            ("share", "Share of the traffic"), ("trades", "Executed trades since the last reset"),
            ("profit_factor", "Since the last reset"), ("drawdown_percent", "Since the last reset"),
            ("judgement", "0 approve, 1 reduce, 2 throttle, 3 halt"))}
        for head in list(state.heads.values())[-MOST_POLICIES:]:
            figures = {"share": state.epoch.roles.shares.get(head.policy_id, 0.0), "trades": float(head.record.trades),
                       "profit_factor": head.record.profit_factor,
                       "drawdown_percent": head.record.max_drawdown_percent,
                       "judgement": float(Judgement(head.verdict["judgement"]).severity)}
            for name, value in figures.items():
                families[name].add_metric([head.policy_id[:12], head.alias], value)
        yield from families.values()


def _gauge(name: str, text: str, value: float | None) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=math.nan if value is None else value)
