"""What people read about `rfc2136`: rights to paste, limits, and what errors mean."""

RIGHTS = """\
The key needs nothing but TXT records, best of the challenge names alone. Make one with
`tsig-keygen -a hmac-sha256 scaivaultd.example.com` (BIND's tools), give the server its output, and store the secret in
it under the reference of `tsig_secret_path`, or the whole output under that of `tsig_keyfile_path`.

**BIND**, `named.conf`:

```
key "scaivaultd.example.com" { algorithm hmac-sha256; secret "..."; };

zone "example.com" {
    type primary;
    file "/var/lib/bind/example.com.zone";
    update-policy {
        grant scaivaultd.example.com name _acme-challenge.example.com. TXT;
        grant scaivaultd.example.com name _acme-challenge.www.example.com. TXT;
    };
};
```

For many names make `_acme-challenge.www.example.com`, or one zone to which CNAMEs lead, a small zone of its own with
`grant scaivaultd.example.com zonesub TXT;`. The folder of the zone file must be writable for `named` (journal), in the
view of AppArmor and SELinux, too.

**Knot DNS**, `knot.conf`:

```
key:
  - id: scaivaultd.example.com
    algorithm: hmac-sha256
    secret: ...

acl:
  - id: acme
    key: scaivaultd.example.com
    action: update
    update-type: TXT
    update-owner: name
    update-owner-match: equal
    update-owner-name: [_acme-challenge.example.com., _acme-challenge.www.example.com.]

zone:
  - domain: example.com
    acl: acme
```

**PowerDNS** (`dnsupdate=yes` in `pdns.conf`); it cannot limit a key to some names, so give it a small zone of its own:

```
pdnsutil import-tsig-key scaivaultd.example.com hmac-sha256 '...'
pdnsutil set-meta acme.example.com TSIG-ALLOW-DNSUPDATE scaivaultd.example.com
pdnsutil set-meta acme.example.com ALLOW-DNSUPDATE-FROM 192.0.2.10/32
```

Without any TSIG key updates are sent unsigned, for servers that go by addresses; the daemon warns of that in its log,
because addresses can be forged.
"""

LIMITS = """\
* Values are added and deleted one by one (no set is replaced), so other programs' values are safe, also at the same
  moment.
* A record set has one TTL. If there is a set already its TTL is kept, else `ttl` is used.
* The zone is the closest one that the server is authoritative for, found by signed SOA questions. Configure `zone` or
  `zones` where the server does not answer them.
* After every addition the server is asked whether the values are there. Where it refuses to be asked for TXT records
  that cannot be done, and is logged (`dns_provider.not_verified`).
* The server is often a hidden primary. The daemon then waits for the public name servers to follow, which takes
  seconds with NOTIFY and up to the zone's refresh interval without.
* Algorithms: hmac-sha256 (unless another is named), -sha224, -sha384, -sha512, -sha1, -md5. Truncated ones and
  GSS-TSIG (Active Directory) are not supported.
* The secret is read anew, once, when the server refuses it: rotation needs no restart.
"""

TROUBLESHOOTING = """\
* **BADKEY**: the server has no key of this name with this algorithm. Names are compared whole: `scaivaultd` is not
  `scaivaultd.example.com`. Knot DNS says so, too, when no access list lets the key change this name.
* **BADSIG**: the key is known, the secret is another. Was it copied whole, with its `=` at the end?
* **BADTIME**: the clocks of the two hosts are more than 300 s apart. Let both follow NTP.
* **REFUSED**: the key is fine, the policy is not: see the rights above. Without a key: the server wants one.
* **NOTAUTH**: the server is no primary for the zone: a secondary, a wrong `server`, or a wrong `zone`.
* **NOTZONE**: `zone` does not hold the name.
* **SERVFAIL**: the server's log knows more. Mostly the folder of the zone cannot be written (`journal open failed`),
  often because of AppArmor.
* **is not signed**: the server does not do TSIG, or a firewall or balancer answers in its place.
* **is a CNAME**: servers ignore a TXT record where a CNAME stands, and say NOERROR. Leave `follow_cname` on, or remove
  the CNAME.
* **below a delegation**: the name belongs to a zone of its own. Give that zone's server, or configure that `zone`.
* **does not show**: the update was taken, but the values are not seen. The `zone` is not the closest one, or another
  view answers (`query_server`).
* **no answer**: port, firewall (TCP, too), or the server is down.

By hand: `nsupdate -k keyfile`, then `server ns1.example.com`, `zone example.com`,
`update add _acme-challenge.test.example.com. 60 TXT "hello"`, `send`; and
`dig -k keyfile @ns1.example.com _acme-challenge.test.example.com TXT`.
"""
