"""A CryoET data portal of a few files: the answers that copick keeps of it, and an S3 storage on this machine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from copick.impl.cryoet_data_portal import CopickConfigCDP
from copick.util import portal_cache

BUCKET = "portal"


def keep_answers(config: dict[str, Any], answers: dict[str, list[dict[str, Any]]], folder: Path) -> None:
    """Store answers as copick stores those of the portal: with them it asks nothing."""
    settings = CopickConfigCDP(**config)
    fingerprint = portal_cache.fingerprint_for_config(settings)
    [location] = portal_cache.resolve_locations(
        fingerprint, portal_cache.settings_from_config(settings.model_copy(update={"portal_cache_dir": str(folder)}))
    )
    assert portal_cache._store_location(location, fingerprint, settings.dataset_ids, answers)


@contextlib.contextmanager
def storage(folder: Path) -> Iterator[str]:
    """Serves a folder as the bucket `BUCKET` while the context lasts. Gives the address."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer()

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            if "list-type" in query:
                self._send(200, _listing(folder, query).encode(), "application/xml")
            else:
                self._answer()

        def _answer(self) -> None:
            path = folder / unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")
            if not path.is_file():
                self._send(404, b"<Error><Code>NoSuchKey</Code></Error>", "application/xml")
                return
            content = path.read_bytes()
            if wanted := self.headers.get("Range"):
                first, last = wanted.removeprefix("bytes=").split("-")
                self._send(206, content[int(first) : int(last or len(content)) + 1], "binary/octet-stream")
            else:
                self._send(200, content, "binary/octet-stream")

        def _send(self, status: int, content: bytes, kind: str) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.send_header("ETag", f'"{hash(content):x}"')
            self.send_header("Last-Modified", "Thu, 01 Jan 2026 00:00:00 GMT")
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _listing(folder: Path, query: dict[str, list[str]]) -> str:
    """The answer to ListObjectsV2."""
    prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
    keys = sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())
    contents, prefixes = [], dict[str, None]()
    for key in (key for key in keys if key.startswith(prefix)):
        rest = key.removeprefix(prefix)
        if delimiter and delimiter in rest:
            prefixes[prefix + rest.split(delimiter)[0] + delimiter] = None
        else:
            size = (folder / key).stat().st_size
            contents.append(
                f"<Contents><Key>{key}</Key><Size>{size}</Size><ETag>&quot;{size:x}&quot;</ETag>"
                "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
            )
    common = "".join(f"<CommonPrefixes><Prefix>{name}</Prefix></CommonPrefixes>" for name in prefixes)
    return (
        '<?xml version="1.0"?><ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
        f"<Name>{BUCKET}</Name><Prefix>{prefix}</Prefix><IsTruncated>false</IsTruncated>{''.join(contents)}{common}"
        "</ListBucketResult>"
    )
