# SPDX-License-Identifier: Apache-2.0
"""What units, the kernel and PID 1 say: kept in memory and in files, redacted, and streamed to whoever may read it."""
