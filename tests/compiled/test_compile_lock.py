"""Turns at Inductor, beside its own locks of files: no two processes wait for each other."""

import threading
from pathlib import Path
from types import SimpleNamespace

from odenet.compiled import compile_lock

LONG = 60.0  # seconds, of a wait that is to end at once


def in_a_turn(own, lock, builders):
    """A thread that has Inductor make a library in its turn."""

    def run():
        with own.mine():
            from torch._inductor import codecache

            codecache._worker_compile_cpp(str(lock), builders)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread


def test_a_turn_is_given_up_while_another_process_has_the_file(tmp_path: Path) -> None:
    from torch.utils._filelock import FileLock

    own, lock = compile_lock.Turns(), tmp_path / "library.lock"
    with FileLock(str(lock)):  # as another process holds it
        thread = in_a_turn(own, lock, ())
        for _ in range(2):
            assert own.lock.acquire(timeout=LONG)
            own.lock.release()
            thread.join(0.2)
        assert thread.is_alive()
    thread.join(LONG)
    assert not thread.is_alive() and own.users == 0


def test_the_file_is_given_up_before_a_turn_is_waited_for(tmp_path: Path) -> None:
    from torch.utils._filelock import FileLock

    own, lock = compile_lock.Turns(), tmp_path / "library.lock"
    building, go_on = threading.Event(), threading.Event()

    def build() -> None:
        building.set()
        assert go_on.wait(LONG)

    builder = SimpleNamespace(get_target_file_path=lambda: str(tmp_path / "none.so"), build=build)
    thread = in_a_turn(own, lock, (builder,))
    assert building.wait(LONG)
    with own.lock:  # the turn of another thread, which needs the file
        go_on.set()
        with FileLock(str(lock), timeout=LONG):
            pass
        assert thread.is_alive()
    thread.join(LONG)
    assert not thread.is_alive() and own.users == 0
