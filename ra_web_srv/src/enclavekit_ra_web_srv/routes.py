# SPDX-License-Identifier: Apache-2.0
"""What a route is: a handler, the types of what goes in and comes out, and what it costs. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from enclavekit_ra_web_srv.answers import Error
from enclavekit_ra_web_srv.asked import Nothing

JSON = "application/json"
CBOR = "application/cbor"
HTML = "text/html"
TEXT = "text/plain"

Query = TypeVar("Query", bound=msgspec.Struct)
Body = TypeVar("Body")


Kinds = type[msgspec.Struct] | tuple[type[msgspec.Struct], ...] | None


@dataclass(frozen=True, slots=True)
class Ask(Generic[Query, Body]):
    """A request, checked."""

    query: Query
    body: Body
    client: Hashable
    """Who asks: the key of a client certificate, an address, or a connection of this machine."""
    argument: str = ""
    """The variable part of the path."""
    accept: str = ""
    raw_query: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """Anything but 200 with a JSON object, for which a handler returns just that."""

    content: msgspec.Struct | dict[str, Any] | bytes
    status: int = 200
    content_type: str = JSON


@dataclass(frozen=True, slots=True)
class Route:
    method: str
    path: str
    """Without a slash at its end; `{name}` for a variable part. Served with and without the slash."""
    handler: Callable[[Ask[Any, Any]], Awaitable[Answer | msgspec.Struct]]
    answers: Mapping[int, Kinds]
    """Status -> types that the JSON may have; None: another content type, or no type of ours."""
    query: type[msgspec.Struct] = Nothing
    body: type[msgspec.Struct] | None = None
    content_types: tuple[str, ...] = ()
    """Of a 200, beside JSON."""
    about_files: bool = False
    """Reveals hashes of files or makes work with them: needs a client certificate, where there are any."""
    urgent: bool = False
    """Answered before what waits for its turn: costs next to nothing, and must always come."""
    hidden: bool = False
    """Not in the OpenAPI document: the document itself, and pages for people."""

    @property
    def summary(self) -> str:
        return (self.handler.__doc__ or "").strip().partition("\n")[0]


BAD_INPUT: dict[int, Kinds] = {400: Error}
OF_NSM: dict[int, Kinds] = {429: Error, 503: Error}
