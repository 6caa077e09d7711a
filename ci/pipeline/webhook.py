"""Step: tell the running hub what was published, by a signed message (standardwebhooks.com) that may be repeated.

The hub acts on a message once, so a lost answer is asked for again. What cannot be told now waits in the outbox.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
from standardwebhooks import Webhook

from ci.pipeline.outbox import Entry, Outbox
from ci.pipeline.publish import outbox_of, sent, store_of
from ci.pipeline.settings import SECRET, PipelineSettings, from_environment
from ci.pipeline.step import FAILED, REFUSED, Away, Say, Stopped, again, command, leave_note
from hub.webhook import secret_file
from policies.artefacts import ArtefactStore
from policies.manifest import WINDOW_ENCODER

PATH, ANNOUNCED = "/v1/webhooks/policy", "announced"
ANSWER_S = 60.0  # the hub fetches, and tries, the bundle before it answers
UNKNOWN = "unknown"  # code of a hub that did not find what was published

Now = Callable[[], datetime]


def run(settings: PipelineSettings, say: Say) -> str:
    outbox, secret = outbox_of(settings), secret_of(settings)
    waiting = outbox.each(lambda entry: bool(entry.published_url))
    if not waiting:
        return "nothing is waiting to be told"
    store, told, refused = store_of(settings), [], []
    for entry in waiting:
        try:
            answer = again(lambda entry=entry: announced(settings.url, secret, outbox, entry, store),  # type: ignore[misc]
                           settings.patience_s, say)
        except Away as error:
            raise Away(f"{error}; {len(outbox.entries())} bundles are kept in the outbox for the next run") from error
        if isinstance(answer, str):
            refused.append(f"{entry.alias}: {answer}; kept as {outbox.refused(entry, answer)}")
            continue
        outbox.done(entry)
        told.append(f"{entry.alias} {entry.policy_id}")
        if entry.kind != WINDOW_ENCODER:
            leave_note(settings.home, ANNOUNCED, {"policy_id": entry.policy_id, "alias": entry.alias, **answer})
    if refused:
        raise Stopped(REFUSED, "the hub refused " + "; ".join(refused))
    return f"{settings.url} has taken in {', '.join(told)}"


def announced(hub_url: str, secret: str, outbox: Outbox, entry: Entry, store: ArtefactStore,
              now: Now = lambda: datetime.now(UTC)) -> dict[str, Any] | str:
    """What the hub answers, or why it refused for good. Away if it cannot be reached or says to come again."""
    answer = _posted(hub_url, secret, entry, now())
    if answer.status_code == 404 and _code(answer) == UNKNOWN:
        sent(outbox, entry, store)  # the store has lost it since
        answer = _posted(hub_url, secret, entry, now())
    if answer.status_code == 200:
        return dict(answer.json())
    if answer.status_code == 401:
        raise Stopped(FAILED, f"{hub_url} does not know our signature: {_detail(answer)} (is {SECRET} this hub's?)")
    if answer.status_code in (413, 422):
        return _detail(answer)
    raise Away(f"{hub_url} answered {answer.status_code}: {_detail(answer)}")


def message_of(entry: Entry) -> str:
    """The body; the same for the same entry, as its id promises."""
    return json.dumps({"type": "policy.published", "data": {"url": entry.published_url, "policy_id": entry.policy_id}})


def secret_of(settings: PipelineSettings) -> str:
    """Of the hub: from the environment, or the file in its home."""
    if given := from_environment(SECRET):
        return given
    try:
        return secret_file(settings.hub_folder).read_text().strip()
    except FileNotFoundError:
        raise Stopped(FAILED, f"{SECRET} is not set and there is no {secret_file(settings.hub_folder)}; `hub "
                              f"webhook-secret --show` on the hub's machine prints it") from None


def _posted(hub_url: str, secret: str, entry: Entry, now: datetime) -> httpx.Response:
    body = message_of(entry)
    headers = {"webhook-id": entry.message_id, "webhook-timestamp": str(int(now.timestamp())),
               "webhook-signature": Webhook(secret).sign(entry.message_id, now, body),
               "Content-Type": "application/json"}
    try:
        return httpx.post(hub_url + PATH, content=body, headers=headers, timeout=ANSWER_S)
    except httpx.HTTPError as error:
        raise Away(f"no hub at {hub_url}: {type(error).__name__}: {error}") from error


def _code(answer: httpx.Response) -> str:
    return str(_problem(answer).get("code", ""))


def _detail(answer: httpx.Response) -> str:
    return str(_problem(answer).get("detail", answer.text))[:500]


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        found = answer.json()
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


main = command(run, "Tell the hub by a signed webhook.")

if __name__ == "__main__":
    main()
