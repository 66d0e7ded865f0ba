"""Dask's scheduler and workers without the HTTP servers that Dask starts in each of them, dashboard or not.

Those tell anybody on the machine what the run does, and pass requests on. Only a dashboard that was asked for is
served, to those who have its link.
"""

import hmac
import secrets
from collections.abc import Callable
from typing import Any

from distributed import Scheduler, Worker
from tornado.httputil import HTTPServerRequest
from tornado.web import ErrorHandler, RequestHandler

TOKEN_PARAMETER = "token"  # noqa: S105  its name in links


class ClosedScheduler(Scheduler):
    """A scheduler that has no HTTP server."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Start none."""


class GuardedScheduler(Scheduler):
    """A scheduler whose dashboard is for those who know its token.

    Attributes
    ----------
    token
        What a link to the dashboard ends with.
    """

    def start_http_server(self, *arguments: Any, **options: Any) -> None:
        """Start Dask's own, which looks at each request first."""
        self.token = secrets.token_urlsafe(16)
        super().start_http_server(*arguments, **options)  # type: ignore[no-untyped-call]
        application: Any = self.http_application
        cookie = f"laue-dask-{self.services['dashboard'].port}"
        application.find_handler = _guarded(application, application.find_handler, cookie, self.token)


class ClosedWorker(Worker):
    """A worker that has no HTTP server."""

    def start_http_server(self, *_: Any, **__: Any) -> None:
        """Start none."""


class _Welcome(RequestHandler):
    """Answers the link itself: from now on the browser shows the token with each request, web sockets' as well."""

    def initialize(self, cookie: str, token: str) -> None:
        self._cookie = cookie, token

    def get(self, *_: str) -> None:
        self.set_cookie(*self._cookie, httponly=True, samesite="Strict", expires_days=None)
        self.redirect(self.request.path)


def _guarded(application: Any, find: Callable[..., Any], cookie: str, token: str) -> Callable[..., Any]:
    def same(shown: str | bytes) -> bool:
        return hmac.compare_digest(shown if isinstance(shown, bytes) else shown.encode(), token.encode())

    def find_handler(request: HTTPServerRequest, **options: Any) -> Any:
        if cookie in request.cookies and same(request.cookies[cookie].value):
            return find(request, **options)
        if any(same(shown) for shown in request.query_arguments.get(TOKEN_PARAMETER, ())):
            return application.get_handler_delegate(request, _Welcome, {"cookie": cookie, "token": token})
        return application.get_handler_delegate(request, ErrorHandler, {"status_code": 403})

    return find_handler
