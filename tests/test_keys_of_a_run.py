# SPDX-License-Identifier: Apache-2.0
"""Private keys of a real run are in no file and no log, inside or outside.

The keys themselves are in the enclave's memory, so that nobody can tell what to look for. But their public keys are
known, and a private key tells its public one: whatever could be a key is tried.
"""

import base64
import hashlib
import re
import secrets
import ssl
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from .conftest import forwarded

pytestmark = pytest.mark.xdist_group("enclave")

KEY_BYTES = 32
# what DER puts in front of the number of a P-256 key (SEC 1), and of the seed of an Ed25519 key (RFC 8410)
FRAMES = (bytes.fromhex("0201010420"), bytes.fromhex("04220420"))
TEXT = re.compile(rb"(?<![0-9a-fA-F])[0-9a-fA-F]{64}(?![0-9a-fA-F])")
BASE64 = re.compile(rb"[A-Za-z0-9+/_-]{40,}={0,2}")
MAX_FILE_BYTES = 8 * 2**20
# prints every small file that is not the image's own: name and content, framed
COLLECT = """
import os, stat, sys
own = {"/proc", "/sys", "/dev", "/usr", "/rootfs", "/lib", "/lib64", "/bin", "/sbin"}
for top, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(top, name) not in own]
    for name in files:
        path = os.path.join(top, name)
        try:
            info = os.lstat(path)
            if stat.S_ISREG(info.st_mode) and info.st_size <= 8 << 20:
                with open(path, "rb") as source:
                    content = source.read()
                sys.stdout.buffer.write(b"%d %d\\n" % (len(os.fsencode(path)), len(content)))
                sys.stdout.buffer.write(os.fsencode(path) + content)
        except OSError:
            pass
"""


def read_frames(data):
    files, position = {}, 0
    while position < len(data):
        head, _, _ = data[position : position + 40].partition(b"\n")
        name_size, size = map(int, head.split())
        start = position + len(head) + 1
        files[data[start : start + name_size].decode()] = data[start + name_size : start + name_size + size]
        position = start + name_size + size
    return files


def candidates(content):
    """Yield what could be a private key of 32 bytes: in hex, in Base64, and where DER has one."""
    for found in TEXT.finditer(content):
        yield bytes.fromhex(found[0].decode())
    pieces = [content]
    for found in BASE64.finditer(content.replace(b"\\n", b"").replace(b"\n", b"")):
        packed = found[0].translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        decoded = base64.b64decode(packed + b"=" * (-len(packed) % 4)) if len(packed) % 4 != 1 else b""
        if len(decoded) == KEY_BYTES:
            yield decoded
        pieces.append(decoded)
    for piece in pieces:
        for frame in FRAMES:
            for position in (match.end() for match in re.finditer(re.escape(frame), piece)):
                yield piece[position : position + KEY_BYTES]


def public_keys(candidate):
    """The public keys that a number or seed has, as SHA-256 of the SubjectPublicKeyInfo, or as the point."""
    if len(candidate) != KEY_BYTES:
        return set()
    keys = {ed25519.Ed25519PrivateKey.from_private_bytes(candidate).public_key().public_bytes_raw()}
    try:
        key = ec.derive_private_key(int.from_bytes(candidate, "big"), ec.SECP256R1()).public_key()
    except ValueError:
        return keys
    form = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    return keys | {hashlib.sha256(key.public_bytes(*form)).digest()}


def holders(files, wanted):
    """Return the files in which something is the private key of one of `wanted`."""
    return {name for name, content in files.items() for one in candidates(content) if public_keys(one) & wanted}


def pin_of(address):
    from enclavekit_attestation.binding import spki_sha256_of

    host, _, port = address.rpartition(":")
    return spki_sha256_of(ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate((host, int(port)))))


@pytest.mark.parametrize("form", ["pem", "der", "hex", "base64"])
def test_search_finds_a_key_in_every_form(form):
    key = ec.generate_private_key(ec.SECP256R1())
    number = key.private_numbers().private_value.to_bytes(KEY_BYTES, "big")
    shape = (serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    content = {
        "pem": key.private_bytes(serialization.Encoding.PEM, *shape),
        "der": b"junk" + key.private_bytes(serialization.Encoding.DER, *shape),
        "hex": b"key=" + number.hex().encode(),
        "base64": b"key: " + base64.b64encode(number),
    }[form]
    assert holders({"f": content, "g": b"nothing"}, public_keys(number)) == {"f"}
    assert holders({"f": content}, public_keys(secrets.token_bytes(KEY_BYTES))) == set()


@pytest.mark.parametrize("enclave", ["process"], indirect=True)
def test_no_private_key_in_any_file_of_a_run(shell, enclave):
    curl = ["curl", "-sSfk", "--retry", "60", "--retry-all-errors", "--retry-delay", "1"]
    with forwarded(shell, enclave.cid) as address:
        evidence = shell.json(*curl, f"https://{address}/attestation?nonce={secrets.token_hex(20)}")
        attestation = pin_of(address)
    with forwarded(shell, enclave.cid, 53000) as address:
        pipeline = pin_of(address)
    assert attestation.hex() == evidence["tls_spki_sha256"]
    mine = serialization.load_pem_private_key((shell.directory / "keys/alice.key").read_bytes(), None)
    my_keys = public_keys(mine.private_bytes_raw())
    assert set(holders({"mine": (shell.directory / "keys/alice.key").read_bytes()}, my_keys)) == {"mine"}
    wanted = my_keys | {attestation, pipeline, bytes.fromhex(evidence["vrf_public_key"])}

    shell.run(*enclave.pipeline("exec", enclave.cid, "--", "sh", "-c", "echo > /data/seen"))
    argv = enclave.pipeline("exec", "--system", enclave.cid, "--", "python3", "-I", "-c", COLLECT)
    inside = read_frames(shell.run(*argv).stdout)
    assert any(name.startswith("/log/") for name in inside), "the logs are not among what is searched"
    assert any(b"ra-web-srv" in content for name, content in inside.items() if name.startswith("/log/"))
    assert holders(inside, wanted) == set()
    assert not [name for name, content in inside.items() if b"PRIVATE KEY-----" in content]

    outside = {}
    for variable in ("ENCLAVEKIT_RUNTIME_DIR", "XDG_STATE_HOME"):
        for path in Path(shell.environment[variable]).rglob("*"):
            is_root = path.name == "root.key"  # the emulator's own authority is kept in a file, and is nobody's secret
            if path.is_file() and not is_root and path.stat().st_size <= MAX_FILE_BYTES:
                outside[str(path)] = path.read_bytes()
    assert outside
    assert holders(outside, wanted) == set()
