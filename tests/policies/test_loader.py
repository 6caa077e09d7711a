"""The loader: what a canary does not find sound is refused with its reason, and nothing of it is opened here."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hostile_graphs import holding
from onnx import ModelProto, TensorProto, helper
from small_models import burdened, linear_classifier, with_steps_before
from waiting import eventually

from policies import loader, sound_marks
from policies.bundle import Bundle, Manifest, make_bundle
from policies.ensemble import make_ensemble
from policies.errors import BundleRefused
from policies.loader import load_checked, require_checked, run_canary
from policies.signing import public_key_of, sign_bundle
from policies.sound_marks import CanaryLimits, SoundMarks

Build = Callable[..., Bundle]


class Canary:
    """A canary that only counts, or refuses."""

    def __init__(self, refuses: str = "") -> None:
        self.asked: list[str] = []
        self._refuses = refuses

    def __call__(self, bundle: Bundle) -> None:
        self.asked.append(bundle.policy_id)
        if self._refuses:
            raise BundleRefused(self._refuses)


def never(*_args: object) -> None:
    raise AssertionError("the weights were opened here")


@pytest.fixture
def child_runs(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Let the canary's process run other code."""
    return lambda code: monkeypatch.setattr(loader, "CANARY", ("-c", code))


def test_a_sound_bundle_is_served_after_a_real_canary(onnx_bundle: Build, softmax_bundle: Build) -> None:
    bundle = make_ensemble("two_v1", [onnx_bundle(), softmax_bundle()], [1, 2])
    assert load_checked(bundle).policy_id == bundle.policy_id


def test_trees_and_encoders_pass_a_real_canary(trees_bundle: Build) -> None:
    run_canary(trees_bundle())
    window = [helper.make_node("ReduceMean", ["x"], ["embedding"], axes=[1], keepdims=1)]
    run_canary(encoder(window, 1))
    with pytest.raises(BundleRefused, match=r"shape|size|embedding"):
        run_canary(encoder(window, 2))


def encoder(nodes: list[object], size: int) -> Bundle:
    graph = helper.make_graph(nodes, "encoder", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None, 10])],
                              [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [None, size])])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    manifest = Manifest("window_encoder", "mae", (), arrays={"window": 10}, parameters={"size": size})
    return make_bundle(manifest, {"model.onnx": model.SerializeToString()})


def test_a_bundle_without_weights_needs_no_canary(momentum_bundle: Build) -> None:
    canary = Canary("never asked")
    assert load_checked(momentum_bundle(), canary=canary).policy_id == momentum_bundle().policy_id
    assert canary.asked == []


def test_what_the_canary_refuses_is_never_opened_here(onnx_bundle: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loader, "load_head", never)
    with pytest.raises(BundleRefused, match="for a reason"):
        load_checked(onnx_bundle(), canary=Canary("for a reason"))
    with pytest.raises(BundleRefused, match="when funding_rate is missing"):
        load_checked(onnx_bundle(optional_features=("funding_rate",)))


def test_a_mark_spares_the_same_bytes_a_canary_and_no_others(tmp_path: Path, onnx_bundle: Build) -> None:
    canary, marks = Canary(), SoundMarks(tmp_path / "marks")
    for _ in range(3):
        load_checked(onnx_bundle(), marks=marks, canary=canary)
    assert len(canary.asked) == 1
    load_checked(onnx_bundle(alias="other"), marks=marks, canary=canary)
    load_checked(onnx_bundle(), marks=SoundMarks(tmp_path / "marks", CanaryLimits(latency_ms=10.0)), canary=canary)
    assert len(canary.asked) == 3


def test_a_mark_of_other_code_or_another_machine_does_not_count(tmp_path: Path, onnx_bundle: Build,
                                                                monkeypatch: pytest.MonkeyPatch) -> None:
    marks = SoundMarks(tmp_path)
    marks.set(onnx_bundle().policy_id)
    assert marks.holds(onnx_bundle().policy_id)
    monkeypatch.setattr(sound_marks, "_code_and_machine", lambda: "other")
    assert not marks.holds(onnx_bundle().policy_id)


def test_where_no_mark_can_be_written_the_head_is_served_all_the_same(tmp_path: Path, onnx_bundle: Build) -> None:
    (tmp_path / "a file").touch()
    marks = SoundMarks(tmp_path / "a file" / "marks")
    assert load_checked(onnx_bundle(), marks=marks, canary=Canary()).policy_id == onnx_bundle().policy_id
    assert not marks.holds(onnx_bundle().policy_id)


def test_a_refused_bundle_gets_no_mark(tmp_path: Path, onnx_bundle: Build) -> None:
    marks = SoundMarks(tmp_path)
    with pytest.raises(BundleRefused):
        require_checked(onnx_bundle(), marks=marks, canary=Canary("no"))
    assert not marks.holds(onnx_bundle().policy_id)


def test_a_signature_is_looked_at_first_mark_or_not(tmp_path: Path, onnx_bundle: Build) -> None:
    key, canary, marks = Ed25519PrivateKey.from_private_bytes(b"k" * 32), Canary(), SoundMarks(tmp_path)
    marks.set(onnx_bundle().policy_id)
    with pytest.raises(BundleRefused, match="only signed"):
        load_checked(onnx_bundle(), [public_key_of(key)], marks, canary)
    load_checked(sign_bundle(onnx_bundle(), key), [public_key_of(key)], marks, canary)
    stolen = replace(onnx_bundle(alias="b"), signature=sign_bundle(onnx_bundle(), key).signature)
    with pytest.raises(BundleRefused, match="is not of policy"):
        load_checked(stolen, canary=canary)
    assert canary.asked == []


def test_a_graph_that_needs_more_memory_than_allowed_is_refused(onnx_bundle: Build, onnx_model: ModelProto) -> None:
    needy = onnx_bundle(burdened(onnx_model, 9_000, 0))  # 309 MiB, twice
    with pytest.raises(BundleRefused, match=r"(?i)alloc|memory|crashed"):
        run_canary(needy, CanaryLimits(memory_bytes=2**29, latency_ms=60_000.0))


def test_a_few_bytes_that_keep_much_memory_are_refused_and_a_large_honest_bundle_is_not(onnx_bundle: Build) -> None:
    greedy, in_time = onnx_bundle(holding(600, 4)), CanaryLimits(latency_ms=60_000.0)
    assert len(greedy.files["model.onnx"]) < 1_000
    with pytest.raises(BundleRefused, match=r"holds 6\d\d MiB of memory when it is open; at most 512 MiB are served"):
        run_canary(greedy, in_time)
    half = np.zeros((4, 15 * 2**17), np.float32)  # 30 MiB
    steps = [helper.make_node("MatMul", ["x", "into"], ["many"]), helper.make_node("MatMul", ["many", "back"], ["y"])]
    honest = with_steps_before(linear_classifier(4), steps, "y", into=half, back=half.T.copy())
    run_canary(onnx_bundle(honest), in_time)


def test_a_graph_that_computes_without_end_is_refused(onnx_bundle: Build, onnx_model: ModelProto) -> None:
    endless = onnx_bundle(burdened(onnx_model, 2_048, 200))
    with pytest.raises(BundleRefused, match=r"did not end within 2 s|1 s of computing"):
        run_canary(endless, CanaryLimits(timeout_s=2.0, cpu_s=1))


def test_a_crash_is_a_refusal(onnx_bundle: Build, child_runs: Callable[[str], None]) -> None:
    child_runs("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(BundleRefused, match="crashed \\(SIGSEGV\\)"):
        run_canary(onnx_bundle())


def test_a_child_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path, onnx_bundle: Build,
                                                              child_runs: Callable[[str], None]) -> None:
    child_runs(f"import os, pathlib, time; child = os.fork(); "
               f"(pathlib.Path({str(tmp_path)!r}) / str(os.getpid())).touch(); time.sleep(600)")
    with pytest.raises(BundleRefused, match=r"did not end within 3 s"):
        run_canary(onnx_bundle(), CanaryLimits(timeout_s=3.0))
    started = [int(path.name) for path in tmp_path.iterdir()]
    assert len(started) == 2
    eventually(lambda: all(map(ended, started)), "both processes have ended")


def ended(pid: int) -> bool:
    """Gone, or a zombie that nobody has collected yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except FileNotFoundError:
        return True


@pytest.mark.parametrize(("code", "reason"), [
    ("raise SystemExit('what it said')", "ended with 1: what it said"), ("pass", "without a word"),
    ("print('no JSON')", "ended with 0"), ("print('[]')", "ended with 0"), ("print('{}')", "ended with 0"),
    ("""print('{"refused": 1}')""", "ended with 0"), ("""print('{"refused": "its reason"}')""", "its reason"),
    ("print('x' * 100_000_000)", "ended with")])
def test_an_end_that_is_no_clear_yes_is_a_refusal(onnx_bundle: Build, child_runs: Callable[[str], None], code: str,
                                                  reason: str) -> None:
    child_runs(code)
    with pytest.raises(BundleRefused, match=reason):
        run_canary(onnx_bundle())


def test_the_child_inherits_no_secret_and_sits_in_an_empty_folder(onnx_bundle: Build, monkeypatch: pytest.MonkeyPatch,
                                                                  child_runs: Callable[[str], None]) -> None:
    monkeypatch.setenv("A_SECRET", "of this process")
    child_runs("import json, os; print(json.dumps({'refused': json.dumps([dict(os.environ), os.listdir('.'), "
               "sorted(os.listdir('/proc/self/fd'))])}))")
    opened = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(opened, True)
    try:
        with pytest.raises(BundleRefused) as refused:
            run_canary(onnx_bundle())
    finally:
        os.close(opened)
    environment, files, descriptors = json.loads(str(refused.value))
    assert environment.keys() == {"PYTHONPATH", "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "HOME", "LC_ALL"}
    assert files == []
    assert len(descriptors) == 4  # the three of every process, and the one that lists them


def test_at_most_two_canaries_run_at_once(onnx_bundle: Build, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, both, running, most = threading.Lock(), threading.Barrier(2), [0], [0]

    def child(*_args: object) -> int:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        both.wait(10)
        with lock:
            running[0] -= 1
        return -signal.SIGKILL

    monkeypatch.setattr(loader, "_run_child", child)
    with ThreadPoolExecutor(6) as pool:
        refusals = [asked.exception() for asked in [pool.submit(run_canary, onnx_bundle()) for _ in range(6)]]
    assert most == [2]
    assert all(isinstance(refusal, BundleRefused) for refusal in refusals)
