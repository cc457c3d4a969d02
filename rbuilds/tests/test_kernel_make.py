# SPDX-License-Identifier: Apache-2.0
"""`rbuilds kernel make` with a source that is as small as one can be: real tar, real make, no compiler."""

from __future__ import annotations

import datetime
import hashlib
import http.server
import io
import ipaddress
import json
import os
import shutil
import ssl
import threading
from pathlib import Path

import pytest
from enclavekit_core.errors import CommandError, InputError
from enclavekit_rbuilds.base.cache_store import list_entries
from enclavekit_rbuilds.base.progress import Progress
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.kernel.fragment import our_fragment
from enclavekit_rbuilds.kernel.make import KernelRequest, copy_kernel, make_kernel
from enclavekit_rbuilds.kernel.sources import find_kernel
from enclavekit_rbuilds.kernel.tarball import find_tarball
from enclavekit_rbuilds.kernel.toolchain import KERNEL_NEEDS, Toolchain
from enclavekit_rbuilds.manifest.model import KernelChoice

from .conftest import file, tar_bytes

# as much of the kernel's own as we call; `bzImage` writes what it was told, so that all of it can be seen in the bytes
MAKEFILE = """
ARCHDIR = arch/x86/boot
kernelversion:
	@echo 6.12.1
tinyconfig:
	@echo '# Linux/x86 6.12.1 Kernel Configuration' > .config
	@echo 'CONFIG_MODULES=y' >> .config
olddefconfig:
	@grep -v CONFIG_LOST .config > .config.new; mv .config.new .config
bzImage:
	@test ! -e fail || { echo 'x.c:1: error: this is why' >&2; exit 1; }
	@mkdir -p $(ARCHDIR)
	@for n in 1 2 3 4 5; do echo "  CC      file$$n.o"; done
	@env | grep -v -e ^PWD= -e ^_= -e ^MAKE -e ^MFLAGS | sort > $(ARCHDIR)/bzImage
	@{ umask; echo '$(ARCH)'; cat .config; } >> $(ARCHDIR)/bzImage
"""


@pytest.fixture(autouse=True)
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    lost = [name for name in ("make", "tar") if shutil.which(name) is None]
    if lost:
        pytest.skip(f"needs {', '.join(lost)}")
    # what a real kernel needs beside these is not needed for this one
    monkeypatch.setattr(Toolchain, "missing", lambda *_: [])
    monkeypatch.setattr(Toolchain, "compiler", lambda *_: "gcc (test) 12.2.0")
    monkeypatch.setattr(Toolchain, "linker", lambda *_: "GNU ld (test) 2.40")


@pytest.fixture
def source(tmp_path: Path):
    def make(*more: tuple, makefile: str = MAKEFILE, name: str = "linux-6.12.1.tar") -> Path:
        path = tmp_path / name
        members = [file("linux-6.12.1/Kconfig", b""), file("linux-6.12.1/Makefile", makefile.encode()), *more]
        path.write_bytes(tar_bytes(members))
        return path

    return make


def make(source: object, *, progress: Progress | None = None, **wishes: object):
    return make_kernel(KernelRequest(str(source), **wishes), progress or Progress(io.StringIO(), quiet=True))


def test_nothing_of_the_machine_gets_in(source, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = make(source())
    bytes_of_first = Path(first.directory, "bzImage").read_bytes()
    text = bytes_of_first.decode()
    for line in (
        "KBUILD_BUILD_HOST=enclavekit",
        "KBUILD_BUILD_TIMESTAMP=Mon Jan  1 00:00:00 UTC 2024",
        "KBUILD_BUILD_USER=enclavekit",
        "KBUILD_BUILD_VERSION=1",
        "LC_ALL=C",
        "TZ=UTC",
        "0022",
        "x86_64",
    ):
        assert line in text.splitlines()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another/cache"))
    for name, value in {"TZ": "Asia/Tokyo", "KCFLAGS": "-O0", "LC_ALL": "C.UTF-8", "KBUILD_BUILD_USER": "me"}.items():
        monkeypatch.setenv(name, value)
    before = os.umask(0o077)
    try:
        second = make(source(), jobs=3)
    finally:
        os.umask(before)
    assert second.directory != first.directory and second.record == first.record
    assert Path(second.directory, "bzImage").read_bytes() == bytes_of_first


def test_record_says_what_it_was_made_of(source) -> None:
    path = source()
    made = make(path, user="me", host="there")
    record, where = made.record, Path(made.directory)
    assert (record.version, record.arch, record.user, record.host) == ("6.12.1", "x86_64", "me", "there")
    assert record.source == path.name and record.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record.sha256 == hashlib.sha256((where / "bzImage").read_bytes()).hexdigest()
    assert record.config_sha256 == hashlib.sha256((where / "bzImage.config").read_bytes()).hexdigest()
    assert record.nitro_capable and record.compiler == "gcc (test) 12.2.0"
    assert sorted(item.name for item in where.iterdir()) == ["bzImage", "bzImage.config", "kernel.json"]


def test_it_is_made_once_for_the_same_inputs(source, tmp_path: Path) -> None:
    out = io.StringIO()
    first = make(source())
    assert make(source(), progress=Progress(out)).directory == first.directory
    assert "compiled" not in out.getvalue()
    more = tmp_path / "more.config"
    more.write_text("CONFIG_IO_URING=y\n")
    others = [
        make(source(), fragments=(str(more),)),
        make(source(), user="me"),
        make(source(file("linux-6.12.1/x", b"y"))),
    ]
    assert len({made.directory for made in (first, *others)}) == 4
    assert "CONFIG_IO_URING=y" in Path(others[0].directory, "bzImage.config").read_text()


def test_progress_counts_files(source, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("enclavekit_rbuilds.kernel.make.OBJECTS_PER_LINE", 2)
    out = io.StringIO()
    make(source(), progress=Progress(out))
    assert "2 files" in out.getvalue() and "4 files" in out.getvalue() and "5 files" in out.getvalue()


def test_option_that_gets_lost_ends_it_before_anything_is_compiled(source, tmp_path: Path) -> None:
    more = tmp_path / "more.config"
    more.write_text("CONFIG_LOST_ONE=y\n# CONFIG_MODULES is not set\n")
    with pytest.raises(InputError, match=r"CONFIG_LOST_ONE=y \(it is n\)"):
        make(source(file("linux-6.12.1/fail", b"")), fragments=(str(more),))
    assert list_entries() == []
    more.write_text("this is no option\n")
    with pytest.raises(InputError, match="line 1"):
        make(source(), fragments=(str(more),))


def test_compiler_s_own_words_are_in_the_error(source) -> None:
    with pytest.raises(CommandError, match="this is why"):
        make(source(file("linux-6.12.1/fail", b"")))
    assert list_entries() == []


@pytest.mark.parametrize("spoil", ["nothing", "noise", "no Kconfig", "version", "sha256", "cut"])
def test_source_that_cannot_be_used_leaves_nothing(source, tmp_path: Path, spoil: str) -> None:
    path, wishes = source(), {}
    if spoil == "nothing":
        path.unlink()
    elif spoil == "noise":
        path.write_bytes(os.urandom(4096))
    elif spoil == "no Kconfig":
        path.write_bytes(tar_bytes([file("linux/Makefile", MAKEFILE.encode())]))
    elif spoil == "version":
        wishes = {"version": "6.12.2"}
    elif spoil == "sha256":
        wishes = {"sha256": "0" * 64}
    else:
        path.write_bytes(path.read_bytes()[:700])
    with pytest.raises((InputError, CommandError)):
        make(path, **wishes)
    assert list_entries() == []


@pytest.mark.parametrize("name", ["a b", "-x", "", "a\nb", "é"])
def test_names_go_into_a_string_and_are_checked(source, name: str) -> None:
    for key in ("user", "host"):
        with pytest.raises(InputError, match="plain name"):
            make(source(), **{key: name})


def test_command_writes_a_directory_that_builds_take(
    source, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "kernel"
    words = ["kernel", "make", "--source", str(source()), "--output", str(target), "--quiet", "--version", "6.12.1"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kernel"] == str(target / "bzImage") and document["version"] == "6.12.1"
    assert sorted(path.name for path in target.iterdir()) == ["bzImage", "bzImage.config", "kernel.json"]
    for path in (str(target), str(target / "bzImage"), None):
        kernel = find_kernel(KernelChoice("made", path, None, document["sha256"]), "x86_64", Progress(quiet=True))
        assert kernel.nitro_capable is True
    assert main(words) == 0, "again, from the cache, over what is there"
    assert str(target / "bzImage") in capsys.readouterr().out
    (tmp_path / "taken").write_text("")
    assert main([*words[:5], str(tmp_path / "taken"), *words[6:]]) == 2
    assert main([*words, "--jobs", "0"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 2


def test_half_written_output_does_not_replace_what_is_there(source, tmp_path: Path) -> None:
    made = make(source())
    target = tmp_path / "kernel"
    copy_kernel(made, str(target))
    shutil.rmtree(made.directory)
    with pytest.raises(InputError):
        copy_kernel(made, str(target))
    assert sorted(path.name for path in target.iterdir()) == ["bzImage", "bzImage.config", "kernel.json"]


@pytest.mark.parametrize(
    ("where", "sha256", "named"),
    [
        ("http://kernel.test/linux.tar", "0" * 64, "https"),
        ("ftp://kernel.test/linux.tar", None, "https"),
        ("https://kernel.test/linux.tar", None, "--sha256"),
        ("/tmp/linux.tar", "12", "64"),
    ],
)
def test_address_needs_https_and_a_hash(where: str, sha256: str | None, named: str) -> None:
    with pytest.raises(InputError, match=named):
        find_tarball(where, sha256, Progress(io.StringIO(), quiet=True))


@pytest.fixture
def web(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Serve `tmp_path` over real TLS; returns the address and the list of requests."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, datetime.datetime(2020, 1, 1))
        .not_valid_after(datetime.datetime(2100, 1, 1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .sign(key, hashes.SHA256())
    )
    pem = tmp_path / "server.pem"
    pem.write_bytes(
        made.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args: object) -> None:
            super().__init__(*args, directory=str(tmp_path))

        def log_message(self, *_: object) -> None:
            requests.append(self.path)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"https://127.0.0.1:{server.server_address[1]}", requests
    server.shutdown()
    server.server_close()


def test_tarball_from_the_web_is_fetched_once_and_by_its_hash(source, web, monkeypatch: pytest.MonkeyPatch) -> None:
    address, requests = web
    path = source()
    good = hashlib.sha256(path.read_bytes()).hexdigest()
    quiet = Progress(io.StringIO(), quiet=True)
    with pytest.raises(InputError, match=good):
        find_tarball(f"{address}/{path.name}", "0" * 64, quiet)
    with pytest.raises(InputError, match="404"):
        find_tarball(f"{address}/nothing.tar", good, quiet)
    assert list_entries() == []
    made = make(f"{address}/{path.name}", sha256=good)
    assert made.record.source == path.name and made.record.source_sha256 == good
    count = len(requests)
    assert find_tarball(f"{address}/{path.name}", good, quiet).sha256 == good
    assert len(requests) == count
    monkeypatch.delenv("SSL_CERT_FILE")
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ["XDG_CACHE_HOME"] + "2")
    with pytest.raises(InputError, match="fetch"):
        find_tarball(f"{address}/{path.name}", good, quiet)


def test_what_a_machine_lacks_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.undo()
    (tmp_path / "bin").mkdir()
    for name in ("env", "make", "tar"):
        if found := shutil.which(name):
            (tmp_path / "bin" / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    lost = Toolchain().missing(KERNEL_NEEDS)
    assert {"gcc", "flex", "bison"} <= set(lost) and not {"make", "tar"} & set(lost)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "linux.tar").write_bytes(b"x")
    with pytest.raises(InputError, match="flex"):
        make(tmp_path / "linux.tar")


def test_our_fragment_asks_for_nothing_twice() -> None:
    names = [
        line.split()[1] if line.startswith("# CONFIG_") else line.partition("=")[0]
        for line in our_fragment("x86_64").splitlines()
    ]
    names = [name for name in names if name.startswith("CONFIG_")]
    assert len(names) == len(set(names)) > 150
