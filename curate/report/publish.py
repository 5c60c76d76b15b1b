"""Files of a report, on any filesystem, told to object stores as what they are: a browser shows
what is sent as a page, and saves what is sent as bytes.
"""

from __future__ import annotations

from curate import storage
from curate.errors import CurateError, one_line

TYPES = {"html": "text/html; charset=utf-8", "webp": "image/webp"}
# Protocol → what its fsspec filesystem calls the type of a file
OPTIONS = {"s3": "ContentType", "s3a": "ContentType", "gs": "content_type", "gcs": "content_type"}


def write(uri: str, data: bytes) -> None:
    """Write a whole file, or nothing. Raises CurateError where it cannot be written."""
    option = OPTIONS.get(uri.partition("://")[0])
    if option is None:
        storage.write_bytes(uri, data)
        return
    fs, path = storage.filesystem(uri)
    try:
        fs.pipe_file(path, data, **{option: TYPES[uri.rpartition(".")[2]]})
    except Exception as error:  # object stores' clients have exceptions of their own
        raise CurateError(f"{uri}: cannot be written ({one_line(error)})") from error
