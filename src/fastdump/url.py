"""Names with a scheme, as ``s3://bucket/app.core.lz4``: what fsspec reaches."""

from __future__ import annotations

import re

# RFC 3986, 3.1; and fsspec's chains of file systems (``simplecache::s3://...``).
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*(::|://)")
_PASSWORD = re.compile(r"(://[^/@:\s]*):[^/@\s]*@")
_QUERY = re.compile(r"(://[^?\s'\"]*)\?[^\s'\"]*")
_LOCAL = "file://"


def is_url(name: str) -> bool:
    """Whether *name* is no path: a file that is really called so is ``./s3://...``."""
    return bool(_SCHEME.match(name)) and not name.startswith(_LOCAL)


def local_path(name: str) -> str:
    """A path; of a ``file://`` URL what it names."""
    return name.removeprefix(_LOCAL)


def shown(text: str) -> str:
    """A URL, or text with some in it, without passwords and queries: signatures are there."""
    return _QUERY.sub(r"\1", _PASSWORD.sub(r"\1@", text))
