# SPDX-License-Identifier: Apache-2.0
"""`rbuilds console`, behind rbuilds.sh: the flags and command names of the Rust framework's script, over rbuilds."""
