"""TimesNet (Wu et al., "TimesNet: Temporal 2D-Variation Modeling for General Time Series Analysis", ICLR 2023) for
windows of bars, as a module whose answer to a row depends on that row alone.

A block folds the sequence by its strongest periods into planes (cycles x phase), reads them with inception
convolutions, unfolds them, and adds them up by the softmax of the row's own amplitudes at these periods.

Differences from the published code, all deliberate:
- There the periods are chosen from the spectrum averaged over the batch at hand, so an answer depends on its neighbours
  and shapes on the values. Here they are chosen from training windows and kept beside the weights. With the same
  frequencies a block computes what the published one computes.
- They are chosen from what differs between windows: positions are added to each window alike and would win otherwise.
- The chosen periods differ from each other; the published top frequencies of a flat spectrum often share one period.
- The classification head sees numbers that are no sequence beside the sequence.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from feature_repo.windows import CHANNELS
from policies.errors import InvalidInput
from policies.heads import CLASSES
from train.tabular import CLIP, Scaling

CLOSE, VOLUME = CHANNELS.index("close"), CHANNELS.index("volume")  # the volume comes last, after the prices
LEAST_RETURN = 1e-5  # floor of a window's root mean square return: a tenth of a basis point
LEAST_DEVIATION = 1e-2  # floor of the deviation of log volume within a window
CLASS_COUNT = len(CLASSES)


class Inception(nn.Module):
    """The mean of square convolutions of sizes 1, 3, ..., 2 * kernels - 1, each keeping the plane's size.

    Being zero-padded they have one convolution of the largest size as their mean: that one is computed.
    """

    def __init__(self, inputs: int, outputs: int, kernels: int) -> None:
        super().__init__()
        sizes = [nn.Conv2d(inputs, outputs, 2 * i + 1, padding=i) for i in range(kernels)]
        self.kernels = nn.ModuleList(sizes)
        for kernel in sizes:
            nn.init.kaiming_normal_(kernel.weight, mode="fan_out", nonlinearity="relu")
            nn.init.zeros_(cast(Tensor, kernel.bias))

    def merged(self) -> tuple[Tensor, Tensor]:
        """Weights (outputs, inputs, size, size) and bias (outputs,) of the one convolution."""
        kernels = cast("list[nn.Conv2d]", list(self.kernels))
        weights = [functional.pad(kernel.weight, [len(kernels) - 1 - i] * 4) for i, kernel in enumerate(kernels)]
        return torch.stack(weights).mean(0), torch.stack([cast(Tensor, kernel.bias) for kernel in kernels]).mean(0)

    def forward(self, planes: Tensor) -> Tensor:
        """(N, inputs, H, W) -> (N, outputs, H, W)."""
        return convolved(planes, *self.merged())


class OneConvolution(nn.Module):
    """What a fitted Inception is served as: the same answers, its kernels added up once."""

    def __init__(self, inception: Inception) -> None:
        super().__init__()
        with torch.no_grad():
            weight, bias = inception.merged()
        self.weight, self.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, planes: Tensor) -> Tensor:
        return convolved(planes, self.weight, self.bias)


def convolved(planes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The zero-padded convolution that keeps the plane's size, without the weights that meet nothing but padding: long
    planes of two or three bars a cycle would spend most of the work on those.
    """
    reach = weight.shape[2] // 2
    rows, columns = (min(reach, size - 1) for size in planes.shape[2:])
    met = weight[:, :, reach - rows:reach + rows + 1, reach - columns:reach + columns + 1]
    return functional.conv2d(planes, met, bias, padding=(rows, columns))


class TimesBlock(nn.Module):
    """One residual block over sequences (N, length, width). frequencies: cycles per window, 1..length // 2 each."""

    waves: Tensor

    def __init__(self, length: int, width: int, hidden: int, kernels: int, frequencies: Sequence[int]) -> None:
        super().__init__()
        self.length = length
        self.conv = nn.Sequential(Inception(width, hidden, kernels), nn.GELU(), Inception(hidden, width, kernels))
        self.register_buffer("waves", torch.empty(length, 0), persistent=False)
        self.use(frequencies)

    def use(self, frequencies: Sequence[int]) -> None:
        """From now on fold by these frequencies."""
        if not frequencies or not all(1 <= f <= self.length // 2 for f in frequencies):
            raise InvalidInput("frequencies", f"at least one, each 1..{self.length // 2}", tuple(frequencies))
        self.frequencies = tuple(frequencies)
        angle = torch.arange(self.length, dtype=torch.float64)[:, None] * torch.tensor(self.frequencies)
        angle = angle * (2 * math.pi / self.length)
        self.waves = torch.cat([angle.cos(), angle.sin()], dim=1).to(self.waves)

    @property
    def periods(self) -> tuple[int, ...]:
        """Bars of one cycle, rounded down as published."""
        return tuple(self.length // frequency for frequency in self.frequencies)

    def amplitudes(self, sequence: Tensor) -> Tensor:
        """(N, K): size of each row's Fourier coefficient at the kept frequencies, averaged over the width."""
        parts = sequence.transpose(1, 2) @ self.waves
        cosine, sine = parts.split(len(self.frequencies), dim=2)
        return torch.sqrt(cosine.square() + sine.square() + 1e-12).mean(1)  # the addend keeps the gradient at 0 finite

    def forward(self, sequence: Tensor) -> Tensor:
        shares = torch.softmax(self.amplitudes(sequence), dim=1)
        result = sequence
        for place, period in enumerate(self.periods):
            result = result + shares[:, place, None, None] * self._folded(sequence, period)
        return result

    def _folded(self, sequence: Tensor, period: int) -> Tensor:
        cycles = -(-self.length // period)
        padded = functional.pad(sequence, [0, 0, 0, cycles * period - self.length])
        planes = padded.reshape(-1, cycles, period, sequence.shape[2]).permute(0, 3, 1, 2)
        unfolded = self.conv(planes).permute(0, 2, 3, 1).reshape(-1, cycles * period, sequence.shape[2])
        return unfolded[:, :self.length]


class TimesNet(nn.Module):
    """Rows float32 (N, tabular + bars * 5), the window last -> logits (N, 3) of short, flat, long.

    The head reads the flattened sequence and, beside it, the tabular numbers and the logarithm of the scale that the
    window was divided by (brackets of a fixed width depend on it), both as `train.tabular.Scaling` has them. Call
    `learn_scales`, `answer_frequencies` and `choose_periods` before training; the last layer starts from zeros.
    """

    mean: Tensor
    factor: Tensor
    position: Tensor

    def __init__(self, bars: int, tabular: int, width: int, hidden: int, blocks: int, top_k: int, kernels: int,
                 dropout: float) -> None:
        super().__init__()
        most = len({bars // frequency for frequency in range(1, bars // 2 + 1)})
        if not 1 <= top_k <= most:
            raise InvalidInput("top_k", f"1..{most}, as many as {bars} bars have periods", top_k)
        self.bars, self.tabular, self.top_k = bars, tabular, top_k
        self.token = nn.Conv1d(len(CHANNELS), width, 3, padding=1, padding_mode="circular", bias=False)
        nn.init.kaiming_normal_(self.token.weight, mode="fan_in", nonlinearity="leaky_relu")
        self.register_buffer("position", sinusoids(bars, width))
        self.register_buffer("mean", torch.zeros(tabular + 1))
        self.register_buffer("factor", torch.ones(tabular + 1))
        self.blocks = nn.ModuleList(TimesBlock(bars, width, hidden, kernels, [1]) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)  # one for all blocks, as published
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(bars * width + tabular + 1, CLASS_COUNT)
        nn.init.zeros_(self.head.weight)  # training starts from the frequencies of the classes, in the bias
        nn.init.zeros_(self.head.bias)

    def forward(self, rows: Tensor) -> Tensor:
        window, *beside = self._parts(rows)
        sequence = self.dropout(self._embedded(window))
        for block in self.blocks:
            sequence = self.norm(block(sequence))
        flat = self.dropout(functional.gelu(sequence)).reshape(-1, self.bars * sequence.shape[2])
        scaled = (torch.cat(beside, dim=1) - self.mean) * self.factor
        scaled = torch.where(torch.isnan(scaled), torch.zeros_like(scaled), scaled).clamp(-CLIP, CLIP)
        return self.head(torch.cat([flat, scaled], dim=1))

    def _blocks(self) -> list[TimesBlock]:
        return cast("list[TimesBlock]", list(self.blocks))

    def _parts(self, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The normalised window (N, bars, 5), the tabular numbers (N, tabular), the window's log scale (N, 1)."""
        window, log_scale = normalised(rows[:, self.tabular:].reshape(-1, self.bars, len(CHANNELS)))
        return window, rows[:, :self.tabular], log_scale

    def _embedded(self, window: Tensor) -> Tensor:
        return self.token(window.transpose(1, 2)).transpose(1, 2) + self.position

    @torch.no_grad()
    def learn_scales(self, rows: Tensor) -> None:
        """Take the scaling of the numbers beside the sequence from training rows."""
        scaling = Scaling.of(torch.cat(self._parts(rows)[1:], dim=1).numpy())
        self.mean, self.factor = torch.from_numpy(scaling.mean), torch.from_numpy(scaling.factor)

    @torch.no_grad()
    def answer_frequencies(self, classes: Tensor) -> None:
        """Begin with how often each class occurs in these labels, int64 (N,): the answer of a head of zeros."""
        counts = torch.bincount(classes, minlength=CLASS_COUNT) + 1.0  # so that a class that is absent has a logarithm
        self.head.bias.copy_((counts / counts.sum()).log())

    @torch.no_grad()
    def choose_periods(self, rows: Tensor) -> None:
        """Let each block fold by the strongest periods of its own input over these training rows, without dropout."""
        sequence = self._embedded(self._parts(rows)[0])
        for block in self._blocks():
            block.use(strongest_frequencies(sequence, self.top_k))
            sequence = self.norm(block(sequence))

    def merged(self) -> TimesNet:
        """A copy that answers the same with the kernels of each inception added up: what is served."""
        served = copy.deepcopy(self)
        for block in served._blocks():
            block.conv = nn.Sequential(*(OneConvolution(part) if isinstance(part, Inception) else part
                                         for part in block.conv))
        return served


def normalised(window: Tensor) -> tuple[Tensor, Tensor]:
    """Windows (N, bars, 5) of CHANNELS on the row's own scale, and the logarithm of that scale (N, 1).

    Prices: over the root mean square return from close to close, at least LEAST_RETURN. Log volume: less its mean, over
    its deviation, at least LEAST_DEVIATION. All clipped to +-CLIP.
    """
    prices, volume = window[:, :, :VOLUME], window[:, :, VOLUME:]
    scale = window[:, :, CLOSE].square().mean(1, keepdim=True).sqrt().clamp(min=LEAST_RETURN)
    centred = volume - volume.mean(1, keepdim=True)
    deviation = centred.square().mean(1, keepdim=True).sqrt().clamp(min=LEAST_DEVIATION)
    joined = torch.cat([prices / scale[:, :, None], centred / deviation], dim=2)
    return joined.clamp(-CLIP, CLIP), scale.log()


def strongest_frequencies(sequences: Tensor, count: int) -> tuple[int, ...]:
    """The frequencies of largest mean amplitude in what differs between sequences (N, length, width), at most one for
    each period, strongest first; of equals the lower. Frequency 0 is none.
    """
    length = sequences.shape[1]
    amplitude = torch.fft.rfft(sequences - sequences.mean(0), dim=1).abs().mean(dim=(0, 2))
    amplitude = amplitude[1:length // 2 + 1]
    by_period: dict[int, int] = {}
    for place in torch.sort(amplitude, descending=True, stable=True).indices.tolist():
        by_period.setdefault(length // (place + 1), place + 1)
    return tuple(by_period.values())[:count]


def sinusoids(length: int, width: int) -> Tensor:
    """(length, width) positions of Vaswani et al. 2017: sines in even places, cosines in odd ones. width is even."""
    if width < 2 or width % 2:
        raise InvalidInput("width", "even, >= 2", width)
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float64) * (-math.log(10_000.0) / width))
    angle = torch.arange(length, dtype=torch.float64)[:, None] * rate
    return torch.stack([angle.sin(), angle.cos()], dim=2).reshape(length, width).float()
