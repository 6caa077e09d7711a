from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Any

import pytest
import redis

from feature_repo.redis_server import EmbeddedRedis, RedisNotStarted
from policies.free_ports import free_port


def test_it_answers_on_this_machine_only_and_ends_with_its_handle(tmp_path: Path) -> None:
    server = EmbeddedRedis(tmp_path / "redis", free_port())
    assert server.pid is None
    with server:
        pid = server.pid
        client: Any = redis.Redis.from_url(server.url)
        assert client.ping()
        assert client.config_get("bind")["bind"] == "127.0.0.1"
        assert Path(client.config_get("dir")["dir"]) == (tmp_path / "redis").resolve()
        assert (tmp_path / "redis").stat().st_mode & 0o077 == 0
        assert server.start().pid == pid, "starting a running server changes nothing"
    assert pid is not None
    assert not server.running
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_port_in_use_is_said_with_the_servers_own_words(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(RedisNotStarted, match="in use"):
            EmbeddedRedis(tmp_path / "redis", taken.getsockname()[1]).start()


def test_other_server_on_the_port_is_not_taken_for_ours(tmp_path: Path) -> None:
    with EmbeddedRedis(tmp_path / "one", free_port()) as one, pytest.raises(RedisNotStarted):
        EmbeddedRedis(tmp_path / "two", one.port).start()
