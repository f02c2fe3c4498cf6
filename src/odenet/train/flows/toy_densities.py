"""Densities in the plane that papers on flows draw, as functions of a torch.Generator.

The constants are those of two public codes, whose data differ in scale and noise, so each name has a source:

- "ffjord": lib/toy_data.py of github.com/rtqichen/ffjord (Grathwohl et al., "FFJORD", ICLR 2019).
- "otcfm": torchcfm/utils.py and runner/ of github.com/atong01/conditional-flow-matching (Tong et al., "Improving and
  generalizing flow-based generative models with minibatch optimal transport", TMLR 2024).

What the code does is what is done here, where a comment or a parameter there says otherwise. Samples are independent:
both codes put points of some curves at equal distances and take as many of each part, here curve parameters and parts
are random, of the same distribution. Densities that have a closed form have `log_prob`: with it the entropy, and the
Kullback-Leibler divergence of a model, can be computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from ..user_error import UserError

_Sampler = Callable[[int, Generator], Tensor]
_LogProb = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class ToyDensity:
    """A density in the plane. source: the code that its constants are from, "ffjord" or "otcfm".

    `sampler` draws (n, 2) in float64. `log_prob` maps points (n, 2) to the log-density (n,) in nats, -inf where it is
    zero; it is None without a closed form.
    """

    name: str
    source: str
    sampler: _Sampler
    log_prob: _LogProb | None = None

    def sample(self, n: int, generator: Generator) -> Tensor:
        """n independent samples (n, 2), of the default dtype, on the CPU."""
        return self.sampler(n, generator).to(torch.get_default_dtype())


def toy_density(name: str, source: str = "") -> ToyDensity:
    """The density of that name; by default that of FFJORD where there is one, else that of OT-CFM.

    Raises:
        UserError: the name, or the pair of name and source, is unknown.
    """
    found = [toy for toy in _TOYS if toy.name == name and source in ("", toy.source)]
    if not found:
        known = ", ".join(f"{toy.name} ({toy.source})" for toy in _TOYS)
        raise UserError(f"toy density {name!r}{f' of {source!r}' if source else ''} is unknown. Known: {known}")
    return found[0]


def toy_names() -> list[str]:
    """The names that `toy_density` knows."""
    return list(dict.fromkeys(toy.name for toy in _TOYS))


def _uniform(n: int, generator: Generator) -> Tensor:
    """Uniform numbers in [0, 1), (n,); float64, so that a toy does not depend on the default dtype."""
    return torch.rand(n, generator=generator, dtype=torch.float64)


def _normal(n: int, generator: Generator) -> Tensor:
    return torch.randn(n, 2, generator=generator, dtype=torch.float64)


def _choice(n: int, parts: int, generator: Generator) -> Tensor:
    return torch.randint(0, parts, (n,), generator=generator)


def _half_circles(n: int, generator: Generator) -> Tensor:
    """One of two half circles, the other way up and moved by (1, 1/2): scikit-learn's make_moons without noise."""
    angle, second = math.pi * _uniform(n, generator), _choice(n, 2, generator)
    sign = 1.0 - 2.0 * second
    return torch.stack([sign * angle.cos() + second, sign * angle.sin() + 0.5 * second], 1)


def _moons(n: int, generator: Generator) -> Tensor:
    points = _half_circles(n, generator) + 0.1 * _normal(n, generator)
    return 2 * points + torch.tensor([-1.0, -0.2], dtype=torch.float64)


def _moons_otcfm(n: int, generator: Generator) -> Tensor:
    """Noise as torchdyn's generate_moons has it: a point moves up the diagonal, both components by the same amount."""
    return 3 * (_half_circles(n, generator) + 0.2 * _uniform(n, generator)[:, None]) - 1


def _eight_centres(radius: float) -> Tensor:
    angles = torch.arange(8, dtype=torch.float64) * (math.pi / 4)
    return radius * torch.stack([angles.cos(), angles.sin()], 1)


def _eight_gaussians(source: str, radius: float, std: float) -> ToyDensity:
    """Eight normal distributions of equal weight around a circle."""
    centres = _eight_centres(radius)

    def sampler(n: int, generator: Generator) -> Tensor:
        return centres[_choice(n, 8, generator)] + std * _normal(n, generator)

    def log_prob(x: Tensor) -> Tensor:
        squares = (x[:, None] - centres.to(x)).square().sum(2)  # (n, 8)
        return (-squares / (2 * std**2)).logsumexp(1) - math.log(8 * 2 * math.pi * std**2)

    return ToyDensity("8gaussians", source, sampler, log_prob)


def _circles_of(name: str, radii: tuple[float, ...], std: float) -> ToyDensity:
    """Circles of equal weight around the origin, with normal noise.

    A uniform angle on the circle of radius R, plus noise, has the density
    exp(-(r^2 + R^2) / (2 std^2)) I0(r R / std^2) / (2 pi std^2) at the distance r: the integral over the angle is that
    of the Bessel function I0 (Abramowitz and Stegun 9.6.16).
    """
    all_radii = torch.tensor(radii, dtype=torch.float64)

    def sampler(n: int, generator: Generator) -> Tensor:
        radius, angle = all_radii[_choice(n, len(radii), generator)], 2 * math.pi * _uniform(n, generator)
        return radius[:, None] * torch.stack([angle.cos(), angle.sin()], 1) + std * _normal(n, generator)

    def log_prob(x: Tensor) -> Tensor:
        r, R = x.norm(dim=1, keepdim=True), all_radii.to(x)
        # i0e is exp(-x) I0(x), which does not overflow
        parts = torch.special.i0e(r * R / std**2).log() - (r - R).square() / (2 * std**2)
        return parts.logsumexp(1) - math.log(len(radii) * 2 * math.pi * std**2)

    return ToyDensity(name, "ffjord", sampler, log_prob)


def _checkerboard(n: int, generator: Generator) -> Tensor:
    """Eight of the 4 x 4 squares of side 2 in [-4, 4)^2, uniform."""
    x, y = 4 * _uniform(n, generator) - 2, _uniform(n, generator) - 2 * _choice(n, 2, generator)
    return 2 * torch.stack([x, y + x.floor() % 2], 1)


def _checkerboard_log_prob(x: Tensor) -> Tensor:
    on_colour = (x / 2).floor().sum(1) % 2 == 0
    inside = ((x >= -4) & (x < 4)).all(1)
    return torch.where(on_colour & inside, -math.log(32), -math.inf).to(x)


def _pinwheel(n: int, generator: Generator) -> Tensor:
    """Five arms, each a narrow normal distribution at (1, 0), turned the further the larger its first component."""
    points = _normal(n, generator) * torch.tensor([0.3, 0.1], dtype=torch.float64)
    x, y = points[:, 0] + 1, points[:, 1]
    angle = (2 * math.pi / 5) * _choice(n, 5, generator) + 0.25 * x.exp()
    return 2 * torch.stack([x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()], 1)


def _two_spirals(n: int, generator: Generator) -> Tensor:
    """Two arms of one and a half turns; noise within an arm is uniform, then all is made smooth by normal noise."""
    angle = 3 * math.pi * _uniform(n, generator).sqrt()
    x = 0.5 * _uniform(n, generator) - angle * angle.cos()
    y = 0.5 * _uniform(n, generator) + angle * angle.sin()
    sign = 1 - 2 * _choice(n, 2, generator)
    return (sign * torch.stack([x, y])).T / 3 + 0.1 * _normal(n, generator)


def _swissroll(n: int, generator: Generator) -> Tensor:
    angle = 1.5 * math.pi * (1 + 2 * _uniform(n, generator))
    return (angle * torch.stack([angle.cos(), angle.sin()])).T / 5 + 0.2 * _normal(n, generator)


def _scurve(n: int, generator: Generator) -> Tensor:
    """First and third component of scikit-learn's make_s_curve with noise 0.05, times 1.5."""
    angle = 3 * math.pi * (_uniform(n, generator) - 0.5)
    curve = torch.stack([angle.sin(), angle.sign() * (angle.cos() - 1)], 1)
    return 1.5 * (curve + 0.05 * _normal(n, generator))


_TOYS = (
    ToyDensity("moons", "ffjord", _moons),
    ToyDensity("moons", "otcfm", _moons_otcfm),
    ToyDensity("checkerboard", "ffjord", _checkerboard, _checkerboard_log_prob),
    ToyDensity("pinwheel", "ffjord", _pinwheel),
    _eight_gaussians("ffjord", 4 / 1.414, 0.5 / 1.414),
    # var=0.1 there; its square root is given to MultivariateNormal as the covariance
    _eight_gaussians("otcfm", 5.0, 0.1**0.25),
    ToyDensity("scurve", "otcfm", _scurve),
    _circles_of("circles", (3.0, 1.5), 0.24),
    _circles_of("rings", (3.0, 2.25, 1.5, 0.75), 0.08),
    ToyDensity("2spirals", "ffjord", _two_spirals),
    ToyDensity("swissroll", "ffjord", _swissroll),
)
