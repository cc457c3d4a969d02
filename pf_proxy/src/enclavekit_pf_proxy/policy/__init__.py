# SPDX-License-Identifier: Apache-2.0
"""What an enclave's app may connect to, decided inside and measured with the image. Pure but for `gate`."""
