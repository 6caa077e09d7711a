"""The whole Serve graph on one page.

Hub (ingress, HTTP) --gRPC--> ProductionHead     the production policy
                    --gRPC--> ChallengerHead     the challenger and the shadows
                    --------> ParamBandits       /v1/params
                    --------> EpisodeMemory      /v1/memory/knn
                    --actor-> sentry             the ledger's one writer
                    --actor-> feeder             bars into the online store, when the clock replays
"""

from __future__ import annotations

from typing import Any

from ray.serve import Application, Deployment

from hub.config import HubConfig
from hub.deployments import ChallengerHead, EpisodeMemory, Hub, ParamBandits, ProductionHead
from hub.home import Home
from policies.clock import ClockChoice


def build_app(home: Home, config: HubConfig, redis_url: str, market: str, clock: ClockChoice) -> Application:
    """market: the line that says where bars come from."""
    small = {"num_cpus": 0.1}  # what they share is two cores, not a budget of Ray's
    deadline_s = config.features.deadline_ms / 1_000
    production, challenger = (_deployment(shell).options(ray_actor_options=small).bind(home)
                              for shell in (ProductionHead, ChallengerHead))
    params, memory = (_deployment(shell).options(ray_actor_options=small).bind(home, redis_url, deadline_s, clock)
                      for shell in (ParamBandits, EpisodeMemory))
    return _deployment(Hub).options(ray_actor_options=small).bind(
        home, config, redis_url, market, clock, production, challenger, params, memory)


def _deployment(shell: Any) -> Deployment:
    """`@serve.deployment` makes a Deployment of the class that it stands on, which type checkers do not see."""
    assert isinstance(shell, Deployment)
    return shell
