"""A trained network as programs that run without odenet: torch.export and ONNX."""

from __future__ import annotations

import io
import json
import logging
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..nn import NeuralODE
from .files import write
from .trained import open_run
from .user_error import UserError


def export(folder: Path, out: Path) -> tuple[list[Path], dict[str, float]]:
    """Write model.pt2, model.onnx and model.json; gives the files, and how far each program is from the network."""
    run = open_run(folder)
    example = run.task.example(run.info)
    for module in ("onnx", "onnxruntime", "onnxscript"):
        if find_spec(module) is None:
            raise UserError(f'{module} is missing: pip install "torch-odenet[onnx]"')
    solves = any(isinstance(module, NeuralODE) for module in run.net.modules())
    tolerance = run.settings.tolerance if solves else 1e-4
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, on their own insides
        batch = torch.export.Dim("batch", min=1)
        program = torch.export.export(run.net, (example,), dynamic_shapes=({0: batch},))
        buffer = io.BytesIO()
        torch.export.save(program, buffer)
        files = {"model.pt2": buffer.getvalue(), "model.onnx": _onnx(program, example)}
        wider = torch.cat([example, example[:1]])
        outputs = {
            "model.pt2": torch.export.load(io.BytesIO(files["model.pt2"])).module()(wider),
            "model.onnx": _run_onnx(files["model.onnx"], wider),
        }
        wanted = run.net(wider)
    differences = {name: float((y - wanted).abs().max() / wanted.abs().max()) for name, y in outputs.items()}
    for name, difference in differences.items():
        if not difference <= tolerance:  # so for NaN
            raise UserError(
                f"{name} differs from the network by {difference:.1e} of the largest entry, more than {tolerance:.1e}: "
                "not written; train with a lower --tolerance"
            )
    about = {"input_shape": ["batch", *example.shape[1:]], **run.info, "difference": differences}
    written = [write(out / name, content) for name, content in files.items()]
    return [*written, write(out / "model.json", json.dumps(about, indent=2) + "\n")], differences


def _onnx(program: Any, example: Tensor) -> bytes:
    made: Any = torch.onnx.export(
        program, (example,), dynamo=True, input_names=["x"], output_names=["y"], verbose=False
    )
    return made.model_proto.SerializeToString()


def _run_onnx(model: bytes, x: Tensor) -> Tensor:
    import onnxruntime  # pyright: ignore[reportMissingImports]  # the onnx extra, which `make setup` leaves out

    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"x": x.numpy()})[0])
