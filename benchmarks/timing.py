"""What benchmarks share: times of the processor in rounds, and tables of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Hashable, Mapping
from typing import TypeVar

Name = TypeVar("Name", bound=Hashable)
Tables = Mapping[str, Mapping[str, float]]


def medians(
    variants: Mapping[Name, Callable[[], object]], rounds: int, *, warm_up: int = 1
) -> dict[Name, float]:
    """Seconds of the processor for each variant, of which each round runs every one in turn."""
    times: dict[Name, list[float]] = {name: [] for name in variants}
    for _ in range(warm_up + rounds):
        for name, run in variants.items():
            start = time.process_time()
            run()
            times[name].append(time.process_time() - start)
    return {name: statistics.median(taken[warm_up:]) for name, taken in times.items()}


def show(tables: Tables) -> None:
    """Print tables, one below the other."""
    width = max(len(name) for table in tables.values() for name in table)
    for title, table in tables.items():
        print(f"\n{title}")
        for name, value in table.items():
            print(f"  {name:<{width}}{value:12.3f}")
