# SPDX-License-Identifier: Apache-2.0
"""Writes docs/reference/initctl.md from the code's own tables:  python enclave_init/tests/initctl_reference.py"""

# ruff: noqa: E501 - the lines of a page are as long as the page has them

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from enclavekit_enclave_init.initctl import channel, connection, framing, requests, server
from enclavekit_enclave_init.initctl.cli import build_parser
from enclavekit_enclave_init.initctl.commands import COMMANDS, PS_COMMANDS, Command
from enclavekit_enclave_init.initctl.requests import PERMISSIONS, VERBS
from enclavekit_enclave_init.logs import line_queue
from enclavekit_enclave_init.logs.config import LogConfig

PAGE = Path(__file__).resolve().parents[2] / "docs/reference/initctl.md"


def row(*cells: object) -> str:
    return "| " + " | ".join(str(cell).replace("|", "\\|") for cell in cells) + " |"


def table(head: list[str], rows: list[list[object]]) -> str:
    return "\n".join([row(*head), row(*("---" for _ in head)), *(row(*cells) for cells in rows)])


def command_rows(commands: dict[str, Command], prefix: str = "") -> list[list[object]]:
    rows = []
    for name, command in commands.items():
        words = [_word(argument.names, argument.settings) for argument in command.arguments]
        requested = command.verbs or (command.verb,)
        also = f" (or `{', '.join(command.aliases)}`)" if command.aliases else ""
        usage = " ".join([f"{prefix}{name}", *words])
        rows.append([f"`{usage}`{also}", command.help, ", ".join(requested)])
    return rows


def _word(names: tuple[str, ...], settings: object) -> str:
    assert isinstance(settings, dict)
    if not names[0].startswith("-"):
        word = str(settings.get("metavar", names[0]))
        return {"?": f"[{word}]", "*": f"[{word}...]", argparse.REMAINDER: f"[{word}...]"}.get(
            settings.get("nargs"), word
        )
    value = f" {settings['metavar']}" if "metavar" in settings else ""
    return f"[{names[0]}{value}]"


def verb_rows() -> list[list[object]]:
    rows = []
    for name, verb in VERBS.items():
        fields = "<br>".join(
            f"`{field}`: {one.kind}" + ("" if one.required else f", default {_default(one.default)}")
            for field, one in verb.fields.items()
        )
        rows.append(
            [f"`{name}`" + (" (new)" if verb.is_new else ""), fields, verb.permission, verb.answer, verb.meaning]
        )
    return rows


def _default(value: object) -> str:
    return str(list(value) if isinstance(value, tuple) else value).lower()


def option_rows() -> list[list[object]]:
    """The options before the command; not argparse's own help, which differs from one Python to the next."""
    rows = []
    for action in build_parser()._actions:
        if action.option_strings and "--help" not in action.option_strings:
            value = action.metavar or ("|".join(action.choices) if action.choices else "")
            names = ", ".join(f"`{name}{' ' if value else ''}{value}`" for name in action.option_strings)
            rows.append([names, (action.help or "") % {"default": action.default}])
    return rows


def log_rows() -> list[list[object]]:
    described = _field_docs(LogConfig)
    return [
        [f"`logs.{item.name}`", f"`{_toml(item.default)}`", described[item.name]]
        for item in dataclasses.fields(LogConfig)
    ]


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return str(list(value))
    return str(value).lower() if isinstance(value, bool) else f'"{value}"' if isinstance(value, str) else str(value)


def _field_docs(shape: type) -> dict[str, str]:
    import ast
    import inspect
    import textwrap

    [node] = ast.parse(textwrap.dedent(inspect.getsource(shape))).body
    assert isinstance(node, ast.ClassDef)
    docs, last = {}, ""
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            last = item.target.id
        elif isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant) and last:
            docs[last] = " ".join(str(item.value.value).split()).rstrip(".")
    return docs


def render() -> str:
    return f"""\
# initctl

Controls PID 1 of a running enclave: `enclave-init`. This page is made from the code's own tables
(`enclave_init/tests/initctl_reference.py`); a test holds it.

Three ways lead to PID 1:

| from | how | who may |
|---|---|---|
| inside the enclave | `initctl status`, by the socket `/run/init.sock` | root; others as `control.allow` in `/etc/init.toml` says |
| the parent, through the pipeline | `pipeline exec --system ENCLAVE -- initctl status` | clients with `exec` and `system` |
| the parent, by itself | `initctl --enclave ENCLAVE status`, by vsock port {
        channel.PORT
    } | clients with `control` in the image's list |

The last one is off unless the image's `enclave.yaml` gives a client `control` (or `rbuilds build --authorize CERT:control`,
`CERT:all,control`). Whom the runtime configuration's `PIPELINE_REVOKED` names is kept out, as by pipeline.

## Command line

`initctl [OPTION...] COMMAND [ARGUMENT...]`

{table(["option", ""], option_rows())}

{table(["command", "", "requests"], [*command_rows(COMMANDS), *command_rows(PS_COMMANDS, "ps ")])}

`--json` goes with every command, before or after it; `logs` and `top` then print a JSON value a line. `logs` marks lines of
stderr with `!` in place of `:`. Exit codes: 0 done; 1 refused by PID 1, or not all is ready (`health`); 2 usage; 3 PID 1 cannot
be reached or talked to; 6 the enclave did not prove what was asked. `start`, `stop` and `restart` return when it has come about.

`shutdown` stops every unit in order (`StopSignal`, `TimeoutStopSec`) and ends the enclave. `reboot` does the same and asks for a
restart: on Nitro, which has none, that ends it too. `poweroff` kills everything and ends the enclave at once. In all three the
parent gets an exit report.

## Permissions

{table(["permission", "what for"], [[f"`{name}`", text] for name, text in PERMISSIONS.items()])}

Root has them all. Other users have what `/etc/init.toml`, which is measured, says, or, in its place, `control.allow` of
`enclave.yaml`, which names users of the app and puts the socket into its root; whoever is not there is turned away at once:

```toml
[control]
socket = "/run/init.sock"      # empty: no socket
[[control.allow]]
uid = 33
permissions = ["status", "logs"]
```

## Requests

JSON as the Rust `enclave-init` has it. A request without fields is a string, `"Ping"`; any other an object with one key,
`{{"ServiceStart":{{"name":"app"}}}}`. Answers have the same form: `"Pong"`, `{{"Success":{{"message":"..."}}}}`,
`{{"Error":{{"message":"..."}}}}`. Fields beyond the Rust ones may come in answers.

{table(["request", "fields", "permission", "answer", ""], verb_rows())}

* Names are unit names (letters, digits and `_ . @ -`, at most 64), checked before anything else.
* `pid`s are children of PID 1 itself: what it has started, and orphans that it has inherited.
* `LogLines` has `lines`, objects with `time` (RFC 3339, UTC), `unit`, `stream` (stdout, stderr, init, kernel) and `text`.
  A reader that is too slow loses lines and gets one of `enclave-init` with their number.

## Framings

One connection, one request. The first byte tells the three apart:

| first byte | request | answers |
|---|---|---|
| `0x00` | u32 length, big-endian, at most {
        framing.MAX_REQUEST_BYTES
    }; so many bytes of JSON | framed likewise, one or more, each at most {framing.MAX_ANSWER_BYTES} bytes |
| `"` or `{{` or blank | one bare JSON value, in any number of pieces | one bare JSON value |
| `G` | `GET PATH HTTP/1.x` with headers, at most {framing.MAX_HTTP_BYTES} bytes | one HTTP response |

After the last answer PID 1 closes. In a frame the request may have an envelope, `{{"request": ..., "client": "NAME"}}`: the
gateway says there for whom it asks, which goes into the log.

HTTP paths: `/metrics` (Prometheus's text form), `/ready` and `/live` (200 or 503, JSON), `/ready/UNIT`, `/live/UNIT`. A unit is
*ready* when it is up, *live* when it has not failed and its last health check was good; the enclave is either when all enabled
units are.

```
curl --unix-socket /run/init.sock http://init/metrics
```

## From the parent

`initctl-gateway` is a unit of its own, so that TLS and strangers stay out of PID 1. On vsock port {
        channel.PORT
    } it speaks TLS 1.3
with a key of this boot, then these frames:

```
client                                     gateway
{{"hello": {{"version", "nonce"}}}}         -->
                                       <-- {{"evidence": {{"nonce", "document"}}}}
{{"auth": {{"certificate", "signature"}}}}  -->
                                       <-- {{"accept": {{"name"}}}}   or {{"Error": {{"message"}}}}
the request                            -->
                                       <-- its answers
```

Nonces are {
        channel.NONCE_BYTES
    } bytes in hex, documents, certificates and signatures base64. The attestation document binds the
client's nonce and the TLS key for service `{channel.SERVICE}`. The signature is over
`"{
        channel.PROOF_CONTEXT.decode()[:-1]
    }"`, a NUL byte, the SHA-256 of the TLS key's SPKI, the client's nonce and the gateway's
(ECDSA with SHA-256, or Ed25519). The client says nothing of its own before it has verified the document against its policy.

## Logs

Table `logs` of `/etc/init.toml`, or, in its place, of `/etc/enclavekit/init.toml`, which is the app's part of the image:
`logs` of `enclave.yaml` ends up there.

{table(["key", "default", ""], log_rows())}

Every line is kept with its time, unit and stream in a ring in memory, which `initctl logs` reads, and in `/log/UNIT.log`
(`max_log_size`, `max_log_files`). PID 1's own lines are the unit `enclave-init`, the kernel's `kernel`. What `redact` matches is
replaced before a line goes anywhere; a line over 8 KiB is cut first, and what the cut divides is not found. Capturing groups are
not allowed: write `(?:...)`. When the disk is full lines are counted, and the file says how many are missing once it can be
written again. The parent is not trusted: with `to_parent = "init"` it gets no output of units, neither by stream nor in the exit
report, and with `stream_port = 0` no stream at all.

## Limits

{
        table(
            ["what", "value", "why"],
            [
                ["connections at once", server.MAX_CONNECTIONS, "each may cost PID 1 half a MiB"],
                [
                    "time for a request",
                    f"{connection.REQUEST_TIMEOUT_S:g} s",
                    "a caller that stalls gives its place back",
                ],
                ["time for an answer to be taken", f"{connection.ANSWER_TIMEOUT_S:g} s without a byte", "the same"],
                [
                    "lines waiting for a live reader",
                    f"{line_queue.MAX_QUEUE_BYTES // 1024} KiB",
                    "then they are dropped and counted",
                ],
                ["lines of one request", requests.MAX_LINES, "the ring holds fewer"],
            ],
        )
    }
"""


if __name__ == "__main__":
    PAGE.write_text(render())
