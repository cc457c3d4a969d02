# SPDX-License-Identifier: Apache-2.0
"""`rbuilds.lock`: every input of a build, pinned."""

from enclavekit_rbuilds.lock.enforce import enforce, pin_kernel
from enclavekit_rbuilds.lock.model import FILE_NAME, Lock, load_lock, lock_of, render_lock

__all__ = ["FILE_NAME", "Lock", "enforce", "load_lock", "lock_of", "pin_kernel", "render_lock"]
