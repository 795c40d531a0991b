"""Route 53 against moto, a server that others wrote: what we send is understood by more than our own fake."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import boto3  # type: ignore[import-untyped]  # it has no stubs
import pytest
from scaivaultd_contrib_dns import route53

from scaivaultd.plugin import DnsProvider, ZoneNotFound
from scaivaultd.plugin.dns import DnsProviderKind, SignalsLive
from scaivaultd.plugin.testing import ONE, TWO, FixedSecrets, make_context

NAME = "_acme-challenge.www.example.org"
FOREIGN = '"v=spf1 -all" "and \\"more\\""'
START_SECONDS = 60.0
(KIND,) = route53.scaivaultd_dns_providers()


class Moto:
    """A running moto, and what boto3 sees in it."""

    kind: DnsProviderKind = KIND

    def __init__(self, url: str) -> None:
        self.url = url
        self.client: Any = boto3.client(
            "route53",
            endpoint_url=url,
            region_name="us-east-1",
            aws_access_key_id="AKIATEST",
            aws_secret_access_key="s3cret",
        )
        created = self.client.create_hosted_zone(Name="example.org.", CallerReference="1")
        self.zone_id = created["HostedZone"]["Id"].rpartition("/")[2]

    def opened(self, **more: Any) -> AbstractAsyncContextManager[DnsProvider]:
        settings = route53.Route53Settings(
            access_key_id_path="id", secret_access_key_path="secret", endpoint_url=self.url, **more
        )
        secrets: Mapping[str, str] = {"id": "AKIATEST", "secret": "s3cret"}
        return route53.open_route53(settings, make_context(FixedSecrets(secrets)), {})

    def texts(self) -> list[tuple[int, list[str]]]:
        """TTL and values of the TXT sets at the name."""
        found = self.client.list_resource_record_sets(
            HostedZoneId=self.zone_id, StartRecordName=f"{NAME}.", StartRecordType="TXT"
        )
        return [
            (each["TTL"], [record["Value"] for record in each["ResourceRecords"]])
            for each in found["ResourceRecordSets"]
            if each["Type"] == "TXT" and each["Name"] == f"{NAME}."
        ]


@pytest.fixture
async def moto(tmp_path: Path) -> AsyncIterator[Moto]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(START_SECONDS):
            while (
                found := re.search(rb"Running on (http://127\.0\.0\.1:\d+)", await process.stderr.readline())
            ) is None:
                assert process.returncode is None and not process.stderr.at_eof(), "moto did not start"
        drained = asyncio.create_task(_drain(process.stderr))
        yield await asyncio.to_thread(Moto, found[1].decode())
        drained.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def _drain(stream: asyncio.StreamReader) -> None:
    while await stream.readline():
        pass


async def test_values_come_and_go_beside_a_foreign_one(moto: Moto) -> None:
    """The whole life of an order for a name and its wildcard, at a name that somebody else uses as well."""
    records = [{"Value": FOREIGN}]
    foreign = {"Name": f"{NAME}.", "Type": "TXT", "TTL": 321, "ResourceRecords": records}
    await asyncio.to_thread(
        lambda: moto.client.change_resource_record_sets(
            HostedZoneId=moto.zone_id,
            ChangeBatch={"Changes": [{"Action": "CREATE", "ResourceRecordSet": foreign}]},
        )
    )
    async with moto.opened() as provider:
        zone = await provider.find_zone(NAME)
        assert (zone.name, zone.id) == ("example.org", moto.zone_id)
        handle = await provider.add_txt(zone, NAME, [ONE], 60)
        await provider.add_txt(zone, NAME, [TWO], 60)
        assert isinstance(provider, SignalsLive)
        await provider.wait_live(handle)
        assert await asyncio.to_thread(moto.texts) == [(321, [FOREIGN, f'"{ONE}"', f'"{TWO}"'])]
        await provider.remove_txt(zone, NAME, [ONE, TWO], handle)
        assert await asyncio.to_thread(moto.texts) == [(321, [FOREIGN])]


async def test_the_last_value_takes_the_set_with_it(moto: Moto) -> None:
    """Nothing may be left behind."""
    async with moto.opened(hosted_zone_id=None) as provider:
        zone = await provider.find_zone(NAME)
        await provider.add_txt(zone, NAME, [ONE, TWO], 60)
        await provider.remove_txt(zone, NAME, [TWO], None)
        assert await asyncio.to_thread(moto.texts) == [(60, [f'"{ONE}"'])]
        await provider.remove_txt(zone, NAME, [ONE, TWO], None)
        assert await asyncio.to_thread(moto.texts) == []
        with pytest.raises(ZoneNotFound):
            await provider.find_zone("_acme-challenge.example.net")


async def test_a_configured_zone_is_found_by_its_own_records(moto: Moto) -> None:
    """moto writes the SOA and NS records that every hosted zone has."""
    async with moto.opened(hosted_zone_id=moto.zone_id) as provider:
        assert (await provider.find_zone(NAME)).name == "example.org"


async def test_a_set_may_become_again_what_it_was(moto: Moto) -> None:
    """moto refuses to create what it ever created before; people test their set-up with it, so it must not matter."""
    later = {"Name": "zzz.example.org.", "Type": "A", "TTL": 60, "ResourceRecords": [{"Value": "192.0.2.1"}]}
    await asyncio.to_thread(
        lambda: moto.client.change_resource_record_sets(
            HostedZoneId=moto.zone_id,
            ChangeBatch={"Changes": [{"Action": "CREATE", "ResourceRecordSet": later}]},
        )
    )
    async with moto.opened() as provider:
        zone = await provider.find_zone(NAME)
        for _ in range(2):
            await provider.add_txt(zone, NAME, [ONE], 60)
            await provider.add_txt(zone, NAME, [TWO], 60)
            await provider.remove_txt(zone, NAME, [TWO], None)
            ((_, values),) = await asyncio.to_thread(moto.texts)
            assert values == [f'"{ONE}"']
            await provider.remove_txt(zone, NAME, [ONE], None)
            assert await asyncio.to_thread(moto.texts) == []
