"""The masked auto-encoder of windows: learns to fill in hidden stretches of a window from the rest of it.

A window is cut into patches of consecutive bars. The encoder sees the visible patches only; a light decoder fills in
the hidden ones, and only those are judged (He et al. 2021, "Masked Autoencoders Are Scalable Vision Learners", section
3; patches of time steps as in Nie et al. 2023, "A Time Series is Worth 64 Words").
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

from policies.errors import InvalidInput

Scaling = Literal["bars", "each"]
SCALINGS = ("bars", "each")
PRICE_CHANNELS, OPEN, CLOSE, VOLUME = slice(0, 4), 0, 3, 4  # places in feature_repo.windows.CHANNELS
LEAST_RETURN = 1e-5  # of a window's root mean square close return: a dead market is not blown up to a wild one
LEAST_DEVIATION = 0.02  # of a channel that is scaled by its own deviation
LARGEST = 8.0  # scaled values are clipped to +- this


class TimeSeriesMAE(nn.Module):
    """forward(x) -> (reconstructed, mask), for x float32 (N, seq_len, channels) as they are recorded.

    What is learnt is how hidden bars differ from the mean of the visible ones: untrained, it answers that mean.

    mask_ratio: share of the patches that is hidden, in 0..1, at least one and never all. run_share: share of the
    windows whose hidden patches are one contiguous run; in the others they are scattered. scaling: "bars" for the
    channels of `feature_repo.windows` (prices by the window's root mean square close return, log volume by its own mean
    and deviation), "each" for any channels, each by its own mean and deviation. mask_seed: of the masks that forward
    draws when it is given no generator; each such call draws others.
    """

    def __init__(self, seq_len: int = 60, d_model: int = 512, mask_ratio: float = 0.25, *, channels: int = 5,
                 patch_bars: int = 5, nhead: int = 8, encoder_layers: int = 6, decoder_layers: int = 3,
                 run_share: float = 0.5, scaling: Scaling = "bars", mask_seed: int = 0) -> None:
        super().__init__()
        _check_sizes(seq_len, d_model, mask_ratio, channels, patch_bars, nhead, run_share, scaling)
        self.seq_len, self.channels, self.patch_bars, self.scaling = seq_len, channels, patch_bars, scaling
        self.patches, self.run_share, self.mask_seed, self.masks_drawn = seq_len // patch_bars, run_share, mask_seed, 0
        self.hidden_patches = min(max(round(mask_ratio * self.patches), 1), self.patches - 1)
        narrow = d_model // 2
        self.patch_in = nn.Linear(patch_bars * channels, d_model)
        self.place = nn.Parameter(_places(self.patches, d_model))
        self.encoder = nn.Sequential(*(Block(d_model, nhead) for _ in range(encoder_layers)), nn.LayerNorm(d_model))
        self.narrowed = nn.Linear(d_model, narrow)
        self.hidden_token = nn.Parameter(torch.randn(narrow) * 0.02)
        self.decoder_place = nn.Parameter(_places(self.patches, narrow))
        self.decoder = nn.Sequential(*(Block(narrow, nhead) for _ in range(decoder_layers)), nn.LayerNorm(narrow))
        self.patch_out = nn.Linear(narrow, patch_bars * channels)
        nn.init.zeros_(self.patch_out.weight)
        nn.init.zeros_(self.patch_out.bias)
        self.register_buffer("reach", _reach(channels, scaling), persistent=False)

    def forward(self, x: Tensor, generator: torch.Generator | None = None, *,
                hidden: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """(reconstructed, mask) of x, both about the scaled window.

        reconstructed: float32 (N, seq_len, channels), in the units of `scaled(x, mask)`. mask: bool (N, seq_len), True
        for hidden bars. hidden: bool (N, patches) instead of drawn ones, the same number in every row.
        """
        if hidden is None:
            hidden = self.draw_hidden(len(x), generator)
        mask = self.bars_of(hidden)
        scaled = self.scaled(x, mask)
        patches = self._patched(scaled)
        seen = (~hidden).nonzero()[:, 1].reshape(len(x), -1)  # (N, visible) places, rising
        tokens = self.patch_in(_picked(patches, seen)) + self.place[seen]
        found = self.narrowed(self.encoder(tokens))
        whole = self.hidden_token.expand(len(x), self.patches, -1)
        whole = whole.scatter(1, seen[:, :, None].expand(-1, -1, found.shape[2]), found)
        apart = self.patch_out(self.decoder(whole + self.decoder_place)).reshape(scaled.shape)
        return mean_of_visible(scaled, mask) + apart * self.reach, mask

    def encode(self, x: Tensor) -> Tensor:
        """(N, d_model): the mean of the encoder's tokens with nothing hidden."""
        tokens = self.patch_in(self._patched(self.scaled(x))) + self.place
        pooled: Tensor = self.encoder(tokens).mean(dim=1)
        return pooled

    def scaled(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x without its level and scale, clipped to +-LARGEST. Both are taken from the bars that are not in `mask`, so
        that what is hidden is not betrayed by the scale of what is seen.
        """
        if mask is None:
            return _scaled(x, torch.ones_like(x[:, :, :1]), self.scaling)
        return _scaled(x, (~mask)[:, :, None].to(x.dtype), self.scaling)

    def draw_hidden(self, rows: int, generator: torch.Generator | None = None) -> Tensor:
        """bool (rows, patches), `hidden_patches` of each row True: a contiguous run in a `run_share` of the rows."""
        if generator is None:
            generator = torch.Generator().manual_seed(self.mask_seed * 1_000_003 + self.masks_drawn)
            self.masks_drawn += 1
        order = torch.rand(rows, self.patches, generator=generator)
        first = torch.rand(rows, 1, generator=generator) * (self.patches - self.hidden_patches + 1)
        in_runs = torch.rand(rows, 1, generator=generator) < self.run_share
        place = torch.arange(self.patches)[None, :]
        run = (place >= first.floor()) & (place < first.floor() + self.hidden_patches)
        scattered = order.argsort(dim=1).argsort(dim=1) < self.hidden_patches
        return torch.where(in_runs, run, scattered).to(self.place.device)

    def bars_of(self, hidden: Tensor) -> Tensor:
        """bool (N, seq_len) of bool (N, patches)."""
        return hidden.repeat_interleave(self.patch_bars, dim=1)

    def _patched(self, scaled: Tensor) -> Tensor:
        return scaled.reshape(-1, self.patches, self.patch_bars * self.channels)


class Block(nn.Module):
    """Attention over all tokens, then a feed-forward layer of four times the width; each on normalised input.

    Written out, so that training and the exported graph are the same few standard operators.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.asked, self.joined = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.feed = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = tokens + self.joined(self._attended(self.before_attention(tokens)))
        summed: Tensor = tokens + self.feed(self.before_feed(tokens))
        return summed

    def _attended(self, tokens: Tensor) -> Tensor:
        count, width = tokens.shape[1:]
        parts = self.asked(tokens).reshape(-1, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = parts[0], parts[1], parts[2]
        weights = (query @ key.transpose(2, 3) / math.sqrt(width // self.heads)).softmax(dim=-1)
        return (weights @ value).transpose(1, 2).reshape(-1, count, width)


def masked_loss(reconstructed: Tensor, scaled: Tensor, mask: Tensor) -> Tensor:
    """Mean squared error over the hidden bars; what stands on visible ones does not count."""
    weight = mask[:, :, None].to(scaled.dtype)
    return ((reconstructed - scaled).square() * weight).sum() / (weight.sum() * scaled.shape[2])


def mean_of_visible(scaled: Tensor, mask: Tensor) -> Tensor:
    """scaled (N, L, C), mask (N, L); every bar is given the mean of the visible ones."""
    seen = (~mask)[:, :, None].to(scaled.dtype)
    return ((scaled * seen).sum(dim=1, keepdim=True) / seen.sum(dim=1, keepdim=True)).expand_as(scaled)


def _reach(channels: int, scaling: Scaling) -> Tensor:
    """(channels,) units of the decoder's answers. An open is the close before but for ticks: in full units, what the
    decoder's last steps of learning leave of noise would be larger than all there is to learn of it.
    """
    reach = torch.ones(channels)
    if scaling == "bars":
        reach[OPEN] = 0.03
    return reach


def _places(count: int, width: int) -> Tensor:
    """(count, width) where places begin: sines and cosines of falling frequency (Vaswani et al. 2017, section 3.5).

    Near places are alike from the first step on; from small random ones, it took most of a training to find that out.
    """
    angles = torch.arange(count)[:, None] / count ** (torch.arange(0, width, 2) / width)[None, :]
    return torch.stack([angles.sin(), angles.cos()], dim=2).reshape(count, -1)[:, :width]


def _scaled(x: Tensor, weight: Tensor, scaling: Scaling) -> Tensor:
    """weight: (N, seq_len, 1), 1 for a bar whose values set the scale, else 0."""
    count = weight.sum(dim=1, keepdim=True)
    if scaling == "bars":
        prices, volume = x[:, :, PRICE_CHANNELS], x[:, :, VOLUME:]
        close = x[:, :, CLOSE:CLOSE + 1]
        spread = ((close.square() * weight).sum(dim=1, keepdim=True) / count).sqrt().clamp(min=LEAST_RETURN)
        scaled = torch.cat([prices / spread, _standard(volume, weight, count)], dim=2)
    else:
        scaled = _standard(x, weight, count)
    return scaled.clamp(-LARGEST, LARGEST)


def _standard(values: Tensor, weight: Tensor, count: Tensor) -> Tensor:
    apart = values - (values * weight).sum(dim=1, keepdim=True) / count
    deviation = ((apart.square() * weight).sum(dim=1, keepdim=True) / count).sqrt()
    return apart / deviation.clamp(min=LEAST_DEVIATION)


def _picked(patches: Tensor, places: Tensor) -> Tensor:
    """patches: (N, P, k); places: int64 (N, V); gives (N, V, k)."""
    return patches.gather(1, places[:, :, None].expand(-1, -1, patches.shape[2]))


def _check_sizes(seq_len: int, d_model: int, mask_ratio: float, channels: int, patch_bars: int, nhead: int,
                 run_share: float, scaling: str) -> None:
    if not (patch_bars >= 1 and seq_len >= 2 * patch_bars and seq_len % patch_bars == 0):
        raise InvalidInput("seq_len", "two or more whole patches of patch_bars", (seq_len, patch_bars))
    if not (nhead >= 1 and d_model >= 2 * nhead and d_model % (2 * nhead) == 0):
        raise InvalidInput("d_model", "a multiple of 2 nhead: the decoder has half the width", (d_model, nhead))
    for name, share in (("mask_ratio", mask_ratio), ("run_share", run_share)):
        if not 0 <= share <= 1:
            raise InvalidInput(name, "0..1", share)
    if scaling not in SCALINGS:
        raise InvalidInput("scaling", f"one of {', '.join(SCALINGS)}", scaling)
    if channels < 1 or (scaling == "bars" and channels != VOLUME + 1):
        raise InvalidInput("channels", f">= 1, and {VOLUME + 1} if the scaling is of bars", channels)
