"""How a candidate becomes a policy, by whichever door it comes: read, checked, stored, loaded, recorded, answered.

One path for uploads, URLs and webhooks. A candidate that is refused leaves one audit row and nothing else, and so does
a body over the limit or a URL outside the store; a request that cannot be understood, and one that names what is not
there, name no candidate. Reading and checking happen in a process of their own (`hub.intake`), so the loop that answers
decisions only waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol

from hub.config import HubConfig
from hub.head_rack import HeadsUnavailable
from hub.home import Home
from hub.intake import Asked, Taken
from hub.service import HubService
from policies.artefacts import ArtefactStore, ArtefactsUnavailable, open_store
from policies.embedder import version_of
from policies.errors import BundleRefused, ContentConflict, HubError, InvalidInput, UnknownEntity, one_line
from policies.manifest import WINDOW_ENCODER, is_sha256
from policies.rows import EMBEDDER_STORED, REGISTRATION_REFUSED

AT_ONCE = 2  # candidates that are checked at the same time; the machine has decisions to answer
MOST_WAITING = 4  # more than these and those are told to come again
KEPT_FOR_WEBHOOKS = 1  # one more place, which no upload takes
RECEIVED_AT_ONCE = 4  # bodies; a slow one must not keep out those that are sent quickly
UPLOAD_TIMEOUT_S = 20.0  # for a whole body
INTAKE_TIMEOUT_S = 25.0  # Serve gives a request 30
PIECE_BYTES = 2**20  # of an upload, written in one go
MOST_REASON, MOST_SOURCE = 500, 300  # characters of a refusal that are recorded
_PLAIN_ENVIRONMENT = ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "LANG", "TMPDIR", "HUB_PROCESS_OF")


class RegistrationBusy(HubError):
    """Too many candidates at once; nothing was read."""

    code = "registration_busy"


class UploadTooSlow(RegistrationBusy):
    """A body that did not arrive in its time; it was dropped."""

    code = "upload_too_slow"


class BodyTooLarge(HubError):
    """An upload over the limit; it was not read to its end."""

    code = "body_too_large"

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        super().__init__(f"body: must be at most {most_bytes} bytes")


@dataclass(frozen=True)
class Upload:
    """What was sent, in a file without a name. begins: its first bytes, enough to hold a request by URL."""

    file: IO[bytes]
    sha256: str
    size_bytes: int
    begins: bytes


class Intake(Protocol):
    async def take_in(self, asked: Asked, upload: IO[bytes] | None) -> Taken:
        """Check and store a candidate; what is wrong with it is in the answer."""
        ...


class ChildIntake:
    """`hub.intake` in a child process, AT_ONCE of them at most."""

    def __init__(self, timeout_s: float = INTAKE_TIMEOUT_S) -> None:
        self._timeout_s = timeout_s
        # Threads, not the loop's own sub-processes: those need a watcher in the main thread, which is Serve's.
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="intake")

    async def take_in(self, asked: Asked, upload: IO[bytes] | None) -> Taken:
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, asked, upload)

    def _run(self, asked: Asked, upload: IO[bytes] | None) -> Taken:
        names = os.environ if asked.url else _PLAIN_ENVIRONMENT  # a store is read with the credentials of this hub
        environment = {name: os.environ[name] for name in names if name in os.environ}
        if upload is not None:
            upload.seek(0)
        try:
            ended = subprocess.run([sys.executable, "-P", "-m", "hub.intake", json.dumps(asdict(asked))],
                                   stdin=upload or subprocess.DEVNULL, capture_output=True, timeout=self._timeout_s,
                                   env={**environment, "OMP_NUM_THREADS": "1"}, check=False)
        except subprocess.TimeoutExpired as late:
            return _unfinished(asked, late.stdout or b"", f"took more than {self._timeout_s:g} s")
        if ended.returncode != 0:
            print(f"intake ended with {ended.returncode}: {ended.stderr.decode(errors='replace')[-2_000:]}", flush=True)
            return _unfinished(asked, ended.stdout, f"ended with {ended.returncode}")
        return Taken(**json.loads(ended.stdout.splitlines()[-1]))


class Registrar:
    """asked: what every candidate is asked for. store: where URLs must lie. scratch: of uploads under way."""

    def __init__(self, service: HubService, intake: Intake, asked: Asked, store: ArtefactStore, scratch: Path,
                 most_bytes: int, upload_timeout_s: float = UPLOAD_TIMEOUT_S) -> None:
        self.service = service
        self._intake, self._asked, self._store, self._scratch = intake, asked, store, scratch
        self._most_bytes, self._upload_timeout_s = most_bytes, upload_timeout_s
        self._checking = asyncio.Semaphore(AT_ONCE)
        self._entered = self._receiving = 0
        self._tasks: set[asyncio.Task[Any]] = set()

    @contextlib.contextmanager
    def entered(self, webhook: bool = False) -> Iterator[contextlib.ExitStack]:
        """A place among those that may send and be checked; RegistrationBusy when all are taken.

        Who is given the place by a registration keeps it until that has ended, even after whoever asked has hung up.
        """
        if self._entered >= AT_ONCE + MOST_WAITING + (KEPT_FOR_WEBHOOKS if webhook else 0):
            raise RegistrationBusy(f"{self._entered} candidates are being registered; try again in a moment")
        self._entered += 1
        with contextlib.ExitStack() as place:
            place.callback(self._leave)
            yield place

    def _leave(self) -> None:
        self._entered -= 1

    async def received(self, chunks: AsyncIterator[bytes], actor: str) -> Upload:
        """A body as it comes in, written to disk beside the loop.

        BodyTooLarge beyond the limit; RegistrationBusy beside RECEIVED_AT_ONCE others; UploadTooSlow in the end.
        """
        if self._receiving >= RECEIVED_AT_ONCE:
            raise RegistrationBusy(f"{self._receiving} candidates are being received; try again in a moment")
        self._receiving += 1
        file = tempfile.TemporaryFile(dir=self._scratch)  # noqa: SIM115 - kept by the upload
        try:
            async with asyncio.timeout(self._upload_timeout_s):
                return await self._written(file, chunks)
        except BaseException as error:
            file.close()
            if isinstance(error, TimeoutError):
                raise UploadTooSlow(f"body: did not arrive within {self._upload_timeout_s:g} s") from None
            if isinstance(error, BodyTooLarge):
                await self._record(Taken(), str(error), "upload", actor, None)
            raise
        finally:
            self._receiving -= 1

    async def _written(self, file: IO[bytes], chunks: AsyncIterator[bytes]) -> Upload:
        """In large pieces."""
        digest, begins, size, piece = hashlib.sha256(), b"", 0, bytearray()

        def write(content: bytes) -> None:
            file.write(content)
            digest.update(content)

        async for chunk in chunks:
            size += len(chunk)
            if size > self._most_bytes:
                raise BodyTooLarge(self._most_bytes)
            piece += chunk
            if len(piece) >= PIECE_BYTES:
                begins = begins or bytes(piece[:PIECE_BYTES])
                await asyncio.to_thread(write, bytes(piece))
                piece.clear()
        begins = begins or bytes(piece)
        await asyncio.to_thread(write, bytes(piece))
        file.flush()
        return Upload(file, digest.hexdigest(), size, begins)

    async def register_upload(self, upload: Upload, actor: str,
                              place: contextlib.ExitStack | None = None) -> dict[str, Any]:
        return await self.shielded(self._register(self._asked, upload, "upload", actor, None), place)

    async def register_url(self, url: str, actor: str, policy_id: str = "", sha256: str = "",
                           refusal_key: str | None = None, place: contextlib.ExitStack | None = None) -> dict[str, Any]:
        """policy_id, sha256: what lies there must have; "" for any. refusal_key: under which a refusal is one row."""
        try:
            self._store.expected_id(url)
        except InvalidInput as refusal:  # not of our store
            await self._record(Taken(sha256=sha256), str(refusal), url, actor, refusal_key)
            raise
        asked = replace(self._asked, url=url, policy_id=policy_id, sha256=sha256)
        return await self.shielded(self._register(asked, None, url, actor, refusal_key), place)

    def refusal(self, key: str, url: str) -> str:
        """Why what lies there was refused under this key; "" if it was not."""
        row = self.service.recorded_observation(key)
        told = {} if row is None else row.body["detail"]
        return str(told["reason"]) if told.get("source") == _plain(url, MOST_SOURCE) else ""

    async def shielded(self, work: Any, place: contextlib.ExitStack | None = None) -> Any:
        """Serve cancels a handler whose client has gone; what has begun here is ended all the same, in its place."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        if place is not None:
            held = place.pop_all()
            task.add_done_callback(lambda _: held.close())
        return await asyncio.shield(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # told to whoever still waits; if nobody does, the audit has it

    async def _register(self, asked: Asked, upload: Upload | None, source: str, actor: str,
                        refusal_key: str | None) -> dict[str, Any]:
        async with self._checking:
            if upload is None:
                taken = await self._intake.take_in(asked, None)
            else:
                with upload.file:
                    taken = replace(await self._intake.take_in(asked, upload.file), sha256=upload.sha256)
            if taken.code == ArtefactsUnavailable.code:
                raise ArtefactsUnavailable(taken.refused)
            if taken.code == UnknownEntity.code:
                raise UnknownEntity("artefact", asked.url)
            try:
                if taken.refused:
                    raise BundleRefused(taken.refused)
                if taken.manifest["kind"] == WINDOW_ENCODER:  # no policy: an operator chooses when it is used
                    return await self._stored(taken, source, actor)
                return await self.service.register(taken.policy_id, taken.alias, dict(taken.manifest), actor)
            except (BundleRefused, InvalidInput) as refusal:
                try:
                    await self._record(taken, str(refusal), source, actor, refusal_key)
                finally:
                    await self._discard(taken.policy_id)
                raise
            except HeadsUnavailable:  # not judged, so not recorded: it can come again
                await self._discard(taken.policy_id)
                raise

    async def _stored(self, taken: Taken, source: str, actor: str) -> dict[str, Any]:
        """An embedder that is there now; who brought it is recorded once."""
        key, version = f"{EMBEDDER_STORED}/{taken.policy_id}", version_of(taken.policy_id)
        if self.service.recorded_observation(key) is None:
            detail = {"actor": actor, "alias": taken.alias, "version": version, "id": taken.policy_id,
                      "sha256": taken.sha256, "source": _plain(source, MOST_SOURCE)}
            with contextlib.suppress(ContentConflict):  # somebody else has brought the same meanwhile
                await self.service.writer.observe({"what": EMBEDDER_STORED, "policy_id": None, "figure": None,
                                                   "detail": detail, "key": key}, self.service.clock.now_ms())
        self.service.catch_up()
        row = self.service.recorded_observation(key)
        assert row is not None, "the writer acknowledged a row that the ledger does not hold"
        return {"accepted": "stored", "policy_id": taken.policy_id, "alias": taken.alias, "position": row.position,
                "embedding_version": version}

    async def _record(self, taken: Taken, reason: str, source: str, actor: str, key: str | None) -> None:
        """Before the refusal is told: who sent what, and why it was refused."""
        detail = {"actor": actor, "alias": _plain(taken.alias, 100), "sha256": taken.sha256,
                  "source": _plain(source, MOST_SOURCE), "reason": _plain(reason, MOST_REASON)}
        observation = {"what": REGISTRATION_REFUSED, "policy_id": None, "figure": None, "detail": detail}
        if key is not None:
            observation["key"] = key
        await self.service.writer.observe(observation, self.service.clock.now_ms())
        self.service.catch_up()

    async def _discard(self, policy_id: str) -> None:
        """What was stored but cannot be served is nobody's: neither on disk nor in the memory of those that serve."""
        if policy_id and policy_id not in self.service.state.heads:
            await self.service.forget(policy_id)
            await asyncio.to_thread(shutil.rmtree, Path(self._asked.policies) / policy_id, ignore_errors=True)


def registrar_of(home: Home, config: HubConfig, service: HubService, intake: Intake) -> Registrar:
    storage = config.storage
    store = open_store(storage.artefacts_url or str(home.root / "artefacts"), storage.s3_endpoint_url)
    asked = Asked(str(home.policies), str(home.root / "embedders"), config.registration.trusted_keys,
                  store_url=store.url, s3_endpoint_url=storage.s3_endpoint_url)
    return Registrar(service, intake, asked, store, home.run, config.server.max_bundle_bytes)


def _unfinished(asked: Asked, said: bytes, how: str) -> Taken:
    """A check without a result judges the candidate. But while one by URL was not read, it is the store that hangs, and
    what was not judged can come again.
    """
    first = said.split(b"\n")[0].decode(errors="replace")
    if asked.url and not is_sha256(first):
        return Taken(refused=f"reading it {how}", code=ArtefactsUnavailable.code)
    return Taken(first if is_sha256(first) else "", refused=f"checking it {how}", code=BundleRefused.code)


def _plain(text: str, most: int) -> str:
    """Text that JSON in UTF-8 can hold and a terminal can show, of bounded length."""
    return one_line(text.encode("utf-8", "replace").decode(), most)
