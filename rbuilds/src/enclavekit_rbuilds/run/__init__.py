# SPDX-License-Identifier: Apache-2.0
"""Running images: nitro-cli or nitro-emu, the host's proxies beside each enclave, and what is wrong with a host."""
