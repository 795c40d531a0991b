"""Tokens come and go as files."""

from __future__ import annotations

from pathlib import Path

import pytest
from scaivaultd_dns_sample.upload import UploadSolver

from scaivaultd.plugin import ChallengeResponse, SolverError


def response(token: str) -> ChallengeResponse:
    return ChallengeResponse(identifier="a.test", type="http-01", token=token, key_authorization=f"{token}.print")


async def test_a_token_is_there_until_it_is_cleaned_up(tmp_path: Path) -> None:
    """Both may be repeated: the daemon does so after a restart."""
    solver = UploadSolver(tmp_path)
    file = tmp_path / ".well-known/acme-challenge/abc"
    for _ in range(2):
        await solver.present(response("abc"))
        assert file.read_text() == "abc.print"
    for _ in range(2):
        await solver.clean_up(response("abc"))
        assert not file.exists()


async def test_a_token_cannot_name_another_folder(tmp_path: Path) -> None:
    """It comes from outside."""
    with pytest.raises(SolverError):
        await UploadSolver(tmp_path).present(response("../../index"))
