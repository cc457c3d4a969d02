# SPDX-License-Identifier: Apache-2.0
"""The subcommands of `pipeline`, one module each: HELP, add_arguments(parser), run(args) -> exit code.

A module may also have USAGE and EPILOG for its help, FAILURE_STATUS for commands whose status belongs to somebody else
(as ssh's 255), and TAKES_COMMAND = True if everything after the first `--`, or after its arguments, is a command, word
by word.
"""
