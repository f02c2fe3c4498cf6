"""What every model of series must do; a family of models subclasses `SeriesModelSuite` and supplies `make`."""

from __future__ import annotations

import copy
import pickle
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from odenet.nn.series_model import SeriesModel
from odenet.series import Series

D = torch.float64
OUT = 3
TS = torch.tensor([0.9, 0.1, 0.55], dtype=D)  # in no order


def ragged(static: int = 0, channels: int = 2, dtype: torch.dtype = D) -> Series:
    """Four samples of 5, 3, 1 and 4 rows in [0.15, 0.85]; values are missing, of one row and one channel all."""
    generator = torch.Generator().manual_seed(7)
    length = torch.tensor([5, 3, 1, 4])
    t = (0.15 + 0.7 * torch.rand(4, 5, generator=generator, dtype=D)).sort(1).values
    x = torch.randn(4, 5, channels, generator=generator, dtype=D)
    mask = torch.rand(4, 5, channels, generator=generator, dtype=D) < 0.7
    mask[:, 0] = True
    mask[3, 2] = False
    mask[2, 0, 1] = False
    features = torch.randn(4, static, generator=generator, dtype=D) if static else None
    return Series(t, x, mask, length, features).to(dtype)


def close(mine: Tensor, other: Tensor, tol: float) -> None:
    torch.testing.assert_close(mine, other, rtol=tol, atol=tol)


class SeriesModelSuite(ABC):
    causal: ClassVar[bool] = True  # the output at a time depends on the rows up to it alone
    last_row_is_last_state: ClassVar[bool] = True  # forward(series) is the last of states(series)
    has_states: ClassVar[bool] = True  # states(series) exists
    batch_tol: ClassVar[float] = 1e-12  # by which other samples may change a sample's output, in float64
    gradient_tol: ClassVar[float] = 1e-6
    nondet_tol: ClassVar[float] = 0.0  # by which the gradients of two backward passes may differ
    time_gradients: ClassVar[bool] = True  # outputs are differentiable in the times of the rows
    query_gradients: ClassVar[bool] = True  # and in the times that are asked for
    backward_mode: ClassVar[str] = "fast"  # of gradcheck: "fast" takes random directions, "slow" every entry

    @abstractmethod
    def make(self, channels: int, out: int | None, static: int) -> SeriesModel:
        """A model in float32, small, whose parameters are its own initial ones."""

    def make_for_gradients(self, channels: int, out: int | None, static: int) -> SeriesModel:
        """A model whose solves are accurate enough for finite differences; by default that of `make`."""
        return self.make(channels, out, static)

    def model(self, static: int = 0, out: int | None = OUT, channels: int = 2) -> SeriesModel:
        torch.manual_seed(0)
        return self.make(channels, out, static).double().eval()

    def outputs(self, model: SeriesModel, series: Series, ts: Tensor = TS) -> list[Tensor]:
        every = [model(series), model(series, ts.to(series.x))]
        return [*every, model.states(series)] if self.has_states else every

    @pytest.mark.parametrize("static", [0, 2])
    @pytest.mark.parametrize("dtype", [torch.float32, D])
    def test_shapes_and_dtypes(self, static: int, dtype: torch.dtype) -> None:
        series, model = ragged(static, dtype=dtype), self.model(static).to(dtype)
        assert model(series).shape == (4, OUT) and model(series).dtype == dtype
        assert model(series, TS).shape == (4, 3, OUT) and model(series, TS).dtype == dtype
        assert model(series, TS[:0]).shape == (4, 0, OUT)
        if self.has_states:
            assert model.states(series).shape == (4, 5, OUT)
        assert all(bool(torch.isfinite(y).all()) for y in self.outputs(model, series))

    def test_without_a_readout_the_state_is_the_output(self) -> None:
        model = self.model(out=None)
        assert model(ragged()).shape == (4, model.hidden)

    def test_float32_agrees_with_float64(self) -> None:
        model = self.model()
        exact = self.outputs(model, ragged())
        for y, z in zip(self.outputs(model.float(), ragged(dtype=torch.float32)), exact, strict=True):
            close(y.double(), z, 1e-3)

    def test_padding_changes_nothing(self) -> None:
        model, series = self.model(), ragged()
        wide = series.padded(9)
        garbage = Series(
            torch.where(wide.rows, wide.t, torch.nan), torch.where(wide.rows[..., None], wide.x, 1e9), wide.mask,
            wide.length,
        )  # fmt: skip
        for y, z in zip(self.outputs(model, garbage), self.outputs(model, series), strict=True):
            close(y[:, : z.shape[1]], z, self.batch_tol)

    def test_samples_do_not_see_each_other(self) -> None:
        model, series = self.model(2), ragged(2)
        together = self.outputs(model, series)
        for i in range(4):
            alone = self.outputs(model, series[i].trimmed())
            for y, z in zip(alone, together, strict=True):
                close(y[0], z[i] if z.ndim == 2 else z[i, : y.shape[1]], self.batch_tol)
        order = torch.tensor([2, 0, 3, 1])
        for y, z in zip(self.outputs(model, series[order]), together, strict=True):
            close(y, z[order], self.batch_tol)

    def test_query_times_in_any_order_and_of_each_sample(self) -> None:
        model, series = self.model(), ragged()
        y = model(series, TS)
        close(model(series, TS.sort().values), y[:, TS.argsort()], self.batch_tol)
        close(model(series, TS.expand(4, 3)), y, self.batch_tol)
        close(model(series, TS.tolist()), y, self.batch_tol)
        own = TS + 0.01 * torch.arange(4, dtype=D)[:, None]
        close(model(series, own)[2], model(series[2], own[2])[0], self.batch_tol)

    def test_states_are_the_outputs_at_the_rows(self) -> None:
        if not self.has_states:
            pytest.skip("the model has no states at rows")
        model, series = self.model(), ragged()
        states, at_rows = model.states(series), model(series, series.t)
        close(at_rows[series.rows], states[series.rows], self.batch_tol)
        if self.last_row_is_last_state:
            close(states[:, -1], model(series), self.batch_tol)
            close(states[2], model(series[2])[0].expand(5, -1), self.batch_tol)  # its only row

    def test_the_model_looks_at_its_inputs(self) -> None:
        model, series = self.model(2), ragged(2)
        y = model(series)
        gap = torch.arange(5, dtype=D)
        variants = {
            "values": series.with_values(series.t, torch.where(series.mask, series.x + 1, 0.0), series.static),
            "times": series.with_values(series.t + 0.02 * gap * (gap + 1), series.x, series.static),
            "static": series.with_values(series.t, series.x, series.static + 1),
            "mask": series.observed(torch.tensor([True, False]).expand(4, 5, 2)),
        }
        for name, other in variants.items():
            change = (model(other) - y).abs().amax(1)
            assert bool((change[[0, 1, 3]] > 1e-8).all()), name

    def test_causality(self) -> None:
        if not self.causal:
            pytest.skip("the model looks at whole series")
        model, series = self.model(), ragged()
        cut = 0.5
        t = torch.where(series.t > cut, cut + 0.7 * (series.t - cut), series.t)
        x = torch.where((series.t > cut)[..., None] & series.mask, -3 * series.x, series.x)
        other = series.with_values(t, x, None)
        early = torch.tensor([0.05, 0.2, 0.4, 0.5], dtype=D)
        close(model(other, early), model(series, early), self.batch_tol)
        close(model(series.before(cut), early), model(series, early), self.batch_tol)
        if self.has_states:
            known = series.rows & (series.t <= cut)
            assert bool(known.any()) and not bool(known.all())
            close(model.states(other)[known], model.states(series)[known], self.batch_tol)

    def test_no_samples_and_no_rows(self) -> None:
        model = self.model()
        none = ragged()[:0]
        assert model(none).shape == (0, OUT) and model(none, TS).shape == (0, 3, OUT)
        empty = Series(torch.zeros(2, 0, dtype=D), torch.zeros(2, 0, 2, dtype=D))
        y, at = model(empty), model(empty, TS)
        assert (
            y.shape == (2, OUT) and at.shape == (2, 3, OUT) and bool(torch.isfinite(y).all() & torch.isfinite(at).all())
        )
        if self.has_states:
            assert model.states(none).shape == (0, 5, OUT) and model.states(empty).shape == (2, 0, OUT)

    @pytest.mark.parametrize("scaled", [False, True])
    def test_a_sample_of_no_rows_beside_others(self, scaled: bool) -> None:
        model, series = self.model(), ragged()
        if scaled:
            model.fit_normalizer(series)
        length = torch.tensor([5, 0, 1, 4])
        mixed = Series(torch.where(torch.arange(5) < length[:, None], series.t, torch.nan), series.x, series.mask)
        empty = Series(torch.zeros(1, 0, dtype=D), torch.zeros(1, 0, 2, dtype=D))
        for y, z, alone in zip(
            self.outputs(model, mixed)[:2], self.outputs(model, series)[:2], self.outputs(model, empty)[:2], strict=True
        ):
            close(y[[0, 2, 3]], z[[0, 2, 3]], self.batch_tol)
            close(y[1], alone[0], self.batch_tol)

    def test_one_observation(self) -> None:
        model = self.model()
        one = Series(torch.tensor([[0.5]], dtype=D), torch.tensor([[[1.0, torch.nan]]], dtype=D))
        for y in self.outputs(model, one):
            assert bool(torch.isfinite(y).all())
        other = Series(torch.tensor([[0.5]], dtype=D), torch.tensor([[[2.0, torch.nan]]], dtype=D))
        assert not torch.equal(model(one), model(other))

    def test_nothing_observed(self) -> None:
        model, series = self.model(), ragged()
        unseen = series.observed(torch.zeros_like(series.mask))
        for y in self.outputs(model, unseen):
            assert bool(torch.isfinite(y).all())
        model(unseen).sum().backward()
        assert all(p.grad is None or bool(torch.isfinite(p.grad).all()) for p in model.parameters())

    def test_units_of_the_data_do_not_matter_with_scales(self) -> None:
        model, series = self.model(2), ragged(2)
        y = self.outputs(model.fit_normalizer(series), series)
        x = torch.where(series.mask, 40.0 * series.x - 7.0, 0.0)
        other = series.with_values(600.0 * series.t + 1000.0, x, 5.0 * series.static + 2.0)
        z = self.outputs(model.fit_normalizer(other), other, 600.0 * TS + 1000.0)
        for mine, theirs in zip(z, y, strict=True):
            close(mine, theirs, 1e-6)

    def test_saved_loaded_and_copied(self) -> None:
        series = ragged(2)
        model = self.model(2).fit_normalizer(series)
        y = self.outputs(model, series)
        assert not torch.equal(model.normalizer.mean, torch.zeros(2, dtype=D))
        torch.manual_seed(1)
        fresh = self.make(2, OUT, 2).double().eval()
        fresh.load_state_dict(model.state_dict())
        twin = copy.deepcopy(model)
        for other in (fresh, twin, pickle.loads(pickle.dumps(model))):
            for mine, theirs in zip(self.outputs(other, series), y, strict=True):
                assert torch.equal(mine, theirs)
        with torch.no_grad():
            for p in twin.parameters():
                p.add_(0.1)
        assert torch.equal(model(series), y[0]) and not torch.equal(twin(series), y[0])

    def test_wrong_input(self) -> None:
        model, series = self.model(), ragged()
        with pytest.raises(TypeError, match="series must be"):
            model(series.x)
        with pytest.raises(ValueError, match="2 channels"):
            model(ragged(channels=3))
        with pytest.raises(ValueError, match="static"):
            model(ragged(static=2))
        with pytest.raises(ValueError, match="static"):
            self.model(2)(ragged(static=1))
        with pytest.raises(ValueError, match="static"):
            self.model(2)(series)
        with pytest.raises(ValueError, match="float32"):
            model(series.to(torch.float32))
        for ts in (TS.expand(3, 3), torch.tensor(0.5), TS.expand(2, 4, 3)):
            with pytest.raises(ValueError, match="ts must be"):
                model(series, ts)
        with pytest.raises(ValueError, match="ts must be finite"):
            model(series, [0.1, float("nan")])
        with pytest.raises(TypeError, match="ts"):
            model(series, "soon")

    @pytest.mark.parametrize("name", ["channels", "out", "static"])
    def test_wrong_sizes(self, name: str) -> None:
        sizes: dict[str, Any] = {"channels": 2, "out": OUT, "static": 0}
        for wrong, error in ((1.5, TypeError), (-1, ValueError)):
            with pytest.raises(error, match=name):
                self.make(**{**sizes, name: wrong})

    def _check(self, function: Any, inputs: tuple[Tensor, ...]) -> None:
        fast = self.backward_mode == "fast"
        tol = self.gradient_tol
        assert torch.autograd.gradcheck(
            function, inputs, atol=tol, rtol=100 * tol, fast_mode=fast, nondet_tol=self.nondet_tol
        )

    def test_gradients_of_parameters(self) -> None:
        torch.manual_seed(0)
        model, series = self.make_for_gradients(2, OUT, 2).double().eval(), ragged(2)
        parameters = tuple(p for p in model.parameters() if p.requires_grad)
        self._check(lambda *_: (model(series), model(series, TS)), parameters)

    def test_gradients_of_the_data(self) -> None:
        torch.manual_seed(0)
        model, series = self.make_for_gradients(2, OUT, 2).double().eval(), ragged(2)
        t, x, static = (v.clone().requires_grad_() for v in (series.t, series.x, series.static))

        def outputs(t: Tensor, x: Tensor, static: Tensor) -> tuple[Tensor, Tensor]:
            own = Series(t, x, series.mask, series.length, static)
            return model(own), model(own, TS)

        self._check(lambda x, static: outputs(series.t, x, static), (x, static))
        if self.time_gradients:
            self._check(lambda t: outputs(t, series.x, series.static), (t,))

    def test_gradients_of_query_times(self) -> None:
        if not self.query_gradients:
            pytest.skip("outputs are not differentiable in the times that are asked for")
        torch.manual_seed(0)
        model, series = self.make_for_gradients(2, OUT, 0).double().eval(), ragged()
        self._check(lambda ts: model(series, ts), (TS.clone().requires_grad_(),))

    @pytest.mark.parametrize("assign", [False, True])
    def test_made_without_memory(self, assign: bool) -> None:
        """A model on the device "meta" has what it needs in its `state_dict`."""
        model, series = self.model(2).fit_normalizer(ragged(2)), ragged(2)
        with torch.device("meta"):
            other = self.make(2, OUT, 2).double().eval()
        other = other if assign else other.to_empty(device="cpu")
        other.load_state_dict(model.state_dict(), assign=assign)
        for a, b in zip(self.outputs(other, series), self.outputs(model, series), strict=True):
            close(a, b, 0.0)

    @pytest.mark.slow
    @pytest.mark.filterwarnings("ignore::UserWarning")  # of PyTorch's own, about what it traces
    def test_inside_torch_compile(self) -> None:
        """What cannot be traced breaks the graph, and runs as ever."""
        torch.compiler.reset()
        model, series = self.model(2), ragged(2)
        wrapped = torch.compile(self.outputs, backend="eager")
        for a, b in zip(wrapped(model, series), self.outputs(model, series), strict=True):
            close(a, b, 1e-12)

    def test_a_step_of_training(self) -> None:
        """Every parameter has a gradient, and a step against it reduces a loss by what the gradient says."""
        series = ragged(2)
        model = self.model(2).fit_normalizer(series).train()
        parameters = list(model.parameters())

        def loss() -> Tensor:
            torch.manual_seed(1)
            last, asked = model(series), model(series, TS)
            return (last - 1.0).square().mean() + (asked - 1.0).square().mean()

        before = loss()
        gradients = torch.autograd.grad(before, parameters)
        expected = 1e-4 * float(before.detach())
        rate = expected / sum(float(g.square().sum()) for g in gradients)
        with torch.no_grad():
            for parameter, g in zip(parameters, gradients, strict=True):
                parameter -= rate * g
            assert float(before - loss()) == pytest.approx(expected, rel=0.1)
