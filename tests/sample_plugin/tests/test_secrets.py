"""Secrets are read from the file as it is now."""

from __future__ import annotations

from pathlib import Path

import pytest
from scaivaultd_dns_sample.secrets import SampleBackend

from scaivaultd.plugin import SecretMissing


async def test_a_secret_is_read_anew_each_time(tmp_path: Path) -> None:
    """A rotated one is seen without a restart."""
    file = tmp_path / "secrets.json"
    backend = SampleBackend(file)
    for text in ("old", "new"):
        file.write_text(f'{{"token": "{text}"}}')
        assert await backend.read("token") == text


@pytest.mark.parametrize("content", [None, "no JSON: s3cret", '{"other": "s3cret"}'])
async def test_what_is_missing_is_told_without_any_value(tmp_path: Path, content: str | None) -> None:
    """The reason reaches logs."""
    file = tmp_path / "secrets.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(SecretMissing) as caught:
        await SampleBackend(file).read("token")
    assert "sample:token" in str(caught.value)
    assert "s3cret" not in str(caught.value)
