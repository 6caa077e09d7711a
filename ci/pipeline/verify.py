"""Step: the running hub shows the SHA that was published as its challenger, with a challenger's share."""

from __future__ import annotations

import json
from typing import Any

import httpx

from ci.pipeline.settings import TOKEN, PipelineSettings, from_environment
from ci.pipeline.step import FAILED, Away, Say, Stopped, again, command, read_note
from ci.pipeline.webhook import ANNOUNCED
from policies.types import Role

ASKED_S = 10.0
ACTS = (Role.CHALLENGER.value, Role.PRODUCTION.value)  # the first head of all is production at once


def run(settings: PipelineSettings, say: Say) -> str:
    wanted = read_note(settings.home, ANNOUNCED, "webhook")
    token = token_of(settings)
    head = again(lambda: acting(settings.url, token, wanted["policy_id"]), settings.patience_s, say)
    return f"{settings.url} shows {head['alias']} {head['policy_id']} as {head['role']} with {head['share']:.0%}"


def acting(hub_url: str, token: str, policy_id: str) -> dict[str, Any]:
    """How the hub shows this policy once it has traffic. Away until then."""
    try:
        answer = httpx.get(f"{hub_url}/v1/status", headers={"Authorization": f"Bearer {token}"}, timeout=ASKED_S)
    except httpx.HTTPError as error:
        raise Away(f"no hub at {hub_url}: {type(error).__name__}: {error}") from error
    if answer.status_code in (401, 403):
        raise Stopped(FAILED, f"{hub_url} does not know our token (is {TOKEN} this hub's?)")
    if answer.status_code != 200:
        raise Away(f"{hub_url} answered {answer.status_code}")
    found: list[dict[str, Any]] = [head for head in answer.json()["heads"] if head["policy_id"] == policy_id]
    if not found:
        raise Away(f"{hub_url} does not know {policy_id} yet")
    if found[0]["role"] not in ACTS or not found[0]["share"] > 0:
        raise Away(f"{policy_id} is {found[0]['role']} with {found[0]['share']:.0%}")
    return found[0]


def token_of(settings: PipelineSettings) -> str:
    """Of either scope: from the environment, or the file in the hub's home."""
    if given := from_environment(TOKEN):
        return given
    path = settings.hub_folder / "tokens.json"
    try:
        return str(json.loads(path.read_text())["bot"])
    except FileNotFoundError:
        raise Stopped(FAILED, f"{TOKEN} is not set and there is no {path}") from None


main = command(run, "Wait until the hub shows the new policy as challenger.")

if __name__ == "__main__":
    main()
