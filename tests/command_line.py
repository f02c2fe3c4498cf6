"""The command line as a test calls it."""

from __future__ import annotations

import sys

import pytest

from odenet.train import cli


def call(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    """The exit status of `odenet words`."""
    monkeypatch.setattr(sys, "argv", ["odenet", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return int(end.value.code or 0)


def refused(words: list[str], match: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """`odenet words` ends with status 2 and one line that holds `match`."""
    assert call(monkeypatch, *words) == 2
    message = capsys.readouterr().err
    assert match in message and message.count("\n") == 1
