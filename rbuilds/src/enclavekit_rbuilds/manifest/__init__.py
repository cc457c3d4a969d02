# SPDX-License-Identifier: Apache-2.0
"""What people write: `enclave.yaml` and who may enter."""
