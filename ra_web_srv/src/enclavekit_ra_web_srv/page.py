# SPDX-License-Identifier: Apache-2.0
"""The page for people: what is attested, and how to check it outside. Plain HTML without a script. Pure."""

from __future__ import annotations

import base64
import html
from dataclasses import dataclass

CODE_PCRS = {0: "whole image", 1: "kernel and framework", 2: "application"}
NAMES = {**CODE_PCRS, 3: "role of the parent", 4: "parent instance", 8: "signer of the image", 16: "runtime values"}
STYLE = (
    "body{font-family:sans-serif;max-width:60em;margin:2em auto;padding:0 1em;line-height:1.4}"
    "code,pre{font-family:monospace;overflow-wrap:anywhere;white-space:pre-wrap}"
    "pre{background:#eee;padding:1em}th{text-align:left;vertical-align:top;white-space:nowrap;padding-right:1em}"
)


@dataclass(frozen=True, slots=True)
class Facts:
    module_id: str
    pcrs: dict[int, bytes]
    debug: bool
    tls_spki_sha256: bytes
    vrf_suite: str
    vrf_public_key: bytes
    manifest_root: bytes | None
    files: int | None


def render_page(facts: Facts) -> str:
    """Return the page; every value is escaped."""
    pin = base64.b64encode(facts.tls_spki_sha256).decode("ascii")
    rows = [
        ("Enclave", "module", facts.module_id),
        ("TLS key (SHA-256)", "tls-key", f"sha256//{pin}"),
        ("VRF key", "vrf-key", f"{facts.vrf_public_key.hex()} ({facts.vrf_suite})"),
        ("Files", "files", "being listed" if facts.files is None else str(facts.files)),
        ("Root of the manifest", "manifest-root", facts.manifest_root.hex() if facts.manifest_root else "none yet"),
        *(
            (f"PCR{index}" + (f", {NAMES[index]}" if index in NAMES else ""), f"pcr{index}", value.hex())
            for index, value in sorted(facts.pcrs.items())
            if any(value) or index in CODE_PCRS
        ),
    ]
    table = "\n".join(
        f'<tr><th scope="row">{html.escape(title)}</th><td><code id="{name}">{html.escape(value)}</code></td></tr>'
        for title, name, value in rows
    )
    debug = '<p id="debug"><strong>Debug mode: the host reads its memory. It proves nothing.</strong></p>'
    return f"""<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Attested enclave</title>
<style>{STYLE}</style></head>
<body>
<h1>What this enclave says about itself</h1>
<p><strong>Do not believe this page.</strong> Whoever stands between you and the enclave can write what is below, and
your browser cannot tell: check it with <code>attest</code>, on your own machine, against measurements that you have
from the image's source.</p>
{debug if facts.debug else ""}
<table>
{table}
</table>
<h2>Check it</h2>
<pre>
attest policy new --eif app.eif -o app.policy.yaml
attest verify --url https://HOST:PORT --policy app.policy.yaml
attest file --url https://HOST:PORT /data/file --expect file --policy app.policy.yaml
</pre>
<p>The first line measures the image that you have built or been given. The second asks with a nonce of its own and
compares the TLS key with that of its connection. The third does so too, and then compares a file in the enclave with
one of yours.</p>
<h2>More</h2>
<ul>
<li><a href="manifest">all files, with a document that signs their root</a></li>
<li><a href="pcrs">all registers</a></li>
<li><a href="openapi.json">this interface, as an OpenAPI document</a></li>
</ul>
</body>
</html>
"""
