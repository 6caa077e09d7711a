"""The canary's process: what it forbids itself before it opens anything."""

from __future__ import annotations

import resource
import socket
import subprocess
import sys

import pytest

LIMITS = "shut_in(2**31, 20); forbid_effects()"


def in_a_canary(code: str) -> str:
    """What this code prints in a process that has shut itself in."""
    begin = f"from policies.canary import forbid_effects, shut_in\n{LIMITS}\n"
    return subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, check=False,
                          timeout=60).stdout.strip()


@pytest.mark.parametrize("effect", [
    "open('written', 'w')", "__import__('socket').socket().connect(('127.0.0.1', 1))",
    "__import__('subprocess').run(['true'])", "__import__('os').system('true')", "__import__('os').fork()",
    "__import__('os').mkdir('made')", "__import__('os').remove('gone')",
    "__import__('os').execv('/bin/true', ['true'])", "__import__('pickle').loads(b'cos\\nsystem\\n.')",
    "__import__('urllib.request').request.urlopen('http://127.0.0.1')"])
def test_no_python_code_has_an_effect_outside(effect: str) -> None:
    assert in_a_canary(f"try:\n    {effect}\nexcept PermissionError as error:\n    print('refused', error)") \
        .startswith("refused the canary does not")


def test_reading_and_importing_go_on() -> None:
    assert in_a_canary("import fractions; print(open('/dev/null').read() == '')") == "True"


def test_limits_hold_and_cannot_be_lifted() -> None:
    code = ("import resource\n"
            "names = ('RLIMIT_AS', 'RLIMIT_CPU', 'RLIMIT_CORE', 'RLIMIT_FSIZE')\n"
            "print([resource.getrlimit(getattr(resource, name)) for name in names])\n"
            "try:\n    bytearray(2**31)\nexcept MemoryError:\n    print('no memory')")
    said = in_a_canary(code).splitlines()
    assert said == [str([(2**31, 2**31), (20, 20), (0, 0), (2**20, 2**20)]), "no memory"]


def test_a_stricter_limit_of_the_parent_stays() -> None:
    def tighten() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (7, 7))

    code = f"from policies.canary import shut_in, forbid_effects\n{LIMITS}\nimport resource\n" \
           "print(resource.getrlimit(resource.RLIMIT_CPU))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60,
                         preexec_fn=tighten)
    assert run.stdout.strip() == "(7, 7)"


def test_where_the_machine_allows_it_even_this_machine_is_out_of_reach() -> None:
    begin = "from policies.canary import shut_in\nshut_in(2**31, 20)\n"
    with socket.create_server(("127.0.0.1", 0)) as server:
        code = ("import os, socket\nprint(len(socket.if_nameindex()))\ntry:\n"
                f"    socket.create_connection(('127.0.0.1', {server.getsockname()[1]}), 5)\n    print('reached')\n"
                "except OSError:\n    print('out of reach')")
        run = subprocess.run([sys.executable, "-c", begin + code], capture_output=True, text=True, check=True,
                             timeout=60)
    interfaces, reached = run.stdout.split("\n")[:2]
    if int(interfaces) > 1:
        pytest.skip("this machine gives no process a network of its own")
    assert reached == "out of reach"
