"""What the documentation says about `google_cloud_dns`, in Markdown."""

SUMMARY = """\
Writes to public managed zones of Google Cloud DNS by its REST API. Record sets are replaced by atomic changes that
fail if another program was faster, and are then made anew: values of others are never lost. The daemon waits until
Google reports a change as done, and then asks the name servers all the same.

Credentials come from the JSON key of a service account (`service_account_json_path`), from the metadata server when
the daemon runs at Google (`credentials_source = "metadata"`, the default without a key), or from application default
credentials by the package google-auth (`credentials_source = "google_auth"`: workload identity federation, a
developer's own login). With `impersonate_service_account` they are exchanged for those of another service account.
"""

RIGHTS = """\
A custom role, as a file for `gcloud iam roles create scaivaultd --project PROJECT --file role.yaml`:

```yaml
title: scaivaultd dns-01
stage: GA
includedPermissions:
  - dns.changes.create
  - dns.changes.get
  - dns.managedZones.get
  - dns.managedZones.list
  - dns.resourceRecordSets.create
  - dns.resourceRecordSets.delete
  - dns.resourceRecordSets.list
  - dns.resourceRecordSets.update
```

`dns.managedZones.list` works only when it is granted on the project. With `managed_zone` set it is not needed, and the
rest can be granted on that zone alone:

```sh
gcloud dns managed-zones add-iam-policy-binding ZONE --member serviceAccount:NAME@PROJECT.iam.gserviceaccount.com \\
  --role roles/dns.admin
```

There are no rights for single record names: where that matters, lead `_acme-challenge` by CNAME to a zone of its own.
For `impersonate_service_account` the credentials need `roles/iam.serviceAccountTokenCreator` on that service account
and nothing else; the rights above belong to the service account that is acted as.
"""

LIMITS = """\
* Only public zones; private, forwarding and peering zones are passed over.
* Where a project has two public zones of one name, the one whose name servers are delegated to is used; if DNS does not
  tell, set `managed_zone`.
* Record sets with a routing policy are left alone.
* Zones of several projects take one provider each (`project`).
* Google counts requests by project and minute; when it asks to slow down, the daemon does.
* Changes usually reach all name servers within a minute.
"""

TROUBLESHOOTING = """\
* `invalid_grant`: the key was deleted or disabled, the service account is gone, or this host's clock is off by minutes.
* `forbidden`: a right is missing, or it was granted a moment ago and does not act yet. Finding zones needs
  `dns.managedZones.list` on the *project*; setting `managed_zone` avoids that.
* `accessNotConfigured`, `SERVICE_DISABLED`: the Cloud DNS API is not enabled in the project of the *credentials*.
* `has no managed zone`: zones may be in another project than the service account; set `project`.
* `no connection to metadata.google.internal`: the daemon does not run at Google; give `service_account_json_path`.
* `ACCESS_TOKEN_SCOPE_INSUFFICIENT`: the machine was made without the scope for DNS; stop it and give it the scope
  `cloud-platform`, or use a key.
* `a CNAME stands at the name`: `follow_cname` is off although `_acme-challenge` is a CNAME.
"""
