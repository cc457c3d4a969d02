# SPDX-License-Identifier: Apache-2.0
"""Requests to a running PID 1: what they are, who may make them, how they travel, how they are answered."""
