"""What is taken out of a loop's code, and what stays in it."""

from pathlib import Path

import pytest
import torch

import odenet
from odenet.compiled.loop_invariants import hoisted

VIEW = (
    "        auto view = wrap_with_raii_handle_if_needed(reinterpret_tensor_wrapper(used, 2, a, b, 0L)); used.reset();"
    "  // reuse\n"
)


def handle(name: str, call: str) -> str:
    return f"""        AtenTensorHandle {name}_handle;
        CHECK({call}, &{name}_handle));
        RAIIAtenTensorHandle {name}({name}_handle);
"""


def loop(body: str) -> str:
    return f"    before();\n    while (1) {{\n{body}    }}\n    after();"


def parts(source: str) -> tuple[str, str]:
    """Before the loop and inside it."""
    before, inside = hoisted(source).split("while (1) {")
    return before, inside


def test_inputs_that_stay() -> None:
    given, carried = (
        handle("given", "aoti_torch_assign_tensors_out(x1"),
        handle("old", "aoti_torch_assign_tensors_out(y"),
    )
    new = handle("new", "aoti_torch_empty_strided(2")
    before, inside = parts(loop(given + carried + new + "        kernel(given, old, new);\n        given.reset();\n"
                                "        y.reset();\n        y = std::move(new);\n"))  # fmt: skip
    assert "given_handle" in before
    assert "given.reset" not in inside
    assert "old_handle" in inside  # the input that a turn changes
    assert "new_handle" in inside  # handed to the next turn
    assert "kernel(given, old, new);" in inside
    assert "y = std::move(new);" in inside


def test_memory_that_stays_in_a_turn() -> None:
    used = handle("used", "aoti_torch_empty_strided(2")
    before, inside = parts(loop(used + VIEW + "        kernel(used, view);\n        view.reset();\n"))
    assert "used_handle" in before
    assert "auto view" in before
    assert "reset" not in inside + before


def test_memory_whose_view_is_handed_on() -> None:
    used = handle("used", "aoti_torch_empty_strided(2")
    before, inside = parts(loop(used + VIEW + "        y = std::move(view);\n"))
    assert "used" not in before
    assert "used_handle" in inside


def test_a_view_of_what_a_turn_makes() -> None:
    made = handle("made", "aoti_torch_cpu_mm(x1")
    view = handle("view", "aoti_torch_assign_tensors_out(made")
    before, inside = parts(loop(made + view))
    assert "made" not in before
    assert "view_handle" in inside


def test_a_handle_that_each_use_would_free() -> None:
    given = handle("given", "aoti_torch_assign_tensors_out(RAIIAtenTensorHandle(tmp_x_0)")
    before, _ = parts(loop(given))
    assert before.index("RAIIAtenTensorHandle tmp_x_0_owner(tmp_x_0);") < before.index("given_handle")
    assert "assign_tensors_out(tmp_x_0_owner" in before


def test_nothing_else_changes() -> None:
    text = "void f() {\n    kernel(a);\n}\n    while (1) {\n        never closed\n"
    assert hoisted(text) == text


@pytest.mark.slow
def test_what_inductor_writes_is_as_expected(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Else solves would be right, and slow."""
    seen: list[tuple[str, str]] = []

    def watched(source: str) -> str:
        seen.append((source, hoisted(source)))
        return seen[-1][1]

    def handles(source: str) -> int:
        return source.split("while (1) {")[1].split("\n    }\n")[0].count("_handle;")

    monkeypatch.setattr("odenet.compiled.compile_lock.hoisted", watched)
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    y0, w = torch.randn(17, 2, requires_grad=True), torch.randn(2, 20)
    odenet.solve(lambda t, y: torch.tanh(y @ w) @ w.mT - y, y0, [0.0, 1.0], compile=True).y1.sum().backward()
    assert len(seen) == 2
    for before, after in seen:
        assert handles(before) > 40
        assert handles(after) < handles(before) / 2
