"""Names and TXT texts as providers have to handle them."""

from __future__ import annotations

from collections.abc import Iterator


def normal_name(name: str) -> str:
    """Lower case, without the dot at the end: how names are compared."""
    return name.rstrip(".").lower()


def candidates(name: str) -> Iterator[str]:
    """The name itself and every name above it, longest first: where a zone may begin."""
    labels = normal_name(name).split(".")
    for place in range(len(labels)):
        yield ".".join(labels[place:])


def relative_name(name: str, zone: str, apex: str = "@") -> str:
    """`_acme-challenge.www` for a name in its zone, `apex` for the zone's own name.

    Raises:
        ValueError: the name is not in the zone.
    """
    name, zone = normal_name(name), normal_name(zone)
    if name == zone:
        return apex
    if not name.endswith(f".{zone}"):
        raise ValueError(f"{name} is not in the zone {zone}")
    return name[: -len(zone) - 1]


def unquoted(text: str) -> str:
    """The text of one TXT record from its presentation form: quotes and escapes undone, strings joined (RFC 1035 5.1).

    A text that does not begin with a quote is taken as it is: some services send the bare text.
    """
    if not text.startswith('"'):
        return text
    joined: list[str] = []
    inside = False
    place = 0
    while place < len(text):
        character = text[place]
        if character == '"':
            inside = not inside
        elif character == "\\" and inside:
            digits = text[place + 1 : place + 4]
            if len(digits) == 3 and digits.isascii() and digits.isdigit():
                joined.append(chr(int(digits)))
                place += 3
            else:
                joined.append(text[place + 1 : place + 2])
                place += 1
        elif inside:
            joined.append(character)
        place += 1
    return "".join(joined)
