"""The plugin contract as a stranger meets it: every hook documented, every name public, no secret in a repr."""

from __future__ import annotations

import inspect

import scaivaultd.plugin
from scaivaultd.plugin import ChallengeResponse, hookspecs


def hooks() -> dict[str, object]:
    return {name: each for name, each in vars(hookspecs).items() if name.startswith("scaivaultd_")}


def test_every_hook_is_documented_and_plain() -> None:
    """Its docstring is its specification; hooks return descriptions and never wait."""
    assert set(hooks()) == {"scaivaultd_challenge_solvers", "scaivaultd_dns_providers", "scaivaultd_secret_backends"}
    for name, hook in hooks().items():
        assert inspect.getdoc(hook), name
        assert not inspect.iscoroutinefunction(hook), name


def test_everything_public_is_exported_and_documented() -> None:
    """A stranger imports from `scaivaultd.plugin` and nowhere else."""
    for name in scaivaultd.plugin.__all__:
        exported = getattr(scaivaultd.plugin, name)
        if inspect.isclass(exported):
            assert inspect.getdoc(exported), name


def test_a_response_prints_without_its_token() -> None:
    """Plugins log what they are handed."""
    response = ChallengeResponse(identifier="a.test", type="http-01", token="t0ken", key_authorization="t0ken.thumb")
    assert "a.test" in repr(response)
    assert "t0ken" not in repr(response) + str(response) + f"{response}"
