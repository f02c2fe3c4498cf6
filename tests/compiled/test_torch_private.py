"""The private names of PyTorch are in one file, and this PyTorch has all of them."""

import ast
from pathlib import Path

import pytest
import torch

import odenet
from odenet.compiled import compiled_solve, torch_private

FOLDER = Path(odenet.compiled.__file__).parent
NAMES = {place: parameters for group in torch_private.GROUPS for place, parameters in group.items()}


@pytest.mark.parametrize("place", NAMES)
def test_each_name_is_there(place: str) -> None:
    torch_private.import_quietly("torch._inductor.mkldnn_ir")
    assert torch_private.problem_with(place, NAMES[place]) is None


def test_what_is_wrong_with_a_name() -> None:
    assert torch_private.problem_with("torch:gone", ()) == "has no torch.gone"
    assert torch_private.problem_with("torch._gone:name", ()) == "has no torch._gone.name"
    found = torch_private.problem_with("torch.func:vjp", ("func", "chunks"))
    assert found == "has torch.func.vjp without the parameter 'chunks'"


def private(tree: ast.AST) -> list[str]:
    """Private modules and attributes of torch that a file names; operators (torch.ops) are registered names."""
    found: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found += [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Attribute):
            found.append(ast.unparse(node))
    parts = [name.split(".") for name in found if name.startswith("torch.") and not name.startswith("torch.ops.")]
    return [".".join(p) for p in parts if any(x.startswith("_") and not x.startswith("__") for x in p)]


def test_no_other_file_names_them() -> None:
    files = {f.name: private(ast.parse(f.read_text())) for f in FOLDER.rglob("*.py") if f.name != "torch_private.py"}
    assert len(files) > 20
    assert {name: found for name, found in files.items() if found} == {}
    assert private(ast.parse("from torch._inductor import ir\ntorch._C.f()\nimport torch._dynamo")) != []


def test_another_torch_solves_eagerly_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, params: list[torch.Tensor], y0: torch.Tensor
) -> None:
    monkeypatch.setitem(torch_private.RECORDING, "torch._inductor.decomposition:renamed", ())  # type: ignore[attr-defined]
    torch_private.recording.cache_clear()
    monkeypatch.setattr(compiled_solve, "PLAN_CACHE", odenet.compiled.plan_cache.PlanCache())
    w = params[0].detach()
    f = lambda t, y: torch.cos(y @ w) - t  # noqa: E731
    message = f"decomposition.renamed: compile=True works with PyTorch {torch_private.WORKS_WITH}"
    try:
        with pytest.warns(UserWarning, match=message) as caught, torch.no_grad():
            ours = [odenet.solve(f, y0, [0.0, 1.0, 1.5], compile=True).ys for _ in range(2)]
            assert torch.equal(ours[0], odenet.solve(f, y0, [0.0, 1.0, 1.5]).ys)
    finally:
        torch_private.recording.cache_clear()
    assert len(caught) == 1
