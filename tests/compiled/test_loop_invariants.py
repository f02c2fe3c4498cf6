"""What is written before a loop, and what stays in it."""

import threading
import warnings
from pathlib import Path

import pytest
import torch

import odenet
from odenet.compiled import build, torch_private


@pytest.fixture
def sources(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """C++ of each library that is compiled, in the order of the compilers' starts."""
    seen: list[str] = []
    compiler = build._compile_cpp

    def noted(source: str, *rest: object) -> Path:
        seen.append(source)
        return compiler(source, *rest)

    monkeypatch.setattr(build, "_compile_cpp", noted)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    return seen


def loop_of(source: str) -> tuple[str, str]:
    """Before the loop and inside it."""
    before, rest = source.split("    while (1) {")
    return before, rest.split("\n    }\n")[0]


@pytest.mark.slow
def test_an_iteration_makes_no_handle_and_allocates_what_it_returns_alone(sources: list[str]) -> None:
    """Else solves would be right, and slow."""
    y0, w = torch.randn(17, 2, requires_grad=True), torch.randn(2, 20)
    f = lambda t, y: torch.tanh(y @ w) @ w.mT - y  # noqa: E731
    odenet.solve(f, y0, [0.0, 1.0], compile=True).y1.sum().backward()
    assert len(sources) == 2
    for source in sources:
        before, inside = loop_of(source)
        returned = inside.count(" = std::move(")  # the condition's result, and what the loop carries
        assert 3 < returned < 12
        assert inside.count("aoti_torch_empty_strided(") <= returned
        assert "aoti_torch_assign_tensors_out(" not in inside
        assert before.count("aoti_torch_empty_strided(") > 0
        assert "auto&& part" in before and "auto&& part" not in inside


def test_the_wrapper_serves_the_thread_that_compiles_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    from odenet.compiled import loop_invariants

    names = torch_private.inductor()
    names.init_backend_registration()
    monkeypatch.setattr(names.CppWrapperCpu, "__init__", lambda self: None)  # it wants a graph
    usual = names.get_wrapper_codegen_for_device("cpu", cpp_wrapper=True)
    found: list[type] = []

    def create() -> None:
        wrapper = names.get_wrapper_codegen_for_device("cpu", cpp_wrapper=True)
        found.append(type(wrapper.create(False, None, None)))

    with loop_invariants.registered():
        create()
        other = threading.Thread(target=create)
        other.start()
        other.join()
    assert found == [loop_invariants.LoopWrapper, names.CppWrapperCpu]
    assert names.get_wrapper_codegen_for_device("cpu", cpp_wrapper=True) is usual


def test_a_constant_tensor_is_refused_by_name() -> None:
    values = [i / 10 for i in range(20)]
    y0 = torch.ones(2, 20)
    with pytest.warns(UserWarning, match="f makes a constant tensor: hold it in a buffer"):
        sol = odenet.solve(lambda t, y: -y * torch.tensor(values), y0, [0.0, 1.0], compile=True)
    assert torch.allclose(sol.y1[0], torch.exp(-torch.tensor(values)), atol=1e-4)


FIELDS = {
    "constant": lambda t, y, w: torch.ones_like(y) * 2,
    "time": lambda t, y, w: torch.ones_like(y) * t.reshape(-1, 1),
    "argument": lambda t, y, w: w.expand_as(y),
}
ENDS = {"constant": 2.0, "time": 0.5, "argument": 3.0}


CASES = [("constant", False), ("argument", False), ("time", True)]


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "per_sample"), CASES)
def test_cotangents_that_an_iteration_returns_as_they_came(kind: str, per_sample: bool) -> None:
    """df/dy = 0: the cotangent of y is the same in every step."""
    y0 = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64, requires_grad=True)
    w = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sol = odenet.solve(FIELDS[kind], y0, [0.0, 1.0], args=(w,), per_sample=per_sample, method="bosh3", compile=True)
        torch.testing.assert_close(sol.y1, y0 + ENDS[kind])
        (sol.y1 * torch.arange(1.0, 5.0).reshape(2, 2)).sum().backward()
    torch.testing.assert_close(y0.grad, torch.arange(1.0, 5.0, dtype=torch.float64).reshape(2, 2))
    if kind == "argument":
        torch.testing.assert_close(w.grad, torch.tensor(10.0, dtype=torch.float64))
