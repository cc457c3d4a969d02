# SPDX-License-Identifier: Apache-2.0
"""How much memory an image needs, from what is in it and not from a guess, with the arithmetic in words.

Three rules, the largest of which counts:

* nitro-cli refuses less than four times the image (E26); the driver refuses less than 64 MiB;
* while it boots, the enclave holds the image and what its ramdisks unpack to side by side;
* the kernel puts what it unpacks into a tmpfs, which takes half of the memory that it has left, and no more.

What services and the app need comes on top, and their authors know that. Source: aws-nitro-enclaves-cli,
enclave_proc/resource_manager.rs; Linux init/initramfs.c, mm/shmem.c, Documentation/filesystems/ramfs-rootfs-initramfs.
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from typing import Any

from enclavekit_eif.newc import iter_cpio
from enclavekit_eif.reader import Eif, read_eif

MIB = 1 << 20
IMAGE_RATIO = 4
MIN_MEMORY_MIB = 64
PAGE_BYTES = 4096  # a file takes whole pages of the tmpfs
INODE_BYTES = 1024  # inode, directory entry and their slab overhead of a tmpfs file, rounded up
KERNEL_MIB = 48  # a small kernel's own memory once it runs: text, page structures, slabs
HUGE_PAGES_MIB = {"2M": 2, "1G": 1024}


@dataclass(frozen=True, slots=True)
class Size:
    """What an image takes; all sizes in bytes unless the name says MiB."""

    image_bytes: int
    kernel_bytes: int
    ramdisk_bytes: int
    """All ramdisks as stored."""
    unpacked_bytes: int
    """The data of all files."""
    unpacked_memory_bytes: int
    """What they take of the enclave's memory: whole pages, and an inode each."""
    entries: int

    @property
    def image_mib(self) -> int:
        return _mib(self.image_bytes)

    @property
    def ratio_mib(self) -> int:
        """What nitro-cli asks for."""
        return IMAGE_RATIO * self.image_mib

    @property
    def boot_mib(self) -> int:
        """What is in memory at once when the ramdisks have just been unpacked."""
        return self.image_mib + _mib(self.unpacked_memory_bytes) + KERNEL_MIB

    @property
    def tmpfs_mib(self) -> int:
        """Twice what is unpacked, beside the kernel."""
        return 2 * _mib(self.unpacked_memory_bytes) + KERNEL_MIB

    @property
    def needed_mib(self) -> int:
        """The least memory that the kernel gets to /init with; what then runs comes on top."""
        return max(self.ratio_mib, self.boot_mib, self.tmpfs_mib, MIN_MEMORY_MIB)

    def pages(self, page_mib: int) -> int:
        """Return how many huge pages that is; the enclave gets whole pages."""
        return -(-self.needed_mib // page_mib)

    def arithmetic(self) -> list[tuple[str, str, int]]:
        """Return (rule, sum in words, MiB) of every rule."""
        unpacked = _mib(self.unpacked_memory_bytes)
        return [
            ("nitro-cli (E26)", f"{IMAGE_RATIO} x {self.image_mib} MiB of image", self.ratio_mib),
            ("boot", f"{self.image_mib} image + {unpacked} unpacked + {KERNEL_MIB} kernel", self.boot_mib),
            ("tmpfs", f"2 x {unpacked} MiB unpacked + {KERNEL_MIB} kernel", self.tmpfs_mib),
            ("driver", "at least", MIN_MEMORY_MIB),
        ]

    def to_json(self, page_mib: int) -> dict[str, Any]:
        return {
            "ImageBytes": self.image_bytes,
            "KernelBytes": self.kernel_bytes,
            "RamdiskBytes": self.ramdisk_bytes,
            "UnpackedBytes": self.unpacked_bytes,
            "UnpackedMemoryBytes": self.unpacked_memory_bytes,
            "Entries": self.entries,
            "Rules": [{"Rule": rule, "Sum": words, "MiB": mib} for rule, words, mib in self.arithmetic()],
            "NeededMiB": self.needed_mib,
            "HugePageMiB": page_mib,
            "HugePages": self.pages(page_mib),
            "AllocatedMiB": self.pages(page_mib) * page_mib,
        }


def size_of(path: str | os.PathLike[str]) -> Size:
    """Return the sizes of the image at `path`; its ramdisks are read through. Raises InputError."""
    with read_eif(path) as eif:
        return size_of_eif(eif)


def size_of_eif(eif: Eif) -> Size:
    data = memory = entries = 0
    with eif.open_ramdisks() as stream:
        for entry in iter_cpio(stream):
            entries += 1
            data += entry.size if stat.S_ISREG(entry.mode) else 0
            # a name that is packed again takes its predecessor's place; counting both errs on the safe side
            memory += INODE_BYTES + -(-entry.size // PAGE_BYTES) * PAGE_BYTES
    return Size(
        image_bytes=eif.sections[-1].end,
        kernel_bytes=eif.kernel.size,
        ramdisk_bytes=sum(section.size for section in eif.ramdisks),
        unpacked_bytes=data,
        unpacked_memory_bytes=memory,
        entries=entries,
    )


def _mib(size: int) -> int:
    return -(-size // MIB)
