"""Files that cannot be used: a line for each of the first ones, and then their number."""

import threading

MOST_NAMED = 10  # files that get a line of their own


class LeftOut:
    """The files that are left out, which threads may add at the same time."""

    def __init__(self, warn):
        """Starts with no files.

        Args:
          warn: function of a str, one line, to show to the user.
        """
        self.warn = warn
        self.lock = threading.Lock()
        self.paths, self.untold = set(), 0

    def add(self, path, error):
        """Tells that a file is left out, or only counts it if many were told. Each file counts once.

        Args:
          path: str.
          error: UserError, whose message names the file and the reason.
        """
        with self.lock:
            if path in self.paths:
                return
            self.paths.add(path)
            is_named = len(self.paths) <= MOST_NAMED
            self.untold += not is_named
        if is_named:
            self.warn(f"left out: {error}")

    def tell_rest(self):
        """Tells how many files were only counted since it was last told."""
        with self.lock:
            count, self.untold = self.untold, 0
        if count:
            self.warn(f"left out: {count} more file{'s' if count > 1 else ''} that cannot be used")
