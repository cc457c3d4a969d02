# SPDX-License-Identifier: Apache-2.0
"""The directories of a tree, open: what is in them is reached by one name at a time, and never through a link.

Whoever else may write to the tree (the app in an enclave, say) can put a link where a directory was, at any moment;
hence no path is ever given to the kernel as a whole.
"""

from __future__ import annotations

import os
from collections import OrderedDict

from enclavekit_core.errors import InputError, describe_cause

from enclavekit_pipeline.wire.tree_order import parent_of, shown

OPEN_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
MAX_OPEN = 16  # descriptors kept; trees are walked along branches, so this is nearly always enough


class Directories:
    """Of the tree below the open directory `root`, which belongs to this object from now on."""

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: OrderedDict[bytes, int] = OrderedDict()

    def get(self, path: bytes) -> int:
        """Return a descriptor, good until the next call. Raises OSError."""
        if not path:
            return self._root
        if path in self._open:
            self._open.move_to_end(path)
            return self._open[path]
        descriptor = self._walk(path)
        self._open[path] = descriptor
        if len(self._open) > MAX_OPEN:
            os.close(self._open.popitem(last=False)[1])
        return descriptor

    def _walk(self, path: bytes) -> int:
        """Open from the nearest directory that is open already."""
        above, missing = path, []
        while above and above not in self._open:
            missing.append(above.rpartition(b"/")[2])
            above = parent_of(above)
        current = os.dup(self._open[above] if above else self._root)
        for name in reversed(missing):
            try:
                following = os.open(name, OPEN_DIRECTORY, dir_fd=current)
            finally:
                os.close(current)
            current = following
        return current

    def locate(self, path: bytes) -> tuple[int, bytes]:
        """Return (descriptor of the directory that `path` is in, its name there). Raises OSError."""
        return self.get(parent_of(path)), path.rpartition(b"/")[2]

    def close(self) -> None:
        """Idempotent."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        if self._root >= 0:
            os.close(self._root)
            self._root = -1


def copy_error(label: str, path: bytes, exc: OSError) -> InputError:
    """Return "cannot copy LABEL/PATH: cause"."""
    whole = f"{label.rstrip('/')}/{shown(path)}" if path else label
    cause = describe_cause(exc) if exc.strerror == os.strerror(exc.errno or 0) else str(exc.strerror)
    return InputError("copy", whole, cause)
