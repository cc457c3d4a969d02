# SPDX-License-Identifier: Apache-2.0
"""Policy files: what each key does to a document, and what is refused before any document is seen."""

import datetime
import hashlib
import textwrap

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import load_der_x509_certificate
from cryptography.x509.oid import NameOID
from enclavekit_attestation import Policy, load_policy, verify
from enclavekit_attestation.commands.policy import format_policy, open_ends_of
from enclavekit_core.errors import ConfigError, VerificationError

PCRS = {index: bytes([index + 1]) * 48 for index in range(17)}
HEX = {index: f"'{value.hex()}'" for index, value in PCRS.items()}  # unquoted digits are a number in YAML
ZERO = f"'{'00' * 48}'"
ROLE, INSTANCE = "arn:aws:iam::123456789012:role/parent", "i-0123456789abcdef0"


def extend(data):
    return hashlib.sha384(bytes(48) + data).digest()


def make_pem(common_name):
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    now = datetime.datetime.now(datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(now).not_valid_after(now + datetime.timedelta(days=1))
    return builder.sign(key, SHA256()).public_bytes(Encoding.PEM).decode()


@pytest.fixture
def policy_of(tmp_path):
    def load(text):
        path = tmp_path / "policy.yaml"
        path.write_text(textwrap.dedent(text))
        return load_policy(str(path))

    return load


@pytest.fixture
def check(make, chain):
    """Whether a document with these fields meets a policy; the reason if it does not."""

    def run(policy, fields=(), *, age_ms=0, at=None, root=chain.root):
        raw = make.document(chain, {"pcrs": PCRS, **dict(fields)})
        try:
            return verify(raw, policy, root=root, at=at, now_ms=make.now_ms + age_ms).document
        except VerificationError as exc:
            return str(exc)

    return run


TWO_SETS = f"""
    measurements:
      - name: notes 1.4
        pcrs: {{0: {HEX[0]}, 8: {HEX[8]}}}
        not_after: 2026-01-02T03:04:05Z
      - name: notes 1.5
        pcrs: {{0: {HEX[5]}}}
        not_before: 2026-01-01T00:00:00+01:00
"""


def test_any_of_the_sets_may_be_met(policy_of, check):
    policy = policy_of(TWO_SETS)
    first, second = check(policy), check(policy, {"pcrs": {**PCRS, 0: PCRS[5]}})
    assert (first.measurement_set, first.compared_pcrs) == ("notes 1.4", (0, 8))
    assert (second.measurement_set, second.compared_pcrs) == ("notes 1.5", (0,))
    assert policy.identifies_code


def test_no_set_met_names_the_difference_to_each(policy_of, check):
    refused = check(policy_of(TWO_SETS), {"pcrs": {**PCRS, 8: bytes(48)}})
    assert "notes 1.4: PCR8 is" in refused
    assert "notes 1.5: PCR0 is" in refused


def test_values_of_two_sets_do_not_mix(policy_of, check):
    policy = policy_of(f"""
        measurements:
          - {{name: a, pcrs: {{1: {HEX[1]}, 2: {HEX[9]}}}}}
          - {{name: b, pcrs: {{1: {HEX[9]}, 2: {HEX[2]}}}}}
    """)
    assert "no measurement set is met" in check(policy)


def test_sets_count_within_their_window(policy_of, check, make):
    policy = policy_of(TWO_SETS)
    assert check(policy, age_ms=0).measurement_set == "notes 1.4"
    assert "notes 1.4: not valid after 2026-01-02T03:04:05" in check(policy, age_ms=1)
    later = policy_of(TWO_SETS.replace("2026-01-01T00:00:00+01:00", "2026-01-02T03:04:06Z"))
    assert "notes 1.5: not valid before" in check(later, {"pcrs": {**PCRS, 0: PCRS[5]}})
    # archival: the window is held against the moment that is asked about
    assert check(policy, at=make.now_ms).measurement_set == "notes 1.4"
    assert "not valid after" in check(policy, at=make.now_ms + 1)


def test_common_pcrs_count_besides_the_sets(policy_of, check):
    policy = policy_of(TWO_SETS + f"    pcrs: {{16: {HEX[16]}}}\n")
    assert check(policy).compared_pcrs == (0, 8, 16)
    assert "PCR16 is missing" in check(policy, {"pcrs": {index: PCRS[index] for index in range(16)}})


def test_role_instance_and_signer(policy_of, check, tmp_path):
    pem = make_pem("signer")
    der = load_der_x509_certificate(x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER))
    (tmp_path / "signer.pem").write_text(pem)
    inline = textwrap.indent(pem, "          ")
    for signer in ("signer.pem", f"|\n{inline}"):
        policy = policy_of(
            f"pcrs: {{}}\niam_role: {ROLE}\ninstance_id: {INSTANCE}\nsigning_certificate: {signer}\n".replace(
                "          ", "  "
            )
        )
        expected = {
            3: extend(ROLE.encode()),
            4: extend(INSTANCE.encode()),
            8: extend(hashlib.sha384(der.public_bytes(Encoding.DER)).digest()),
        }
        assert policy.pcrs == expected
        assert check(policy, {"pcrs": {**PCRS, **expected}}).compared_pcrs == (3, 4, 8)
        assert "PCR3 is" in check(policy)


def test_formulas_are_those_of_real_documents(data_dir):
    """PCR4 of an AWS-signed document is that of the instance id in its module_id."""
    from enclavekit_attestation import parse_document
    from enclavekit_attestation.measurement import pcr_of_text

    with open(f"{data_dir}/attdoc-2024-12-ap-south-1.cbor", "rb") as source:
        document = parse_document(source.read())
    assert pcr_of_text(document.module_id.partition("-enc")[0]) == document.pcrs[4]


def test_roots_of_partitions(policy_of, check, make, tmp_path):
    """A chain under a partition's root verifies where the policy names that root, and nowhere else."""
    gov = make.chain(root={"name": "aws-us-gov.nitro-enclaves"})
    pem = load_der_x509_certificate(gov.root).public_bytes(Encoding.PEM).decode()
    (tmp_path / "gov.pem").write_text(pem)
    policy = policy_of(f"pcrs: {{0: {HEX[0]}}}\nroots: {{aws: pinned, aws-us-gov: gov.pem}}\n")
    raw = make.document(gov, {"pcrs": PCRS})
    document = verify(raw, policy, now_ms=make.now_ms).document
    assert (document.partition, document.development_root) == ("aws-us-gov", False)
    for other in (Policy({0: PCRS[0]}), policy_of(f"pcrs: {{0: {HEX[0]}}}\nroots: {{aws: pinned}}\n")):
        with pytest.raises(VerificationError, match="another root"):
            verify(raw, other, now_ms=make.now_ms)
    assert "another root" in check(policy, root=None)


def test_real_document_under_the_pinned_root_of_a_policy(policy_of, production):
    policy = policy_of("pcrs: {}\nroots: {aws: pinned}\n")
    document = verify(production.raw, policy, at=production.made_at_ms).document
    assert (document.partition, document.development_root) == ("aws", False)


USER_DATA = """
    pcrs: {}
    user_data:
      fields:
        purpose: {equals: enclavekit/tls/1}
        service: {matches: "[a-z-]{1,20}"}
        serial: {type: integer, optional: true}
"""
GOOD_USER_DATA = b'{"purpose":"enclavekit/tls/1","service":"ra-web-srv"}'


@pytest.mark.parametrize(
    ("user_data", "reason"),
    [
        (GOOD_USER_DATA, None),
        (GOOD_USER_DATA[:-1] + b',"serial":3}', None),
        (None, "has none"),
        (b"", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff", "not JSON"),
        (b"[" * 900, "not JSON"),
        (b"{}", "no field 'purpose'"),
        (GOOD_USER_DATA.replace(b"tls/1", b"tls/2"), "expected 'enclavekit/tls/1'"),
        (GOOD_USER_DATA.replace(b'"ra-web-srv"', b'"RA"'), "does not match"),
        (GOOD_USER_DATA.replace(b'"ra-web-srv"', b'"ra-web-srv\\n"'), "does not match"),
        (GOOD_USER_DATA.replace(b'"ra-web-srv"', b"7"), "does not match"),
        (GOOD_USER_DATA[:-1] + b',"serial":true}', "no integer"),
        (GOOD_USER_DATA[:-1] + b',"serial":"3"}', "no integer"),
        (GOOD_USER_DATA[:-1] + b',"more":1}', "'more' that is not expected"),
        (GOOD_USER_DATA[:-1] + b',"service":"ra-web-srv"}', "a key twice"),
    ],
    ids=lambda value: str(value)[-40:],
)
def test_user_data_schema(policy_of, check, user_data, reason):
    result = check(policy_of(USER_DATA), {"user_data": user_data})
    if reason is None:
        assert result.user_data == user_data
    else:
        assert reason in result


def test_user_data_exactly(policy_of, check):
    policy = policy_of("pcrs: {}\nuser_data: {exactly: cafe}\n")
    assert check(policy, {"user_data": b"\xca\xfe"}).user_data == b"\xca\xfe"
    assert "expected 'cafe'" in check(policy, {"user_data": b"\xca\xff"})


def test_user_data_with_other_fields(policy_of, check):
    text = "pcrs: {}\nuser_data: {other_fields: true, fields: {a: {equals: 1}}}\n"
    assert check(policy_of(text), {"user_data": b'{"a":1,"b":2}'}).user_data
    assert "expected 1" in check(policy_of(text), {"user_data": b'{"a":true}'})


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("max_age_s: 5", "neither `pcrs` nor `measurements`"),
        ("measurements: []", "empty"),
        ("measurements: [{name: a, pcrs: {}}]", "expects no PCR"),
        ("measurements: [{pcrs: {0: '00'}}]", "name"),
        (f"measurements: [{{name: ' ', pcrs: {{0: {HEX[0]}}}}}]", "no name"),
        (f"measurements: [{{name: a, pcrs: {{0: {HEX[0]}}}}}, {{name: a, pcrs: {{0: {HEX[1]}}}}}]", "two measurement"),
        (f"measurements: [{{name: a, pcrs: {{0: {ZERO}}}}}]", "zero is the value"),
        (f"measurements: [{{name: a, pcrs: {{0: {HEX[0]}, PCR0: {HEX[0]}}}}}]", "twice"),
        (f"measurements: [{{name: a, pcrs: {{0: {HEX[0]}}}, not_after: 2026-01-01}}]", "a: not_after|date"),
        (f"measurements: [{{name: a, pcrs: {{0: {HEX[0]}}}, not_after: '2026-01-01T00:00:00'}}]", "timezone"),
        (
            f"measurements: [{{name: a, pcrs: {{0: {HEX[0]}}}, not_before: 2026-01-02T00:00:00Z,"
            " not_after: 2026-01-01T00:00:00Z}]",
            "ends before",
        ),
        (f"measurements: [{{name: a, pcrs: {{0: {HEX[0]}}}, when: 1}}]", "when"),
        (f"pcrs: {{0: {HEX[1]}}}\nmeasurements: [{{name: a, pcrs: {{0: {HEX[0]}}}}}]", "two different"),
        (f"pcrs: {{4: {HEX[1]}}}\ninstance_id: i-1", "two different"),
        ("pcrs: {}\niam_role: ''", "empty"),
        ("pcrs: {}\nsigning_certificate: none.pem", "no such file"),
        ("pcrs: {}\nsigning_certificate: policy.yaml", "not a PEM"),
        ("pcrs: {}\nroots: {}", "empty"),
        ("pcrs: {}\nroots: {aws: policy.yaml}", "PEM"),
        ("pcrs: {}\nroots: {aws-us-gov: pinned}", "no such file"),
        ("pcrs: {}\nuser_data: {exactly: xyz}", "hex"),
        ("pcrs: {}\nuser_data: {exactly: ca, other_fields: true}", "nothing for"),
        ("pcrs: {}\nuser_data: {fields: {a: {type: text}}}", "none of"),
        ("pcrs: {}\nuser_data: {fields: {a: {matches: '('}}}", "regular expression"),
        ("pcrs: {}\nrequire_nonce: yes please", "require_nonce"),
        ("pcrs: {}\npcrs: {}", "duplicate"),
    ],
)
def test_unusable_policies(policy_of, text, reason):
    with pytest.raises(ConfigError, match=rf"(?s)policy\.yaml.*({reason})"):
        policy_of(text)


def test_root_with_the_name_of_another_is_refused(policy_of, tmp_path, data_dir):
    (tmp_path / "dev.pem").write_text(make_pem("enclavekit-dev.nitro-enclaves"))
    with open(f"{data_dir}/aws-nitro-root-g1.pem") as source:
        (tmp_path / "aws.pem").write_text(source.read())
    for root in ("aws-us-gov: dev.pem", "aws-us-gov: aws.pem", "aws: aws.pem", "azure: dev.pem"):
        with pytest.raises(ConfigError, match="roots"):
            policy_of(f"pcrs: {{}}\nroots: {{{root}}}\n")


def test_made_policy_is_read_back(policy_of):
    for name in ("app.eif", "a: b", "#x", 'quote"d', "über 1.0", "1.0", "null", "- x"):
        policy = policy_of(format_policy(name, {0: PCRS[0], 8: PCRS[8]}))
        assert [(one.name, one.pcrs) for one in policy.measurements] == [(name, {0: PCRS[0], 8: PCRS[8]})]
        assert policy.max_age_s == 300


def test_open_ends_are_named(policy_of):
    policy = policy_of(
        TWO_SETS.replace("notes 1.5", "new").replace("2026-01-01T00:00:00+01:00", "2999-01-01T00:00:00Z")
    )
    notes = list(open_ends_of(policy))
    assert any("notes 1.4 has expired" in note for note in notes)
    assert any("new does not count yet" in note for note in notes)
    notes = list(open_ends_of(Policy(allow_debug=True)))
    assert len(notes) == 2
    assert list(open_ends_of(Policy({0: PCRS[0]}))) == []
