"""The progress of a solve, on a bar or handed to the caller."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ..engine.integrate import Progress


def bar(progress: bool | Progress) -> AbstractContextManager[Progress | None]:
    """The callback to report to: the caller's, that of a tqdm bar, or None."""
    return _tqdm() if progress is True else nullcontext(progress or None)


@contextmanager
def _tqdm() -> Iterator[Progress]:
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass a callable (fraction, stats)") from None
    with tqdm(total=1.0, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as shown:

        def report(fraction: float, stats: dict[str, int]) -> None:
            shown.update(fraction - shown.n)
            shown.set_postfix(stats, refresh=False)

        yield report
