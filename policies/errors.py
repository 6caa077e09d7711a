"""The one error tree. It knows nothing of HTTP: `hub.api` maps it there, the command line prints it."""

from __future__ import annotations

from typing import Any

MOST_REASON = 2_000  # characters of a refusal


class HubError(Exception):
    """Base of every error that a user of the hub can cause or should see.

    `code` is stable and machine readable; the message is for people.
    """

    code = "hub_error"

    def __reduce__(self) -> tuple[Any, ...]:
        # Errors travel between processes. By default an exception is rebuilt by calling its class with its message,
        # which the constructors below do not take.
        return _rebuilt, (type(self), self.args, self.__dict__)


class InvalidInput(HubError):
    """A value was refused at the edge; nothing was written.

    field: dotted path of the value, such as ``context.portfolio.equity``.
    legal: the legal range in words, such as ``> 0`` or ``one of long, short, flat``.
    value: the value as given (shortened to 200 characters when it is shown).
    """

    code = "invalid_input"

    def __init__(self, field: str, legal: str, value: Any, hint: str = "") -> None:
        self.field, self.legal, self.value, self.hint = field, legal, _shown(value), hint
        super().__init__(f"{field}: must be {legal}, got {self.value}" + (f" ({hint})" if hint else ""))


class UnknownEntity(HubError):
    """A decision, policy or symbol that the ledger does not hold."""

    code = "unknown"

    def __init__(self, kind: str, key: str, known: list[str] | None = None) -> None:
        self.kind, self.key, self.known = kind, _shown(key), known or []
        super().__init__(f"unknown {kind} {self.key}" + (f"; known: {', '.join(self.known)}" if self.known else ""))


class ContentConflict(HubError):
    """A key that is recorded already came again with another content; the record stands."""

    code = "content_conflict"

    def __init__(self, kind: str, key: str, fields: list[str]) -> None:
        self.kind, self.key, self.fields = kind, key, fields
        differing = ", ".join(fields) or "body"
        super().__init__(f"{kind} {key} is recorded with another content; differing fields: {differing}")


class BundleRefused(HubError):
    """A bundle that is not served: wrong hash, missing file, a format that can run code, a failed check.

    The reason may quote what a stranger wrote, and is shown on terminals and kept in the audit: it is one line of
    printable characters, whatever is quoted.
    """

    code = "bundle_refused"

    def __init__(self, reason: object) -> None:
        super().__init__(one_line(reason, MOST_REASON))


class WriterUnavailable(HubError):
    """The ledger's writer did not answer in time: nothing can be acknowledged, so nothing is."""

    code = "writer_unavailable"


class LedgerCorrupt(HubError):
    """The ledger or its audit projection contradicts itself; the hub does not serve on it."""

    code = "ledger_corrupt"


def one_line(error: object, most: int = 300) -> str:
    """What a library says of a file, fit for a sentence: without line breaks and other control characters, cut."""
    text = " ".join(str(error).split())
    return "".join(c if c.isprintable() else "?" for c in text[:most])


def _rebuilt(kind: type[HubError], args: tuple[Any, ...], fields: dict[str, Any]) -> HubError:
    error = kind.__new__(kind, *args)
    error.__dict__.update(fields)
    return error


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 200 else text[:197] + "..."
