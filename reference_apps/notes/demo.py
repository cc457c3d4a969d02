#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The main job from end to end, by the commands that a user would type, each printed before it runs.

Builds an image from the notes app, describes it, boots it, copies a file in, runs a command, fetches fresh evidence
over HTTPS and verifies it against the image's PCRs and the file's hash, shows the logs, stops. `./dev demo` calls it.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import hashlib
import json
import os
import secrets
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

APP = Path(__file__).resolve().parent
NOTE = b"The quick brown fox jumps over the lazy dog, measured.\n"
EXPECTED_EXIT = 7
MEMORY_MIB = 1024
RA_PORT = 8443
PROOF_TIMEOUT_S = 60.0
# of curl: the server may still be starting, and the monitor waits for a file to settle before it hashes
RETRY = ("--retry", 60, "--retry-all-errors", "--retry-delay", 1, "--retry-max-time", 60)


class StepFailed(Exception):
    """A command did not do what the demo needs; the message names it."""


class Demo:
    """One run: prints and times commands, collects the facts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.facts: dict[str, object] = {"verified": False}
        self.seconds: dict[str, float] = {}
        self.color = sys.stdout.isatty()

    def say(self, text: str) -> None:
        print(f"\033[1m{text}\033[0m" if self.color else text, flush=True)

    @contextlib.contextmanager
    def step(self, name: str, title: str) -> Iterator[None]:
        self.say(f"\n== {title}")
        started = time.monotonic()
        yield
        self.seconds[name] = round(time.monotonic() - started, 3)

    def run(self, *argv: object, expect: int = 0, show: bool = True) -> bytes:
        """Run a command as a user would; return its standard output."""
        words = [str(word) for word in argv]
        print(f"$ {shlex.join(words)}", flush=True)
        done = subprocess.run(words, cwd=self.directory, stdout=subprocess.PIPE)
        if show and done.stdout:
            print(done.stdout.decode(errors="replace").rstrip("\n"), flush=True)
        if done.returncode != expect:
            raise StepFailed(f"{words[0]} exited with {done.returncode}, expected {expect}")
        return done.stdout

    def check(self, what: str, held: bool) -> None:
        print(f"   {'ok' if held else 'FAILED'}: {what}", flush=True)
        if not held:
            raise StepFailed(what)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the facts of the run to FILE")
    parser.add_argument("--keep", action="store_true", help="leave the enclave running and say how to enter it")
    parser.add_argument("--machine", choices=("process", "qemu"), default="process", help="what boots the image")
    args = parser.parse_args()
    # the commands of the environment that runs this, also when it is not activated
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    started = time.monotonic()
    directory = Path(tempfile.mkdtemp(prefix="enclavekit-demo-"))
    demo = Demo(directory)
    stack = contextlib.ExitStack()
    status, failure = 1, ""
    try:
        main_job(demo, stack, args.machine, keep=args.keep)
        status = 0
    except StepFailed as exc:
        failure = str(exc)
    except KeyboardInterrupt:
        status, failure = 130, "interrupted"
    finally:
        stack.close()
    demo.seconds["all"] = round(time.monotonic() - started, 3)
    demo.facts |= {"seconds": demo.seconds, "ok": status == 0}
    if args.json:
        args.json.write_text(json.dumps(demo.facts, indent=2) + "\n")
    summarise(demo, status, failure, keep=args.keep)
    if not args.keep and status == 0:
        subprocess.run(["rm", "-rf", "--", str(directory)], check=False)
    return status


def main_job(demo: Demo, stack: contextlib.ExitStack, machine: str, *, keep: bool) -> None:
    here = demo.directory
    with demo.step("app", "an app: a small HTTP service, user space included"):
        demo.run(APP / "make_rootfs", "notes.rootfs")
    with demo.step("keygen", "a key for whoever may enter the enclave; its certificate is measured into the image"):
        demo.run("pipeline", "keygen", "--name", "demo", "-o", "keys")
    with demo.step("build", "an enclave image"):
        demo.run(
            *("rbuilds", "build", "--rootfs", "notes.rootfs", "--config", APP / "enclave.yaml"),
            *("--authorize", "keys/demo.crt:all", "--output", "notes.eif"),
        )
    with demo.step("describe", "what is in it: these PCRs are what the enclave will have to prove"):
        described = json.loads(demo.run("eif", "describe", "notes.eif", show=False))
        (here / "pcrs.json").write_text(json.dumps(described["Measurements"]))
        pcrs_file = {name: value for name, value in described["Measurements"].items() if name.startswith("PCR")}
        for name, value in pcrs_file.items():
            print(f"   {name} {value}")
        demo.facts |= {"eif": str(here / "notes.eif"), "pcrs_file": pcrs_file}
    with demo.step("run", "boot it (emulated: same image, no confidentiality)"):
        running = json.loads(
            demo.run(
                *("nitro-emu", "run-enclave", "--eif-path", "notes.eif", "--enclave-name", f"notes-{os.getpid()}"),
                *("--cpu-count", 2, "--memory", MEMORY_MIB, "--machine", machine),
            )
        )
        cid, enclave_id = running["EnclaveCID"], running["EnclaveID"]
        demo.facts |= {"cid": cid, "machine": machine}
        root = demo.run("nitro-emu", "dev-root", show=False).decode().strip()
        if not keep:
            stack.callback(terminate, demo, enclave_id)
    # what each command needs in order to trust the enclave and to be let in; the environment saves typing
    trust = {"PIPELINE_EIF": "notes.eif", "PIPELINE_IDENTITY": "keys/demo", "PIPELINE_INSECURE_DEV_ROOT": root}
    os.environ |= trust
    print("$ export " + " ".join(f"{name}={shlex.quote(value)}" for name, value in trust.items()))
    with demo.step("cp", "copy a file in, over TLS to a key that the enclave attested"):
        (here / "note.txt").write_bytes(NOTE)
        demo.facts["file_sha3_512"] = {"out": hashlib.sha3_512(NOTE).hexdigest()}
        # a virtual machine's services come up seconds after its heartbeat
        patience = ["--connect-timeout", 120] if machine != "process" else []
        demo.run("pipeline", "cp", *patience, "note.txt", f"{cid}:/data/note.txt")
    with demo.step("exec", f"run commands in it; the last one ends with {EXPECTED_EXIT} on purpose"):
        seen = demo.run("pipeline", "exec", cid, "--", "cat", "/data/note.txt")
        demo.check("the file arrived unchanged", seen == NOTE)
        health = demo.run("pipeline", "exec", cid, "--", "wget", "-q", "-O", "-", "http://127.0.0.1:8000/healthz")
        demo.check("the app answers", b"ok" in health)
        demo.run("pipeline", "exec", cid, "--", "sh", "-c", f"exit {EXPECTED_EXIT}", expect=EXPECTED_EXIT)
        demo.facts["exec_status"] = {"seen": EXPECTED_EXIT, "expected": EXPECTED_EXIT}
    with demo.step("attest", "fresh evidence over HTTPS, verified against the image"):
        address = stack.enter_context(forwarded(demo, cid))
        verify_evidence(demo, address, root)
    with demo.step("logs", "the app's log, through the attested channel"):
        log = demo.run("pipeline", "exec", "--system", cid, "--", "busybox", "tail", "-n", 5, "/log/app.log")
        demo.check("the app has logged", bool(log.strip()))
    demo.facts["verified"] = True
    if not keep:
        with demo.step("stop", "stop it"):
            stack.close()


def verify_evidence(demo: Demo, address: str, root: str) -> None:
    """Get a document that binds the server's TLS key to our nonce, then talk to that key alone."""
    nonce = secrets.token_hex(20)
    url = f"https://{address}"
    answer = json.loads(demo.run("curl", "-sfk", *RETRY, f"{url}/attestation?nonce={nonce}", show=False))
    (demo.directory / "evidence.cbor").write_bytes(base64.b64decode(answer["attestation_document"]))
    verify = ["attest", "verify", "evidence.cbor", "--measurements", "pcrs.json", "--insecure-dev-root", root]
    verdict = json.loads(
        demo.run(*verify, "--nonce", nonce, "--service", "ra-web-srv", "--json", show=False),
    )
    demo.facts["pcrs_live"] = {
        f"PCR{index}": value for index, value in verdict["pcrs"].items() if f"PCR{index}" in demo.facts["pcrs_file"]
    }
    demo.check("the enclave runs the image that was built", demo.facts["pcrs_live"] == demo.facts["pcrs_file"])
    pin = base64.b64encode(bytes.fromhex(verdict["binding"]["spki_sha256"])).decode()
    # -k only skips the certificate authority: the pinned key is the one that the evidence names
    curl = ["curl", "-sfk", "--pinnedpubkey", f"sha256//{pin}", *RETRY]
    await_proof(demo, [*curl, f"{url}/health"])
    found = json.loads(demo.run(*curl, f"{url}/hash/?path=/data/note.txt"))
    demo.facts["file_sha3_512"]["in"] = found["sha3_hash"]  # type: ignore[index]  # set when the file went in
    demo.check(
        "the file inside has the hash of the file outside", found["sha3_hash"] == hashlib.sha3_512(NOTE).hexdigest()
    )
    document = json.loads(demo.run(*curl, f"{url}/doc/?path=/data/note.txt&view=bin_hex", show=False))
    (demo.directory / "file.cbor").write_bytes(bytes.fromhex(document["att_doc"]))
    verify[2] = "file.cbor"
    claim = json.loads(demo.run(*verify, "--json", show=False))
    claimed = json.loads(bytes.fromhex(claim["user_data"]))
    demo.check("the enclave signed that hash for that path", claimed["sha3_hash"] == found["sha3_hash"])
    demo.run(*verify)


def await_proof(demo: Demo, curl: list[object]) -> None:
    """Wait until the enclave has attested the new file: fs-monitor finds it, and nobody has to ask for anything."""
    deadline = time.monotonic() + PROOF_TIMEOUT_S
    health = json.loads(demo.run(*curl, show=False))
    while not health["attested_ahead"] and time.monotonic() < deadline:
        health = json.loads(subprocess.run([str(word) for word in curl], stdout=subprocess.PIPE, check=True).stdout)
    demo.check("a proof of the file is there before anybody asked for one", health["attested_ahead"] > 0)


@contextlib.contextmanager
def forwarded(demo: Demo, cid: int) -> Iterator[str]:
    """Forward a free local port to the enclave's attestation server; yield HOST:PORT."""
    argv = ["pf-proxy", "ip-to-vsock", "-i", "127.0.0.1:0", "-v", f"{cid}:{RA_PORT}", "--print-address"]
    print(f"$ {shlex.join(argv)} &")
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip().removeprefix("tcp://")
        if not address:
            raise StepFailed("pf-proxy did not listen")
        yield address
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def terminate(demo: Demo, enclave_id: str) -> None:
    demo.run("nitro-emu", "terminate-enclave", "--enclave-id", enclave_id)


def summarise(demo: Demo, status: int, failure: str, *, keep: bool) -> None:
    if status:
        demo.say(f"\n./dev demo: FAILED: {failure} (files are in {demo.directory})")
        return
    demo.say(f"\n./dev demo: every check held, {demo.seconds['all']:.1f} s in all")
    print("   an emulated enclave is not confidential; on Nitro the same image is")
    if keep:
        cid = demo.facts["cid"]
        exports = ("PIPELINE_EIF", "PIPELINE_IDENTITY", "PIPELINE_INSECURE_DEV_ROOT")
        print(f"   CID {cid} keeps running. To enter it:")
        print(f"     cd {demo.directory}")
        print("     export " + " ".join(f"{name}={shlex.quote(os.environ[name])}" for name in exports))
        print(f"     pipeline exec {cid} -- sh -c 'id; ls -l /data'")
        print(f"     pipeline cp {cid}:/data/note.txt -")
        print("     nitro-emu terminate-enclave --all")


if __name__ == "__main__":
    sys.exit(main())
