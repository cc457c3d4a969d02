# SPDX-License-Identifier: Apache-2.0
"""Plain HTTP: everything is elsewhere, at the configured host, whatever the request says about hosts."""

from __future__ import annotations

from aiohttp import web

PERMANENT = 308  # the method and the body stay what they are


def redirect_application(public_host: str) -> web.Application:
    """Return an application that sends everybody to https://`public_host`."""

    async def redirect(request: web.Request) -> web.Response:
        # of the target only path and query: an absolute one has a host of its sender's choice
        target = request.rel_url.raw_path_qs
        headers = {"Location": f"https://{public_host}{target if target.startswith('/') else '/'}"}
        return web.Response(status=PERMANENT, headers=headers)

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", redirect)
    return app
