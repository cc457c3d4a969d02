# SPDX-License-Identifier: Apache-2.0
"""The page for people, in a real browser and as bytes."""

import base64
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
from enclavekit_ra_web_srv.page import Facts, render_page

from .conftest import MODULE_ID, PCRS

FACTS = Facts(MODULE_ID, PCRS, False, bytes(32), "S", bytes(32), bytes(64), 7)


class Elements(HTMLParser):
    """What an identifier's element holds, and all tags and links."""

    def __init__(self, text):
        super().__init__()
        self.by_id, self.tags, self.links, self._open = {}, set(), [], None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        self._open = dict(attributes).get("id")
        if tag == "a":
            self.links.append(dict(attributes)["href"])

    def handle_endtag(self, tag):
        self._open = None

    def handle_data(self, data):
        if self._open is not None:
            self.by_id[self._open] = self.by_id.get(self._open, "") + data


def check(server, elements):
    attested = server.get("/attestation", nonce="00").json
    pin = base64.b64encode(bytes.fromhex(attested["tls_spki_sha256"])).decode()
    assert elements.by_id["tls-key"] == f"sha256//{pin}"
    assert elements.by_id["vrf-key"].startswith(attested["vrf_public_key"])
    assert elements.by_id["module"] == MODULE_ID
    assert elements.by_id["pcr0"] == PCRS[0].hex()
    assert elements.by_id["manifest-root"] in (attested["manifest_root"], "none yet")


def test_page_shows_what_is_attested_and_its_links_lead_somewhere(server):
    answer = server.get("/")
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "script" not in answer.headers["Content-Security-Policy"].replace("default-src 'none'", "")
    elements = Elements(answer.body.decode())
    check(server, elements)
    assert not elements.tags & {"script", "img", "iframe", "form", "object"}
    server.until(lambda: server.get("/ready").status, lambda status: status == 200)
    assert [server.get(f"/{link}").status for link in elements.links] == [200] * len(elements.links)


def test_page_escapes_and_warns():
    text = render_page(Facts("<script>", PCRS, True, bytes(32), "<b>", bytes(32), None, None))
    assert "<script>" not in text
    assert "<b>" not in text
    assert 'id="debug"' in text
    assert 'id="debug"' not in render_page(FACTS)


def test_page_in_a_browser(server, tmp_path):
    browser = next(
        (found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None
    )
    if browser is None:
        pytest.skip("there is no chromium")
    argv = [
        browser,
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
    ]
    argv += ["--ignore-certificate-errors", f"--user-data-dir={tmp_path / 'profile'}", "--window-size=800,1000"]
    shot = tmp_path / "page.png"
    url = f"https://127.0.0.1:{server.port}/"
    done = subprocess.run([*argv, "--dump-dom", url], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    check(server, Elements(done.stdout))
    assert "Content Security Policy" not in done.stderr
    assert not re.search(r"Refused to (load|apply|execute)", done.stderr)
    subprocess.run([*argv, f"--screenshot={shot}", url], capture_output=True, check=True, timeout=120)
    assert shot.read_bytes().startswith(b"\x89PNG")
