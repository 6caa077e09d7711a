"""A run in which everything that a ledger can hold happens: what folds, restarts and replays are compared on."""

from __future__ import annotations

from typing import Any

from plain_hub import EQUITY, SYMBOLS, PlainHub, llm_view, opens, portfolio

from feature_repo.features import MINUTE_MS
from hub.decide import Answer
from policies.keyed_random import generator

STRATEGIES = ("momentum", "breakout", "scalping")


async def mixed_run(hub: PlainHub, production: str, challenger: str, minutes: int = 120) -> None:
    """One decision a minute over four symbols; trades close after about five, and now and then something happens.

    Begins and ends with both heads at work.
    """
    rng = generator(11, "mixed", hub.reader.head())
    held: list[tuple[dict[str, Any], int]] = []
    for minute in range(minutes):
        await _happens(hub, production, challenger, minute)
        symbol, strategy = SYMBOLS[minute % 4], STRATEGIES[minute // 4 % 3]
        view = None if minute % 3 == 0 else llm_view(("long", "short", "flat")[minute % 7 % 3])
        hub.heads.instead = {challenger: Answer(None, None, "missed its deadline")} if minute % 10 == 9 else {}
        hub.features.age_ms = 10 * MINUTE_MS if minute % 25 == 24 else 0
        answer = await hub.decide_later(symbol=symbol, strategy=strategy, llm=view,
                                        portfolio=portfolio(EQUITY * (1 + 0.01 * float(rng.uniform(-1, 1)))))
        if opens(answer):
            held.append((answer, 0))
        elif not answer["acts"] and view is not None and view["direction"] != "flat":
            held.append((answer, 1 if view["direction"] == "long" else -1))
        if len(held) > 5:
            await _reported(hub, *held.pop(0), float(rng.normal(2e-4, 1e-3)), minute)
    hub.heads.instead, hub.features.age_ms = {}, 0


async def _reported(hub: PlainHub, answer: dict[str, Any], sign: int, net_return: float, minute: int) -> None:
    if minute % 11 == 0:
        await hub.report(answer, 0.0, sign=sign, exit_reason="not_filled")
    elif minute % 5 == 0:
        await hub.report(answer, net_return, sign=sign, part=0, final=False)
        await hub.report(answer, -net_return / 3, sign=sign, part=1)
    else:
        await hub.report(answer, net_return, sign=sign)
    if minute % 7 == 0 and minute % 11:
        await hub.report(answer, net_return / 2, sign=sign, revision=1)


async def _happens(hub: PlainHub, production: str, challenger: str, minute: int) -> None:
    match minute:
        case 20:
            await hub.command("pause", challenger)
        case 26:
            await hub.command("resume", challenger)
        case 32:
            await hub.command("promote", challenger)
        case 44:
            await hub.judge("reduce", challenger)
        case 50:
            await hub.command("demote", challenger)
        case 56:
            await hub.judge("throttle", challenger)
        case 62:
            await hub.judge("halt", production)
        case 68:
            await hub.command("resume", production)
            await hub.command("resume", challenger)
        case 74:
            await hub.command("pause", "book")
        case 78:
            await hub.command("resume", "book")
        case 84:
            await hub.own_trade(-20.0, EQUITY, f"own-{hub.reader.head()}")
