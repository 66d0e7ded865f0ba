import json

import google_crc32c
import pytest
from hypothesis import given
from hypothesis import strategies as st

from laue_dask.errors import StoreError
from laue_dask.io.receipts import STORE_RECEIPTS_FILE, Receipts, of_file


def closed(content):
    """As the codecs write a chunk: its CRC-32C is behind it."""
    return content + google_crc32c.value(content).to_bytes(4, "little")


@given(data=st.data(), size=st.integers(1, 40))
def test_two_chunks_of_one_size_are_told_from_each_other(tmp_path_factory, data, size):
    one, other = (data.draw(st.binary(min_size=size, max_size=size)) for _ in range(2))
    path = tmp_path_factory.mktemp("r") / "f"
    found = []
    for content in (one, other):
        path.write_bytes(closed(content))
        found.append(of_file(path))
    assert (found[0] == found[1]) == (one == other)


def test_receipts_of_an_earlier_version_are_refused_as_such(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    Receipts.of(tmp_path, ["a"]).write()
    Receipts.read(tmp_path).check(remedy="")
    path = tmp_path / STORE_RECEIPTS_FILE
    header = json.loads(path.read_text())
    header["attributes"]["crc32c"] = header["attributes"].pop("crc32")
    path.write_text(json.dumps(header))
    with pytest.raises(StoreError, match="of an earlier version"):
        Receipts.read(tmp_path)
