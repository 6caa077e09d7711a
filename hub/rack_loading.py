"""Has a rack hold the policies of a ledger: all of them at the start, and later what could not be loaded then."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

from hub.head_rack import HeadRack
from sentry.ledger import LedgerReader

RETRY_S = 60.0  # until the second look; each later one after twice the pause
MOST_PAUSE_S = 960.0  # what a canary refuses again costs a second of computing each time


def registered(ledger: Path) -> list[str]:
    """Ids of the policies that this ledger knows, the first registered first. WriterUnavailable without a ledger."""
    reader = LedgerReader(ledger)
    try:
        return [row.key for row in reader.rows(kinds={"policy"})]
    finally:
        reader.close()


def load_registered(rack: HeadRack, ledger: Path) -> None:
    """One look: load what is new, and again what was refused. Whatever goes wrong is told, and nothing is raised."""
    try:
        policy_ids = registered(ledger)
        before = rack.refused
        rack.retry(policy_ids)
        rack.load_new(policy_ids)
    except Exception as error:  # a ledger that cannot be read now may be readable later
        print(f"heads: what is registered could not be read: {error!r}", flush=True)
        return
    for policy_id, why in rack.refused.items():
        if before.get(policy_id) != why:
            print(f"heads: {policy_id[:12]} is not served: {why}", flush=True)


def keep_loading(rack: HeadRack, ledger: Path, looked: Event, wait: Callable[[float], object] = time.sleep) -> None:
    """Without end. looked: set after the first look."""
    pause_s = RETRY_S
    while True:
        load_registered(rack, ledger)
        looked.set()
        wait(pause_s)
        pause_s = min(2 * pause_s, MOST_PAUSE_S)
