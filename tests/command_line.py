"""The command line as a test calls it."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator

import pytest
import torch

from odenet.train import cli


@pytest.fixture(scope="module", autouse=True)
def default_dtype() -> Iterator[None]:
    """That of a program of its own, whatever the tests of the library run under."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    yield
    torch.set_default_dtype(before)


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit status of `odenet words`; its handlers of signals and threads are those of a program, so taken back."""
    monkeypatch.setattr(sys, "argv", ["odenet", *map(str, words)])
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        with pytest.raises(SystemExit) as end:
            cli.main()
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
    return int(end.value.code or 0)


def refused(words: list[str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`odenet words` ends with status 2 and one line that holds `match`."""
    assert call(monkeypatch, *words) == 2
    message = capsys.readouterr().err
    assert match in message and message.count("\n") == 1
