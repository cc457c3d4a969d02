# SPDX-License-Identifier: Apache-2.0
"""What a running proxy says about itself: collected in its workers, asked for over a socket, printed or scraped."""
