"""Tables of what was tried and held: many cases, by as many processes as there are cores."""

import multiprocessing
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor

FORK = multiprocessing.get_context("fork")


def in_parallel(attempt: Callable, cases: Sequence) -> Iterator:
    """What `attempt` makes of each case, in forks of this process, which may fork themselves."""
    with ProcessPoolExecutor(os.cpu_count(), FORK) as pool:
        yield from pool.map(attempt, cases)


def tried(attempt: Callable[..., str], cases: Sequence) -> None:
    """Prints the table's line and fails with all cases of which `attempt` says what is wrong; "" where nothing is."""
    wrong = {case: what for case, what in zip(cases, in_parallel(attempt, cases), strict=True) if what}
    print(f"tried {len(cases)}, held {len(cases) - len(wrong)}")
    assert not wrong, "\n".join(f"{case}: {what}" for case, what in wrong.items())
