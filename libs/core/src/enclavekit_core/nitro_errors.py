# SPDX-License-Identifier: Apache-2.0
"""nitro-cli's error numbers: what each means, what is behind it most often, and what helps. Pure.

`nitro-emu` prints these numbers, `rbuilds` explains them. Numbers are nitro-cli's, texts are ours.
Source: aws-nitro-enclaves-cli, docs of the CLI error codes and src/common/commands_parser.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class NitroErrorText:
    """One number in words."""

    title: str
    cause: str
    cure: str


_LOGS = "look into /var/log/nitro_enclaves/nitro_enclaves.log, then try once more"
_GONE = "list what runs (rbuilds list); the enclave may have ended by itself"
_UPDATE = "update the aws-nitro-enclaves-cli package; if it stays, report it with the error log"
_DRIVER = "load the module (modprobe nitro_enclaves) and run rbuilds doctor"
_POOL = "compare with /sys/module/nitro_enclaves/parameters/ne_cpus, or use a number of CPUs instead of ids"

NITRO_ERRORS: dict[int, NitroErrorText] = {
    number: NitroErrorText(*texts)
    for number, texts in {
        0: ("Unspecified error", "something failed that has no number of its own", _LOGS),
        1: ("Missing argument", "a flag that the command needs was not given", "give the flag that the text names"),
        2: ("Conflicting arguments", "two flags exclude each other", "leave one of them out"),
        3: ("Invalid argument", "a flag or a key of the --config file has a value that cannot be used", "correct it"),
        4: ("Socket pair failure", "the command could not talk to the enclave process it starts", _LOGS),
        5: ("Process spawn failure", "the enclave process could not be started", "check memory and process limits"),
        6: ("Daemonize failure", "the enclave process could not detach itself", "check memory and process limits"),
        7: (
            "Read from disk failure",
            "the directory of enclave sockets cannot be read",
            "check that /run/nitro_enclaves exists and that you are in the group ne",
        ),
        8: ("Unusable connection", "the connection to an enclave process broke", "try once more; " + _GONE),
        9: ("Socket close failure", "a connection to an enclave process could not be closed", _LOGS),
        10: ("Connect timeout failure", "a socket's timeout could not be set", _LOGS),
        11: (
            "Socket failure",
            "a socket failed; with run-enclave mostly the heartbeat port 9000, which only one launch can hold at a "
            "time, or an expired signing certificate",
            "start enclaves one after the other (rbuilds run does) and check the image: rbuilds doctor --image FILE",
        ),
        12: ("Epoll failure", "waiting for events failed", _LOGS),
        13: ("Inotify failure", "watching the socket directory failed", "raise fs.inotify.max_user_instances"),
        14: ("Invalid command", "the enclave process got a command that it does not know", _UPDATE),
        15: ("Lock acquire failure", "a lock inside nitro-cli could not be taken", "try once more"),
        16: ("Thread join failure", "a thread of nitro-cli failed", _LOGS),
        17: ("JSON failure", "a JSON file, such as the one given with --config, cannot be parsed", "correct the file"),
        18: (
            "Log file permission failure",
            "the log file's permissions cannot be set",
            "make /var/log/nitro_enclaves writable for the group ne",
        ),
        19: (
            "File operation failure",
            "a file, such as the image or nitro-cli's own log, cannot be opened, read or written",
            "check the path and its permissions; every nitro-cli command needs to write in /var/log/nitro_enclaves",
        ),
        20: ("Duplicate CPU ids", "a CPU id was given twice in --cpu-ids", "give each id once"),
        21: ("CPU not in the pool", "a CPU id does not belong to those set aside for enclaves", _POOL),
        22: (
            "Insufficient CPUs",
            "more CPUs were asked for than are set aside for enclaves and free",
            "ask for fewer (--cpus), or raise cpu_count in /etc/nitro_enclaves/allocator.yaml and restart "
            "nitro-enclaves-allocator.service",
        ),
        23: ("Malformed CPU id", "a CPU id is not a number", "write ids as numbers: --cpu-ids 1 3"),
        24: ("CPU failure", "the CPUs of this machine cannot be examined", _DRIVER),
        25: ("Huge page flag failure", "nitro-cli was asked for an invalid page size", _UPDATE),
        26: (
            "Insufficient memory requested",
            "an enclave needs four times the size of its image, and at least 64 MiB",
            "give more memory (--memory) or make the image smaller; rbuilds doctor --image FILE shows the sum",
        ),
        27: (
            "Insufficient memory available",
            "there are not enough free huge pages for the memory requested, on one NUMA node (emulated: the machine "
            "has less memory)",
            "raise memory_mib in /etc/nitro_enclaves/allocator.yaml and restart nitro-enclaves-allocator.service, or "
            "end other enclaves; rbuilds doctor shows pages and nodes",
        ),
        28: ("Bad enclave descriptor", "the driver gave no usable handle", _DRIVER),
        29: (
            "Enclave driver failure",
            "the driver refused the enclave as asked: its CID is taken, an odd number of CPUs where cores have two "
            "threads, or no free resources",
            "use a free CID and an even number of CPUs; rbuilds doctor shows both",
        ),
        30: ("Image load failure", "the driver did not say where to load the image", _DRIVER),
        31: (
            "Memory region failure",
            "the driver refused the memory: too many small huge pages, or pages of another NUMA node than the CPUs",
            "restart nitro-enclaves-allocator.service, which reserves the largest pages first",
        ),
        32: (
            "vCPU failure",
            "the driver refused a CPU: used by another enclave, or its sibling thread is not free",
            "use whole cores: an even number of CPUs",
        ),
        33: (
            "Enclave start failure",
            "the driver refused to start the enclave: no memory, no CPUs or half a core",
            "give an even number of CPUs and enough memory; run rbuilds doctor --image FILE",
        ),
        34: ("Memory overflow", "the image does not fit into the memory at the place where it is loaded", "give more"),
        35: (
            "EIF parsing failure",
            "the image is damaged, cut short, or not an enclave image at all",
            "build it again; rbuilds doctor --image FILE names the fault",
        ),
        36: (
            "Enclave boot failure",
            "the enclave ended, or did not send its heartbeat, before it was up: a kernel that Nitro cannot boot, an "
            "image of another architecture, a damaged image, an expired signing certificate, or too little memory",
            "run rbuilds doctor --image FILE; then look at its console: rbuilds run --debug --attach",
        ),
        37: ("Event wait failure", "the enclave process could not wait for its next event", _LOGS),
        38: ("Command not executed by the enclave process", "the enclave ended while the command waited for it", _GONE),
        39: (
            "Enclave process connection failure",
            "no running enclave has that id, or its process does not answer; after run-enclave the true cause is the "
            "first [ Enn ] above it",
            _GONE,
        ),
        40: ("Socket path failure", "the path of an enclave's socket cannot be used", "check /run/nitro_enclaves"),
        41: ("Reply failure", "the enclave process could not send its answer", "try once more; " + _GONE),
        42: (
            "Memory allocation failure",
            "huge pages could not be mapped although they seemed free",
            "end other users of huge pages, or restart nitro-enclaves-allocator.service",
        ),
        43: ("Memory release failure", "huge pages could not be unmapped", _LOGS),
        44: (
            "Enclave console connection failure",
            "the console exists in debug mode only (--debug-mode), and only while the enclave runs",
            "start the enclave with --debug; its attestation documents then carry zero PCRs",
        ),
        45: ("Console read failure", "the console's stream broke", _GONE),
        46: ("Console write failure", "standard output cannot be written", "check where the output goes"),
        47: ("Integer parsing failure", "a number was expected and something else was given", "correct the number"),
        48: ("EIF build failure", "nitro-cli could not build the image", "use rbuilds build, which names the cause"),
        49: ("Docker build failure", "docker could not build the image", "run docker build by itself to see why"),
        50: ("Docker pull failure", "docker could not fetch the image", "check its name and docker login"),
        51: ("Artifacts path not set", "NITRO_CLI_ARTIFACTS and HOME are both unset", "set one of them"),
        52: ("Blobs path not set", "NITRO_CLI_BLOBS is unset or has no blobs", "install the -cli-devel package"),
        53: ("Clock skew", "the clock went backwards", "check the machine's time service"),
        54: ("Signal mask failure", "signals could not be blocked", _LOGS),
        55: ("Signal unmask failure", "signals could not be unblocked", _LOGS),
        56: ("Logger failure", "nitro-cli's logger failed", "check that /var/log/nitro_enclaves can be written"),
        57: ("Hasher failure", "measuring failed", _UPDATE),
        58: ("Naming failure", "no running enclave has that name", _GONE),
        59: (
            "EIF signature checker failure",
            "the image is signed, but the signature is not one of this image, or its certificate is not valid now",
            "sign it again with a valid certificate: eif sign",
        ),
        60: ("Signing failure", "the image could not be signed", "check key and certificate: one pair, ECDSA"),
    }.items()
}


def parse_error_code(text: str) -> int | None:
    """Return the number in `E26`, `e26` or `26`; None if it is none that nitro-cli has."""
    digits = text.strip().upper().removeprefix("E")
    if not (digits.isascii() and digits.isdigit()) or int(digits) not in NITRO_ERRORS:
        return None
    return int(digits)


def format_error_code(number: int) -> str:
    """Return `E05`."""
    return f"E{number:02}"
