"""The daemon under cProfile: `python -m bench.profiled STATISTICS serve ...`; written when it ends.

Only the event loop's thread is seen, and seeing it makes Python code look dearer than C: good for shares, not for
absolute figures.
"""

from __future__ import annotations

import cProfile
import sys

from scaivaultd.__main__ import main


def run() -> None:
    """Run the daemon's command line and write the profile."""
    statistics = sys.argv.pop(1)
    profile = cProfile.Profile()
    profile.enable()
    try:
        main()
    finally:
        profile.disable()
        profile.dump_stats(statistics)


if __name__ == "__main__":
    run()
