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
from scaivaultd.gateways.metrics_listener import MetricsListener
from scaivaultd.gateways.nats import NatsGateway
from scaivaultd.gateways.publisher import Publisher
from scaivaultd.gateways.rest import RestGateway, RestPlaces
from scaivaultd.gateways.rest_pages import Subjects
from scaivaultd.gateways.rest_tls import TlsFiles
from scaivaultd.listeners.sockets import bind_all
from scaivaultd.logs import set_level
from scaivaultd.measuring import Measuring
from scaivaultd.measuring_fleet import Fleet
from scaivaultd.model.clock import SystemClock, SystemRandomness
from scaivaultd.model.ids import IdMaker
from scaivaultd.net.acme_http import CaPool, CaSettings
from scaivaultd.net.authoritative import AuthoritativeDns
from scaivaultd.net.guard import AddressGuard
from scaivaultd.net.own_answer import OwnAnswers
from scaivaultd.net.secrets import ReferencedSecrets
from scaivaultd.net.zerossl import ZeroSslEab
from scaivaultd.open_nats import open_nats
from scaivaultd.plugin import PluginContext, SolverContext
from scaivaultd.probes import of_audit, of_master_key, probes, shown_addresses, touch
from scaivaultd.reloading import Reloading
from scaivaultd.sealed import Unsealing
from scaivaultd.services.account_care import AccountCare
from scaivaultd.services.accounts import Accounts
from scaivaultd.services.backups import Backups
from scaivaultd.services.breakers import Breakers
from scaivaultd.services.budgets import Budgets
from scaivaultd.services.bulk_renewals import BulkRenewals
from scaivaultd.services.certificates import Certificates
from scaivaultd.services.deployments import Deployments
from scaivaultd.services.dns_checks import DnsChecks
from scaivaultd.services.dns_providers import DnsProviders
from scaivaultd.services.event_feed import EventFeed
from scaivaultd.services.evidence import Witness
from scaivaultd.services.importing import Importing
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
from scaivaultd.services.safe_mode import SafeMode
from scaivaultd.services.secrets import LentSecrets, Secrets
from scaivaultd.services.solvers import Solvers
from scaivaultd.services.system import System
from scaivaultd.services.txt_records import TxtRecords
from scaivaultd.services.updating import Updating
from scaivaultd.services.waiting import Signal, Waiting
from scaivaultd.settings_policies import policies_in
from scaivaultd.store.backup_writing import BackupMaker
from scaivaultd.store.key_sources import KeySources
from scaivaultd.store.master_key import NoMasterKey
from scaivaultd.store.sealing import marks_of
from scaivaultd.store.sqlite import SqliteStore
from scaivaultd.store.sqlite_apply import KeepEvents
from scaivaultd.store.sqlite_log import fold_log
from scaivaultd.supervision import Heartbeat, Vitals
from scaivaultd.systemd import PassedSockets
from scaivaultd.telemetry import open_telemetry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from structlog.typing import FilteringBoundLogger

    from scaivaultd.access import Access
    from scaivaultd.acme.limit_rules import Rule
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

# The room of renewals looks at the clock every half minute, and pauses for seconds where the store fails.
TURN_SECONDS_MAX = 120.0

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
        passed: PassedSockets | None = None,
        read_again: Callable[[], Settings] | None = None,
        wrap_store: Callable[[SqliteStore], Store] = lambda store: store,
    ) -> None:
        """`passed` are listening sockets of a service manager, each used in place of what its section's `listen` says.

        `read_again` reads the whole configuration for a reload, and raises SettingsError; without it `settings` stay.

        `wrap_store` stands between the services and their store; the kill harness of the tests uses it.
        """
        self._settings = settings
        self._environment = environment
        self._log = log
        self._clock = clock or SystemClock()
        self._randomness = randomness or SystemRandomness()
        self._ids = IdMaker(self._clock, self._randomness)
        self._wrap_store = wrap_store
        self._stopping = asyncio.Event()
        self._started_at = self._clock.now()
        self._answers_http01 = False
        self._passed = (passed or PassedSockets()).sorted_for(settings)
        self.ready = asyncio.Event()
        self.vitals: Vitals | None = None
        self.reloading = Reloading(settings, read=read_again or (lambda: settings), log=log)

    def stop(self) -> None:
        """Ask the daemon to stop; may be called again and from a signal handler."""
        self._stopping.set()

    def reload(self) -> None:
        """Read the configuration and the files that it names again; what cannot be used changes nothing."""
        self.reloading.reload()

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
            sqlite.keeping = _kept_events(self._settings)
            await self._run_with(sqlite, self._wrap_store(sqlite), stack)
        self._log.info("daemon.stopped")

    async def _run_with(self, sqlite: SqliteStore, store: Store, stack: AsyncExitStack) -> None:
        settings, log = self._settings, self._log
        if self._passed.unused:
            log.warning("systemd.sockets_unused", sockets=self._passed.unused)
        credentials = self._environment.get("CREDENTIALS_DIRECTORY")
        credentials_directory = Path(credentials) if credentials else None
        sources = KeySources(self._environment, credentials_directory, log)
        unlocking = state.Unlocking(
            store, settings.state_dir, settings.secrets.master_key, sources=sources, clock=self._clock, log=log
        )
        access = await open_access(settings, store, stack, clock=self._clock, randomness=self._randomness, log=log)
        listeners = opening.bind_listeners(settings, stack, self._passed, clock=self._clock, log=log)
        measuring = self._measuring(sqlite, listeners, unlocking, stack)
        sealer = await self._sealer(unlocking, store, access, listeners, measuring)
        if sealer is None:
            return
        access.auditing.unlock(sealer)
        node_id = await state.node_id(store, self._ids)
        if settings.tracing.otlp_endpoint is not None:
            endpoint, ratio = settings.tracing.otlp_endpoint, settings.tracing.sample_ratio
            open_telemetry(endpoint, ratio, node_id, stack, clock=self._clock, log=log)
        safe_mode = SafeMode(store, log)
        await safe_mode.load()
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
        apis = AddressGuard(settings.dns.private_apis)
        confined = msgspec.structs.replace(lent, may_reach=apis.allows)
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
            rules=_rate_limits(settings),
            clock=self._clock,
            log=log,
        )
        own_answers = OwnAnswers(
            http01_port=settings.preflight.http01_port,
            tlsalpn01_port=settings.preflight.tlsalpn01_port,
            user_agent=USER_AGENT,
        )
        preflight = Preflight(
            _preflight_modes(settings),
            name_servers=name_servers,
            own_answer=own_answers,
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
            witness=Witness(own_sight=own_answers, name_servers=name_servers, log=log),
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
                safe_mode.health,
                self.reloading.health,
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
        deployments = Deployments(
            store=store, overdue_seconds=settings.deployments.overdue_seconds, clock=self._clock, log=log
        )
        importing = Importing(tools, providers=providers, quotas=quotas, certificates=certificates)
        backups = Backups(
            maker=BackupMaker(settings.state_dir, STORE_NAME, sealer, version=__version__),
            safe_mode=safe_mode,
            node_id=node_id,
            clock=self._clock,
            log=log,
        )
        dispatcher = Dispatcher(
            safe_mode.guarded(
                *_bind(accounts, issuing, certificates, providers, checks, secrets, system),
                *_bind_life(care, budgets, certificates, renewing, updating, bulk_renewals, revoking),
                *access.bindings,
                commands.MASTER_KEY.bind(master_keys.get),
                commands.ROTATE_MASTER_KEY.bind(master_keys.rotate),
                commands.UNSEAL.bind(master_keys.unseal),
                commands.LIST_EVENTS.bind(
                    EventFeed(store=store, events=sqlite, waiting=waiting, clock=self._clock).list
                ),
                commands.CONFIRM_DEPLOYMENT.bind(deployments.confirm),
                commands.LIST_DEPLOYMENTS.bind(deployments.list),
                commands.FORGET_DEPLOYMENT.bind(deployments.forget),
                commands.IMPORT_CERTIFICATE.bind(importing.import_certificate),
                commands.CREATE_BACKUP.bind(backups.create),
                commands.RESUME.bind(backups.resume),
                commands.RELOAD.bind(self.reloading.handle),
            ),
            gate=access.gate,
            ids=self._ids,
            log=log,
        )
        gateway = self._nats(bus, dispatcher, access)
        rest = self._rest(dispatcher, access, system.report, measuring)
        stack.push_async_callback(rest.close, 0)
        measuring.unsealed(Fleet(store, self._clock, log), bus=bus, backlog=sqlite.backlog, ledgers=budgets.ledgers)
        managed_tls = self._managed_tls(rest, store, sealer)
        self._follow(access, rest)
        follow = self.reloading.follow
        follow("rate_limits", prepare=lambda now: lambda: budgets.use_rules(_rate_limits(now)))
        follow(
            *(f"preflight.{each}" for each in PreflightModes.__struct_fields__),
            prepare=lambda now: lambda: preflight.use(_preflight_modes(now)),
        )
        follow(
            "dns_provider",
            "dns.types_by_request",
            prepare=lambda now: (
                lambda: providers.use_file(
                    opening.providers_of(now.dns_provider, self._clock.now()), now.dns.types_by_request
                )
            ),
        )
        follow("dns.private_apis", prepare=lambda now: lambda: apis.list_only(now.dns.private_apis))
        follow(
            "deployments.overdue_seconds", prepare=lambda now: lambda: deployments.use(now.deployments.overdue_seconds)
        )
        follow(
            "events.keep_count",
            "events.keep_days",
            prepare=lambda now: lambda: setattr(sqlite, "keeping", _kept_events(now)),
        )
        follow(
            "metrics.max_certificates",
            prepare=lambda now: lambda: setattr(measuring, "max_certificates", now.metrics.max_certificates),
        )

        async def begin() -> None:
            await budgets.resume()
            await care.resume()
            await accounts.resume()
            await issuing.resume()
            await records.sweep()
            await revoking.resume()

        if safe_mode.is_on:
            renewing.pause()
        else:
            await begin()
        await renewing.resume()
        await master_keys.resume()
        await rest.start()
        # Only now: whoever knocked since the sockets were bound waits in the backlog for an answer we have.
        await self._start_http01(listeners)
        await listeners.tlsalpn01.start()
        log.info("tlsalpn01.listening", addresses=shown_addresses(listeners.tlsalpn01))
        self.vitals = Vitals(
            health=system.report,
            touch_store=lambda: touch(store),
            certificates=lambda: renewing.certificates,
            orders=lambda: len(jobs),
            heartbeats=(Heartbeat(name="renewal", last_at=lambda: renewing.turned_at, seconds_max=TURN_SECONDS_MAX),),
        )
        try:
            async with asyncio.TaskGroup() as rooms:
                permanent = [
                    rooms.create_task(each)
                    for each in (
                        self._serve(bus, gateway, safe_mode),
                        nats.run(),
                        publisher.run(),
                        safe_mode.work(begin, then=renewing.go_on),
                        renewing.run(),
                        safe_mode.after(bulk_renewals.run),
                        safe_mode.after(care.run),
                        safe_mode.after(deployments.run),
                        access.tokens.run(),
                        access.auditing.run(),
                        measuring.run(),
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

    def _measuring(
        self, sqlite: SqliteStore, listeners: Listeners, unlocking: state.Unlocking, stack: AsyncExitStack
    ) -> Measuring:
        """What tells how the daemon is, and a place of its own for it where the settings want one; sealed or not."""
        settings = self._settings.metrics
        measuring = Measuring(
            listeners,
            record=unlocking.record,
            store_path=self._settings.state_dir / STORE_NAME,
            max_certificates=settings.max_certificates,
            compat_x509=settings.compat_x509,
            clock=self._clock,
            log=self._log,
        )
        measuring.configured(ok=True)
        self.reloading.ended.subscribe(lambda reply: measuring.configured(ok=reply.ok))
        if settings.listen:
            sockets = bind_all(settings.listen).sockets
            listener = MetricsListener(sockets, measuring, clock=self._clock, log=self._log)
            stack.push_async_callback(listener.close)
            listener.start()
        return measuring

    async def _sealer(
        self,
        unlocking: state.Unlocking,
        store: Store,
        access: Access,
        listeners: Listeners,
        measuring: Measuring,
    ) -> EnvelopeSealer | None:
        """The seal, as soon as there is a key for it; None when the daemon is stopped before that."""
        try:
            return await unlocking.attempt()
        except NoMasterKey as trouble:
            unsealing = Unsealing(unlocking, trouble, clock=self._clock, log=self._log)
        self.reloading.follow(prepare=lambda _: unsealing.retry, is_always=True)
        self.vitals = Vitals(health=unsealing.report, touch_store=lambda: touch(store))
        try:
            await self._serve_sealed(unsealing, access, listeners, measuring)
        finally:
            self.reloading.forget_followers()
        return None if self._stopping.is_set() else unsealing.sealer

    async def _serve_sealed(
        self, unsealing: Unsealing, access: Access, listeners: Listeners, measuring: Measuring
    ) -> None:
        """Answer for a daemon without a key; all but the http-01 listener is gone when this returns."""
        async with AsyncExitStack() as stack:
            nats = await self._open_nats(stack, access)
            dispatcher = Dispatcher(unsealing.bindings(access), gate=access.gate, ids=self._ids, log=self._log)
            gateway = self._nats(nats.bus, dispatcher, access)
            rest = self._rest(dispatcher, access, unsealing.report, measuring)
            stack.push_async_callback(rest.close, 0)
            self._follow(access, rest)
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
        self,
        dispatcher: Dispatcher,
        access: Access,
        health: Callable[[], Awaitable[m.HealthReply]],
        measuring: Measuring,
    ) -> RestGateway:
        rest = self._settings.rest
        tls: TlsFiles | Literal["managed"] | None = "managed" if rest.tls_managed else None
        if rest.tls_certificate_file is not None and rest.tls_key_file is not None:
            tls = TlsFiles(certificate=rest.tls_certificate_file, key=rest.tls_key_file)
        gateway = RestGateway(
            dispatcher,
            RestPlaces(
                tcp=bind_all([each for each in rest.listen if not each.is_path]).sockets,
                tls=tls,
                unix=unix_socket(self._settings, self._environment, self._passed.api),
            ),
            authenticator=access.identifying,
            health=health,
            subjects=Subjects(requests=self._settings.nats.subject_root, events=self._settings.nats.events_root),
            ids=self._ids,
            clock=self._clock,
            log=self._log,
            origins=rest.origins,
            metrics_page=measuring,
        )
        measuring.rest = gateway
        return gateway

    def _managed_tls(self, rest: RestGateway, store: Store, sealer: Sealer) -> ManagedTls | None:
        name = self._settings.rest.tls_managed
        if name is None:
            return None
        return ManagedTls(name, use=rest.use_certificate, store=store, sealer=sealer, clock=self._clock, log=self._log)

    def _follow(self, access: Access, rest: RestGateway) -> None:
        """What follows a reload whether the daemon is sealed or not."""
        follow = self.reloading.follow
        follow(
            "access.policy_files",
            prepare=lambda now: access.policies.prepared(policies_in(now.access.policy_files)),
            is_always=True,
        )
        follow(prepare=lambda _: rest.reload, is_always=True)
        follow("rest.origins", prepare=lambda now: lambda: rest.use_origins(now.rest.origins))
        follow("log.level", prepare=lambda now: lambda: set_level(now.log.level))

    async def _serve(self, bus: NatsBus, gateway: NatsGateway, safe_mode: SafeMode | None = None) -> None:
        if self._settings.nats.servers:
            # An external server may be away for long; everything else is up already.
            self._log.info("daemon.ready", nats="connecting", version=__version__)
            self.ready.set()
        await bus.connect()
        if self._settings.nats.servers and safe_mode is not None:
            # Where the daemon that it was copied from takes requests, a part of them would come here.
            await safe_mode.over()
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


def _rate_limits(settings: Settings) -> Mapping[str, Sequence[Rule]]:
    return {each.directory_url: each.rules for each in settings.rate_limits}


def _preflight_modes(settings: Settings) -> PreflightModes:
    given = settings.preflight
    return PreflightModes(
        caa=given.caa,
        delegation=given.delegation,
        reachability=given.reachability,
        timeout_seconds=given.timeout_seconds,
    )


def _kept_events(settings: Settings) -> KeepEvents:
    return KeepEvents(count=settings.events.keep_count, seconds=settings.events.keep_days * 86_400.0)


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
