from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from policies import free_ports
from policies.free_ports import FIRST, LAST, NoFreePort, free_port


def test_no_port_is_given_twice_not_even_to_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = few_ports(monkeypatch, 6)
    mine = {free_port() for _ in range(3)}
    ask = (f"from policies import free_ports as f; f.FIRST, f.LAST = {ports[0]}, {ports[-1]}; "
           "print(*(f.free_port() for _ in range(3)))")
    others = {int(port) for port in subprocess.check_output([sys.executable, "-c", ask]).split()}
    assert mine | others == set(ports)
    assert {free_port() for _ in range(3)} == others  # the other process has ended, and its ports are free again
    with pytest.raises(NoFreePort, match=f"{ports[0]} to {ports[-1]}"):
        free_port()


def test_port_on_which_something_listens_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    ports = few_ports(monkeypatch, 2)
    with socket.socket() as server:
        server.bind(("127.0.0.1", ports[0]))
        server.listen()
        assert free_port() == ports[1]


def test_ports_lie_below_those_that_linux_gives_to_connections() -> None:
    assert FIRST <= free_port() <= LAST < 32_768


def few_ports(monkeypatch: pytest.MonkeyPatch, count: int) -> range:
    """The only ports to give from now on: free ones, side by side, where neither connections nor other tests look."""
    ports = next(ports for ports in (range(first, first + count) for first in range(61_000, 65_000, count))
                 if all(_is_free(port) for port in ports))
    monkeypatch.setattr(free_ports, "FIRST", ports[0])
    monkeypatch.setattr(free_ports, "LAST", ports[-1])
    return ports


def _is_free(port: int) -> bool:
    with socket.socket(socket.AF_UNIX) as mark, socket.socket() as probe:
        try:
            mark.bind(f"\0learner-hub-port-{port}")
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True
