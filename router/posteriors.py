"""What is believed of a head's live profit factor, as a distribution to draw from.

Two families. `profit_factor`: log PF is Normal, by the delta method on the sums of gains and losses. `beta`: the share
of winning trades is Beta. Draws come by inverse CDF from a uniform the caller keys, so each can be made again, and
the probability that a head is the best is integrated, not simulated: it is logged as a propensity.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import special

from policies.errors import InvalidInput
from policies.track_record import TrackRecord

Floats = NDArray[np.float64]
PosteriorKind = Literal["profit_factor", "beta"]

# Pseudo-trades of the prior: half gains, half losses, each as large as the head's own mean |return|. With no trades
# the standard deviation of log PF is sqrt(4 / 8) = 0.71, that is PF within 0.25 and 4 at 95 %.
PRIOR_TRADES = 8.0

SMALLEST_UNIFORM = 2.0**-54  # stands for a uniform of exactly 0, whose quantile would be infinite

# Beyond 8.2 standard deviations a Normal has no mass in float64. Eight Gauss-Legendre nodes to a panel.
_PANEL_EDGES = np.linspace(-8.2, 8.2, 22)
_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(8)


class Posterior(Protocol):
    """A continuous distribution on one line; only posteriors of one family are compared."""

    @property
    def known(self) -> bool:
        """False if a parameter is NaN or out of range: then nobody may draw from it."""
        ...

    def sample(self, u: float) -> float:
        """The value under which a share u of the mass lies; u in [0, 1)."""
        ...

    def cdf(self, x: Floats) -> Floats: ...

    def pdf(self, x: Floats) -> Floats: ...

    def at_normal_quantiles(self, z: Floats) -> Floats:
        """The values whose CDF is that of the standard Normal at z, accurate in both tails; increasing in z."""
        ...


@dataclass(frozen=True)
class NormalPosterior:
    """Normal(mean, sd) of log profit factor."""

    mean: float
    sd: float

    @property
    def known(self) -> bool:
        return math.isfinite(self.mean) and 0 < self.sd < math.inf

    def sample(self, u: float) -> float:
        return self.mean + self.sd * float(special.ndtri(_inner(u)))

    def cdf(self, x: Floats) -> Floats:
        return special.ndtr((x - self.mean) / self.sd)

    def pdf(self, x: Floats) -> Floats:
        return np.exp(-0.5 * ((x - self.mean) / self.sd) ** 2) / (self.sd * math.sqrt(2 * math.pi))

    def at_normal_quantiles(self, z: Floats) -> Floats:
        return self.mean + self.sd * z


@dataclass(frozen=True)
class BetaPosterior:
    """Beta(a, b) of the share of winning trades; a, b >= 1, so the density is bounded."""

    a: float
    b: float

    @property
    def known(self) -> bool:
        return 1 <= self.a < math.inf and 1 <= self.b < math.inf

    def sample(self, u: float) -> float:
        return float(special.betaincinv(self.a, self.b, _inner(u)))

    def cdf(self, x: Floats) -> Floats:
        return special.betainc(self.a, self.b, x)

    def pdf(self, x: Floats) -> Floats:
        log_density = special.xlogy(self.a - 1, x) + special.xlog1py(self.b - 1, -x) - special.betaln(self.a, self.b)
        return np.exp(log_density)

    def at_normal_quantiles(self, z: Floats) -> Floats:
        tail = special.ndtr(-np.abs(z))
        return np.where(z < 0, special.betaincinv(self.a, self.b, tail), 1 - special.betaincinv(self.b, self.a, tail))


def profit_factor_posterior(record: TrackRecord) -> NormalPosterior:
    """log PF ~ Normal(log((G + g0) / (L + l0)), sqrt(Sg / (G + g0)^2 + Sl / (L + l0)^2)).

    G, L: sums of gains and of losses; Sg, Sl: sums of their squares. The delta method on log G - log L has just these
    two terms: the -1/n of each variance cancels against the covariance -G L / n of gains and losses, since a trade is
    one or the other. g0 = l0 and the squares beside them are those of PRIOR_TRADES / 2 trades of the mean |return|,
    which makes the posterior free of the unit of returns. Without trades, or if all returned 0: Normal(0, 0.71).
    """
    unit = (record.gain + record.loss) / record.trades if record.trades else 0.0
    if unit == 0.0:
        unit = 1.0  # cancels: gain and loss are 0
    half = PRIOR_TRADES / 2
    gain, loss = record.gain / unit + half, record.loss / unit + half
    gain_squares, loss_squares = record.gain_squares / unit / unit + half, record.loss_squares / unit / unit + half
    return NormalPosterior(math.log(gain / loss), math.sqrt(gain_squares / gain**2 + loss_squares / loss**2))


def win_rate_posterior(record: TrackRecord) -> BetaPosterior:
    """Beta(1 + wins, 1 + losses). Blind to the size of wins and losses: the alternative by configuration."""
    return BetaPosterior(1.0 + record.wins, 1.0 + record.losses)


def posterior_of(record: TrackRecord, kind: PosteriorKind = "profit_factor") -> Posterior:
    if kind == "profit_factor":
        return profit_factor_posterior(record)
    if kind == "beta":
        return win_rate_posterior(record)
    raise InvalidInput("router.posterior", "one of profit_factor, beta", kind)


def probability_best(posteriors: Sequence[Posterior]) -> tuple[float, ...]:
    """P(an independent draw of posterior i is the largest) for each i; they sum to 1 within 1e-9.

    The integral of pdf_i(x) * product over j != i of cdf_j(x), by Gauss-Legendre panels that are at most 0.8 standard
    deviations wide on each posterior's own scale, so narrow ones beside wide ones are resolved too.
    """
    if len(posteriors) < 2:
        return (1.0,) * len(posteriors)
    edges = np.unique(np.concatenate([posterior.at_normal_quantiles(_PANEL_EDGES) for posterior in posteriors]))
    half_width = np.diff(edges)[:, None] / 2
    x = (edges[:-1, None] + half_width * (1 + _NODES)).ravel()
    weight = (half_width * _WEIGHTS).ravel()
    cdf = [posterior.cdf(x) for posterior in posteriors]
    shares = []
    for place, posterior in enumerate(posteriors):
        density = weight * posterior.pdf(x)
        for other, below in enumerate(cdf):
            if other != place:
                density = density * below
        shares.append(float(density.sum()))
    return tuple(shares)


def _inner(u: float) -> float:
    if not 0 <= u < 1:
        raise InvalidInput("u", "in [0, 1)", u)
    return max(u, SMALLEST_UNIFORM)
