"""Everything the hub has learnt, as one fold of the ledger.

`HubState.apply(row)` is the only way in, so the writer, every replica and `hub replay` hold the same state at the same
position. What must be recorded because of a row (a verdict, the next epoch) is asked for with `consequences`, which
changes nothing: the writer appends the answer and applies it like any other row.
"""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from typing import Any

from feature_repo.features import DECISION_V1
from hub.config import HubConfig, grids_of, parse_recorded
from hub.embedding_use import EmbeddingUse, is_embedding
from hub.episodes import episode_of, episode_vector, of_this_service, trade_of
from hub.folded import Epoch, HeadState, Learnt, Trade
from hub.param_commands import StartTaken, is_param_start, start_of
from hub.recorded_scores import SENTIMENT, RecordedScore, score_of
from hub.rl_use import RlUse, is_rl_policy, rl_use_of
from policies.rows import BLOCKING_KINDS, BOOK, LLM_ONLY, NewRow, Row
from policies.types import STRATEGIES, Judgement, Outcome, Role
from router.allocation import StrategyAllocationBandit
from router.evidence import Evidence
from router.ladder import LadderReport, climbed, is_green_lit
from router.memory import EpisodeMemory, EpisodeSummary
from router.optimiser import BayesianOptimiser, OptimiserSettings
from router.params import ParamBandit, ParamGrid, market_settings
from router.posteriors import posterior_of
from router.rewards import RewardModel, RewardSettings
from router.thompson import Candidate, EpochRoles, draw_roles
from sentry.gates import BookBreaker, Finding, Gates
from sentry.ledger import EpisodeRecord, LedgerReader

# Trades whose outcome can still be revised. A revision of an older one is recorded but learnt from no more.
REVISABLE_TRADES = 100_000


class HubState:
    """The composition of every fold. `remembers=False` leaves out the episode memory (the writer needs none)."""

    def __init__(self, remembers: bool = True) -> None:
        self.position = 0
        self.last_blocking_position = 0
        self.seed = 0
        self.config = HubConfig()
        self.config_hash = ""
        self.code_hash = ""
        self.heads: dict[str, HeadState] = {}
        self.evidence: dict[str, Evidence] = {}
        self.promoted: str | None = None
        self.epoch = Epoch()
        self.open_slots: dict[tuple[str, str], tuple[str, int]] = {}
        self.decisions = 0
        self.llm_only_decisions = 0
        self.outcomes = 0
        self.embedding = EmbeddingUse()
        self.start = StartTaken()
        self.rl = RlUse()
        self.degraded: dict[str, str] = {}  # part: reason, of what is degraded now
        self.scores: dict[tuple[str, str], RecordedScore] = {}  # the newest, by symbol and source
        self.latest_ms = 0
        self._remembers = remembers
        self._trades: OrderedDict[str, Trade] = OrderedDict()
        self._epoch_due = False
        self._touched: tuple[str, ...] = ()
        self._weights: tuple[tuple[int, int], dict[str, float]] = ((-1, -1), {})

    # -- the fold ---------------------------------------------------------------------------------------------------

    def apply(self, row: Row) -> None:
        """Fold the next row. Rows come in the order of their positions, each once."""
        if row.position != self.position + 1:
            raise ValueError(f"row {row.position} does not follow position {self.position}")
        getattr(self, f"_apply_{row.kind}")(row)
        self.position = row.position
        self.latest_ms = max(self.latest_ms, row.at_ms)
        if row.kind in BLOCKING_KINDS:
            self.last_blocking_position = row.position
            self._epoch_due = row.kind != "epoch"
        elif is_embedding(row):  # it changes which heads are asked, not who acts
            self.last_blocking_position = row.position

    def _apply_genesis(self, row: Row) -> None:
        self.seed = int(row.body["seed"])
        config = self._configure(row)
        learning = config.learning
        self.gates = Gates(config.sentry)
        self.book = BookBreaker(config.sentry)
        self.rewards = {strategy: RewardModel(_reward_settings(config)) for strategy in STRATEGIES}
        self.allocation = StrategyAllocationBandit(seed=self.seed)
        self.params = ParamBandit(self.seed, _param_grids(config), market_settings(DECISION_V1.names))
        self.optimiser = BayesianOptimiser(self.params, _optimiser_settings(config))
        self.memory = EpisodeMemory(len(DECISION_V1.names), learning.memory.max_episodes) if self._remembers else None

    def _apply_configuration(self, row: Row) -> None:
        """Statistics stay; thresholds, grids and sizes are the new ones from here on."""
        config = self._configure(row)
        self.gates.reconfigure(config.sentry)
        self.book.reconfigure(config.sentry)
        for model in self.rewards.values():
            model.settings = _reward_settings(config)
        self.optimiser.reconfigure(_param_grids(config), _optimiser_settings(config))
        if self.memory is not None:
            self.memory = self.memory.resized(config.learning.memory.max_episodes)

    def _configure(self, row: Row) -> HubConfig:
        self.config = parse_recorded(row.body["config"])
        self.config_hash, self.code_hash = row.body["config_hash"], row.body["code_hash"]
        return self.config

    def _apply_policy(self, row: Row) -> None:
        body = row.body
        head = HeadState(body["policy_id"], body["alias"], body["manifest"], row.position)
        self.heads[head.policy_id] = head
        horizon_ms = self.config.router.horizon_s * 1_000
        self.evidence[head.policy_id] = Evidence(dataclasses.replace(self.config.evidence, horizon_ms=horizon_ms))

    def _apply_command(self, row: Row) -> None:
        command, policy_id = row.body["command"], row.body["policy_id"]
        if policy_id == BOOK:
            if command == "resume":
                self.book.lift()
            else:
                self.book.trip()
            return
        head = self.heads[policy_id]
        if command == "pause":
            head.paused = True
        elif command == "resume":
            head.paused = False
            head.verdict = {"judgement": "approve", "rule": "operator", "figure": None}
            head.reset_record()
            self.gates.lift(policy_id)
        elif command == "promote":
            self.promoted = policy_id
        elif command == "demote" and self.promoted == policy_id:
            self.promoted = None

    def _apply_epoch(self, row: Row) -> None:
        body = row.body
        roles = EpochRoles({policy_id: Role(role) for policy_id, role in body["roles"].items()}, body["shares"],
                           body["role_probability"], body["probation"])
        self.epoch = Epoch(body["epoch"], body["started_ms"], body["ends_ms"], roles)
        for policy_id, head in self.heads.items():
            head.green_lit = policy_id in body["green_lit"]
            self.evidence[policy_id].advance(row.at_ms)

    def _apply_decision(self, row: Row) -> None:
        body = row.body
        self.decisions += 1
        self.book.observe(body["request"]["portfolio"]["equity"])
        for policy_id, proposal in body["proposals"].items():
            self.gates.observe_latency(policy_id, proposal["latency_ms"])
        if body["policy_id"] == LLM_ONLY:
            self.llm_only_decisions += 1
        else:
            self.heads[body["policy_id"]].decisions += 1
        drawn = self.heads.get(body["drawn"]["policy_id"])
        if drawn is not None:
            drawn.drawn += 1
        request = body["request"]
        if body["opens"] and request["parent_decision_id"] is None:  # what adds to a trade leaves the slot to it
            self.open_slots[request["symbol"], request["strategy"]] = (row.key, body["expires_ms"])
        self._touched = tuple(sorted(body["proposals"]))

    def _apply_outcome(self, row: Row) -> None:
        self.outcomes += 1
        outcome, trade = Outcome.from_dict(row.body["outcome"]), row.body["trade"]
        if outcome.equity is not None and outcome.equity > 0:
            self.book.observe(outcome.equity)
        if row.body["origin"] == "bot":
            self._touched = ()
            return  # the hub had no part in it
        self._touched = (trade["policy_id"],) if trade["policy_id"] in self.heads else ()
        slot = (trade["symbol"], trade["strategy"])
        if outcome.final and self.open_slots.get(slot, ("", 0))[0] == outcome.decision_id:
            del self.open_slots[slot]
        taken = self._trades.get(outcome.decision_id)
        if taken is None:
            if row.body["supersedes"] is not None:
                return  # the superseded part is too old to be taken back
            taken = self._trades[outcome.decision_id] = Trade()
            if len(self._trades) > REVISABLE_TRADES:
                self._trades.popitem(last=False)
        taken.parts[outcome.part] = outcome
        if any(part.final for part in taken.parts.values()):
            self._learn(outcome.decision_id, taken, trade, row.at_ms)

    def _apply_verdict(self, row: Row) -> None:
        body = row.body
        policy_id, judgement = body["policy_id"], Judgement(body["judgement"])
        if policy_id == BOOK:
            self.book.trip()
            return
        head = self.heads[policy_id]
        head.verdict = {name: body[name] for name in ("judgement", "rule", "figure")}
        self.gates.apply(policy_id, judgement, body["rule"])
        if judgement in (Judgement.THROTTLE, Judgement.HALT):
            head.reset_record()
            if self.promoted == policy_id:
                self.promoted = None
        self._touched = tuple(other for other in self._touched if other != policy_id)

    def _apply_observation(self, row: Row) -> None:
        what, detail = row.body["what"], row.body["detail"]
        if what == "degraded":
            self.degraded[detail["part"]] = detail["reason"]
        elif what == "recovered":
            self.degraded.pop(detail["part"], None)
        elif what == SENTIMENT:
            held = self.scores.get((detail["symbol"], detail["source"]))
            if held is None or detail["time_ms"] >= held.made_ms:
                self.scores[detail["symbol"], detail["source"]] = score_of(row)
        elif is_embedding(row):
            self.embedding.apply(row)
        elif is_param_start(row):
            self.start, start = start_of(row)
            self.optimiser.begin_from(start)
        elif is_rl_policy(row):
            self.rl = rl_use_of(row)

    def _learn(self, decision_id: str, taken: Trade, trade: dict[str, Any], now_ms: int) -> None:
        """A trade is learnt when its final part is in; a revision first takes back what was learnt."""
        parts = [taken.parts[part] for part in sorted(taken.parts)]
        if taken.learnt is None and all(part.exit_reason == "not_filled" for part in parts):
            return  # the slot is free again, and there was no trade to learn from
        net = sum(part.net_pnl for part in parts)
        net_return = net / trade["equity"]
        notional = sum(part.entry_price * part.size for part in parts)
        head = self.heads.get(trade["policy_id"]) if trade["acts"] else None
        if head is not None:
            head.lifetime.record(decision_id, net_return)
            if taken.resets in (-1, head.resets):
                taken.resets = head.resets
                head.record.record(decision_id, net_return)
            self.evidence[head.policy_id].advance(now_ms)
            self.evidence[head.policy_id].observe(
                decision_id, min(part.entry_time_ms for part in parts), max(part.exit_time_ms for part in parts),
                max(-1.0, net / (notional / trade["leverage"])))
        if trade["strategy"] not in STRATEGIES:
            return
        strategy = trade["strategy"]
        reward = self.rewards[strategy].reward(net_return, max(part.drawdown_proxy for part in parts))
        if taken.learnt is None:
            self.rewards[strategy].observe(net_return)
        else:
            self.allocation.forget(strategy, taken.learnt.reward)
            self.params.forget(strategy, trade["bucket"], taken.learnt.credited, taken.learnt.reward)
            self.optimiser.forget(strategy, trade["bucket"], taken.learnt.place, taken.learnt.reward)
        self.allocation.update(strategy, reward)
        told = (strategy, trade["bucket"], trade["executed"], reward)
        taken.learnt = Learnt(reward, self.params.learn(*told), self.optimiser.learn(*told, now_ms))
        if self.memory is not None and of_this_service(trade["features"]):
            summary = EpisodeSummary(trade["symbol"], strategy, trade["direction"], net_return,
                                     parts[-1].exit_reason, now_ms)
            self.memory.add(decision_id, episode_vector(trade["features"]), summary)

    # -- what the ledger must hold now ------------------------------------------------------------------------------

    def consequences(self, at_ms: int) -> list[NewRow]:
        """Verdicts that the last row calls for, else the epoch that a blocking row calls for, else nothing."""
        rows = []
        if self.book.due:
            rows.append(_verdict(BOOK, self.book.finding(), None, self.position))
        for policy_id in self._touched:
            finding = self.gates.due(policy_id, self.heads[policy_id].record)
            if finding is not None:
                rows.append(_verdict(policy_id, finding, self.heads[policy_id], self.position))
        if rows:
            return rows
        return self.expire_epoch(at_ms, "gate, command or registration") if self._epoch_due else []

    def epoch_expired(self, now_ms: int) -> bool:
        return now_ms >= self.epoch.ends_ms

    def expire_epoch(self, now_ms: int, reason: str = "cadence") -> list[NewRow]:
        """The next epoch's row: roles drawn from what is known at this position."""
        number = self.epoch.number + 1
        green = self._green_lit()
        roles = draw_roles(self._candidates(green), self.seed, number, self.config.router)
        same = (roles.roles, roles.shares) == (self.epoch.roles.roles, self.epoch.roles.shares)
        ends_ms = now_ms + self.config.learning.bandits.update_cadence_sec * 1_000
        return [NewRow("epoch", f"epoch/{number}", {
            "epoch": number, "reason": reason, "started_ms": now_ms, "ends_ms": ends_ms,
            "roles": {policy_id: role.value for policy_id, role in roles.roles.items()}, "shares": dict(roles.shares),
            "role_probability": roles.role_probability, "probation": roles.probation, "green_lit": green,
            "changed": not same,
        })]

    def ladder_report(self, policy_id: str) -> LadderReport:
        return climbed(self.heads[policy_id].record, self.evidence[policy_id], self.config.ladder)

    def _green_lit(self) -> list[str]:
        fresh = {policy_id for policy_id in self.heads if self.ladder_report(policy_id).green_lit}
        return [policy_id for policy_id, head in self.heads.items()
                if is_green_lit(head.record, self.evidence[policy_id], head.green_lit, bool(fresh - {policy_id}),
                                self.config.ladder)]

    def _candidates(self, green: list[str]) -> list[Candidate]:
        incumbent = min(self.heads.values(), key=lambda head: head.position, default=None)
        return [Candidate(policy_id=head.policy_id, posterior=posterior_of(head.record, self.config.router.posterior),
                          green_lit=head.policy_id in green, incumbent=head is incumbent,
                          promoted=head.policy_id == self.promoted, standing=self.gates.standing(head.policy_id),
                          paused=head.paused, registered_position=head.position,
                          new=head.drawn < self.config.router.first_decisions,
                          askable=head.made_for_embedding in (None, self.embedding.version))
                for head in self.heads.values()]

    # -- questions --------------------------------------------------------------------------------------------------

    def policies(self) -> list[str]:
        return list(self.heads)

    def left_without(self, version: str) -> list[HeadState]:
        """The heads with a share that could be asked no more if this version of the embedding came into use."""
        return [head for policy_id, head in self.heads.items() if self.epoch.roles.shares.get(policy_id, 0.0) > 0
                and head.made_for_embedding == self.embedding.version != version]

    def admits(self, decision: dict[str, Any]) -> bool:
        """Whether a decision's body still agrees with who has a share and with which slots are free.

        Outcomes and other decisions may lie between a decision's `as_of` and its row; only a trade in its own slot is
        one too many.
        """
        policy_id, request = decision["policy_id"], decision["request"]
        if policy_id != LLM_ONLY and not self.epoch.roles.shares.get(policy_id, 0.0) > 0:
            return False
        held_by = self.slot_is_open(request["symbol"], request["strategy"], request["time_ms"])
        return not decision["opens"] or held_by in (None, request["parent_decision_id"])

    def strategy_weights(self) -> dict[str, float]:
        """The allocation bandit's proposal of this epoch, kept until something is learnt: it takes 256 draws."""
        key = (self.epoch.number, self.allocation.updates)
        if self._weights[0] != key:
            self._weights = (key, self.allocation.propose_weights(key=f"epoch/{self.epoch.number}"))
        return self._weights[1]

    def slot_is_open(self, symbol: str, strategy: str, now_ms: int) -> str | None:
        """The decision that holds the slot. A trade whose outcome never came frees it when its horizon is long past."""
        decision_id, expires_ms = self.open_slots.get((symbol, strategy), ("", 0))
        return decision_id if now_ms < expires_ms else None

    def trade_of(self, decision: Row) -> dict[str, Any]:
        return trade_of(decision)

    def episode(self, row: Row) -> EpisodeRecord | None:
        return episode_of(row, self.config_hash)


def folded(reader: LedgerReader) -> HubState:
    """The state of a whole ledger."""
    state = HubState()
    catch_up(state, reader)
    return state


def catch_up(state: HubState, reader: LedgerReader) -> None:
    """Fold what has been recorded since. With nothing new this is one read of some microseconds."""
    for row in reader.rows(after=state.position):
        state.apply(row)


def _verdict(policy_id: str, finding: Finding, head: HeadState | None, caused_by: int) -> NewRow:
    return NewRow("verdict", None, {
        "policy_id": policy_id, "judgement": finding.judgement.value, "rule": finding.rule, "figure": finding.figure,
        "limit": finding.limit, "trades": head.record.trades if head else None, "caused_by": caused_by,
        "actor": "sentry",
    })


def _reward_settings(config: HubConfig) -> RewardSettings:
    bandits = config.learning.bandits
    return dataclasses.replace(RewardSettings(), scale=bandits.reward_scale, cvar_alpha=bandits.reward_cvar_alpha,
                               risk_per_trade=config.shield.risk_per_trade)


def _optimiser_settings(config: HubConfig) -> OptimiserSettings:
    bo = config.learning.bo
    return OptimiserSettings(min_samples=bo.min_samples, update_cadence_s=bo.update_cadence_sec)


def _param_grids(config: HubConfig) -> dict[str, ParamGrid]:
    return {strategy: ParamGrid(**dataclasses.asdict(grids_of(config.learning, strategy))) for strategy in STRATEGIES}
