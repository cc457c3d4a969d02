#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The entry that build scripts call: the checkout's own rbuilds if it is set up, else the installed one.
set -eu

self=$0
while [ -L "$self" ]; do
    target=$(readlink -- "$self")
    case $target in
        /*) self=$target ;;
        *) self=$(dirname -- "$self")/$target ;;
    esac
done
root=$(CDPATH='' cd -- "$(dirname -- "$self")/.." && pwd -P)

if [ -x "$root/.venv/bin/rbuilds" ]; then
    exec "$root/.venv/bin/rbuilds" console "$@"
fi
if command -v rbuilds >/dev/null 2>&1; then
    exec rbuilds console "$@"
fi
echo "rbuilds.sh: cannot find rbuilds: it is neither in $root/.venv nor on PATH; run $root/dev setup" >&2
exit 2
