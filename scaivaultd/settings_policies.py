"""The administrator's policies, in files of their own: people who may change them need not see the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from publicsuffixlist import PublicSuffixList

from scaivaultd.api.policies import policies_from_toml
from scaivaultd.model.errors import InvalidRequest, StartupError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from scaivaultd.model.access import Policy


def policies_in(files: Sequence[Path]) -> Sequence[Policy]:
    """The policies of all files. Blocks.

    Raises:
        StartupError: a file cannot be read or holds mistakes, a line for each; or two have a policy of one name.
    """
    suffixes = PublicSuffixList(accept_unknown=False)
    found: dict[str, Path] = {}
    policies: list[Policy] = []
    for path in files:
        for policy in _read(path, suffixes):
            if policy.name in found:
                raise StartupError(f"{path}: there is a policy {policy.name!r} in {found[policy.name]} already")
            found[policy.name] = path
            policies.append(policy)
    return policies


def _read(path: Path, suffixes: PublicSuffixList) -> Sequence[Policy]:
    try:
        return policies_from_toml(path.read_text(encoding="utf-8"), suffixes)
    except OSError as error:
        raise StartupError(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise StartupError(f"{path} is not UTF-8 text") from error
    except InvalidRequest as error:
        mistakes = [f"{path}: {each.pointer}: {each.detail}".replace(": : ", ": ") for each in error.fields]
        raise StartupError("\n".join(mistakes) or f"{path}: {error.detail}") from error
