# SPDX-License-Identifier: Apache-2.0
"""`python3 -m enclavekit_ra_web_srv`."""

import sys

from enclavekit_ra_web_srv.cli import main

sys.exit(main())
