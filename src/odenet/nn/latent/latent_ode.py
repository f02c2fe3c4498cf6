"""Latent ODE: a random start, an ordinary differential equation from it, and a decoder at each time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Unpack, cast, final

import torch
from torch import Tensor, nn
from torch.distributions import Distribution, Normal

from ...api.option_types import SolveOptions
from ...core.validate import describe, describe_shape, function_of, integer, number
from ...series.series import Series
from ..fields import MLPField
from ..series_model import SeriesModel, with_static
from ..series_options import check_series_options
from .decoders import Decoder, Noise, make_decoder, perceptron
from .latent_flow import LatentFlow
from .predictions import Prediction
from .random_draws import as_generator, normal_noise
from .series_encoders import ENCODERS
from .variational import checked_weight, importance_bound, kl_to_standard_normal, log_ratio_to_prior

Generator = torch.Generator | int | None
LEVELS = (0.05, 0.5, 0.95)
_SMALLEST_STD = 1e-6  # of q: softplus rounds to 0


@final
class LatentODE(SeriesModel):
    """A generative model of series: z0 ~ N(0, I) at one time, dz/dt = field(t, z), and values that depend on z(t).

    An encoder maps a series to a normal distribution q of z0, which is trained together with the model by a lower bound
    of the log likelihood. Chen et al. 2018, "Neural ordinary differential equations", section 5; Rubanova et al. 2019,
    "Latent ODEs for irregularly-sampled time series".

    channels: of the series. latent: size of z. hidden: width of encoder, decoder and default field. encoder:
    "ode-rnn", "rnn" or "gru", which take the rows from the last one to the first, "attention", or a module that
    maps a `Series`, in the model's scales and with times from z0 on, to (B, hidden). field: f(t, z) with t () or
    (N,) in the scale of the model, z (N, latent); by default an `MLPField` without t. decoder: "gaussian",
    "categorical" (one-hot channels), or a `Decoder`. noise: standard deviation of the "gaussian" one in normalised
    units: a number, "learned" for each channel, or "per-time", a function of z. out: size of a linear readout of
    the mean of z0; None: the mean itself. static: number of static features, which the encoder uses. poisson:
    whether the times of each channel's values are modelled too, as a Poisson process whose intensity depends on z.
    start: the time of z0 in the scale of the model, where `fit_normalizer` puts 0 at the earliest time of the data;
    rows may lie before it. solve_options: of `odenet.solve` for z; by default rtol=1e-3, atol=1e-4 and, if not
    compiled, gradient="backprop".

    forward(series, ts=None): the mean of the values at ts (Q,) or (B, Q) where z0 is the mean of q, in the units of the
    data, (B, Q, C); without ts the readout, (B, out). states(series): the readout of z at the rows.

    A series without any value, and without static features, has the prior as q. Methods that draw take generator: a
    `torch.Generator`, a seed, or None.

    Raises TypeError or ValueError for a wrong argument, and a `SolveError` if a solve fails.
    """

    def __init__(
        self,
        channels: int,
        latent: int = 8,
        hidden: int = 32,
        *,
        encoder: Literal["ode-rnn", "rnn", "gru", "attention"] | nn.Module = "ode-rnn",
        field: nn.Module | None = None,
        decoder: Literal["gaussian", "categorical"] | Decoder = "gaussian",
        noise: Noise = "learned",
        out: int | None = None,
        static: int = 0,
        poisson: bool = False,
        start: float = 0.0,
        **solve_options: Unpack[SolveOptions],
    ) -> None:
        self.latent = integer("latent", latent)
        check_series_options(type(self), solve_options)
        super().__init__(channels, self.latent, out, static)
        self.hidden = integer("hidden", hidden)  # of the networks; the state has the size latent
        self.encoder = self._make_encoder(encoder)
        self.posterior = nn.Sequential(
            nn.Linear(self.hidden + self.static, self.hidden), nn.Tanh(), nn.Linear(self.hidden, 2 * self.latent)
        )
        field = MLPField(latent, (hidden, hidden), "elu", time=False) if field is None else field
        function_of("field", field, "field(t, z)", 2)
        intensity = perceptron(latent, hidden, channels) if poisson else None
        self.flow = LatentFlow(field, intensity, number("start", start), solve_options)
        self.decoder = make_decoder(decoder, self.latent, self.hidden, self.channels, noise)

    def _make_encoder(self, encoder: Any) -> nn.Module:
        if isinstance(encoder, nn.Module):
            return encoder
        if isinstance(encoder, str) and encoder in ENCODERS:
            return ENCODERS[encoder](self.channels, self.hidden)
        raise ValueError(
            f"encoder must be one of {', '.join(map(repr, ENCODERS))} or a module; got {describe(encoder)}"
        )

    def encode(self, series: Series) -> Normal:
        """q of z0 given the series: (B, latent), independent along its last axis."""
        return self._posterior(self.scaled(series))

    def decode(self, z0: Tensor, ts: Tensor) -> Distribution:
        """The distribution of values at ts (Q,) or (B, Q), (..., B, Q, C), from z0 (B, latent) or (S, B, latent)."""
        states = self._checked_start(z0)
        z = self.flow(states, self._scaled_times(ts, states.shape[1]))
        return self.decoder.distribution(z if z0.ndim == 3 else z[0], self.normalizer)

    def latent_path(self, series: Series, ts: Tensor) -> Tensor:
        """z at ts (Q,) or (B, Q) from the mean of q: (B, Q, latent)."""
        scaled = self.scaled(series)
        return self.states_at(scaled, self.scaled_times(ts, scaled))

    def intensity(self, series: Series, ts: Tensor) -> Tensor:
        """Expected values per unit of time at ts, of each channel, where z0 is the mean of q: (B, Q, C)."""
        if self.flow.intensity is None:
            raise ValueError("the model has no intensity: make it with poisson=True")
        return self.flow.intensity(self.latent_path(series, ts)).exp() / self.normalizer.span

    def forward(self, series: Series, ts: Tensor | None = None) -> Tensor:
        if ts is None:
            return self.readout(self.encode(series).mean)
        return self.decoder.distribution(self.latent_path(series, ts), self.normalizer).mean

    def elbo(
        self,
        series: Series,
        target: Series | None = None,
        samples: int = 1,
        kl_weight: float = 1.0,
        generator: Generator = None,
        window: Tensor | None = None,
    ) -> Tensor:
        """Evidence lower bound of each sample, (B,), in nats: E[log p(target | z0)] - kl_weight * KL(q | prior).

        series: what the encoder sees. target: what is explained; by default the series itself. The same samples at
        other times make the model extrapolate. samples: draws of z0, for the mean; the divergence is exact. window: see
        `log_likelihood`.
        """
        q, z0 = self._draw(series, samples, generator)
        likelihood = self.log_likelihood(z0, series if target is None else target, window)
        return likelihood.mean(0) - checked_weight(kl_weight) * kl_to_standard_normal(q)

    def iwae(
        self,
        series: Series,
        target: Series | None = None,
        samples: int = 10,
        kl_weight: float = 1.0,
        generator: Generator = None,
        window: Tensor | None = None,
    ) -> Tensor:
        """The bound of the importance-weighted autoencoder with that many samples (Burda et al. 2016), (B,).

        It rises with samples to log p(target). One sample gives that of the `elbo`, with the divergence drawn as well.
        """
        q, z0 = self._draw(series, samples, generator)
        likelihood = self.log_likelihood(z0, series if target is None else target, window)
        return importance_bound(likelihood + checked_weight(kl_weight) * log_ratio_to_prior(q, z0))

    def loss(
        self,
        series: Series,
        target: Series | None = None,
        samples: int = 1,
        kl_weight: float = 1.0,
        generator: Generator = None,
        window: Tensor | None = None,
        bound: Literal["elbo", "iwae"] = "elbo",
    ) -> Tensor:
        """Minus the mean of `elbo` or `iwae` over the samples, (): what training minimises."""
        if bound not in ("elbo", "iwae"):
            raise ValueError(f'bound must be "elbo" or "iwae"; got {describe(bound)}')
        if not len(self._checked(series)):
            raise ValueError("series has no sample, and so no loss")
        chosen = self.elbo if bound == "elbo" else self.iwae
        return -chosen(series, target, samples, kl_weight, generator, window).mean()

    def log_likelihood(self, z0: Tensor, series: Series, window: Tensor | None = None) -> Tensor:
        """log p(series | z0), (..., B), of z0 (B, latent) or (S, B, latent): a density of values as they are given.

        window: with poisson=True the times between which the rows were recorded, (2,) or (B, 2), by default the first
        and the last row. A row at its beginning is where recording began, no event.
        """
        states, scaled = self._checked_start(z0), self.scaled(series)
        if len(scaled) != states.shape[1]:
            raise ValueError(f"target must have the {states.shape[1]} samples of the series; it has {len(scaled)}")
        if window is not None and self.flow.intensity is None:
            raise ValueError("window is for models with poisson=True")
        times = self._row_times(scaled)
        if self.flow.intensity is None:
            z, events = self.flow(states, times), None
        else:
            z, events = self._events(states, scaled, times, window)
        density = self.decoder.log_prob(z, scaled.x, scaled.mask, self.normalizer).sum(-1)
        density = density if events is None else density + events
        return density if z0.ndim == 3 else density[0]

    def _events(self, z0: Tensor, series: Series, times: Tensor, window: Any) -> tuple[Tensor, Tensor]:
        """z at the rows, (S, B, T, latent), and the log density of the times of values, (S, B)."""
        ends = times[:, [0, -1]] if window is None else self.scaled_times(window, series)
        if ends.shape[1] != 2 or bool((ends[:, 0] > ends[:, 1]).any()):
            raise ValueError(f"window must be two times, from the first to the last; got {describe(window)}")
        outside = (series.mask.any(-1) & ((times < ends[:, :1]) | (times > ends[:, 1:]))).any(1)
        if bool(outside.any()):
            raise ValueError(
                f"window must hold the rows of each sample, as the times between which they were recorded; sample "
                f"{int(outside.nonzero()[0])} has rows outside: give series.after(...).before(...), or another window"
            )
        z, log_rates, integrals = self.flow.with_integrals(z0, torch.cat([times, ends], 1))
        inside = series.mask & ((times > ends[:, :1]) & (times <= ends[:, 1:]))[..., None]
        log_rates = log_rates[:, :, :-2] - self.normalizer.span.log()
        expected = integrals[:, :, -1] - integrals[:, :, -2]
        return z[:, :, :-2], torch.where(inside, log_rates, 0.0).sum((2, 3)) - expected.sum(-1)

    @torch.no_grad()
    def reconstruct(
        self,
        series: Series,
        ts: Tensor | None = None,
        samples: int = 100,
        quantiles: Sequence[float] = LEVELS,
        generator: Generator = None,
    ) -> Prediction:
        """The distribution of values at ts (Q,) or (B, Q), by default at the rows, given the series."""
        generator = as_generator(generator)
        _, z0 = self._draw(series, samples, generator)
        if ts is None:
            ts = torch.where(series.length[:, None] > 0, series.t, self._start_time())
        return self._predict(z0, ts, quantiles, generator)

    def forecast(
        self,
        series: Series,
        ts: Tensor,
        samples: int = 100,
        quantiles: Sequence[float] = LEVELS,
        generator: Generator = None,
    ) -> Prediction:
        """As `reconstruct`, at times of which none is before the last row of its sample."""
        scaled = self.scaled(series)
        times, last = self.scaled_times(ts, scaled), self._row_times(scaled)[:, -1:]
        early = (times < last) & (scaled.length[:, None] > 0)
        if bool(early.any()):
            sample = int(early.nonzero()[0, 0])
            raise ValueError(
                f"ts must be after the last row of each sample to be a forecast: sample {sample} has rows after its "
                "first time. Give series.before(time), or call reconstruct"
            )
        return self.reconstruct(series, ts, samples, quantiles, generator)

    @torch.no_grad()
    def sample(
        self, n: int, ts: Tensor, quantiles: Sequence[float] = LEVELS, generator: Generator = None
    ) -> Prediction:
        """n series of the prior at ts (Q,): samples (n, Q, C); mean, std (Q, C)."""
        own = self.normalizer.mean
        generator = as_generator(generator)
        z0 = normal_noise((integer("n", n), 1, self.latent), own, generator)
        p = self._predict(z0, ts, quantiles, generator)
        one = (p.samples[:, 0], p.paths[:, 0], p.levels, p.quantiles[:, 0])
        return Prediction(p.ts[0], p.mean[0], p.std[0], *one)

    def _predict(
        self, z0: Tensor, ts: Any, quantiles: Sequence[float], generator: torch.Generator | None
    ) -> Prediction:
        levels = tuple(number("quantiles", level) for level in quantiles)
        if not all(0.0 < level < 1.0 for level in levels):
            raise ValueError(f"quantiles must be between 0 and 1; got {levels}")
        each = cast(Any, self.decode(z0, ts))
        paths = each.mean
        return Prediction(
            torch.as_tensor(ts).to(z0).expand(paths.shape[1:3]),
            paths.mean(0),
            (each.variance.mean(0) + paths.var(0, correction=0)).sqrt(),
            self.decoder.draw(each, generator),
            paths,
            levels,
            self.decoder.quantiles(each, levels),
        )

    def row_states(self, series: Series) -> Tensor:
        return self.states_at(series, self._row_times(series))

    def states_at(self, series: Series, ts: Tensor) -> Tensor:
        return self.flow(self._posterior(series).mean[None], ts)[0]

    def _posterior(self, series: Series) -> Normal:
        times = self._row_times(series) - self.flow.start
        features = self.encoder(series.with_values(t=times, x=series.x, static=series.static))
        if features.shape != (len(series), self.hidden):
            raise ValueError(
                f"encoder must give ({len(series)}, {self.hidden}), as hidden={self.hidden}; it gives "
                f"{describe_shape(features)}"
            )
        mean, raw = self.posterior(with_static(features, series.static)).chunk(2, -1)
        std = nn.functional.softplus(raw) + _SMALLEST_STD
        if series.static is None:  # nothing is known, and the prior is the exact posterior
            known = series.mask.any(2).any(1)[:, None]
            mean, std = torch.where(known, mean, 0.0), torch.where(known, std, 1.0)
        return Normal(mean, std)

    def _draw(self, series: Series, samples: int, generator: Generator) -> tuple[Normal, Tensor]:
        """q, and samples of it, (samples, B, latent), differentiable in its parameters."""
        q = self.encode(series)
        noise = normal_noise((integer("samples", samples), *q.mean.shape), q.mean, as_generator(generator))
        return q, q.mean + q.stddev * noise

    def _row_times(self, series: Series) -> Tensor:
        """Times of the rows of a scaled series; of a sample without rows the start, wherever its padding is."""
        return torch.where(series.length[:, None] > 0, series.t, self.flow.start)

    def _start_time(self) -> Tensor:
        """The time of z0 in the unit of the data."""
        return self.normalizer.start + self.flow.start * self.normalizer.span

    def _scaled_times(self, ts: Any, size: int) -> Tensor:
        own = self.normalizer.mean
        return self.scaled_times(ts, Series(own.new_zeros(size, 0), own.new_zeros(size, 0, self.channels)))

    def _checked_start(self, z0: Any) -> Tensor:
        """z0 as (S, B, latent)."""
        if not isinstance(z0, Tensor) or z0.ndim not in (2, 3) or z0.shape[-1] != self.latent:
            raise ValueError(
                f"z0 must be (samples, {self.latent}) or (draws, samples, {self.latent}); got {describe_shape(z0)}"
            )
        return z0 if z0.ndim == 3 else z0[None]
