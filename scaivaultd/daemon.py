"""The roof: makes every room, introduces neighbours to each other, and takes all down in order. Decides nothing."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from scaivaultd import __version__, opening, plugin_manager, state
from scaivaultd.access import ingress_of, open_access, policies_in, unix_socket
from scaivaultd.api import commands
from scaivaultd.api import messages as m
from scaivaultd.api.dispatch import Dispatcher
from scaivaultd.gateways.nats import NatsGateway
from scaivaultd.gateways.nats_bus import BusSettings, NatsBus
from scaivaultd.gateways.nats_credentials import CredentialsFile
from scaivaultd.gateways.nats_process import SYSTEM_PATH
from scaivaultd.gateways.nats_server import NatsServerChild, find_server
from scaivaultd.gateways.publisher import Publisher
from scaivaultd.gateways.rest import RestGateway, RestPlaces
from scaivaultd.gateways.rest_tls import TlsFiles
from scaivaultd.listeners.sockets import bind_all
from scaivaultd.model.clock import SystemClock, SystemRandomness
from scaivaultd.model.errors import StartupError
from scaivaultd.model.ids import IdMaker
from scaivaultd.net.acme_http import CaPool, CaSettings
from scaivaultd.net.authoritative import AuthoritativeDns
from scaivaultd.net.guard import AddressGuard
from scaivaultd.net.own_answer import OwnAnswers
from scaivaultd.net.secrets import ReferencedSecrets
from scaivaultd.net.zerossl import ZeroSslEab
from scaivaultd.plugin import PluginContext, SolverContext
from scaivaultd.probes import probes, shown_addresses
from scaivaultd.services.account_care import AccountCare
from scaivaultd.services.accounts import Accounts
from scaivaultd.services.breakers import Breakers
from scaivaultd.services.budgets import Budgets
from scaivaultd.services.bulk_renewals import BulkRenewals
from scaivaultd.services.certificates import Certificates
from scaivaultd.services.dns_checks import DnsChecks
from scaivaultd.services.dns_providers import DnsProviders
from scaivaultd.services.issuing import Issuing
from scaivaultd.services.jobs import Jobs
from scaivaultd.services.master_keys import MasterKeys
from scaivaultd.services.places import AWAY_SHARE
from scaivaultd.services.preflight import Preflight, PreflightModes
from scaivaultd.services.provider_pool import ProviderPool
from scaivaultd.services.pursuit import Tools
from scaivaultd.services.renewing import Renewing
from scaivaultd.services.revoking import Revoking
from scaivaultd.services.secrets import LentSecrets, Secrets
from scaivaultd.services.solvers import Solvers
from scaivaultd.services.system import System
from scaivaultd.services.txt_records import TxtRecords
from scaivaultd.services.updating import Updating
from scaivaultd.services.waiting import Signal, Waiting
from scaivaultd.store.sqlite import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.access import Access
    from scaivaultd.api.commands import Binding
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.plugin import SecretBackend
    from scaivaultd.plugin_manager import Plugins
    from scaivaultd.services.ports import Store
    from scaivaultd.settings import Settings

# Stopping takes less than ten seconds in all, whatever hangs.
REQUESTS_GRACE_SECONDS = 3.0
JOBS_GRACE_SECONDS = 3.5
WRITES_GRACE_SECONDS = 1.0
BUS_CLOSE_SECONDS = 1.0

USER_AGENT = f"scaivaultd/{__version__}"


class Daemon:
    """One running daemon. `run` ends after `stop`, or with the error of a permanent room that died."""

    def __init__(
        self,
        settings: Settings,
        *,
        environment: Mapping[str, str],
        log: FilteringBoundLogger,
        clock: Clock | None = None,
        randomness: Randomness | None = None,
        wrap_store: Callable[[SqliteStore], Store] = lambda store: store,
    ) -> None:
        """`wrap_store` stands between the services and their store; the kill harness of the tests uses it."""
        self._settings = settings
        self._environment = environment
        self._log = log
        self._clock = clock or SystemClock()
        self._randomness = randomness or SystemRandomness()
        self._ids = IdMaker(self._clock, self._randomness)
        self._wrap_store = wrap_store
        self._stopping = asyncio.Event()
        self._started_at = self._clock.now()
        self._reloads: list[Callable[[], None]] = []
        self.ready = asyncio.Event()

    def stop(self) -> None:
        """Ask the daemon to stop; may be called again and from a signal handler."""
        self._stopping.set()

    def reload(self) -> None:
        """Read policy files and TLS files again; what cannot be used stays as it was, and is logged."""
        for each in self._reloads:
            each()

    async def run(self) -> None:
        """Run until stopped.

        Raises:
            StartupError: it cannot start; nothing is left running.
        """
        async with AsyncExitStack() as stack:
            directory = state.StateDirectory(self._settings.state_dir)
            stack.callback(directory.close)
            sqlite = await SqliteStore.open(directory.path / "store.db", clock=self._clock, log=self._log)
            stack.push_async_callback(sqlite.close)
            await self._run_with(sqlite, self._wrap_store(sqlite), stack)
        self._log.info("daemon.stopped")

    async def _run_with(self, sqlite: SqliteStore, store: Store, stack: AsyncExitStack) -> None:
        settings, log = self._settings, self._log
        credentials = self._environment.get("CREDENTIALS_DIRECTORY")
        credentials_directory = Path(credentials) if credentials else None
        sealer = await state.unlock(
            store,
            settings.state_dir,
            settings.secrets.master_key,
            environment=self._environment,
            credentials_directory=credentials_directory,
            clock=self._clock,
            log=log,
        )
        node_id = await state.node_id(store, self._ids)
        access = await open_access(settings, store, stack, clock=self._clock, randomness=self._randomness, log=log)
        access.auditing.unlock(sealer)
        master_keys = MasterKeys(
            store=store,
            sealer=sealer,
            source=settings.secrets.master_key or state.own_key_source(settings.state_dir),
            clock=self._clock,
            log=log,
        )
        listeners = opening.bind_listeners(settings, stack, clock=self._clock, log=log)
        plugins = plugin_manager.load(log)
        backends: dict[str, SecretBackend] = {}
        secrets = Secrets(
            store=store,
            sealer=sealer,
            outside=ReferencedSecrets(
                settings.secrets.allow,
                master_key=settings.secrets.master_key or state.own_key_source(settings.state_dir),
                environment=self._environment,
                credentials_directory=credentials_directory,
            ),
            backends=backends,
            clock=self._clock,
            log=log,
        )
        lent = PluginContext(
            secrets=LentSecrets(secrets),
            clock=self._clock,
            fraction=self._randomness.fraction,
            log=log,
            user_agent=USER_AGENT,
        )
        backends.update(
            await opening.open_secret_backends(plugins.secret_backends, settings.secrets.backends, lent, stack, log)
        )
        pool = ProviderPool(plugins.dns_providers, lent, log)
        stack.push_async_callback(pool.close)
        providers = DnsProviders(
            store=store,
            pool=pool,
            secrets=secrets,
            from_file=opening.providers_of(settings.dns_provider, self._started_at),
            types_by_request=settings.dns.types_by_request,
            ids=self._ids,
            clock=self._clock,
            log=log,
        )
        secrets.referrers = providers.referrers
        providers.report_unusable()
        name_servers = AuthoritativeDns(
            settings.dns.resolvers,
            authoritative_port=settings.dns.authoritative_port,
            clock=self._clock,
            log=log,
        )
        removals = Jobs(log)
        records = TxtRecords(
            store=store,
            providers=providers,
            name_servers=name_servers,
            jobs=removals,
            clock=self._clock,
            log=log,
        )
        solvers = await opening.open_solvers(
            plugins.solvers,
            settings.solvers,
            SolverContext(http01=listeners.http01, tlsalpn01=listeners.tlsalpn01, dns01=records, host=lent),
            stack,
            log,
        )
        cas = CaPool(
            CaSettings(
                user_agent=USER_AGENT,
                trust_files=settings.acme.trust_files,
            ),
            guard=AddressGuard(settings.acme.private_directories),
            clock=self._clock,
            randomness=self._randomness,
            log=log,
        )
        stack.push_async_callback(cas.close)
        jobs = Jobs(log)
        waiting = Waiting(store)
        budgets = Budgets(
            store=store,
            rules={each.directory_url: each.rules for each in settings.rate_limits},
            clock=self._clock,
            log=log,
        )
        preflight = Preflight(
            PreflightModes(
                caa=settings.preflight.caa,
                delegation=settings.preflight.delegation,
                reachability=settings.preflight.reachability,
                timeout_seconds=settings.preflight.timeout_seconds,
            ),
            name_servers=name_servers,
            own_answer=OwnAnswers(
                http01_port=settings.preflight.http01_port,
                tlsalpn01_port=settings.preflight.tlsalpn01_port,
                user_agent=USER_AGENT,
            ),
            clock=self._clock,
            log=log,
        )
        accounts = Accounts(
            store=store,
            sealer=sealer,
            cas=cas,
            secrets=secrets,
            budgets=budgets,
            eab_source=ZeroSslEab(
                settings.acme.zerossl_api, trust_files=settings.acme.trust_files, user_agent=USER_AGENT
            ),
            jobs=jobs,
            waiting=waiting,
            ids=self._ids,
            clock=self._clock,
            randomness=self._randomness,
            log=log,
            patience_seconds=settings.acme.order_timeout_seconds,
        )
        tools = Tools(
            store=store,
            sealer=sealer,
            accounts=accounts,
            solvers=solvers,
            records=records,
            ids=self._ids,
            clock=self._clock,
            randomness=self._randomness,
            log=log,
            node_id=node_id,
            budgets=budgets,
            preflight=preflight,
            renewals=Signal(),
            breakers=Breakers(self._clock),
        )
        issuing = Issuing(
            tools,
            jobs,
            waiting,
            providers=providers,
            orders_per_ca=settings.acme.orders_per_ca,
            patience_seconds=settings.acme.order_timeout_seconds,
        )
        bus, nats_trouble = await self._open_bus(stack)
        publisher = Publisher(
            bus,
            sqlite,
            events_root=settings.nats.events_root,
            source=f"/scaivault/{node_id}",
            clock=self._clock,
            log=log,
        )
        system = System(
            probes(store, bus, publisher, listeners, nats_trouble),
            lambda: self._info(node_id, plugins, solvers, jobs),
        )
        certificates = Certificates(store=store, sealer=sealer, clock=self._clock, log=log)
        renewing = Renewing(
            store=store,
            accounts=accounts,
            issuing=issuing,
            clock=self._clock,
            randomness=self._randomness,
            log=log,
            # Most of them wait for their CA at any moment, and have no place there meanwhile.
            renewals_per_ca=settings.acme.orders_per_ca * AWAY_SHARE,
        )
        tools.renewals.subscribe(renewing.changed)
        updating = Updating(
            tools,
            issuing=issuing,
            certificates=certificates,
            providers=providers,
            waiting=waiting,
        )
        bulk_renewals = BulkRenewals(store=store, renewing=renewing, ids=self._ids, clock=self._clock, log=log)
        revoking = Revoking(
            tools,
            jobs,
            waiting,
            issuing=issuing,
            patience_seconds=settings.acme.order_timeout_seconds,
        )
        care = AccountCare(
            store=store,
            sealer=sealer,
            accounts=accounts,
            issuing=issuing,
            renewing=renewing,
            jobs=jobs,
            waiting=waiting,
            ids=self._ids,
            clock=self._clock,
            randomness=self._randomness,
            log=log,
        )
        checks = DnsChecks(
            providers=providers,
            records=records,
            name_servers=name_servers,
            clock=self._clock,
            randomness=self._randomness,
            log=log,
        )
        dispatcher = Dispatcher(
            [
                *_bind(accounts, issuing, certificates, providers, checks, secrets, system),
                *_bind_life(care, budgets, certificates, renewing, updating, bulk_renewals, revoking),
                *access.bindings,
                commands.MASTER_KEY.bind(master_keys.get),
                commands.ROTATE_MASTER_KEY.bind(master_keys.rotate),
                commands.UNSEAL.bind(master_keys.unseal),
            ],
            gate=access.gate,
            ids=self._ids,
            log=log,
        )
        gateway = NatsGateway(
            bus,
            dispatcher,
            ingress=ingress_of(settings.nats),
            tokens=access.identifying,
            version=__version__,
            clock=self._clock,
            log=log,
        )
        rest = self._rest(dispatcher, access, system)
        stack.push_async_callback(rest.close, 0)
        self._reloads.append(lambda: self._reload(access, rest))
        await budgets.resume()
        await care.resume()
        await accounts.resume()
        await issuing.resume()
        await records.sweep()
        await revoking.resume()
        await renewing.resume()
        await master_keys.resume()
        await rest.start()
        # Only now: whoever knocked since the sockets were bound waits in the backlog for an answer we have.
        await listeners.http01.start()
        log.info("http01.listening", addresses=shown_addresses(listeners.http01))
        await listeners.tlsalpn01.start()
        log.info("tlsalpn01.listening", addresses=shown_addresses(listeners.tlsalpn01))
        try:
            async with asyncio.TaskGroup() as rooms:
                permanent = [
                    rooms.create_task(each)
                    for each in (
                        self._serve(bus, gateway),
                        publisher.run(),
                        renewing.run(),
                        bulk_renewals.run(),
                        care.run(),
                        access.tokens.run(),
                        access.auditing.run(),
                        master_keys.run(),
                    )
                ]
                await self._stopping.wait()
                log.info("daemon.stopping", orders_under_way=len(jobs))
                waiting.end()
                await asyncio.gather(gateway.close(REQUESTS_GRACE_SECONDS), rest.close(REQUESTS_GRACE_SECONDS))
                await jobs.close(JOBS_GRACE_SECONDS)
                await removals.close(0)
                await records.close(WRITES_GRACE_SECONDS)
                for task in permanent:
                    task.cancel()
        finally:
            await jobs.close(JOBS_GRACE_SECONDS)
            await removals.close(0)
            await records.close(WRITES_GRACE_SECONDS)

    def _rest(self, dispatcher: Dispatcher, access: Access, system: System) -> RestGateway:
        rest = self._settings.rest
        files = None
        if rest.tls_certificate_file is not None and rest.tls_key_file is not None:
            files = TlsFiles(certificate=rest.tls_certificate_file, key=rest.tls_key_file)
        return RestGateway(
            dispatcher,
            RestPlaces(
                tcp=bind_all([each for each in rest.listen if not each.is_path]).sockets,
                tls=files,
                unix=unix_socket(self._settings, self._environment),
            ),
            authenticator=access.identifying,
            health=system.report,
            ids=self._ids,
            clock=self._clock,
            log=self._log,
            origins=rest.origins,
        )

    def _reload(self, access: Access, rest: RestGateway) -> None:
        try:
            access.policies.reload(policies_in(self._settings.access.policy_files))
        except StartupError as error:
            self._log.error("access.policies_not_reloaded", reason=str(error))
        rest.reload()

    async def _serve(self, bus: NatsBus, gateway: NatsGateway) -> None:
        if self._settings.nats.servers:
            # An external server may be away for long; everything else is up already.
            self._log.info("daemon.ready", nats="connecting", version=__version__)
            self.ready.set()
        await bus.connect()
        await gateway.start()
        if not self.ready.is_set():
            self._log.info("daemon.ready", nats="embedded", version=__version__)
            self.ready.set()

    async def _open_bus(self, stack: AsyncExitStack) -> tuple[NatsBus, Callable[[], str | None]]:
        """The bus, and what is wrong with a server of our own that is there all the same."""
        nats = self._settings.nats
        child = None
        if nats.servers:
            settings = BusSettings(
                servers=tuple(server.reveal() for server in nats.servers),
                credentials=CredentialsFile(nats.credentials_file) if nats.credentials_file else None,
                tls_ca_file=nats.tls_ca_file,
            )
        else:
            child = await stack.enter_async_context(
                NatsServerChild(
                    self._settings.state_dir,
                    find_server(nats.server_path, self._environment.get("PATH", SYSTEM_PATH)),
                    clock=self._clock,
                    randomness=self._randomness,
                    log=self._log,
                )
            )
            settings = BusSettings(servers=(child.url,), user=child.user, password=child.password.reveal)
        bus = NatsBus(settings, clock=self._clock, log=self._log)
        stack.push_async_callback(bus.close, BUS_CLOSE_SECONDS)
        return bus, lambda: None if child is None else child.trouble

    def _info(self, node: str, plugins: Plugins, solvers: Solvers, jobs: Jobs) -> m.InfoReply:
        return m.InfoReply(
            version=__version__,
            node_id=node,
            started_at=self._started_at,
            challenge_types=solvers.challenge_types,
            solvers=solvers.names,
            dns_provider_types=sorted(plugins.dns_providers),
            plugins=[
                m.PluginReply(
                    name=each.name,
                    distribution=each.distribution,
                    version=each.version,
                    api=each.api,
                    brings=each.brought.names,
                    refused=each.refused,
                )
                for each in plugins.found
            ],
            orders_under_way=len(jobs),
        )


def _bind(
    accounts: Accounts,
    issuing: Issuing,
    certificates: Certificates,
    providers: DnsProviders,
    checks: DnsChecks,
    secrets: Secrets,
    system: System,
) -> Sequence[Binding]:
    return [
        commands.CREATE_ACCOUNT.bind(accounts.create),
        commands.LIST_ACCOUNTS.bind(accounts.list),
        commands.GET_ACCOUNT.bind(accounts.get),
        commands.ISSUE.bind(issuing.issue),
        commands.LIST_ORDERS.bind(issuing.list),
        commands.GET_ORDER.bind(issuing.get),
        commands.CANCEL_ORDER.bind(issuing.cancel),
        commands.LIST_CERTIFICATES.bind(certificates.list),
        commands.GET_CERTIFICATE.bind(certificates.get),
        commands.GET_PEM.bind(certificates.pem),
        commands.GET_KEY.bind(certificates.key),
        commands.CREATE_DNS_PROVIDER.bind(providers.create),
        commands.LIST_DNS_PROVIDERS.bind(providers.list),
        commands.GET_DNS_PROVIDER.bind(providers.get),
        commands.UPDATE_DNS_PROVIDER.bind(providers.update),
        commands.DELETE_DNS_PROVIDER.bind(providers.delete),
        commands.TEST_DNS_PROVIDER.bind(checks.test),
        commands.TRACE_DNS.bind(checks.trace),
        commands.PUT_SECRET.bind(secrets.put),
        commands.LIST_SECRETS.bind(secrets.list),
        commands.DELETE_SECRET.bind(secrets.delete),
        commands.HEALTH.bind(system.health),
        commands.INFO.bind(system.info),
    ]


def _bind_life(
    care: AccountCare,
    budgets: Budgets,
    certificates: Certificates,
    renewing: Renewing,
    updating: Updating,
    bulk_renewals: BulkRenewals,
    revoking: Revoking,
) -> Sequence[Binding]:
    return [
        commands.UPDATE_ACCOUNT.bind(care.update),
        commands.ROTATE_ACCOUNT_KEY.bind(care.rotate_key),
        commands.DEACTIVATE_ACCOUNT.bind(care.deactivate),
        commands.LIMITS.bind(budgets.limits),
        commands.LIST_VERSIONS.bind(certificates.versions),
        commands.RENEW_CERTIFICATE.bind(renewing.renew),
        commands.UPDATE_CERTIFICATE.bind(updating.update),
        commands.REVOKE.bind(revoking.revoke),
        commands.GET_REVOCATION.bind(revoking.get),
        commands.CREATE_BULK_RENEWAL.bind(bulk_renewals.create),
        commands.LIST_BULK_RENEWALS.bind(bulk_renewals.list),
        commands.GET_BULK_RENEWAL.bind(bulk_renewals.get),
        commands.CANCEL_BULK_RENEWAL.bind(bulk_renewals.cancel),
    ]
