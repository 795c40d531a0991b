"""The roof: makes every room, introduces neighbours to each other, and takes all down in order. Decides nothing."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import msgspec

from scaivaultd import __version__, opening, plugin_manager, state
from scaivaultd.access import ingress_of, open_access, unix_socket
from scaivaultd.api import commands
from scaivaultd.api import messages as m
from scaivaultd.api.dispatch import Dispatcher
from scaivaultd.gateways.nats import NatsGateway
from scaivaultd.gateways.publisher import Publisher
from scaivaultd.gateways.rest import RestGateway, RestPlaces
from scaivaultd.gateways.rest_pages import Subjects
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
from scaivaultd.open_nats import open_nats
from scaivaultd.plugin import PluginContext, SolverContext
from scaivaultd.probes import of_audit, of_master_key, probes, shown_addresses
from scaivaultd.sealed import Unsealing
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
from scaivaultd.services.managed_tls import ManagedTls
from scaivaultd.services.master_keys import MasterKeys
from scaivaultd.services.places import AWAY_SHARE
from scaivaultd.services.preflight import Preflight, PreflightModes
from scaivaultd.services.provider_pool import ProviderPool
from scaivaultd.services.pursuit import Tools
from scaivaultd.services.quotas import Quotas
from scaivaultd.services.renewing import Renewing
from scaivaultd.services.revoking import Revoking
from scaivaultd.services.secrets import LentSecrets, Secrets
from scaivaultd.services.solvers import Solvers
from scaivaultd.services.system import System
from scaivaultd.services.txt_records import TxtRecords
from scaivaultd.services.updating import Updating
from scaivaultd.services.waiting import Signal, Waiting
from scaivaultd.settings_policies import policies_in
from scaivaultd.store.key_sources import KeySources
from scaivaultd.store.master_key import NoMasterKey
from scaivaultd.store.sealing import marks_of
from scaivaultd.store.sqlite import SqliteStore
from scaivaultd.store.sqlite_log import fold_log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.access import Access
    from scaivaultd.api.commands import Binding
    from scaivaultd.gateways.nats_bus import NatsBus
    from scaivaultd.model.clock import Clock, Randomness
    from scaivaultd.open_nats import Nats
    from scaivaultd.opening import Listeners
    from scaivaultd.plugin import SecretBackend
    from scaivaultd.plugin_manager import Plugins
    from scaivaultd.services.ports import Sealer, Store
    from scaivaultd.settings import Settings
    from scaivaultd.store.sealing import EnvelopeSealer

# Stopping takes less than ten seconds in all, whatever hangs.
REQUESTS_GRACE_SECONDS = 3.0
JOBS_GRACE_SECONDS = 3.5
WRITES_GRACE_SECONDS = 1.0

STORE_NAME = "store.db"
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
        self._answers_http01 = False
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
            sqlite = await SqliteStore.open(directory.path / STORE_NAME, clock=self._clock, log=self._log)
            stack.push_async_callback(sqlite.close)
            await self._run_with(sqlite, self._wrap_store(sqlite), stack)
        self._log.info("daemon.stopped")

    async def _run_with(self, sqlite: SqliteStore, store: Store, stack: AsyncExitStack) -> None:
        settings, log = self._settings, self._log
        credentials = self._environment.get("CREDENTIALS_DIRECTORY")
        credentials_directory = Path(credentials) if credentials else None
        sources = KeySources(self._environment, credentials_directory, log)
        unlocking = state.Unlocking(
            store, settings.state_dir, settings.secrets.master_key, sources=sources, clock=self._clock, log=log
        )
        access = await open_access(settings, store, stack, clock=self._clock, randomness=self._randomness, log=log)
        listeners = opening.bind_listeners(settings, stack, clock=self._clock, log=log)
        sealer = await self._sealer(unlocking, access, listeners)
        if sealer is None:
            return
        access.auditing.unlock(sealer)
        node_id = await state.node_id(store, self._ids)
        master_keys = MasterKeys(
            store=store,
            keyring=sealer,
            source=unlocking.source,
            sources=sources,
            forget=lambda: fold_log(settings.state_dir / STORE_NAME),
            marks_of=marks_of,
            clock=self._clock,
            randomness=self._randomness,
            log=log,
        )
        plugins = plugin_manager.load(log)
        backends: dict[str, SecretBackend] = {}
        secrets = Secrets(
            store=store,
            sealer=sealer,
            outside=ReferencedSecrets(
                settings.secrets.allow,
                master_keys=lambda: master_keys.places,
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
        confined = msgspec.structs.replace(lent, may_reach=AddressGuard(settings.dns.private_apis).allows)
        pool = ProviderPool(plugins.dns_providers, lent, log, by_request=confined)
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
            guard=AddressGuard(settings.acme.private_directories, settings.acme.further_hosts),
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
        quotas = Quotas(store=store, clock=self._clock)
        issuing = Issuing(
            tools,
            jobs,
            waiting,
            providers=providers,
            quotas=quotas,
            orders_per_ca=settings.acme.orders_per_ca,
            patience_seconds=settings.acme.order_timeout_seconds,
        )
        nats = await self._open_nats(stack, access)
        bus = nats.bus
        publisher = Publisher(
            bus,
            sqlite,
            events_root=settings.nats.events_root,
            source=f"/scaivault/{node_id}",
            clock=self._clock,
            log=log,
        )
        system = System(
            [
                *probes(store, bus, publisher, listeners, nats.trouble),
                of_master_key(master_keys),
                of_audit(access.auditing),
            ],
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
            judge=access.gate,
        )
        tools.renewals.subscribe(renewing.changed)
        access.policies.changed.subscribe(lambda _: renewing.policies_changed())
        updating = Updating(
            tools,
            issuing=issuing,
            certificates=certificates,
            providers=providers,
            quotas=quotas,
            waiting=waiting,
        )
        bulk_renewals = BulkRenewals(
            store=store, renewing=renewing, judge=access.gate, ids=self._ids, clock=self._clock, log=log
        )
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
        gateway = self._nats(bus, dispatcher, access)
        rest = self._rest(dispatcher, access, system.report)
        stack.push_async_callback(rest.close, 0)
        managed_tls = self._managed_tls(rest, store, sealer)
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
        await self._start_http01(listeners)
        await listeners.tlsalpn01.start()
        log.info("tlsalpn01.listening", addresses=shown_addresses(listeners.tlsalpn01))
        try:
            async with asyncio.TaskGroup() as rooms:
                permanent = [
                    rooms.create_task(each)
                    for each in (
                        self._serve(bus, gateway),
                        nats.run(),
                        publisher.run(),
                        renewing.run(),
                        bulk_renewals.run(),
                        care.run(),
                        access.tokens.run(),
                        access.auditing.run(),
                        master_keys.run(),
                        *([] if managed_tls is None else [managed_tls.run()]),
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

    async def _sealer(self, unlocking: state.Unlocking, access: Access, listeners: Listeners) -> EnvelopeSealer | None:
        """The seal, as soon as there is a key for it; None when the daemon is stopped before that."""
        try:
            return await unlocking.attempt()
        except NoMasterKey as trouble:
            unsealing = Unsealing(unlocking, trouble, clock=self._clock, log=self._log)
        self._reloads.append(unsealing.retry)
        try:
            await self._serve_sealed(unsealing, access, listeners)
        finally:
            self._reloads.clear()
        return None if self._stopping.is_set() else unsealing.sealer

    async def _serve_sealed(self, unsealing: Unsealing, access: Access, listeners: Listeners) -> None:
        """Answer for a daemon without a key; all but the http-01 listener is gone when this returns."""
        async with AsyncExitStack() as stack:
            nats = await self._open_nats(stack, access)
            dispatcher = Dispatcher(unsealing.bindings(access), gate=access.gate, ids=self._ids, log=self._log)
            gateway = self._nats(nats.bus, dispatcher, access)
            rest = self._rest(dispatcher, access, unsealing.report)
            stack.push_async_callback(rest.close, 0)
            self._reloads.append(lambda: self._reload(access, rest))
            await rest.start()
            await self._start_http01(listeners)
            async with asyncio.TaskGroup() as rooms:
                serving = [
                    rooms.create_task(each)
                    for each in (
                        self._serve(nats.bus, gateway),
                        nats.run(),
                        access.tokens.run(),
                        access.auditing.run(),
                    )
                ]
                looking = rooms.create_task(unsealing.run())
                stopping = rooms.create_task(self._stopping.wait())
                await asyncio.wait((looking, stopping), return_when=asyncio.FIRST_COMPLETED)
                await asyncio.gather(gateway.close(REQUESTS_GRACE_SECONDS), rest.close(REQUESTS_GRACE_SECONDS))
                for task in (*serving, looking, stopping):
                    task.cancel()

    async def _start_http01(self, listeners: Listeners) -> None:
        if not self._answers_http01:
            self._answers_http01 = True
            await listeners.http01.start()
            self._log.info("http01.listening", addresses=shown_addresses(listeners.http01))

    def _nats(self, bus: NatsBus, dispatcher: Dispatcher, access: Access) -> NatsGateway:
        return NatsGateway(
            bus,
            dispatcher,
            ingress=ingress_of(self._settings.nats),
            events_root=self._settings.nats.events_root,
            tokens=access.identifying,
            version=__version__,
            clock=self._clock,
            log=self._log,
        )

    def _rest(
        self, dispatcher: Dispatcher, access: Access, health: Callable[[], Awaitable[m.HealthReply]]
    ) -> RestGateway:
        rest = self._settings.rest
        tls: TlsFiles | Literal["managed"] | None = "managed" if rest.tls_managed else None
        if rest.tls_certificate_file is not None and rest.tls_key_file is not None:
            tls = TlsFiles(certificate=rest.tls_certificate_file, key=rest.tls_key_file)
        return RestGateway(
            dispatcher,
            RestPlaces(
                tcp=bind_all([each for each in rest.listen if not each.is_path]).sockets,
                tls=tls,
                unix=unix_socket(self._settings, self._environment),
            ),
            authenticator=access.identifying,
            health=health,
            subjects=Subjects(requests=self._settings.nats.subject_root, events=self._settings.nats.events_root),
            ids=self._ids,
            clock=self._clock,
            log=self._log,
            origins=rest.origins,
        )

    def _managed_tls(self, rest: RestGateway, store: Store, sealer: Sealer) -> ManagedTls | None:
        name = self._settings.rest.tls_managed
        if name is None:
            return None
        return ManagedTls(name, use=rest.use_certificate, store=store, sealer=sealer, clock=self._clock, log=self._log)

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

    async def _open_nats(self, stack: AsyncExitStack, access: Access) -> Nats:
        return await open_nats(
            self._settings,
            access,
            stack,
            environment=self._environment,
            clock=self._clock,
            randomness=self._randomness,
            log=self._log,
        )

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
