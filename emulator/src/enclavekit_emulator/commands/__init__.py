# SPDX-License-Identifier: Apache-2.0
"""One module per group of subcommands of nitro-emu; each imports what it needs when it runs."""
