# SPDX-License-Identifier: Apache-2.0
"""The OpenAPI 3.1 document, made of the routes and their types. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

import msgspec

from enclavekit_ra_web_srv.answers import Error
from enclavekit_ra_web_srv.asked import Nothing
from enclavekit_ra_web_srv.routes import JSON, Kinds, Route

VARIABLE = re.compile(r"\{(\w+)\}")
REFERENCE = "#/components/schemas/{name}"
ALWAYS: dict[int, Kinds] = {500: Error}


def openapi_document(routes: Sequence[Route]) -> dict[str, Any]:
    """Return the document of all routes that are not hidden."""
    shown = [route for route in routes if not route.hidden]
    types = {kind for route in shown for answer in {**ALWAYS, **_answers(route)}.values() for kind in _kinds(answer)}
    types |= {route.body for route in shown if route.body is not None}
    types |= {route.query for route in shown if route.query is not Nothing}
    ordered = sorted(types, key=lambda kind: kind.__name__)
    schemas, components = msgspec.json.schema_components(ordered, ref_template=REFERENCE)
    named = dict(zip(ordered, schemas, strict=True))
    paths: dict[str, Any] = {}
    for route in shown:
        paths.setdefault(route.path, {})[route.method.lower()] = _operation(route, named, components)
    queries = {route.query.__name__ for route in shown}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "ra-web-srv",
            "version": "1",
            "description": "Evidence about an enclave and its files; it judges none: verify outside.",
        },
        "paths": paths,
        "components": {"schemas": {name: schema for name, schema in components.items() if name not in queries}},
    }


def _kinds(answer: Kinds) -> tuple[type[msgspec.Struct], ...]:
    return answer if isinstance(answer, tuple) else () if answer is None else (answer,)


def _schema(answer: Kinds, named: dict[Any, Any]) -> dict[str, Any]:
    schemas = [named[kind] for kind in _kinds(answer)]
    return schemas[0] if len(schemas) == 1 else {"anyOf": schemas}


def _answers(route: Route) -> dict[int, Kinds]:
    answers = dict(route.answers)
    if route.query is not Nothing:
        answers.setdefault(400, Error)
    if route.body is not None:
        answers.update({status: Error for status in (400, 408, 413, 415) if status not in answers})
    return answers


def _operation(route: Route, named: dict[Any, Any], components: dict[str, Any]) -> dict[str, Any]:
    responses = {}
    for status, kind in sorted({**_answers(route), **ALWAYS}.items()):
        content: dict[str, Any] = {} if kind is None else {JSON: {"schema": _schema(kind, named)}}
        if status == HTTPStatus.OK:
            content |= {name: {} for name in route.content_types}
        responses[str(status)] = {"description": HTTPStatus(status).phrase, "content": content}
    operation: dict[str, Any] = {
        "operationId": re.sub(r"\W+", "_", f"{route.method.lower()}{route.path}").strip("_"),
        "summary": route.summary,
        "parameters": [*_path_parameters(route), *_query_parameters(route, components)],
        "responses": responses,
    }
    if route.body is not None:
        operation["requestBody"] = {"required": True, "content": {JSON: {"schema": named[route.body]}}}
    return operation


def _path_parameters(route: Route) -> list[dict[str, Any]]:
    schema = {"type": "string"}
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in VARIABLE.findall(route.path)]


def _query_parameters(route: Route, components: dict[str, Any]) -> list[dict[str, Any]]:
    if route.query is Nothing:
        return []
    schema = components[route.query.__name__]
    required = schema.get("required", [])
    return [
        {"name": name, "in": "query", "required": name in required, "schema": field}
        for name, field in schema["properties"].items()
    ]
