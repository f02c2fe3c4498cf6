"""A trained network as programs that run without odenet: torch.export and ONNX."""

from __future__ import annotations

import io
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .errors import UserError, first_line
from .files import write
from .trained import opened

TOLERANCE = 1e-4  # of the largest entry: a program may take its sums in another order, and so other steps


def export(run: Path, out: Path) -> tuple[list[Path], dict[str, float]]:
    """Write model.pt2, model.onnx and model.json; gives the files, and how far each program is from the network."""
    task, settings, info, net = opened(run)
    for name, needed in (("onnx", "onnx"), ("onnxruntime", "onnx"), ("onnxscript", "onnx")):
        _needed(name, needed)
    example = task.example(settings, info)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, on their own insides
        program, dynamic = _exported(net, example)
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        onnx = _onnx(program, example, dynamic)
        wide = torch.cat([example, example.flip(0)[:1]]) if dynamic else example
        wanted = net(wide)
        loaded = torch.export.load(io.BytesIO(buffer.getvalue())).module()
        differences = {"model.pt2": _apart(loaded(wide), wanted), "model.onnx": _apart(_run_onnx(onnx, wide), wanted)}
    for name, apart in differences.items():
        if not apart <= TOLERANCE:  # so for NaN
            raise UserError(f"{name} gives {apart:.1e} of the largest entry away from the network: it was not written")
    about = {
        "inputs": {"name": "x", "shape": ["batch" if dynamic else len(example), *example.shape[1:]], "dtype": "float32"},
        **{key: value for key, value in info.items()},
        "differences": differences,
    }
    files = [write(out / "model.pt2", buffer.getvalue()), write(out / "model.onnx", onnx)]
    return [*files, write(out / "model.json", json.dumps(about, indent=2) + "\n")], differences


def _needed(module: str, extra: str) -> None:
    try:
        __import__(module)
    except ImportError:
        raise UserError(f'{module} is missing: pip install "torch-odenet[{extra}]"') from None


def _exported(net: nn.Module, example: Tensor) -> tuple[Any, bool]:
    """The program, and whether its batch may have any size; of a fixed one where the network does not allow that."""
    batch = torch.export.Dim("batch", min=1)
    try:
        return torch.export.export(net, (example,), dynamic_shapes=({0: batch},)), True
    except (torch.export.UserError if hasattr(torch.export, "UserError") else ValueError, RuntimeError):
        return torch.export.export(net, (example,)), False


def _onnx(program: Any, example: Tensor, dynamic: bool) -> bytes:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    made = torch.onnx.export(program, (example,), dynamo=True, input_names=["x"], output_names=["y"], verbose=False)
    assert made is not None
    return made.model_proto.SerializeToString()


def _run_onnx(model: bytes, x: Tensor) -> Tensor:
    import onnxruntime

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {session.get_inputs()[0].name: x.numpy()})[0])


def _apart(given: Tensor, wanted: Tensor) -> float:
    return float((given - wanted).abs().max() / wanted.abs().max())
