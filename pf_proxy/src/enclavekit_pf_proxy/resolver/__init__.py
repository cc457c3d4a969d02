# SPDX-License-Identifier: Apache-2.0
"""DNS inside the enclave: asks the host's resolvers over vsock, believes what the policy lets it believe."""
