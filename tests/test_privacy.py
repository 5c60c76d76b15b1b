"""URLs as they may be shown."""

from __future__ import annotations

import pytest

from curate.errors import one_line
from curate.privacy import public, public_document, public_text, restored


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("https://user:pass@h/a.jpg", "https://h/a.jpg"),
        ("https://token@h/a.jpg?x=1", "https://h/a.jpg?x=1"),
        ("https://user:p@ss@h:80/a", "https://h:80/a"),
        ("sftp://user:pass@h/a", "sftp://h/a"),
        ("https://h/a?x=1&token=abc&y=2#part", "https://h/a?x=1&token=&y=2#part"),
        ("https://h/a?API_Key=abc", "https://h/a?API_Key="),
        ("https://h/a?%74oken=abc def", "https://h/a?%74oken="),
        ("https://h/a?x=1&amp;client-secret=a;b", "https://h/a?x=1&amp;client-secret="),
        (
            "https://b.s3.amazonaws.com/k?X-Amz-Credential=me&X-Amz-Signature=f00&versionId=7",
            "https://b.s3.amazonaws.com/k?X-Amz-Credential=&X-Amz-Signature=&versionId=7",
        ),
        (
            "https://h/k?AWSAccessKeyId=me&Expires=1&Signature=s",
            "https://h/k?AWSAccessKeyId=&Expires=1&Signature=",
        ),
        (
            "https://a.blob.core.windows.net/c/k?sv=1&se=2&sp=r&sig=a%2Bb",
            "https://a.blob.core.windows.net/c/k",
        ),
        ("https://h/get?url=https://u:p@i/x.jpg?key=k", "https://h/get?url=https://i/x.jpg?key="),
        ("simplecache::https://u:p@h/a", "simplecache::https://h/a"),
    ],
)
def test_what_lets_in_goes(uri: str, shown: str) -> None:
    assert public(uri) == shown
    assert public(shown) == shown
    if " " not in uri:
        assert public_text(f"at '{uri} and so on") == f"at '{shown} and so on"


@pytest.mark.parametrize(
    "uri",
    [
        "/data/a?token=b.jpg",
        "file:///data/user:pass@h/a.jpg",
        "s3://bucket/crawl/h.com/a.jpg?key=b&sig=c",  # the name of a key
        "abfs://container@account.dfs.core.windows.net/a b.jpg",
        "https://h/a b.jpg?size=2&keyword=sig&page=key&empty=&flag",
        "https://h/%7Euser/a%2fb?q=%C3%A9+%20#top",
    ],
)
def test_all_else_stays_byte_for_byte(uri: str) -> None:
    assert public(uri) == uri
    assert public_text(uri) == uri


def test_errors_are_cut_after_their_secrets_are_gone() -> None:
    message = "see https://user:" + "p" * 400 + "@h/a and https://h/b?token=c,https://u:v@i/"
    assert one_line(ValueError(message)) == "see https://h/a and https://h/b?token=,https://i/"


@pytest.mark.parametrize(
    ("given", "uri"),
    [
        ("https://me:word@example.org/a/{0..9}.tar", "https://me:word@example.org/a/3.tar"),
        ("https://example.org/a/*.tar?token=word", "https://example.org/a/3.tar?token=word"),
        (
            "https://me:word@example.org/a.tar?key=word",
            "https://me:word@example.org/a.tar?key=word",
        ),
        ("https://example.org/*.tar?sig=word&sv=1", "https://example.org/3.tar?sig=word&sv=1"),
        ("s3://bucket/*.tar", "s3://bucket/3.tar"),
        ("/data/*.tar", "/data/3?.tar"),
    ],
)
def test_what_is_left_out_is_found_again_in_the_users_own_path(given: str, uri: str) -> None:
    assert "word" not in public(uri)
    assert restored(public(uri), ["/elsewhere", given]) == uri
    assert restored(public(uri), []) == public(uri)


def test_other_places_are_told_no_secret() -> None:
    given = ["https://me:word@example.org/*.tar?token=word"]
    for uri in ("https://example.com/3.tar", "http://example.org/3.tar", "s3://example.org/3.tar"):
        assert restored(uri, given) == uri
    assert restored("https://example.org/3.tar?page=2", given) == (
        "https://me:word@example.org/3.tar?page=2"
    )


def test_documents() -> None:
    document = {"a": ["https://me:word@h/x", 3], "b": {"c": "https://h/x?sig=word"}, "d": None}
    assert public_document(document) == {
        "a": ["https://h/x", 3],
        "b": {"c": "https://h/x"},
        "d": None,
    }
