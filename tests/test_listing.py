"""Which files there are on S3, by many LISTs at once; local ones are in test_storage."""

from __future__ import annotations

import pytest

from curate import listing, storage

pytestmark = pytest.mark.slow

ODD = [
    "é/1.jpg",
    "漢字.jpg",
    "🎈/a b+c%20d&e=f.jpg",
    "~",
    "a",
    "a/b",
    "a/b/c",
    "a-b",
    "a0",
    "a.b/c",
]


@pytest.mark.parametrize("page_keys", [1, 3, 1000])
def test_as_a_plain_listing(bucket: str, page_keys: int, monkeypatch: pytest.MonkeyPatch) -> None:
    fs, path = storage.filesystem(bucket)
    names = [*ODD, *(f"a/{i:03d}.jpg" for i in range(60)), "a/", "folder/"]
    fs.pipe({f"{path}/root/{name}": name.encode() for name in names})
    fs.pipe({f"{path}/{name}": b"" for name in ("root", "root0", "root-1/a")})
    monkeypatch.setattr(listing, "PAGE_KEYS", page_keys)
    for root in ("root", "root/a", "root/🎈", "root-1"):
        plain = fs.find(f"{path}/{root}", detail=True)
        found = listing.find(f"{bucket}/{root}")
        assert [file.uri for file in found] == [f"s3://{name}" for name in sorted(plain)]
        for file, info in zip(found, sorted(plain.items()), strict=True):
            assert (file.size, file.stamp) == (info[1]["size"], info[1]["ETag"].strip('"'))
            assert file.path == file.uri.removeprefix(f"{bucket}/{root}/")
    assert len(listing.find(bucket)) == len(names) + 3 == len(listing.find(f"{bucket}/"))
    for gone in (f"{bucket}/roo", f"{bucket}/root/é/1.jpg", "s3://no-such-bucket-anywhere/a"):
        with pytest.raises(FileNotFoundError):
            listing.find(gone)
