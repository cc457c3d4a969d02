# SPDX-License-Identifier: Apache-2.0
"""One module per subcommand: its flags, and the call that does the work."""
