"""Google Cloud Storage's two interfaces on this machine, for tests.

The XML interface is S3's in all but names (Google, "Cloud Storage XML API", "Interoperability"),
so moto's S3 server answers, and this layer puts generations in the place of tags. Of the JSON
interface there is what a reader asks for: an object's metadata, its bytes, and lists.

Run as a program it prints its address and answers until it is ended: pyarrow waits for some answers
without letting other threads of its process run. `/-/conditions` tells the generations that writes
were made conditional on.
"""

import json
import sys
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

from moto.moto_server.werkzeug_app import (
    DomainDispatcherApplication,
    MotoRequestHandler,
    create_backend_app,
)
from werkzeug.serving import make_server
from werkzeug.test import Client
from werkzeug.wrappers import Request, Response

_GENERATION = "x-goog-generation"
_CONDITION = "HTTP_X_GOOG_IF_GENERATION_MATCH"
# moto asks for a name of S3's form and verifies nothing of it.
_S3_USER = "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request"
_XML = "{http://s3.amazonaws.com/doc/2006-03-01/}"
_JSON = "/storage/v1/b/"


class GoogleServer:
    """The server, a WSGI application."""

    def __init__(self) -> None:
        self._s3 = DomainDispatcherApplication(create_backend_app)
        self._tags: dict[str, str] = {}
        self._conditions: list[str] = []

    def __call__(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/-/conditions":
            return Response(json.dumps(self._conditions))(environ, start)
        if environ["PATH_INFO"].startswith(_JSON):
            return self._json(Request(environ))(environ, start)
        environ["HTTP_AUTHORIZATION"] = _S3_USER
        condition = environ.pop(_CONDITION, None)
        if condition == "0":
            environ["HTTP_IF_NONE_MATCH"] = "*"
        elif condition is not None:
            environ["HTTP_IF_MATCH"] = self._tags.get(condition, '"none"')
        if condition is not None:
            self._conditions.append(condition)

        def begin(status: str, headers: list[tuple[str, str]], *more: Any) -> Any:
            for name, tag in list(headers):
                if name.lower() == "etag":
                    headers.append((_GENERATION, self._generation(tag)))
            return start(status, headers, *more)

        return self._s3(environ, begin)

    def _generation(self, tag: str) -> str:
        generation = str(int(tag.strip('"').split("-")[0][:15], 16))
        self._tags[generation] = tag
        return generation

    def _json(self, request: Request) -> Response:
        bucket, objects, key = request.path.removeprefix(_JSON).partition("/o")
        if not objects:
            return Response(json.dumps({"kind": "storage#bucket", "name": bucket}))
        if not key:
            return self._list(bucket, request.args.get("prefix", ""))
        where = f"/{bucket}/{quote(key.removeprefix('/'))}"
        if request.args.get("alt") == "media":
            asked = {name: text for name, text in request.headers if name == "Range"}
            found = self._ask(where, asked)
            kept = {name: text for name, text in found.headers if name == "Content-Range"}
            return Response(found.data, status=found.status_code, headers=kept)
        found = self._ask(where, {})
        if found.status_code != 200:
            return Response(status=found.status_code)
        size, tag = str(len(found.data)), found.headers["ETag"]
        return Response(json.dumps(self._object(bucket, key.removeprefix("/"), size, tag)))

    def _list(self, bucket: str, prefix: str) -> Response:
        found = self._ask(f"/{bucket}?list-type=2&prefix={quote(prefix)}", {})
        if found.status_code != 200:
            return Response(status=found.status_code)
        entries = ET.fromstring(found.data).iter(f"{_XML}Contents")
        texts = ([entry.findtext(_XML + field, "") for field in _FIELDS] for entry in entries)
        items = [self._object(bucket, *text) for text in texts]
        return Response(json.dumps({"kind": "storage#objects", "items": items}))

    def _ask(self, where: str, headers: dict[str, str]) -> Response:
        """What S3 has there."""
        return Client(self._s3, Response).get(where, headers=headers | {"Authorization": _S3_USER})

    def _object(self, bucket: str, key: str, size: str, tag: str) -> dict[str, str]:
        return {
            "kind": "storage#object",
            "bucket": bucket,
            "name": key,
            "size": size,
            "generation": self._generation(tag),
            "metageneration": "1",
            "timeCreated": _SOME_TIME,
            "updated": _SOME_TIME,
        }


_FIELDS = ("Key", "Size", "ETag")
_SOME_TIME = "2026-01-01T00:00:00.000Z"

if __name__ == "__main__":
    server = make_server(
        "127.0.0.1", 0, GoogleServer(), threaded=True, request_handler=MotoRequestHandler
    )
    sys.stdout.write("{}:{}\n".format(*server.server_address[:2]))
    sys.stdout.flush()
    server.serve_forever()
