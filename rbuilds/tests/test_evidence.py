# SPDX-License-Identifier: Apache-2.0
"""Measurements, bill of materials and provenance of a real image: what they say, that they repeat, that lies show."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from enclavekit_core.errors import InputError
from enclavekit_eif.metadata import make_metadata
from enclavekit_eif.writer import write_eif
from enclavekit_rbuilds.app.image_config import Overrides
from enclavekit_rbuilds.base.inputs import Input
from enclavekit_rbuilds.cli import main
from enclavekit_rbuilds.evidence.facts import evidence_paths, read_facts
from enclavekit_rbuilds.evidence.sbom import make_sbom, package_url
from enclavekit_rbuilds.evidence.verify import check_evidence
from enclavekit_rbuilds.evidence.write import EvidenceChoice, write_evidence

INPUTS = [
    Input("debian", "libstdc++6", "12.2.0-14+deb12u1", "1" * 64, 600_000, "bookworm"),
    Input("debian", "tzdata", "1:2024a-0+deb12u1~x", "2" * 64),
    Input("wheel", "Foo_Bar.baz", "1.0+local", "3" * 64),
    Input("kernel", "Debian 6.1.0-1-cloud-amd64", "6.1.1-1", "4" * 64),
    Input("own", "enclavekit-core", "0.1.0", "5" * 64),
    Input("app", "layer", "", "6" * 64),
    Input("app", "layer", "", "7" * 64),
    Input("file", "alice.crt", "", "8" * 64),
]


@dataclass(frozen=True)
class Request:
    """Has what build requests have: settings, places, secrets' places."""

    output: str
    rootfs: str | None = None
    framework_rootfs: str | None = None
    name: str | None = None
    arch: str = "x86_64"
    overrides: tuple[Overrides, ...] = ()
    signing: dict[str, str] = field(default_factory=dict)
    evidence: EvidenceChoice | None = field(default_factory=EvidenceChoice)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    for name in ("kernel", "first", "second"):
        (tmp_path / name).write_bytes(name.encode() * 50)
    target = tmp_path / "out" / "shop.eif"
    target.parent.mkdir()
    write_eif(
        target,
        kernel=tmp_path / "kernel",
        cmdline=b"quiet",
        ramdisks=[tmp_path / "first", tmp_path / "second"],
        metadata=make_metadata("shop", "7"),
    )
    return target


@pytest.fixture
def evidence(image: Path, tmp_path: Path) -> Callable[..., dict[str, bytes]]:
    request = Request(
        output=str(image),
        rootfs=str(tmp_path / "app"),
        name="shop",
        overrides=(Overrides(environment={"A": "1"}, working_directory="/srv"),),
        signing={"key": str(tmp_path / "secret.pem"), "certificate": str(tmp_path / "signer.crt")},
    )

    def write(inputs: list[Input] = INPUTS, **more: Any) -> dict[str, bytes]:
        written = write_evidence(inputs, replace(request, **more), str(image), 0.0)
        return {
            name: Path(path).read_bytes() for name, path in zip(("pcrs", "sbom", "provenance"), written, strict=True)
        }

    return write


def test_evidence_repeats_whatever_the_order_of_inputs(evidence: Callable[..., dict[str, bytes]]) -> None:
    shuffled = random.Random(1).sample(INPUTS, len(INPUTS))
    assert evidence() == evidence(shuffled)


def test_pcr_file_has_the_shape_of_describe_eif(image: Path, evidence: Callable[..., dict[str, bytes]]) -> None:
    from enclavekit_eif.describe import describe_eif
    from enclavekit_eif.reader import read_eif

    assert json.loads(evidence()["pcrs"]) == {"Measurements": describe_eif(read_eif(str(image)))["Measurements"]}


def test_sbom_is_valid_and_names_every_input(image: Path, evidence: Callable[..., dict[str, bytes]]) -> None:
    document = json.loads(evidence()["sbom"])
    found = [(part["name"], part.get("version", ""), part["hashes"][0]["content"]) for part in document["components"]]
    assert sorted(found) == sorted((item.name, item.version, item.sha256) for item in INPUTS)
    references = [part["bom-ref"] for part in document["components"]]
    assert len(set(references)) == len(references)
    assert document["dependencies"][0]["dependsOn"] == references
    assert document["metadata"]["component"]["hashes"][0]["content"] == read_facts(str(image)).sha256
    assert "timestamp" not in document["metadata"]


def test_sbom_fits_the_official_schema(evidence: Callable[..., dict[str, bytes]]) -> None:
    pytest.importorskip("jsonschema", reason="the schema validator is not installed")
    validation = pytest.importorskip("cyclonedx.validation.json", reason="cyclonedx-python-lib is not installed")
    schema = pytest.importorskip("cyclonedx.schema")
    validator = validation.JsonStrictValidator(schema.SchemaVersion.V1_6)
    sbom = evidence()["sbom"].decode()
    assert validator.validate_str(sbom) is None
    assert validator.validate_str(sbom.replace('"library"', '"nonsense"')) is not None


def test_package_urls_can_be_read_back() -> None:
    packageurl = pytest.importorskip("packageurl", reason="packageurl-python is not installed")
    for item, kind in ((INPUTS[0], "deb"), (INPUTS[1], "deb"), (INPUTS[2], "pypi")):
        text = package_url(item, "aarch64")
        url = packageurl.PackageURL.from_string(text)
        assert (url.type, url.version) == (kind, item.version)
        assert kind == "pypi" or (url.namespace, url.name, url.qualifiers) == ("debian", item.name, {"arch": "arm64"})
    assert package_url(INPUTS[2], "x86_64") == "pkg:pypi/foo-bar-baz@1.0%2Blocal"
    assert package_url(INPUTS[3], "x86_64") is None


def test_serial_number_follows_the_image(image: Path) -> None:
    facts = read_facts(str(image))
    one, again = make_sbom(facts, [], "1"), make_sbom(facts, INPUTS, "1")
    assert one["serialNumber"] == again["serialNumber"]


def test_provenance_says_what_went_in_and_nothing_of_the_machine(
    image: Path, evidence: Callable[..., dict[str, bytes]], tmp_path: Path
) -> None:
    raw = evidence()["provenance"]
    assert str(tmp_path).encode() not in raw and b"secret" not in raw
    statement = json.loads(raw)
    facts = read_facts(str(image))
    digests = {subject["name"]: subject["digest"] for subject in statement["subject"]}
    assert digests["shop.eif"] == {"sha256": facts.sha256}
    assert digests["PCR0"] == {"sha384": facts.measurements["PCR0"]}
    definition = statement["predicate"]["buildDefinition"]
    assert definition["externalParameters"] == {
        "name": "shop",
        "overrides": [{"environment": {"A": "1"}, "working_directory": "/srv"}],
        "app": "rootfs",
    }
    assert {item["digest"]["sha256"] for item in definition["resolvedDependencies"]} == {i.sha256 for i in INPUTS}
    assert statement["predicate"]["runDetails"]["metadata"] == {}


def test_builder_and_times_are_stated_when_given(evidence: Callable[..., dict[str, bytes]]) -> None:
    statement = json.loads(evidence(evidence=EvidenceChoice("https://ci.example/x", with_time=True))["provenance"])
    details = statement["predicate"]["runDetails"]
    assert details["builder"]["id"] == "https://ci.example/x"
    assert details["metadata"]["startedOn"] == "1970-01-01T00:00:00Z"
    assert details["metadata"]["finishedOn"] > "2020"


def test_evidence_of_this_image_holds(image: Path, evidence, capsys: pytest.CaptureFixture[str]) -> None:
    evidence()
    assert main(["evidence", "verify", str(image)]) == 0
    assert main(["evidence", "verify", str(image), "--json"]) == 0
    report = json.loads(capsys.readouterr().out.partition("\n")[2])
    assert report["holds"] and all(check["holds"] for check in report["checks"])
    # a file that was renamed is still the same image
    renamed = image.with_name("other.eif")
    image.rename(renamed)
    paths = evidence_paths(str(image))
    named = ["--pcrs", paths.pcrs, "--sbom", paths.sbom, "--provenance", paths.provenance]
    assert main(["evidence", "verify", str(renamed), *named]) == 0


def _edit(path: str, change: Callable[[Any], None]) -> None:
    document = json.loads(Path(path).read_text())
    change(document)
    Path(path).write_text(json.dumps(document))


LIES = {
    "another PCR0": ("pcrs", lambda d: d["Measurements"].update(PCR0="0" * 96)),
    "a PCR less": ("pcrs", lambda d: d["Measurements"].pop("PCR2")),
    "a signature that is not there": ("pcrs", lambda d: d["Measurements"].update(PCR8="0" * 96)),
    "a bill of another file": ("sbom", lambda d: d["metadata"]["component"]["hashes"][0].update(content="0" * 64)),
    "a bill without hash": ("sbom", lambda d: d["metadata"]["component"].update(hashes=[])),
    "another PCR in the bill": ("sbom", lambda d: d["metadata"]["component"]["properties"][0].update(value="0" * 96)),
    "a component less": ("sbom", lambda d: d["components"].pop()),
    "another subject": ("provenance", lambda d: d["subject"][0]["digest"].update(sha256="0" * 64)),
    "one more subject": ("provenance", lambda d: d["subject"].append({"name": "x", "digest": {"sha256": "0" * 64}})),
    "another register": ("provenance", lambda d: d["subject"][2]["digest"].update(sha384="0" * 96)),
    "no byproducts": ("provenance", lambda d: d["predicate"]["runDetails"].update(byproducts=[])),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_found(lie: str, image: Path, evidence, capsys: pytest.CaptureFixture[str]) -> None:
    evidence()
    which, change = LIES[lie]
    _edit(getattr(evidence_paths(str(image)), which), change)
    assert main(["evidence", "verify", str(image)]) == 6
    assert main(["evidence", "verify", str(image), "--json"]) == 6
    captured = capsys.readouterr()
    assert not json.loads(captured.out)["holds"]
    assert all(line.startswith("rbuilds: cannot verify ") for line in captured.err.splitlines())


BROKEN = {
    "not JSON": b"{",
    "not an object": b"[]",
    "nested too deeply": b"[" * 100_000,
    "empty": b"",
    "another document": b'{"Measurements": 1, "bomFormat": "x"}',
    "nothing in it": b"{}",
}


@pytest.mark.parametrize("which", ["pcrs", "sbom", "provenance"])
@pytest.mark.parametrize("content", BROKEN)
def test_a_malformed_file_is_one_line(content: str, which: str, image: Path, evidence, capsys) -> None:
    evidence()
    Path(getattr(evidence_paths(str(image)), which)).write_bytes(BROKEN[content])
    assert main(["evidence", "verify", str(image)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rbuilds: cannot read ")


def test_malformed_parts_are_input_errors(image: Path, evidence) -> None:
    """Every value replaced by every other kind of value: an answer or an InputError, never a traceback."""
    evidence()
    paths = evidence_paths(str(image))
    facts = read_facts(str(image))
    for path in (paths.pcrs, paths.sbom, paths.provenance):
        original = Path(path).read_bytes()
        for place in _places(json.loads(original)):
            for value in (None, 1, "x", [], {}, [1], {"name": 1}):
                document = json.loads(original)
                target = document
                for step in place[:-1]:
                    target = target[step]
                if target[place[-1]] == value:
                    continue
                target[place[-1]] = value
                Path(path).write_text(json.dumps(document))
                try:
                    check_evidence(facts, paths)
                except InputError:
                    pass
        Path(path).write_bytes(original)
    assert all(check.holds for check in check_evidence(facts, paths))


def _places(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for key, item in inner for place in [(*above, key), *_places(item, (*above, key))]]


def test_missing_evidence_and_damaged_image(image: Path, evidence, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["evidence", "verify", str(image)]) == 2
    evidence()
    content = bytearray(image.read_bytes())
    content[-1] ^= 1
    image.write_bytes(content)
    assert main(["evidence", "verify", str(image)]) == 6
    assert len(capsys.readouterr().err.splitlines()) == 2


@pytest.mark.parametrize("blocked", ["pcrs", "sbom", "provenance"])
def test_evidence_appears_whole_or_not_at_all(blocked: str, image: Path, evidence) -> None:
    evidence()
    path = Path(getattr(evidence_paths(str(image)), blocked))
    path.unlink()
    path.mkdir()
    (path / "occupied").touch()
    with pytest.raises(InputError):
        evidence()
    # stale evidence would be about another image, so it goes as well
    assert sorted(os.listdir(image.parent)) == sorted(["shop.eif", path.name])
