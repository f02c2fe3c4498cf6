"""The shape of the package: which way imports point, what an import costs, how long a file and a function may be."""

import ast
import importlib
import inspect
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent.parent / "src"

# Bottom to top. `import odenet` itself is a layer: it gathers everything up to nn.
LAYERS = (
    "core",
    "methods",
    "control",
    "engine",
    "gradients",
    "tracing",
    "compiled",
    "events",
    "api",
    "series",
    "nn",
    "odenet",
)
LAYERS += ("compat", "train")
HEIGHT = {layer: height for height, layers in enumerate(LAYERS) for layer in layers.split()}

# The engine is composed with methods and controllers, so it may name what they have in common and nothing else.
ENGINE_MAY_NAME = {
    "odenet.methods.method",
    *(f"odenet.control.{name}" for name in ("controller", "first_step", "stop_times")),
}

HEAVY = {
    *(
        "aeon",
        "diffrax",
        "dm_control",
        "h5py",
        "jax",
        "lightning",
        "matplotlib",
        "ot",
        "pooch",
        "pyarrow",
        "rich",
        "scipy",
        "sklearn",
    ),
    *("pandas", "polars", "tensorboard", "torchdiffeq", "zuko"),
    *("pysiglib", "signatory", "torchcde", "torchode", "torchsde", "tqdm", "typer"),
}

LONGEST_FILE, LONGEST_FUNCTION = 350, 60
SLOWEST_IMPORT = 0.25  # seconds, on top of torch


def _module_name(file: Path) -> str:
    parts = file.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {_module_name(file): file for file in sorted((SOURCE / "odenet").rglob("*.py"))}
TREES = {name: ast.parse(file.read_text(encoding="utf-8"), file.name) for name, file in FILES.items()}


def _package(module: str) -> str:
    return module if FILES[module].name == "__init__.py" else module.rpartition(".")[0]


def _imports(module: str) -> Iterator[tuple[int, str]]:
    """Line and absolute name of each import, wherever it stands: in a function, under TYPE_CHECKING."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = node.module or ""
            if node.level:
                above = _package(module).split(".")[: 1 - node.level or None]
                source = ".".join([*above, source] if source else above)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                yield node.lineno, inner if inner in FILES else source


def _layer(module: str) -> str:
    parts = module.split(".")
    if len(parts) == 1:
        return "odenet"
    return parts[1] if parts[1] in HEIGHT or parts[1] == "errors" else "root"


def _wrong_way(module: str, target: str) -> str | None:
    """Why `module` may not import `target`, both of odenet; None where it may."""
    here, there = _layer(module), _layer(target)
    if there == "errors" or here == there:
        return None
    if here == "errors":
        return None if there == "core" else f"errors may import core, not {there}"
    if HEIGHT[there] >= HEIGHT[here]:
        return f"{here} lies {'beside' if HEIGHT[there] == HEIGHT[here] else 'below'} {there}; imports point down only"
    if here == "engine" and there != "core" and target not in ENGINE_MAY_NAME:
        return f"the engine may name of {there} only {', '.join(sorted(m for m in ENGINE_MAY_NAME if there in m))}"
    return None


def _none(problems: list[str]) -> None:
    assert not problems, "\n  ".join(["", *problems])


def test_the_package_is_found():
    assert "odenet" in FILES
    assert "odenet.core.leaves" in FILES


def test_no_module_name_stands_twice():
    """A name in a traceback or an editor's tab says which file it is. torchdiffeq's own module names are not ours."""
    files: dict[str, list[str]] = {}
    for module, file in FILES.items():
        if not file.name.startswith("__"):
            files.setdefault(file.name, []).append(module)
    _none([f"{name} stands for {', '.join(modules)}" for name, modules in files.items() if len(modules) > 1])


def test_every_package_is_a_layer():
    folders = {name.split(".")[1] for name, file in FILES.items() if name != "odenet" and file.parent.name != "odenet"}
    _none([f"src/odenet/{name} has no place in LAYERS" for name in sorted(folders - HEIGHT.keys())])


def test_imports_point_down():
    _none(
        [
            f"{FILES[module].relative_to(SOURCE)}:{line} imports {target}: {reason}"
            for module in FILES
            for line, target in _imports(module)
            if target.split(".")[0] == "odenet" and (reason := _wrong_way(module, target))
        ]
    )


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("odenet.core.vector_field", "odenet.methods.method"),
        ("odenet.methods.explicit", "odenet.control.controller"),
        ("odenet.engine.loop", "odenet.gradients.gradient"),
        ("odenet.engine.loop", "odenet.methods.explicit"),
        ("odenet.engine.loop", "odenet.methods"),
        ("odenet.engine.loop", "odenet.control.pid"),
        ("odenet.gradients.gradient", "odenet.api.solve"),
        ("odenet.api.solution", "odenet.nn"),
        ("odenet.nn.layer", "odenet"),
        ("odenet.compat.torchdiffeq", "odenet.train.cli"),
        ("odenet.nn.layer", "odenet.compat.torchdiffeq"),
        ("odenet.errors", "odenet.engine.problem"),
    ],
)
def test_the_rule_refuses(module, target):
    assert _wrong_way(module, target)


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("odenet.core.vector_field", "odenet.errors"),
        ("odenet.errors", "odenet.core.status"),
        ("odenet.engine.loop", "odenet.control.first_step"),
        ("odenet.engine.loop", "odenet.methods.method"),
        ("odenet.api.solve", "odenet.api.solution"),
        ("odenet.nn.layer", "odenet.api.solve"),
        ("odenet.train.cli", "odenet"),
    ],
)
def test_the_rule_allows(module, target):
    assert _wrong_way(module, target) is None


def test_only_one_module_touches_pytrees():
    _none(
        [
            f"{file.relative_to(SOURCE)}:{number} uses _pytree: only core/pytrees.py may"
            for module, file in FILES.items()
            if module != "odenet.core.pytrees"
            for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1)
            if re.search(r"\b_pytree\b", line)
        ]
    )


def test_files_are_short():
    lengths = {file: len(file.read_text(encoding="utf-8").splitlines()) for file in FILES.values()}
    _none(
        [
            f"{file.relative_to(SOURCE)} has {length} lines, more than {LONGEST_FILE}: it has two jobs"
            for file, length in lengths.items()
            if length > LONGEST_FILE
        ]
    )


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without those of its docstring: a public one may need many, and code is what this bounds."""
    lines = (function.end_lineno or function.lineno) - function.lineno + 1
    first = function.body[0]
    return lines - ((first.end_lineno or first.lineno) - first.lineno + 1 if ast.get_docstring(function) else 0)


def test_functions_are_short():
    _none(
        [
            f"{FILES[module].relative_to(SOURCE)}:{node.lineno} {node.name} has {length} lines without its docstring, "
            f"more than {LONGEST_FUNCTION}"
            for module, tree in TREES.items()
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (length := _length(node)) > LONGEST_FUNCTION
        ]
    )


@pytest.mark.parametrize("name", sorted(name for name in FILES if name.split(".")[1:2] in ([], ["nn"], ["compat"])))
def test_public_names_are_documented(name):
    module = importlib.import_module(name)
    things = {public: getattr(module, public) for public in getattr(module, "__all__", ())}
    _none(
        [
            f"{name}.{public} has no docstring"
            for public, thing in things.items()
            if (inspect.isclass(thing) or inspect.isroutine(thing)) and not thing.__doc__
        ]
    )


_IMPORT = """
import json, sys, time
import torch
before = set(sys.modules)
start = time.perf_counter()
import odenet
seconds = time.perf_counter() - start
print(json.dumps({"seconds": seconds, "modules": sorted(set(sys.modules) - before)}))
"""


def _fresh_import() -> tuple[float, set[str]]:
    """Seconds that `import odenet` takes in a new interpreter that has torch already, and the modules it adds."""
    # with compiled modules, as an installed package has them
    kept = Path(tempfile.gettempdir()) / f"odenet-import-{os.getpid()}"
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    environment["PYTHONPYCACHEPREFIX"] = str(kept)
    out = subprocess.run(
        [sys.executable, "-c", _IMPORT], capture_output=True, text=True, check=False, timeout=120, env=environment
    )
    assert out.returncode == 0, f"`import odenet` failed:\n{out.stderr}"
    found = json.loads(out.stdout.splitlines()[-1])
    return found["seconds"], set(found["modules"])


def test_import_is_light():
    seconds, modules = _fresh_import()
    heavy = sorted({module.split(".")[0] for module in modules} & HEAVY)
    assert not heavy, f"`import odenet` imports {', '.join(heavy)}; import them inside the function that needs them"
    for _ in range(2):  # the best of three: a busy machine is not the package's fault
        if seconds < SLOWEST_IMPORT:
            break
        seconds = min(seconds, _fresh_import()[0])
    assert seconds < SLOWEST_IMPORT, (
        f"`import odenet` takes {seconds:.2f} s on top of torch, more than {SLOWEST_IMPORT} s; "
        f"it adds {len(modules)} modules: python -X importtime -c 'import torch, odenet' names the slow one"
    )


_ALONE = """
import importlib, sys, warnings

for name in {refused}:
    sys.modules[name] = None  # as if it were not installed
warnings.simplefilter("ignore")  # of PyTorch, which does without NumPy
for name in {modules}:
    importlib.import_module(name)
"""


def test_the_library_needs_torch_alone():
    """Every module but those of the command line imports where no other package is installed, NumPy neither."""
    refused = HEAVY | {"numpy"}
    modules = [name for name in FILES if _layer(name) != "train" and not name.endswith("__main__")]
    code = _ALONE.format(refused=sorted(refused), modules=modules)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=120)
    assert out.returncode == 0, out.stderr[-2000:]


@pytest.mark.parametrize("module", FILES)
def test_a_method_calls_its_parent_by_its_own_name(module: str) -> None:
    """One that is renamed without its parent, or the other way round, is an override no more: nobody calls it."""
    methods = [m for c in ast.walk(TREES[module]) if isinstance(c, ast.ClassDef) for m in c.body]
    for method in methods:
        if isinstance(method, ast.FunctionDef):
            calls = (n.func for n in ast.walk(method) if isinstance(n, ast.Call) and isinstance(n.func, ast.Attribute))
            named = [f.attr for f in calls if isinstance(f.value, ast.Call) and ast.unparse(f.value.func) == "super"]
            assert set(named) <= {method.name}, f"{method.name} calls super().{named[0]}"
