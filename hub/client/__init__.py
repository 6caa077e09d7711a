"""What a bot imports to ask the hub what to do and to tell it what came of it.

Two promises. `decide` answers within its deadline and never raises: whatever goes wrong with the hub, the network or
the answer, the bot gets the advice `llm_only` (trade as if there were no hub) and the reason. `report` never loses an
outcome: it is on disk before it is sent, survives a kill -9, and is sent again, in order, until the hub acknowledges
it. Sending one twice is harmless, because the hub keys outcomes by (decision_id, part, revision).

Needs httpx and the standard library. All methods may be called from any thread.

    with HubClient("http://127.0.0.1:8000", token, outbox=Path("outbox.sqlite")) as hub:
        advice = hub.decide("BTC", "momentum", equity=10_000.0, llm_view=view)
        put_learning_memory(market_context, advice)
        ...                      # trade advice.action; it is the LLM's own one whenever advice.acts is false
        hub.report(outcome)

With the token of scope `ops`, `register(path)` hands a candidate over, and says why if the hub did not take it.
"""

from hub.client.advice import LLM_ONLY, Advice, Degraded, Limits, put_learning_memory
from hub.client.candidate import Registration, candidate_bytes
from hub.client.hub_client import Delivery, HubClient, OwnTrade
from hub.client.outbox import Outbox

__all__ = ["LLM_ONLY", "Advice", "Degraded", "Delivery", "HubClient", "Limits", "Outbox",
           "OwnTrade", "Registration", "candidate_bytes", "put_learning_memory"]
