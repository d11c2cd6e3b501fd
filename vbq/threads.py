"""Work on all cores. Threads are enough, because NumPy and Pillow release the interpreter lock."""

import os
from concurrent.futures import ThreadPoolExecutor

from vbq.command import progress


def cores():
    """Returns the number of cores that this process may use; a container may have fewer than the machine."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def parallel(function, items, threads=None, desc=None):
    """Applies a function to every item, in threads.

    Args:
      function: function of one item.
      items: sequence.
      threads: int, by default one per core. With 1 the calling thread does the work.
      desc: str, the label of a progress bar, or None for no bar.

    Returns:
      List of the results, in the order of the items.
    """
    items = list(items)
    threads = min(threads or cores(), len(items))
    if threads <= 1:
        return [function(item) for item in _with_bar(items, len(items), desc)]
    with ThreadPoolExecutor(threads) as pool:
        return list(_with_bar(pool.map(function, items), len(items), desc))


def _with_bar(iterable, total, desc):
    return progress(iterable, total=total, desc=desc, unit="block") if desc else iterable
