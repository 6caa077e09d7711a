"""TimesNet: the blocks compute what the published ones compute, an answer depends on its own row, and it learns."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from feature_repo.windows import CHANNELS
from policies.errors import InvalidInput
from train import timesnet_learner
from train.learners import Heard, Labelled, Layout, Setting
from train.softmax import fit_softmax, log_loss, softmax
from train.timesnet import (
    Inception,
    OneConvolution,
    TimesBlock,
    TimesNet,
    normalised,
    sinusoids,
    strongest_frequencies,
)
from train.timesnet_learner import FittedTimesNet, Profile, TimesNetLearner

BARS = 30
LAYOUT = Layout(("a", "b"), ("b",), window_bars=BARS)
CHANCE = float(np.log(3))


def ignored(step: int, loss: float) -> None:
    pass


def rows(n: int, seed: int, signal: float = 1.0) -> Labelled:
    """Returns swing with a period of 5 bars before a short, of 10 before a long, and not before a flat; in any phase,
    so no linear model sees it. The features say nothing, and b is often missing.
    """
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 3, n)
    period = np.where(classes == 0, 5.0, 10.0)[:, None]
    wave = np.sin(2 * np.pi * np.arange(BARS) / period + rng.uniform(0, 2 * np.pi, (n, 1)))
    window = rng.normal(0, 1e-3, (n, BARS, len(CHANNELS)))
    window[:, :, 3] += 1.5e-3 * signal * wave * (classes != 1)[:, None]
    window[:, :, 4] = rng.normal(5, 1, (n, BARS))
    table = rng.normal(size=(n, 2))
    table[rng.random(n) < 0.3, 1] = np.nan
    return Labelled(np.hstack([table, window.reshape(n, -1)]).astype(np.float32), classes, np.zeros((n, 2)))


def fitted_on(fit: Labelled, validation: Labelled, seed: int = 1, heard: Heard = ignored,
              **changed: Setting) -> FittedTimesNet:
    learner = TimesNetLearner()
    return learner.fit(fit, validation, LAYOUT, {**learner.defaults(), **changed}, seed, heard)


def loss_of(fitted: FittedTimesNet, part: Labelled) -> float:
    return log_loss(softmax(fitted.scores(part.values)), part.classes)


def quick(monkeypatch: pytest.MonkeyPatch, epochs: int = 2) -> None:
    """Fits that need not learn much."""
    profile = Profile(blocks=2, kernels=2, batch=64, epochs=epochs, patience=epochs)
    monkeypatch.setattr(timesnet_learner, "PROFILES", {"small": profile, "full": profile})


@pytest.fixture(scope="module")
def fitted() -> FittedTimesNet:
    return fitted_on(rows(1_000, 1), rows(400, 2))


# The block against a published one.


@pytest.fixture(scope="module")
def published() -> Callable[..., nn.Module]:
    from neuralforecast.models.timesnet import TimesBlock as Published

    def make(length: int, top_k: int, width: int, hidden: int, kernels: int) -> nn.Module:
        return Published(input_size=length, h=0, k=top_k, hidden_size=width, conv_hidden_size=hidden,
                         num_kernels=kernels)

    return make


def top_of(sequence: torch.Tensor, top_k: int) -> list[int]:
    """The published choice: top of the spectrum averaged over batch and width."""
    amplitude = torch.fft.rfft(sequence, dim=1).abs().mean(0).mean(-1)
    amplitude[0] = 0
    return torch.topk(amplitude, top_k).indices.tolist()


def gradient(tensor: torch.Tensor) -> torch.Tensor:
    assert tensor.grad is not None
    return tensor.grad


@pytest.mark.parametrize(("length", "top_k", "kernels"), [(60, 3, 3), (60, 5, 6), (45, 4, 3), (59, 2, 2), (24, 12, 6)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_block_computes_what_the_published_block_computes(published: Callable[..., nn.Module], length: int,
                                                            top_k: int, kernels: int, seed: int) -> None:
    torch.manual_seed(seed)
    theirs = published(length, top_k, 8, 12, kernels)
    sequence = torch.randn(1, length, 8)
    sequence += torch.sin(2 * torch.pi * torch.arange(length) / (4 + 3 * seed))[None, :, None]
    for batch in (sequence, sequence.repeat(3, 1, 1)):  # identical rows have the spectrum of one
        ours = TimesBlock(length, 8, 12, kernels, top_of(batch, top_k))
        ours.load_state_dict(theirs.state_dict())
        given, again = (batch.clone().requires_grad_() for _ in range(2))
        answer, expected = ours(given), theirs(again)
        assert torch.allclose(answer, expected, rtol=0, atol=1e-5)
        answer.square().mean().backward()
        expected.square().mean().backward()
        assert torch.allclose(gradient(given), gradient(again), rtol=1e-3, atol=1e-6)
        for name, weight in theirs.named_parameters():
            assert torch.allclose(gradient(ours.get_parameter(name)), gradient(weight), rtol=1e-3, atol=1e-5)
            weight.grad = None


def test_unlike_the_published_block_ours_answers_each_row_by_itself(published: Callable[..., nn.Module]) -> None:
    torch.manual_seed(0)
    theirs = published(40, 2, 4, 4, 2)
    swings = torch.stack([torch.sin(2 * torch.pi * torch.arange(40) / period) for period in (4.0, 5.0, 8.0, 20.0)])
    batch = swings[:, :, None].repeat(1, 1, 4)
    ours = TimesBlock(40, 4, 4, 2, top_of(batch, 2))
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        alone = torch.cat([ours(row[None]) for row in batch])
        assert torch.allclose(ours(batch), alone, rtol=0, atol=1e-6)
        assert not torch.allclose(theirs(batch), torch.cat([theirs(row[None]) for row in batch]), rtol=0, atol=1e-2)


def test_amplitudes_are_those_of_the_fourier_transform() -> None:
    sequence = torch.randn(5, 31, 4, generator=torch.Generator().manual_seed(3))
    block = TimesBlock(31, 4, 4, 1, [1, 7, 15])
    expected = torch.fft.rfft(sequence, dim=1).abs().mean(-1)[:, [1, 7, 15]]
    assert torch.allclose(block.amplitudes(sequence), expected, atol=1e-4)
    assert block.periods == (31, 4, 2)


@pytest.mark.parametrize("plane", [(2, 30), (30, 2), (7, 9), (1, 5), (20, 20)])
def test_an_inception_is_the_mean_of_its_convolutions_on_any_plane(plane: tuple[int, int]) -> None:
    torch.manual_seed(0)
    inception = Inception(3, 5, 5)
    nn.init.normal_(inception.get_parameter("kernels.1.bias"))
    planes = torch.randn(2, 3, *plane)
    with torch.no_grad():
        expected = torch.stack([kernel(planes) for kernel in inception.kernels]).mean(0)
        assert torch.allclose(inception(planes), expected, rtol=0, atol=1e-5)
        assert torch.allclose(OneConvolution(inception)(planes), expected, rtol=0, atol=1e-5)


# Periods, windows and what stands beside them.


@pytest.mark.parametrize("length", [20, 31, 60])
def test_the_chosen_periods_are_the_strongest_of_what_differs_between_windows(length: int) -> None:
    rng = np.random.default_rng(length)
    sequences = rng.normal(size=(50, length, 3)) + 30 * np.sin(2 * np.pi * np.arange(length) / 7)[:, None]
    spectrum = np.abs(np.fft.rfft(sequences - sequences.mean(axis=0), axis=1)).mean(axis=(0, 2))
    expected: list[int] = []
    for frequency in np.argsort(-spectrum[1:length // 2 + 1], kind="stable") + 1:
        if length // frequency not in [length // known for known in expected]:
            expected.append(int(frequency))
    assert strongest_frequencies(torch.from_numpy(sequences), 4) == tuple(expected[:4])


def test_a_planted_period_is_chosen_although_positions_are_larger(fitted: FittedTimesNet) -> None:
    block = fitted.module.blocks[0]
    assert isinstance(block, TimesBlock)
    assert {5, 10} <= set(block.periods)
    assert len(set(block.periods)) == 3


@pytest.mark.parametrize("frequencies", [[], [0], [21], [3, -1]])
def test_frequencies_that_a_window_cannot_have_are_refused(frequencies: list[int]) -> None:
    with pytest.raises(InvalidInput, match=r"frequencies: must be at least one, each 1\.\.20"):
        TimesBlock(40, 4, 4, 1, frequencies)


def test_a_window_is_seen_on_its_own_scale_and_the_scale_is_kept() -> None:
    window = torch.from_numpy(rows(8, 1).values[:, 2:]).reshape(8, BARS, 5)
    louder = window * torch.tensor([3.0, 3.0, 3.0, 3.0, 1.0]) + torch.tensor([0.0, 0.0, 0.0, 0.0, 2.0])
    (seen, scale), (seen_louder, scale_louder) = normalised(window), normalised(louder)
    assert torch.allclose(seen, seen_louder, atol=1e-4)
    assert torch.allclose(scale_louder - scale, torch.log(torch.tensor(3.0)), atol=1e-5)
    assert torch.allclose(seen[:, :, 3].square().mean(1), torch.ones(8), atol=1e-4)


def test_a_market_that_stands_still_or_jumps_is_seen_as_bounded_numbers() -> None:
    window = torch.zeros(2, BARS, 5)
    window[1, 0, :4], window[1, 1, 4] = 0.9, 30.0
    window[1, 0, 1] = 500.0
    seen, scale = normalised(window)
    assert torch.equal(seen[0], torch.zeros(BARS, 5))
    assert torch.isfinite(scale).all()
    assert float(seen.abs().max()) == 10.0


def test_positions_are_sines_and_cosines_of_falling_rates() -> None:
    table = sinusoids(7, 6).numpy()
    for place in range(7):
        for pair in range(3):
            angle = place / 10_000 ** (2 * pair / 6)
            assert table[place, 2 * pair:2 * pair + 2] == pytest.approx([np.sin(angle), np.cos(angle)], abs=1e-6)


def test_a_missing_feature_counts_as_its_training_mean() -> None:
    part = rows(300, 4)
    module = TimesNet(BARS, 2, 4, 4, 1, 2, 2, 0.0).eval()
    module.learn_scales(torch.from_numpy(part.values))
    nn.init.normal_(module.head.weight)
    row = part.values[:1].copy()
    row[0, 1] = np.nan
    filled = row.copy()
    filled[0, 1] = np.nanmean(part.values[:, 1])
    with torch.no_grad():
        assert torch.allclose(module(torch.from_numpy(row)), module(torch.from_numpy(filled)), atol=1e-6)


# The learner.


def test_it_finds_what_no_linear_model_finds(fitted: FittedTimesNet) -> None:
    fresh = rows(1_000, 3)
    scale = np.array([1, 1, *[1e3, 1e3, 1e3, 1e3, 1] * BARS])
    part = rows(1_000, 1)
    linear = fit_softmax(np.nan_to_num(part.values) * scale, part.classes, 0.1, np.zeros((3, part.values.shape[1])))
    linear_loss = log_loss(softmax(np.nan_to_num(fresh.values) * scale @ linear.weights.T + linear.bias), fresh.classes)
    assert loss_of(fitted, fresh) < 0.6 * CHANCE < 0.9 * CHANCE < linear_loss


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_on_noise_it_answers_no_better_than_chance(seed: int) -> None:
    blind = fitted_on(rows(600, 10 * seed, signal=0.0), rows(300, 10 * seed + 1, signal=0.0), seed)
    assert loss_of(blind, rows(2_000, 10 * seed + 2, signal=0.0)) == pytest.approx(CHANCE, abs=0.02)


def test_where_no_epoch_gains_it_answers_how_often_each_class_occurred(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    fit, later = rows(900, 1), rows(300, 2)
    misled = fitted_on(fit, Labelled(later.values, (later.classes + 1) % 3, later.returns))
    counts = np.bincount(fit.classes) + 1
    assert misled.steps == 0
    assert softmax(misled.scores(later.values)) == pytest.approx(np.tile(counts / counts.sum(), (300, 1)), abs=1e-6)


def test_it_is_served_as_it_was_trained(fitted: FittedTimesNet) -> None:
    values = rows(1_000, 5).values
    assert np.isnan(values[:, 1]).any()
    graph = fitted.graph()
    assert {entry.domain for entry in graph.opset_import} == {""}
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    served = np.vstack([session.run(["scores"], {"features": row[None]})[0] for row in values])
    assert np.abs(served - fitted.scores(values)).max() < 1e-4
    assert np.abs(session.run(["scores"], {"features": values})[0] - served).max() < 1e-4


def graph_hash(fitted: FittedTimesNet) -> str:
    return hashlib.sha256(fitted.graph().SerializeToString(deterministic=True)).hexdigest()


def test_the_same_seed_gives_the_same_bytes_whatever_was_drawn_before(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch)
    fit, later = rows(300, 1), rows(100, 2)
    first = fitted_on(fit, later, top_k=1)
    torch.rand(7)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again, other = fitted_on(fit, later, top_k=1), fitted_on(fit, later, seed=2, top_k=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads
    assert graph_hash(first) == graph_hash(again)
    assert not np.array_equal(first.scores(fit.values), other.scores(fit.values))


def test_each_epoch_is_heard_and_the_best_one_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    quick(monkeypatch, epochs=8)
    heard: list[tuple[int, float]] = []
    later = rows(300, 2)
    wrong = np.arange(300) % 3 == 0  # so that more and more certainty pays no more
    later = Labelled(later.values, np.where(wrong, (later.classes + 1) % 3, later.classes), later.returns)
    fitted = fitted_on(rows(600, 1), later, heard=lambda step, loss: heard.append((step, loss)), learning_rate=1e-2)
    assert [step for step, _ in heard] == list(range(1, 9))
    best_step, best = min(heard, key=lambda pair: pair[1])
    assert fitted.steps == best_step < 8
    assert loss_of(fitted, later) == pytest.approx(best, abs=1e-5)


def test_whoever_hears_an_epoch_may_end_the_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    def enough(step: int, loss: float) -> None:
        raise StopIteration(step)

    quick(monkeypatch)
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    with pytest.raises(StopIteration, match="1"):
        fitted_on(rows(200, 1), rows(100, 2), heard=enough)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("layout", [Layout((), window_bars=12), Layout(("a",), embedding=3, window_bars=40)])
def test_any_row_with_a_window_can_be_learnt(monkeypatch: pytest.MonkeyPatch, layout: Layout) -> None:
    quick(monkeypatch, epochs=1)
    rng = np.random.default_rng(0)
    fit, later = (Labelled(rng.normal(size=(n, layout.width)).astype(np.float32), rng.integers(0, 3, n),
                           np.zeros((n, 2))) for n in (90, 30))
    learner = TimesNetLearner()
    fitted = learner.fit(fit, later, layout, learner.defaults(), 1, ignored)
    assert fitted.scores(later.values).shape == (30, 3)
    assert fitted.importances == {}


@pytest.mark.parametrize("size", ["small", "full"])
def test_the_defaults_lie_in_the_search_space(size: str) -> None:
    learner = TimesNetLearner(size)
    defaults = learner.defaults()
    assert set(defaults) == set(learner.space())
    for name, dimension in learner.space().items():
        value = defaults[name]
        assert value in dimension.choices if dimension.choices else dimension.low <= float(value) <= dimension.high


@pytest.mark.parametrize(("name", "value"), [("learning_rate", float("nan")), ("learning_rate", 1.0), ("top_k", 2.5),
                                             ("width", 17), ("dropout", "much"), ("depth", 3)])
def test_settings_outside_the_space_are_refused(name: str, value: float | str) -> None:
    learner = TimesNetLearner()
    with pytest.raises(InvalidInput, match="settings"):
        learner.fit(rows(50, 1), rows(50, 2), LAYOUT, {**learner.defaults(), name: value}, 1, ignored)


def test_rows_that_do_not_fit_their_layout_are_refused() -> None:
    learner, good = TimesNetLearner(), rows(50, 1)

    def refused(values: NDArray[np.float32], layout: Layout, field: str, classes: NDArray[np.int64]) -> None:
        part = Labelled(values, classes, good.returns)
        with pytest.raises(InvalidInput, match=field):
            learner.fit(part, part, layout, learner.defaults(), 1, ignored)

    for place in (0, 2):  # a required feature, a bar
        holed = good.values.copy()
        holed[3, place] = np.nan
        refused(holed, LAYOUT, r"fit\.values: must be finite", good.classes)
    refused(good.values[:, 1:], LAYOUT, r"fit\.values", good.classes)
    refused(good.values, LAYOUT, r"fit\.classes", good.classes + 1)
    refused(good.values[:, :2], Layout(("a", "b"), ("b",)), r"layout\.window_bars", good.classes)
    refused(good.values[:, :12], Layout(("a", "b"), ("b",), window_bars=2), r"top_k", good.classes)


def test_an_unknown_size_is_refused() -> None:
    with pytest.raises(InvalidInput, match="one of small, full"):
        TimesNetLearner("huge")
