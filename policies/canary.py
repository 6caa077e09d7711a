"""The process in which a bundle's weights are opened for the first time: `python -m policies.canary LIMITS`.

It reads a packed bundle from its standard input, shuts itself in (memory, time, files, no network), loads the head and
checks it, and prints {"refused": reason or ""} as JSON. Whatever happens to it, from a crash to a loop without end,
happens to nobody else; `policies.loader` starts it and judges its end.
"""

from __future__ import annotations

# Only the standard library here: the limits come before the libraries, some of which start threads, and a process with
# threads can't leave the network.
import ctypes
import json
import resource
import signal
import sys
from typing import Any

NEW_USER, NEW_NET = 0x10000000, 0x40000000  # flags of unshare(2)
DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
MOST_OUTPUT_BYTES = 2**20
MOST_OPEN_FILES = 128
FORBIDDEN = ("socket.", "subprocess.", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.system", "os.kill",
             "pickle.find_class", "shutil.", "os.remove", "os.rename", "os.mkdir", "os.link",
             "os.symlink", "os.chmod", "os.chown", "ftplib.", "urllib.", "http.", "smtplib.", "webbrowser.")
WRITING = frozenset("wax+")


def shut_in(memory_bytes: int, cpu_s: int) -> None:
    """Limits that this process can't lift again. Leaving the network needs rights that not every machine gives; without
    them the audit hook alone stands between a bundle and a socket."""
    _leave_network()
    for which, limit in ((resource.RLIMIT_AS, memory_bytes), (resource.RLIMIT_CPU, cpu_s), (resource.RLIMIT_CORE, 0),
                         (resource.RLIMIT_FSIZE, MOST_OUTPUT_BYTES), (resource.RLIMIT_NOFILE, MOST_OPEN_FILES)):
        hardest = resource.getrlimit(which)[1]
        limit = limit if hardest == resource.RLIM_INFINITY else min(limit, hardest)
        resource.setrlimit(which, (limit, limit))


def _leave_network() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(DIE_WITH_PARENT, signal.SIGKILL)
    if libc.unshare(NEW_NET) != 0:  # first without a user of its own, who might not read the libraries' files
        libc.unshare(NEW_USER | NEW_NET)


def forbid_effects() -> None:
    """From here on Python code of this process can't open a socket, start a process, unpickle a class or write."""

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(FORBIDDEN) or (event == "open" and _writes(arguments)):
            raise PermissionError(f"the canary does not {event}")

    sys.addaudithook(refuse)


def _writes(arguments: tuple[Any, ...]) -> bool:
    mode = arguments[1] if len(arguments) > 1 else None
    return isinstance(mode, str) and not WRITING.isdisjoint(mode)


def examine(content: bytes, latency_limit_ms: float, most_growth_bytes: int) -> str:
    """Why this packed bundle is refused, "" if it is sound.

    How much memory it holds is asked when it has answered: a few bytes can ask for much when they are opened, and what
    an answer needs is kept for the next one.
    """
    from policies.bundle import read_bundle
    from policies.checks import check_encoder, check_policy, refuse_unless_sound
    from policies.errors import HubError
    from policies.heads import load_head
    from policies.manifest import WINDOW_ENCODER

    before = _resident_bytes()
    try:
        bundle = read_bundle(content)
        if bundle.manifest.kind == WINDOW_ENCODER:
            opened = _encoder(bundle)
            findings = check_encoder(opened, latency_limit_ms)
        else:
            opened = load_head(bundle)
            findings = check_policy(opened, None, latency_limit_ms)
        grown = _resident_bytes() - before  # while `opened` is there
        refuse_unless_sound(bundle.policy_id, findings)
    except HubError as error:
        return str(error)
    except MemoryError:
        return "it needs more memory than a policy may have"
    if grown > most_growth_bytes:
        return f"it holds {grown >> 20} MiB of memory when it is open; at most {most_growth_bytes >> 20} MiB are served"
    return ""


def _resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def _encoder(bundle: Any) -> Any:
    from policies.embedder import load_embedder
    from policies.manifest import ONNX_FILE
    from policies.onnx_graph import EMBEDDING, require_closed_graph

    require_closed_graph(bundle.files[ONNX_FILE], bundle.manifest.width, EMBEDDING)
    return load_embedder(bundle)


def main(limits: str) -> int:
    """limits: JSON of a CanaryLimits. 0 when an answer was printed, whatever it says."""
    values = json.loads(limits)
    shut_in(values["memory_bytes"], values["cpu_s"])
    content = sys.stdin.buffer.read()
    forbid_effects()
    try:
        refused = examine(content, values["latency_ms"], values["growth_bytes"])
    except Exception as error:  # a fault that no reader of bundles foresaw is a reason to refuse, not to crash
        refused = " ".join(f"{type(error).__name__}: {error!s:.300}".split())
    sys.stdout.write(json.dumps({"refused": refused}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
