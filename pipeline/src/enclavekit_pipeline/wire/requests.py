# SPDX-License-Identifier: Apache-2.0
"""What a caller may ask for: every verb's request in one type. Pure."""

from __future__ import annotations

from enclavekit_pipeline.wire.copy_messages import CopyInRequest, CopyOutRequest
from enclavekit_pipeline.wire.exec_messages import ExecRequest, ShellRequest
from enclavekit_pipeline.wire.forward_messages import DialRequest, ListenRequest
from enclavekit_pipeline.wire.info_messages import InfoRequest
from enclavekit_pipeline.wire.job_messages import AttachRequest, JobsRequest, KillRequest, LogsRequest, PsRequest
from enclavekit_pipeline.wire.messages import decode_payload

JobRequest = JobsRequest | LogsRequest | AttachRequest | KillRequest | PsRequest
ForwardRequest = DialRequest | ListenRequest
Request = ExecRequest | ShellRequest | JobRequest | CopyInRequest | CopyOutRequest | ForwardRequest | InfoRequest
MAX_LOGGED_CHARS = 512  # of what a request is about


def decode_request(data: bytes) -> Request:
    """Parse and check a request. Raises RemoteProtocolError."""
    request: Request = decode_payload(Request, data)  # type: ignore[arg-type]  # msgspec takes unions
    request.check()
    return request


def target_of(request: Request) -> str:
    """Return what logs say the request is about, not at any length: a caller must not fill them with one word."""
    return _target_of(request)[:MAX_LOGGED_CHARS]


def _target_of(request: Request) -> str:
    match request:
        case ExecRequest():
            return request.argv[0]  # what follows may be a secret
        case LogsRequest() | AttachRequest():
            return request.job
        case KillRequest():
            return request.job or str(request.pid)
        case CopyInRequest() | CopyOutRequest():
            return request.path
        case DialRequest():
            return request.target
        case ListenRequest():
            return request.listen
        case _:
            return ""


def verb_of(request: Request) -> str:
    """Return what lists and logs call it."""
    return str(type(request).__struct_config__.tag)
