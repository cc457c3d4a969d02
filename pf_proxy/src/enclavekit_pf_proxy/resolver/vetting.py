# SPDX-License-Identifier: Apache-2.0
"""Which questions go out, and what of an answer comes in. Messages in, messages out: no I/O.

The host's resolver is not trusted. Only names that the policy allows are asked for; of an answer only the chain from
the question to its addresses is kept, and no address that would be rebinding. HTTPS and SVCB records are answered as
absent: they carry keys that hide a connection's name, and addresses past the ones that are vetted here.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Protocol

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset
from enclavekit_core.host_names import normalise_name
from enclavekit_core.ip_addresses import IpAddress

MAX_CHAIN = 8  # CNAMEs from a question to its addresses; resolvers follow about as many
MAX_TTL_S = 86400
MAX_NEGATIVE_TTL_S = 300
NEGATIVE_TTL_S = 30  # without a SOA record that says it
MAX_ADDRESSES = 64
HEADER_BYTES = 12
HIDDEN = {dns.rdatatype.HTTPS, dns.rdatatype.SVCB}
ADDRESSES = {dns.rdatatype.A, dns.rdatatype.AAAA}
REFUSED_TYPES = {dns.rdatatype.ANY, dns.rdatatype.AXFR, dns.rdatatype.IXFR}

Key = tuple[str, int]
"""Name in normal form, record type."""


class Rules(Protocol):
    """What the policy says about names."""

    def may_resolve(self, name: str) -> bool: ...
    def may_answer(self, name: str, address: IpAddress) -> bool: ...
    def may_pass(self, name: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Question:
    """A question that may go out."""

    key: Key
    message: dns.message.QueryMessage


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known about a question."""

    rcode: dns.rcode.Rcode
    rrsets: tuple[dns.rrset.RRset, ...]
    ttl_s: int
    addresses: tuple[IpAddress, ...] = ()
    dropped: tuple[str, ...] = ()
    """What was not believed: for the log."""


FAILED = Answer(dns.rcode.SERVFAIL, (), 0)


def read_question(wire: bytes, rules: Rules) -> Question | bytes | None:
    """Return a question that may go out, or the bytes that answer one that may not, or None for what is no query."""
    if len(wire) < HEADER_BYTES or wire[2] & 0x80:
        return None
    try:
        message = dns.message.from_wire(wire, ignore_trailing=False)
    except dns.exception.DNSException:
        return wire[:2] + bytes([0x80 | wire[2] & 0x79, dns.rcode.FORMERR]) + bytes(8)
    if message.opcode() != dns.opcode.QUERY or not isinstance(message, dns.message.QueryMessage):
        return _refuse(message, dns.rcode.NOTIMP)
    if len(message.question) != 1:
        return _refuse(message, dns.rcode.FORMERR)
    asked = message.question[0]
    if asked.rdclass != dns.rdataclass.IN or asked.rdtype in REFUSED_TYPES:
        return _refuse(message, dns.rcode.NOTIMP)
    name = _text(asked.name)
    if name is None or not rules.may_resolve(name):
        return _refuse(message, dns.rcode.NXDOMAIN)
    if asked.rdtype in HIDDEN:
        return _refuse(message, dns.rcode.NOERROR)
    return Question((name, int(asked.rdtype)), message)


def encode_query(key: Key, number: int) -> bytes:
    """Return what is sent out for `key`: nothing of the app's own message, which might say more than the name."""
    query = dns.message.make_query(dns.name.from_text(key[0] + "."), dns.rdatatype.RdataType.make(key[1]))
    query.id = number
    return query.to_wire()


def read_answer(wire: bytes, key: Key, number: int, rules: Rules) -> Answer | None:
    """Return what of a resolver's message may be believed; None if it is no answer to this question."""
    try:
        message = dns.message.from_wire(wire, ignore_trailing=True)
    except dns.exception.DNSException:
        return None
    if message.id != number or not message.flags & dns.flags.QR or len(message.question) != 1:
        return None
    asked = message.question[0]
    if (_text(asked.name), int(asked.rdtype)) != key or message.rcode() not in (dns.rcode.NOERROR, dns.rcode.NXDOMAIN):
        return None
    return _believe(message, key, rules)


def encode_answer(question: Question, answer: Answer, age_s: float, max_bytes: int) -> bytes:
    """Return the reply to `question`; one that does not fit is cut, and says so."""
    reply = dns.message.make_response(question.message, recursion_available=True)
    reply.set_rcode(answer.rcode)
    for rrset in answer.rrsets:
        copy = rrset.copy()  # type: ignore[no-untyped-call]
        copy.ttl = max(0, min(int(rrset.ttl), answer.ttl_s) - int(age_s))
        reply.answer.append(copy)
    try:
        return reply.to_wire(max_size=max_bytes)
    except dns.exception.TooBig:
        reply.answer = []
        reply.flags |= dns.flags.TC
        return reply.to_wire(max_size=max(max_bytes, 512))


def udp_limit(question: Question) -> int:
    """Return how many bytes the asking end takes in a datagram; never more than fits where fragments are lost."""
    return min(max(question.message.payload or 512, 512), 1232)


def _believe(message: dns.message.Message, key: Key, rules: Rules) -> Answer:
    name = message.question[0].name
    kind = dns.rdatatype.RdataType.make(key[1])
    kept: list[dns.rrset.RRset] = []
    dropped: list[str] = []
    for _ in range(MAX_CHAIN):
        found = _find(message, name, kind)
        if found is not None:
            return _keep(found, kept, key, dropped, rules)
        alias = _find(message, name, dns.rdatatype.CNAME)
        if alias is None or kind is dns.rdatatype.CNAME:
            break
        name = alias[0].target
        text = _text(name)
        if text is None or not rules.may_pass(text):
            return Answer(dns.rcode.NXDOMAIN, (), NEGATIVE_TTL_S, dropped=(f"CNAME {name}",))
        kept.append(alias)
    ttl_s = _negative_ttl(message)
    return Answer(message.rcode(), tuple(kept), ttl_s)


def _keep(found: dns.rrset.RRset, kept: list[dns.rrset.RRset], key: Key, dropped: list[str], rules: Rules) -> Answer:
    addresses: list[IpAddress] = []
    if found.rdtype in ADDRESSES:
        believed = dns.rrset.RRset(found.name, found.rdclass, found.rdtype)
        for record in list(found)[:MAX_ADDRESSES]:
            address = ipaddress.ip_address(record.address)
            if rules.may_answer(key[0], address):
                believed.add(record)
                addresses.append(address)
            else:
                dropped.append(str(address))
        believed.ttl = found.ttl
        found = believed
    rrsets = (*kept, found) if len(found) else ()
    ttl_s = min([int(rrset.ttl) for rrset in rrsets], default=NEGATIVE_TTL_S)
    return Answer(dns.rcode.NOERROR, rrsets, min(max(ttl_s, 0), MAX_TTL_S), tuple(addresses), tuple(dropped))


def _find(message: dns.message.Message, name: dns.name.Name, kind: dns.rdatatype.RdataType) -> dns.rrset.RRset | None:
    return message.get_rrset(message.answer, name, dns.rdataclass.IN, kind)


def _negative_ttl(message: dns.message.Message) -> int:
    for rrset in message.authority:
        if rrset.rdtype == dns.rdatatype.SOA and len(rrset):
            return min(int(rrset.ttl), int(rrset[0].minimum), MAX_NEGATIVE_TTL_S)
    return NEGATIVE_TTL_S


def _text(name: dns.name.Name) -> str | None:
    return normalise_name(name.to_text(omit_final_dot=True)) if name.is_absolute() else None


def _refuse(message: dns.message.Message, rcode: dns.rcode.Rcode) -> bytes:
    reply = dns.message.make_response(message, recursion_available=True)
    reply.set_rcode(rcode)
    return reply.to_wire()
