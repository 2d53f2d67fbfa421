"""A server of project folders for neuroglancer: `tomoscout serve FOLDER …`.

It listens on this machine only, reads only below the folders, the first of which is /0/, and lets only pages from
neuroglancer's address read the answers.
"""

from __future__ import annotations

import os
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

NEUROGLANCER = "https://neuroglancer-demo.appspot.com"
HOST, PORT = "127.0.0.1", 9000


class Handler(SimpleHTTPRequestHandler):
    """Answers with the files of some folders."""

    def __init__(self, *arguments: object, folders: list[Path], **options: object) -> None:
        self.folders = folders
        super().__init__(*arguments, **options)  # type: ignore[arg-type]

    def translate_path(self, path: str) -> str:
        """The file of a URL; one that does not exist where the URL leads out of the folders."""
        number, _, rest = unquote(urlsplit(path).path).lstrip("/").partition("/")
        if not number.isdecimal() or int(number) >= len(self.folders):
            return ""
        # Links within a project are followed: its tomograms may lie elsewhere.
        folder = Path(os.path.abspath(self.folders[int(number)]))  # noqa: PTH100
        file = Path(os.path.normpath(folder / rest.lstrip("/")))
        return str(file) if file.is_relative_to(folder) and file.is_file() else ""

    def end_headers(self) -> None:
        """Let neuroglancer's page read the answer."""
        self.send_header("Access-Control-Allow-Origin", NEUROGLANCER)
        super().end_headers()

    def log_message(self, format: str, *arguments: object) -> None:
        """Nothing: there is a request for every chunk, and for files that other formats would have."""


def server(folders: list[Path], port: int = PORT) -> ThreadingHTTPServer:
    """A server that is ready to serve."""
    return ThreadingHTTPServer((HOST, port), partial(Handler, folders=folders))
