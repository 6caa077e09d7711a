"""The wire: what the HTTP API accepts, strictly. Everything is finite and bounded, unknown fields are refused.

A bound here is what the hub can represent; the shield's limits are tighter and lower an action instead of refusing it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from policies.types import STRATEGIES, Action, Direction, LlmView, Outcome, Portfolio

Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:\-]{1,80}$")]
Symbol = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_/@.\-]{1,20}$")]
Sha256OrNone = Annotated[str, StringConstraints(pattern=r"^([0-9a-f]{64})?$")]
Strategy = Literal["market_making", "momentum", "scalping", "arbitrage", "breakout", "sniping"]
TimeMs = Annotated[int, Field(ge=0, le=4_102_444_800_000, strict=True)]
Money = Annotated[float, Field(ge=-1e12, le=1e12, allow_inf_nan=False, strict=True)]
Price = Annotated[float, Field(gt=0, le=1e9, allow_inf_nan=False, strict=True)]
Fraction = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False, strict=True)]
Distance = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False, strict=True)]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PortfolioBody(Strict):
    equity: Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False, strict=True)]
    current_leverage: Annotated[float, Field(ge=0, le=1_000, allow_inf_nan=False, strict=True)] = 0.0
    unrealised_pnl: Money = 0.0


class LlmBody(Strict):
    direction: Literal["long", "short", "flat"]
    confidence: Fraction
    size_fraction: Fraction
    leverage: Annotated[float, Field(ge=1, le=100, allow_inf_nan=False, strict=True)]
    tp_pct: Distance
    sl_pct: Distance
    limit_offset_pct: Fraction = 0.0
    min_conf: Fraction = 0.5
    strategy_weights: Annotated[dict[Strategy, Fraction], Field(max_length=len(STRATEGIES))] = Field(
        default_factory=dict)


class DecisionRequest(Strict):
    request_id: Identifier
    symbol: Symbol
    strategy: Strategy
    time_ms: TimeMs | None = None
    portfolio: PortfolioBody
    llm: LlmBody | None = None
    parent_decision_id: Identifier | None = None


class OutcomeReport(Strict):
    decision_id: Identifier
    part: Annotated[int, Field(ge=0, le=1_000, strict=True)] = 0
    revision: Annotated[int, Field(ge=0, le=1_000, strict=True)] = 0
    entry_time_ms: TimeMs
    exit_time_ms: TimeMs
    entry_price: Price
    exit_price: Price
    size: Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False, strict=True)]
    pnl: Money
    fees: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False, strict=True)]
    funding: Money
    exit_reason: Literal["target", "stop", "horizon", "liquidation", "manual", "not_filled"]
    drawdown_proxy: Fraction = 0.0
    equity: Annotated[float, Field(ge=0, le=1e12, allow_inf_nan=False, strict=True)] | None = None
    final: Annotated[bool, Field(strict=True)] = True
    # The bot's own trades have no decision: they say what they were.
    origin: Literal["hub", "bot"] = "hub"
    symbol: Symbol | None = None
    strategy: Strategy | None = None
    direction: Literal["long", "short"] | None = None


class ScoreBody(Strict):
    """Sentiment of one source on one symbol, as the bot scored it. time_ms: when it was scored; None is now."""

    source: Literal["reddit", "twitter", "polymarket"]
    symbol: Symbol
    time_ms: TimeMs | None = None
    score: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False, strict=True)]
    confidence: Fraction


class CommandBody(Strict):
    reason: Annotated[str, StringConstraints(min_length=1, max_length=500)] = "no reason given"
    command_id: Identifier | None = None


class ArtefactUrl(Strict):
    """A bundle, or a pointer to one, in the hub's artefact store. policy_id, sha256: what has to lie there."""

    url: Annotated[str, StringConstraints(min_length=1, max_length=2_048)]
    policy_id: Sha256OrNone = ""
    sha256: Sha256OrNone = ""


class PublishedArtefact(ArtefactUrl):
    """A message names what it announces, so that nothing that was put there later is taken for it."""

    @model_validator(mode="after")
    def _is_named(self) -> Self:
        if not self.policy_id and not self.sha256:
            raise ValueError("policy_id or sha256 must be given")
        return self


class PolicyPublished(Strict):
    """The body of a webhook. Other types of messages are refused: nobody here would act on them."""

    type: Literal["policy.published"]
    timestamp: Annotated[str, StringConstraints(max_length=64)] | None = None
    data: PublishedArtefact


class EmbeddingBody(Strict):
    """version: to embed with from now on, "none" for none; or revert: back to the last one before it in use.

    force: also where that takes heads off line which have a share. A revert does so anyhow.
    """

    version: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.\-]{1,80}$")] | None = None
    revert: Annotated[bool, Field(strict=True)] = False
    force: Annotated[bool, Field(strict=True)] = False
    reason: Annotated[str, StringConstraints(min_length=1, max_length=500)] = "no reason given"
    command_id: Identifier | None = None

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Self:
        if self.revert == (self.version is not None):
            raise ValueError("version, or revert: true, must be given, not both")
        return self


class ParamStartBody(Strict):
    """start: the document that `train.bo.optimise` writes; `router.param_start` says what it must hold."""

    start: dict[str, Any]
    reason: Annotated[str, StringConstraints(min_length=1, max_length=500)] = "no reason given"


class RlBody(Strict):
    """policy: a registered actor, None for none. path: where it came from, for people."""

    policy: Identifier | None = None
    path: Annotated[str, StringConstraints(max_length=300)] = ""
    reason: Annotated[str, StringConstraints(min_length=1, max_length=500)] = "no reason given"


def portfolio_of(values: dict[str, Any]) -> Portfolio:
    return Portfolio(**values)


def llm_view_of(values: dict[str, Any] | None) -> LlmView | None:
    """The LLM's view from the recorded request."""
    if values is None:
        return None
    action = Action(Direction(values["direction"]), values["size_fraction"], values["leverage"], values["tp_pct"],
                    values["sl_pct"], values["limit_offset_pct"], values["min_conf"])
    return LlmView(action, values["confidence"], values["strategy_weights"])


def outcome_of(report: OutcomeReport) -> Outcome:
    return Outcome(**report.model_dump(exclude={"origin", "symbol", "strategy", "direction"}))
