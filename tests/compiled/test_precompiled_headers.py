"""Precompiled headers: made once by a process that nothing waits for, taken when whole, and never needed."""

import os
import subprocess
import time

import pytest

from odenet.compiled import precompiled_headers
from odenet.compiled.compile_lock import compiling
from odenet.compiled.torch_private import inductor


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(precompiled_headers, "folder", lambda: tmp_path / "headers")
    return tmp_path / "headers"


@pytest.fixture
def processes(monkeypatch):
    """The processes that were started, each with its shell script."""
    started = []

    class Recorded(subprocess.Popen):
        def __init__(self, args, **options):
            super().__init__(args, **options)
            if args[0] == "sh":
                assert options["start_new_session"]  # Ctrl-C is not for it
                started.append(self)

    monkeypatch.setattr(subprocess, "Popen", Recorded)
    return started


def compiles_in(seconds, monkeypatch, command=None):
    """A compiler that takes so long to write the header; or another command."""
    monkeypatch.setattr(
        inductor().CppBuilder, "get_command_line", lambda self: command or f"sleep {seconds} && echo ok > headers.h.gch"
    )


def asked():
    with compiling():
        return precompiled_headers.precompiled_header(optimize=False)


def test_one_process_makes_it_and_nothing_waits(folder, processes, monkeypatch):
    compiles_in(1, monkeypatch)
    assert [asked() for _ in range(3)] == [None] * 3
    (process,) = processes
    assert process.wait(60) == 0
    header = asked()
    assert header is not None and header.is_relative_to(folder) and "cpp_prefix.h" in header.read_text()
    assert sorted(p.name for p in header.parent.iterdir()) == ["headers.h", "headers.h.gch"]
    assert len(processes) == 1


def test_without_it_where_it_cannot_be_made(folder, processes, monkeypatch):
    """A compiler that fails leaves no file, and is asked again when ten minutes have passed, no sooner."""
    compiles_in(0, monkeypatch, command="false")
    assert asked() is None and processes[0].wait(60) == 0
    (place,) = folder.iterdir()
    assert [p.name for p in place.iterdir()] == ["headers.h"]
    assert asked() is None and len(processes) == 1
    os.utime(place, (time.time() - 700.0,) * 2)
    assert asked() is None and len(processes) == 2


def test_without_it_on_a_disk_that_takes_nothing(folder, processes, monkeypatch):
    folder.write_text("a file in its place")
    assert asked() is None and processes == []
    folder.unlink()
    monkeypatch.setattr("tempfile.mkdtemp", full)
    assert asked() is None and processes == []


def full(**_):
    raise OSError("no space left on device")


def test_turned_off(folder, processes):
    with inductor().config.patch(cpp_cache_precompile_headers=False):
        assert asked() is None
    assert not folder.exists() and processes == []


def test_another_compiler_makes_another(folder, processes, monkeypatch):
    compiles_in(0, monkeypatch)
    for version in ("12.2", "14.2", "12.2"):
        monkeypatch.setattr(precompiled_headers, "_compiler", lambda path, version=version: version)
        asked()
    assert len(processes) == 2


@pytest.mark.skipif("clang" in os.environ.get("CXX", ""), reason="Clang's -H does not tell")
def test_gcc_takes_the_header(tmp_path):
    """The flags are those of a library: with a header of others GCC would parse anew, or warn."""
    deadline = time.time() + 280.0
    while (header := asked()) is None and time.time() < deadline:
        time.sleep(0.5)
    assert header is not None
    flags = precompiled_headers.compiler_flags(optimize=False)
    flags.precompiled_header = header
    (tmp_path / "loop.cpp").write_text("#include <torch/csrc/inductor/cpp_prefix.h>\nint main() { return 0; }\n")
    builder = inductor().CppBuilder(name="loop", sources="loop.cpp", BuildOption=flags)
    command = [*builder.get_command_line().split(), "-H", "-Winvalid-pch"]
    said = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stderr
    assert said.startswith(f"! {header}.gch") and "invalid" not in said  # "!" stands before one that was taken
