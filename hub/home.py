"""`HUB_HOME`: where everything that the hub writes lies, and the tokens of its two kinds of callers."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from policies.errors import HubError


class HomeInUse(HubError):
    """Another hub runs on this home; two writers of one ledger must not be."""

    code = "home_in_use"


@dataclass(frozen=True)
class Home:
    """Paths below one folder of mode 0700. Making the object touches nothing; `create` does."""

    root: Path

    @property
    def ledger(self) -> Path:
        return self.root / "hub.sqlite"

    @property
    def audit(self) -> Path:
        return self.root / "policy_audit.sqlite"

    @property
    def tokens_file(self) -> Path:
        return self.root / "tokens.json"

    @property
    def policies(self) -> Path:
        return self.root / "policies"

    @property
    def mlflow(self) -> Path:
        return self.root / "mlflow"

    @property
    def features(self) -> Path:
        return self.root / "features"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def run(self) -> Path:
        """What belongs to the running processes: sockets, the supervisor's record, the embedded Redis."""
        return self.root / "run"

    def create(self) -> None:
        for folder in (self.root, self.policies, self.mlflow, self.features, self.logs, self.reports, self.run):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.root.chmod(0o700)

    def tokens(self) -> dict[str, str]:
        """{"bot": ..., "ops": ...}, generated on first use into a file that only its owner can read."""
        try:
            return dict(json.loads(self.tokens_file.read_text()))
        except FileNotFoundError:
            pass
        tokens = {"bot": secrets.token_urlsafe(32), "ops": secrets.token_urlsafe(32)}
        beside = self.tokens_file.with_suffix(".new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump(tokens, file)
            file.flush()
            os.fsync(file.fileno())
        beside.rename(self.tokens_file)
        return tokens

    def lock(self) -> IO[str]:
        """Hold the home for this process; HomeInUse if another one does. Released when the file is closed."""
        file = (self.run / "lock").open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            owner = file.read().strip()
            file.close()
            raise HomeInUse(f"a hub runs on {self.root} already (process {owner or 'unknown'})") from None
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        return file
