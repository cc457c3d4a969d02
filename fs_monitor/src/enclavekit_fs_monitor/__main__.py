# SPDX-License-Identifier: Apache-2.0
"""`python3 -m enclavekit_fs_monitor`."""

import sys

from enclavekit_fs_monitor.cli import main

sys.exit(main())
