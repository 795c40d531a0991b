"""Appends numbered lines without end until it is killed, and says on stdout which it was promised.

Usage: appending_child.py DIRECTORY
"""

from __future__ import annotations

import itertools
import sys
from pathlib import Path

from scaivaultd.store.audit_file import AuditFiles

file = AuditFiles(Path(sys.argv[1]), file_bytes=200_000, keep=0)
file.resume()
for first in itertools.count(1, 10):
    file.append([b"%d %s" % (first + each, b"x" * 500) for each in range(10)], sequence=first, durably=first % 3 == 0)
    print(first + 9, flush=True)
