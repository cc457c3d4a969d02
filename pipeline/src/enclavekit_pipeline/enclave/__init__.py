# SPDX-License-Identifier: Apache-2.0
"""The side in the enclave: who may enter, and each verb as the enclave carries it out."""
