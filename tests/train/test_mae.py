"""The masked auto-encoder: it sees what is visible, is judged by what is hidden, and knows shapes, not levels."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from policies.errors import InvalidInput
from train.mae import LARGEST, TimeSeriesMAE, masked_loss, mean_of_visible


def windows(rows: int = 6, bars: int = 20, seed: int = 0) -> Tensor:
    drawn = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, bars, 5, generator=drawn) * 1e-3
    x[:, :, 4] = 5 + torch.randn(rows, bars, generator=drawn)
    return x


def small(**more: object) -> TimeSeriesMAE:
    """With weights that are not those of the start, at which every answer is the mean of the visible bars."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = TimeSeriesMAE(20, 16, nhead=2, encoder_layers=1, decoder_layers=1, **more)  # type: ignore[arg-type]
        torch.nn.init.normal_(model.patch_out.weight)
    return model.eval()


def test_the_defaults_are_those_that_were_agreed() -> None:
    model = TimeSeriesMAE()
    assert (model.seq_len, model.place.shape[1], model.hidden_patches, model.patches) == (60, 512, 3, 12)
    assert (len(model.encoder), len(model.decoder), model.encoder[0].heads) == (6 + 1, 3 + 1, 8)


def test_forward_answers_a_window_and_a_mask_of_the_asked_share() -> None:
    reconstructed, mask = small()(windows())
    assert reconstructed.shape == (6, 20, 5)
    assert mask.shape == (6, 20)
    assert mask.dtype == torch.bool
    assert (mask.sum(dim=1) == 5).all()
    assert torch.isfinite(reconstructed).all()


def test_whole_patches_are_hidden_and_in_runs_if_asked() -> None:
    for run_share, neighbours in ((1.0, True), (0.0, False)):
        model = TimeSeriesMAE(60, 16, 0.25, nhead=2, encoder_layers=1, decoder_layers=1, run_share=run_share)
        hidden = model.draw_hidden(300, torch.Generator().manual_seed(0))
        assert (hidden.sum(dim=1) == 3).all()
        pieces = (hidden[:, 1:] & ~hidden[:, :-1]).sum(dim=1) + hidden[:, 0]
        assert bool((pieces == 1).all()) is neighbours
        share_of_each = hidden.float().mean(dim=0)
        assert (share_of_each > 0.02).all()  # no place is never hidden
        assert torch.equal(model.bars_of(hidden)[:, ::5], model.bars_of(hidden)[:, 4::5])


def test_hidden_bars_are_not_seen_not_even_through_the_scale() -> None:
    model, x = small(), windows()
    hidden = model.draw_hidden(len(x), torch.Generator().manual_seed(3))
    before, mask = model(x, hidden=hidden)
    changed = torch.where(mask[:, :, None], x * 50 + 0.3, x)
    after, _ = model(changed, hidden=hidden)
    assert torch.equal(before, after)


def test_visible_bars_are_seen() -> None:
    model, x = small(), windows()
    hidden = model.draw_hidden(len(x), torch.Generator().manual_seed(3))
    before, mask = model(x, hidden=hidden)
    changed = torch.where(mask[:, :, None], x, x.flip(1))
    after, _ = model(changed, hidden=hidden)
    assert (before - after)[mask].abs().max() > 1e-3


def test_only_hidden_bars_count_in_the_loss() -> None:
    model, x = small(), windows()
    reconstructed, mask = model(x)
    reconstructed, scaled = reconstructed.detach(), model.scaled(x, mask)
    loss = masked_loss(reconstructed, scaled, mask)
    assert float(loss) == pytest.approx(float((reconstructed - scaled)[mask].square().mean()), rel=1e-5)
    visible_changed = torch.where(mask[:, :, None], scaled, scaled + 7)
    assert torch.equal(masked_loss(reconstructed, visible_changed, mask), loss)
    hidden_changed = torch.where(mask[:, :, None], scaled + 7, scaled)
    assert not torch.allclose(masked_loss(reconstructed, hidden_changed, mask), loss)


def test_a_window_is_known_by_its_shape_whatever_its_volatility_and_volume() -> None:
    model, x = small(), windows()
    other = x * torch.tensor([3.0, 3.0, 3.0, 3.0, 1.0]) + torch.tensor([0.0, 0.0, 0.0, 0.0, 4.0])
    assert torch.allclose(model.encode(x), model.encode(other), atol=1e-4)


def test_scaled_windows_have_unit_returns_and_are_clipped() -> None:
    model, x = small(), windows()
    scaled = model.scaled(x)
    assert torch.allclose(scaled[:, :, 3].square().mean(dim=1), torch.ones(6), atol=1e-4)
    assert torch.allclose(scaled[:, :, 4].mean(dim=1), torch.zeros(6), atol=1e-4)
    x[0, 4, 1] = 10.0
    assert model.scaled(x).abs().max() == LARGEST


def test_a_market_without_a_trade_gives_finite_numbers() -> None:
    model = small()
    reconstructed, _ = model(torch.zeros(2, 20, 5))
    assert torch.isfinite(reconstructed).all()
    assert torch.isfinite(model.encode(torch.zeros(2, 20, 5))).all()


def test_an_untrained_model_answers_the_mean_of_the_visible_bars() -> None:
    model, x = TimeSeriesMAE(20, 16, nhead=2, encoder_layers=1, decoder_layers=1), windows()
    reconstructed, mask = model(x)
    assert torch.equal(reconstructed, mean_of_visible(model.scaled(x, mask), mask))


def test_masks_are_drawn_from_the_generator_or_the_models_own_seed() -> None:
    model, x = small(mask_seed=4), windows()
    by_argument = [model(x, torch.Generator().manual_seed(9))[1] for _ in range(2)]
    assert torch.equal(*by_argument)
    own = [model(x)[1] for _ in range(2)]
    assert not torch.equal(*own)
    assert torch.equal(small(mask_seed=4)(x)[1], own[0])
    assert not torch.equal(small(mask_seed=5)(x)[1], own[0])


@pytest.mark.parametrize(("arguments", "field"), [
    ({"seq_len": 61}, "seq_len"), ({"seq_len": 5}, "seq_len"), ({"d_model": 100}, "d_model"),
    ({"mask_ratio": float("nan")}, "mask_ratio"), ({"run_share": 1.5}, "run_share"), ({"channels": 4}, "channels"),
    ({"scaling": "none"}, "scaling")])
def test_sizes_that_do_not_fit_are_refused_by_name(arguments: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidInput, match=field):
        TimeSeriesMAE(**arguments)  # type: ignore[arg-type]
