# SPDX-License-Identifier: Apache-2.0
"""Subcommands of `eif` that grew beyond the parser, one module each: HELP, add_arguments(parser), run(args)."""
