"""The outbox: candidates on their way to the hub, kept on disk until it has answered. A crash or a store that is away
loses none, and the next run sends what is left, oldest first.

Each entry is a packed bundle and a note of how far it has come. Its message has an id of its own that every repetition
carries, so that the hub acts on it once.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from ci.pipeline.step import write_whole
from policies.bundle import Bundle, pack_bundle, read_bundle


@dataclass(frozen=True)
class Entry:
    """made_ms: when it was put in. message_id: of its webhook. published_url: "" until the store holds it."""

    policy_id: str
    alias: str
    kind: str
    made_ms: int
    message_id: str
    published_url: str = ""

    @property
    def name(self) -> str:
        return f"{self.made_ms:015d}-{self.policy_id[:12]}"


class Outbox:
    """Below one folder, made at first use. Every change is on disk when the call returns."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def put(self, bundle: Bundle, now_ms: int) -> Entry:
        """Keep a bundle to be sent; the entry that is there already if it waits in here."""
        for entry in self.entries():
            if entry.policy_id == bundle.policy_id:
                return entry
        latest = max((entry.made_ms for entry in self.entries()), default=-1)
        made_ms = max(now_ms, latest + 1)  # two of one millisecond have an order too
        entry = Entry(bundle.policy_id, bundle.manifest.alias, bundle.manifest.kind, made_ms,
                      f"policy_{bundle.policy_id[:24]}_{made_ms}")
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(self._path(entry, ".pt"), pack_bundle(bundle))
        self._note(entry)  # after the bundle: who finds the note finds the bundle
        return entry

    def entries(self) -> list[Entry]:
        """Those that wait, oldest first."""
        return [Entry(**json.loads(path.read_bytes())) for path in sorted(self._folder.glob("*.json"))]

    def bundle(self, entry: Entry) -> Bundle:
        return read_bundle(self._path(entry, ".pt"))

    def published(self, entry: Entry, url: str) -> Entry:
        """Note where the store holds it; "": it does not hold it any more."""
        noted = replace(entry, published_url=url)
        self._note(noted)
        return noted

    def done(self, entry: Entry) -> None:
        """The hub has taken it, or refused it for good: it waits no more."""
        self._path(entry, ".json").unlink(missing_ok=True)
        self._path(entry, ".pt").unlink(missing_ok=True)

    def refused(self, entry: Entry, reason: str) -> Path:
        """As `done`; the bundle and the reason are kept aside."""
        aside = self._folder / "refused"
        aside.mkdir(exist_ok=True, mode=0o700)
        write_whole(aside / f"{entry.name}.pt", self._path(entry, ".pt").read_bytes())
        write_whole(aside / f"{entry.name}.txt", f"{reason}\n".encode())
        self.done(entry)
        return aside / f"{entry.name}.pt"

    def each(self, wanted: Callable[[Entry], bool]) -> list[Entry]:
        return [entry for entry in self.entries() if wanted(entry)]

    def _note(self, entry: Entry) -> None:
        write_whole(self._path(entry, ".json"), json.dumps(asdict(entry)).encode())

    def _path(self, entry: Entry, suffix: str) -> Path:
        return self._folder / f"{entry.name}{suffix}"
