"""Reports the progress of a solve: a tqdm bar, or the caller's function."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from ..engine.integrate import Progress


def bar(progress: bool | Progress) -> AbstractContextManager[Progress | None]:
    """A context that gives the function to report to: the caller's, that of a tqdm bar, or None."""
    return _tqdm() if progress is True else nullcontext(progress or None)


@contextmanager
def _tqdm() -> Generator[Progress]:
    try:
        from tqdm import tqdm
    except ImportError:
        raise ImportError("progress=True needs tqdm: pip install tqdm, or pass a callable (fraction, stats)") from None
    with tqdm(total=1.0, bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as tqdm_bar:

        def report(fraction: float, stats: dict[str, int]) -> None:
            tqdm_bar.update(fraction - tqdm_bar.n)
            tqdm_bar.set_postfix(stats, refresh=False)

        yield report
