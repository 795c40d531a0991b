"""Telling a CA that we do not go on: pending authorizations count against limits at some of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from scaivaultd.acme import wire
from scaivaultd.model.errors import BackendRateLimited, CaMisbehaved, CaRefused

if TYPE_CHECKING:
    from collections.abc import Collection

    from scaivaultd.model.resources import Account, Order
    from scaivaultd.services.accounts import Accounts


async def deactivate_pending(accounts: Accounts, account: Account, order: Order, shared: Collection[str]) -> None:
    """Deactivate the pending authorizations of an order (RFC 8555 section 7.5.2), but for the identifiers in `shared`.

    What the CA refuses has ended already, or it does not do this; either way there is nothing more to do.

    Raises:
        CaUnavailable, CaMisbehaved, BackendRateLimited: it may work later.
    """
    if order.url is None or account.status != "valid":
        return
    client = await accounts.client(account)
    try:
        shown = wire.order_from((await client.order(order.url)).body)
        for url in shown.authorizations:
            authorization = wire.authorization_from((await client.authorization(url)).body, url)
            if authorization.status == "pending" and authorization.identifier not in shared:
                await client.deactivate_authorization(url)
    except (BackendRateLimited, CaMisbehaved):
        raise
    except CaRefused:
        return
