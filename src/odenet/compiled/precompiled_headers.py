"""The headers that Inductor's C++ code includes, parsed once a machine: half of the compilation of a small library.

GCC and Clang read them from a file of some 180 MB, made for one set of flags. A process of its own makes it while the
first library is recorded and lowered. Nothing waits for it: until it is whole, libraries are compiled without it.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import shlex
import subprocess
import tempfile
import threading
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from .torch_private import inductor

_INCLUDES = "".join(f"#include <torch/csrc/inductor/{name}.h>\n" for name in ("cpp_wrapper/cpu", "cpp_prefix"))
_LONGEST = 600.0  # seconds after which whoever began has died


def folder() -> Path:
    """The folder of precompiled headers. It does not move with Inductor's cache: an emptied cache needs no new ones."""
    return Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}" / "odenet_headers"


def compiler_flags(optimize: bool, precompiling: bool = False) -> Any:
    """Inductor's options for its C++ compiler. optimize: -O3 in place of -O1."""
    i = inductor()
    with i.config.patch({"cpp.vec_isa_ok": True}):  # in place of a trial that takes 2 s
        isa = i.pick_vec_isa()
    return i.CppTorchDeviceOptions(vec_isa=isa, device_type="cpu", min_optimize=not optimize, precompiling=precompiling)


def precompiled_header(optimize: bool) -> Path | None:
    """The header for these flags, None while there is none. Call it under the compile lock.

    The first call starts to make it, in a process that outlives this one and does not get its Ctrl-C. Inductor's own
    setting `cpp_cache_precompile_headers` turns it off.
    """
    if os.name != "posix" or not inductor().config.cpp_cache_precompile_headers:
        return None
    flags = compiler_flags(optimize, precompiling=True)
    builder = inductor().CppBuilder(name="headers.h", sources="headers.h", BuildOption=flags)
    command, made = builder.get_command_line(), Path(builder.get_target_file_path()).name
    name = hashlib.sha256(f"{torch.__version__}{_compiler(flags.get_compiler())}{command}".encode()).hexdigest()
    place = folder() / name
    if (place / made).exists():
        return place / "headers.h"
    with suppress(OSError):  # a full or read-only disk: libraries are compiled without
        if _is_first(place):
            _start(command, place, made)
    return None


@lru_cache(maxsize=1)
def _compiler(path: str) -> str:
    """What tells two versions of a compiler apart: each reads its own headers only."""
    return subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout


def _is_first(place: Path) -> bool:
    """Whether nobody makes the header in this folder yet."""
    try:
        place.mkdir(parents=True)
    except FileExistsError:
        if time.time() - place.stat().st_mtime < _LONGEST:
            return False
        os.utime(place)
    return True


def _start(command: str, place: Path, made: str) -> None:
    """Compile in a folder of its own, and move the file to its place when it is whole."""
    (place / "headers.h").write_text(_INCLUDES)
    work = Path(tempfile.mkdtemp(dir=place))
    (work / "headers.h").write_text(_INCLUDES)
    script = f"cd {shlex.quote(str(work))} && {command} && mv {made} ..; cd .. && rm -r {shlex.quote(work.name)}"
    process = subprocess.Popen(
        ["sh", "-c", script], start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    threading.Thread(target=process.wait, daemon=True).start()
