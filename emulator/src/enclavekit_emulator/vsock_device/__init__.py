# SPDX-License-Identifier: Apache-2.0
"""A virtio socket device in user space: a virtual machine's AF_VSOCK, without a kernel module or a foreign helper.

From the outside in: `vhost_user` (the protocol with QEMU), `guest_memory` and `split_ring` (what the guest shares),
`packet` and `connection` (virtio-vsock itself), `device` (their meeting with sockets), `daemon` (the process).
The guest is hostile: whatever it writes into its memory ends, at worst, its own device.
"""
