"""An operator's choice of the market's embedding: checked, recorded, obeyed by the next decision."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from feature_repo.features import ARRAYS, MARKET_EMBEDDING, WINDOW
from hub.embedding_use import EMBEDDING, REVERT, USE
from policies.errors import HubError, InvalidInput, UnknownEntity
from policies.manifest import Manifest
from policies.types import NO_EMBEDDING

if TYPE_CHECKING:
    from hub.service import HubService


class EmbeddingInUse(HubError):
    """Another embedding would take heads off line that have a share; nothing was written. heads: their aliases."""

    code = "embedding_in_use"

    def __init__(self, version: str, heads: list[str]) -> None:
        self.version, self.heads = version, heads
        super().__init__(f"{', '.join(heads)} would decide no more: made for embedding {version}, which is in use; "
                         "say force to change it all the same")


class Embedders(Protocol):
    """The embedders that may be used."""

    def versions(self) -> dict[str, str]:
        """{version: id of the bundle}."""
        ...

    def checked(self, version: str) -> Manifest:
        """Its manifest, once it has been found sound elsewhere: this process never opens one. Raises HubError for one
        that is not there or cannot serve."""
        ...


class EmbeddingCommands:
    """embedders: None where there are none."""

    def __init__(self, service: HubService, embedders: Embedders | None) -> None:
        self._service, self._embedders = service, embedders

    async def use(self, version: str, reason: str, command_id: str | None = None,
                  force: bool = False) -> dict[str, Any]:
        """Serve this version of the market's embedding, or none. From the answer on, decisions obey: only heads that
        were made for it are given an embedding. UnknownEntity for a version that is not stored; EmbeddingInUse, unless
        `force`, while a head that has a share is made for the one in use.
        """
        await self._require_embedder(version)
        self._service.catch_up()
        state = self._service.state
        recorded = command_id is not None and self._service.recorded_observation(_key(command_id)) is not None
        without = [head.alias for head in state.left_without(version)]
        if without and not force and not recorded:  # what is recorded was allowed, and changes nothing again
            raise EmbeddingInUse(state.embedding.version, without)
        return await self._chosen(USE, version, reason, command_id)

    async def revert(self, reason: str, command_id: str | None = None) -> dict[str, Any]:
        """Back to the last version that was in use before this one, which may be none. Whoever it takes off line: this
        is for emergencies.
        """
        self._service.catch_up()
        state = self._service.state
        recorded = None if command_id is None else self._service.recorded_observation(_key(command_id))
        version = state.embedding.earlier if recorded is None else recorded.body["detail"]["version"]
        if version is None:
            raise InvalidInput("revert", "an embedding that was in use before", state.embedding.version)
        await self._require_embedder(version)
        return await self._chosen(REVERT, version, reason, command_id)

    def shown(self) -> dict[str, Any]:
        """version: in use. earlier: to which a revert leads, None if there was none. known: what may be used."""
        known = [] if self._embedders is None else sorted(self._embedders.versions())
        embedding = self._service.state.embedding
        return {"version": embedding.version, "earlier": embedding.earlier, "known": [*known, NO_EMBEDDING]}

    async def _require_embedder(self, version: str) -> None:
        if version == NO_EMBEDDING:
            return
        if self._embedders is None:
            raise UnknownEntity("embedding", version, [NO_EMBEDDING])
        manifest = await asyncio.to_thread(self._embedders.checked, version)
        for group, count in ((WINDOW, manifest.arrays[WINDOW]), (MARKET_EMBEDDING, int(manifest.parameters["size"]))):
            if not ARRAYS[group].admits(count):
                raise InvalidInput(f"numbers of {group} of {version}", f"at most {ARRAYS[group].most} and a multiple "
                                   f"of {ARRAYS[group].step}", count)

    async def _chosen(self, command: str, version: str, reason: str, command_id: str | None) -> dict[str, Any]:
        answer = await self._service.observe(
            EMBEDDING, {"command": command, "version": version, "actor": "ops", "reason": reason},
            None if command_id is None else _key(command_id))
        await self._service.take_in()
        return {**answer, **self.shown()}


def _key(command_id: str) -> str:
    return f"{EMBEDDING}/{command_id}"
