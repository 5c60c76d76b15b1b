"""URLs without what lets their reader in, as they may be shown, logged and stored."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any
from urllib.parse import unquote

# Query parameters that sign or authorise; the rest, a page or a size, says which file is meant
SECRET = re.compile(
    r"sig|signature|token|\w+[_-]token|key|api[_-]?key|password|secret|\w+[_-]secret|auth|"
    r"awsaccesskeyid|x-amz-.*|x-goog-.*",
    re.IGNORECASE,
)
WEB = re.compile(r"https?://", re.IGNORECASE)
# Up to the next URL, which a list or a proxy's query may put behind it without a space; the
# punctuation at its end is the sentence's
URL = re.compile(
    r"""[a-z][a-z0-9+.-]*://(?:(?!https?://)[^\s<>"])*(?<![:,;.)'\]])""", re.IGNORECASE
)
PARTS = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*://)(?P<user>[^/?#]*@)?(?P<place>[^/?#]*)(?P<path>[^?]*)"
    r"(?P<query>\?.*)?",
    re.IGNORECASE,
)
USER = re.compile(r"(://)[^/?#]*@")
USER_WITH_PASSWORD = re.compile(r"(://)[^/?#@:]*:[^/?#]*@")  # abfs://container@account has none


def public(uri: str) -> str:
    """A URI without its user and password, and without the values of query parameters that sign or
    authorise; nothing else of it changes. Of a shared access signature the whole query goes."""
    if "://" not in uri:
        return uri
    first, *rest = re.split(r"(?=https?://)", uri) if WEB.search(uri) else [uri]
    return "".join(map(_public, [first, *rest]))


def restored(uri: str, given: Iterable[str]) -> str:
    """A URI as `public` left it, with what it took, from the path of the same place that the user
    gave."""
    for path in given:
        whole, mine = PARTS.match(path), PARTS.match(uri)
        if whole is None or mine is None or public(path) == path:
            continue
        shown = PARTS.match(public(path))
        if shown is None or mine["user"]:
            continue
        if (shown["scheme"], shown["place"]) == (mine["scheme"], mine["place"]):
            query = whole["query"] if mine["query"] == shown["query"] else mine["query"]
            user = whole["user"] or ""
            return f"{mine['scheme']}{user}{mine['place']}{mine['path']}{query or ''}"
    return uri


def public_document(value: Any) -> Any:
    """JSON with every text in it as `public` gives it."""
    if isinstance(value, dict):
        return {key: public_document(one) for key, one in value.items()}
    if isinstance(value, list):
        return [public_document(one) for one in value]
    return public(value) if isinstance(value, str) else value


def public_text(text: str) -> str:
    """A message with every URL in it as `public` gives it."""
    return URL.sub(lambda url: _public(url[0]), text)


def _public(url: str) -> str:
    if not WEB.match(url):  # a ? in a path of a store or a disk is a part of its name
        return USER_WITH_PASSWORD.sub(r"\1", url, count=1)
    url = USER.sub(r"\1", url, count=1)
    place, mark, query = url.partition("?")
    if not mark:
        return url
    query, hash_mark, fragment = query.partition("#")
    pieces = query.split("&")
    if any(_name(part) == "sig" for piece in pieces for part in piece.split(";")):
        return place + hash_mark + fragment
    return place + mark + "&".join(map(_without_secret, pieces)) + hash_mark + fragment


def _without_secret(piece: str) -> str:
    """Of a query; a ; may separate parameters (as in &amp;), or be in a value."""
    parts = piece.split(";")
    for i, part in enumerate(parts):
        if SECRET.fullmatch(_name(part)):
            return ";".join([*parts[:i], part.partition("=")[0] + "="])
    return piece


def _name(pair: str) -> str:
    """Of a query's `name=value`."""
    name, equals, _ = pair.partition("=")
    return unquote(name).lower() if equals else ""
