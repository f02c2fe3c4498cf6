"""Every name beyond PyTorch's public API that compiled solves use. No other file here imports a private module.

A table lists each name with the parameters that are passed to it. A group is checked when it is first loaded, so
another PyTorch version gives one error that names what is missing, and the solve is eager. tests/compiled checks all.
"""

from __future__ import annotations

import importlib
import inspect
import signal
import sys
import threading
import warnings
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from functools import lru_cache, reduce
from types import SimpleNamespace
from typing import Any

import torch

WORKS_WITH = "2.10 to 2.15"  # docs/quality.md has the test runs

Names = Mapping[str, tuple[str, ...]]
"""Parameters that a callable must have, by "module:name"."""

TORCH: Names = {
    "torch._C._functorch:get_dynamic_layer_stack_depth": (),
    "torch._C._functorch:pop_dynamic_layer_stack_and_undo_to_depth": (),
    "torch._C:_len_torch_function_stack": (),
    "torch._C:_len_torch_dispatch_stack": (),
    "torch._C:_pop_torch_function_stack": (),
    "torch._C:_pop_torch_dispatch_stack": (),
    "torch.autograd.forward_ad:_current_level": (),
    "torch:_foreach_copy_": (),
}
RUNTIME: Names = {
    "torch._C._aoti:unsafe_alloc_void_ptrs_from_tensors": (),
    "torch._C._aoti:alloc_tensors_by_stealing_from_void_ptrs": (),
    "torch._C._dynamo.guards:_torchinductor_pyobject_tensor_data_ptr": (),
}
DYNAMO: Names = {
    "torch._dynamo:config": (),
    "torch._dynamo.config:record_runtime_overhead": (),
    "torch._dynamo.symbolic_convert:InstructionTranslator.current_tx": (),
    "torch._dynamo.side_effects:SideEffects.is_modified": ("item",),
    "torch._dynamo.variables.base:AttributeMutationNew": (),
    "torch._dynamo.variables.base:ValueMutationNew": (),
}
RECORDING: Names = {
    "torch._subclasses.fake_tensor:FakeTensorMode": ("allow_non_fake_inputs", "shape_env", "static_shapes"),
    "torch._functorch.compile_utils:fx_graph_cse": ("fx_g",),
    "torch._inductor.decomposition:select_decomp_table": (),
    "torch._ops:HigherOrderOperator": (),
    "torch.fx.experimental.proxy_tensor:make_fx": ("f", "decomposition_table", "_allow_non_fake_inputs"),
    "torch.fx.experimental.symbolic_shapes:ShapeEnv": (),
}
_WRAPPER = "torch._inductor.codegen.cpp_wrapper_cpu:CppWrapperCpu"
INDUCTOR: Names = {
    "torch._inductor.compile_fx:compile_fx_inner": ("gm", "example_inputs"),
    "torch._inductor:config": (),
    "torch._inductor.config:cpp_wrapper_build_separate": (),
    "torch._inductor.config:cpp.vec_isa_ok": (),
    "torch._inductor.config:cpp_cache_precompile_headers": (),
    "torch._inductor.virtualized:V.set_fake_mode": (),
    "torch._inductor.codegen.common:register_backend_for_device": (
        *("device", "device_scheduling", "device_wrapper_codegen", "device_cpp_wrapper_codegen"),
        *("device_fx_wrapper_codegen", "device_custom_pass", "device_custom_config"),
    ),
    "torch._inductor.codegen.common:get_scheduling_for_device": ("device",),
    "torch._inductor.codegen.common:get_wrapper_codegen_for_device": ("device", "cpp_wrapper", "fx_wrapper"),
    "torch._inductor.codegen.common:get_custom_backend_pass_for_device": ("device",),
    "torch._inductor.codegen.common:get_custom_backend_config_for_device": ("device",),
    "torch._inductor.codegen.common:init_backend_registration": (),
    _WRAPPER: (),
    f"{_WRAPPER}.create": ("is_subgraph", "subgraph_name", "parent_wrapper", "partition_signatures"),
    f"{_WRAPPER}.codegen_while_loop": ("while_loop", "stack_output"),
    f"{_WRAPPER}.codegen_subgraph_prefix": ("subgraph", "outer_inputs", "outer_outputs"),
    f"{_WRAPPER}.codegen_subgraph_suffix": ("subgraph", "outer_inputs", "outer_outputs"),
    f"{_WRAPPER}.codegen_exact_buffer_reuse": ("old_name", "new_name", "del_line"),
    f"{_WRAPPER}.make_buffer_free": ("buffer",),
    f"{_WRAPPER}.run_wrapper_ir_passes": ("is_inference",),
    f"{_WRAPPER}.generate_end": ("result",),
    "torch._inductor.codegen.wrapper:AllocateLine": ("node",),
    "torch._inductor.codegen.wrapper:ReuseLine": ("node", "reused_as"),
    "torch._inductor.codegen.wrapper:ReinterpretLine": ("node", "reused_as"),
    "torch._inductor.codegen.wrapper:EnterSubgraphLine": ("graph",),
    "torch._inductor.codegen.wrapper:ExitSubgraphLine": (),
    "torch._inductor.codecache:CppWrapperCodeCache.load_pybinding_async": ("argtypes", "main_code", "num_outputs"),
    "torch._inductor.codecache:CppWrapperCodeCache.load_async": ("main_code",),
    "torch._inductor.codecache:CppWrapperCodeCache": (),
    "torch._inductor.cpp_builder:CppBuilder": ("name", "sources", "BuildOption", "output_dir"),
    "torch._inductor.cpp_builder:CppTorchDeviceOptions": ("vec_isa", "device_type", "min_optimize", "precompiling"),
    "torch._inductor.cpu_vec_isa:pick_vec_isa": (),
}
ONEDNN: Names = {
    "torch._inductor:ir": (),
    "torch._inductor.ir:ExternKernel.realize_input": ("x",),
    "torch._inductor.ir:FixedLayout": ("device", "dtype", "size"),
    "torch._inductor.ir:TensorBox.create": ("data",),
    "torch._inductor.lowering:register_lowering": ("aten_fn", "type_promotion_kind"),
    "torch._inductor.mkldnn_ir:LinearUnary": ("layout", "inputs", "constant_args"),
}


class UnsupportedTorchError(Exception):
    """This PyTorch lacks a name that compiled solves use, or has it with other parameters."""


def problem_with(place: str, parameters: tuple[str, ...]) -> str | None:
    """What is wrong with a name of the tables in this PyTorch; None if nothing is."""
    try:
        value = _found(place)
    except (ImportError, AttributeError):
        return f"has no {place.replace(':', '.')}"
    if parameters:
        known = inspect.signature(value).parameters
        missing = [name for name in parameters if name not in known]
        if missing:
            return f"has {place.replace(':', '.')} without the parameter {missing[0]!r}"
    return None


def _found(place: str) -> Any:
    module, _, path = place.partition(":")
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError:  # modules of torch._C are attributes
        owner = reduce(getattr, module.split(".")[1:], torch)
    return reduce(getattr, path.split("."), owner)


def _checked(names: Names, first: str) -> Any:
    """The named values by their last name. first: the module to import without its warnings."""
    import_quietly(first)
    for place, parameters in names.items():
        problem = problem_with(place, parameters)
        if problem is not None:
            raise UnsupportedTorchError(
                f"PyTorch {torch.__version__} {problem}: compile=True works with PyTorch {WORKS_WITH}"
            )
    return SimpleNamespace(**{p.partition(":")[2]: _found(p) for p in names if "." not in p.partition(":")[2]})


@lru_cache(maxsize=1)
def runtime() -> Any:
    """What loads and calls a library."""
    return _checked(RUNTIME, "torch")


@lru_cache(maxsize=1)
def dynamo() -> Any:
    """TorchDynamo's configuration and side effects."""
    names = _checked(DYNAMO, "torch._dynamo")
    names.InstructionTranslator = _found("torch._dynamo.symbolic_convert:InstructionTranslator")
    return names


@lru_cache(maxsize=1)
def recording() -> Any:
    """What records a graph of core operations."""
    return _checked(RECORDING, "torch._inductor.compile_fx")


@lru_cache(maxsize=1)
def inductor() -> Any:
    """Inductor's lowering, its C++ wrapper and its C++ builder."""
    names = _checked(INDUCTOR, "torch._inductor.compile_fx")
    names.V = _found("torch._inductor.virtualized:V")
    return names


@lru_cache(maxsize=1)
def onednn() -> Any:
    """Inductor's nodes for products by oneDNN."""
    names = _checked(ONEDNN, "torch._inductor.mkldnn_ir")
    return names


def foreach_copy(targets: list[torch.Tensor], sources: list[torch.Tensor]) -> None:
    """Copy each source into its target: one launch for all tensors of a kind."""
    _found("torch:_foreach_copy_")(targets, sources)


def import_quietly(module: str) -> None:
    """Import a module of PyTorch's compiler without the deprecation warnings that PyTorch causes itself.

    Ctrl-C waits until the import ends: a module that is loaded by half would stay in the process.
    """
    if module not in sys.modules:
        with uninterrupted(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            importlib.import_module(module)


@contextmanager
def uninterrupted() -> Generator[None]:
    """Delay Ctrl-C to the end of the block."""
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield  # the signal goes to the main thread, or to nobody
        return
    received: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda *given: received.append(given))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if received:
            before(*received[0])


class InterpreterState:
    """PyTorch's thread-local state: transforms, modes and flags. `restore` brings it back after an error."""

    def __init__(self) -> None:
        state: Any = torch._C  # pyright: ignore[reportPrivateUsage]
        self._depth = state._functorch.get_dynamic_layer_stack_depth()
        self._level = _forward_ad()._current_level
        self._functions, self._dispatches = state._len_torch_function_stack(), state._len_torch_dispatch_stack()

    def restore(self) -> None:
        """Leave the transforms, dual levels and modes that were entered since."""
        state: Any = torch._C  # pyright: ignore[reportPrivateUsage]
        if state._functorch.get_dynamic_layer_stack_depth() > self._depth:
            state._functorch.pop_dynamic_layer_stack_and_undo_to_depth(self._depth)
        while _forward_ad()._current_level > self._level:
            _forward_ad().exit_dual_level()
        while state._len_torch_function_stack() > self._functions:
            state._pop_torch_function_stack()
        while state._len_torch_dispatch_stack() > self._dispatches:
            state._pop_torch_dispatch_stack()


def _forward_ad() -> Any:
    return importlib.import_module("torch.autograd.forward_ad")


GROUPS: tuple[Names, ...] = (TORCH, RUNTIME, DYNAMO, RECORDING, INDUCTOR, ONEDNN)


def has_unbacked_symbols(shape_env: Any) -> bool:
    """Whether a recording read a number from a computed tensor: PyTorch names such symbols u0, zuf0 and so on."""
    return any(str(symbol).startswith(("u", "zuf")) for symbol in shape_env.var_to_range)
