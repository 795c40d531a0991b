"""What the documentation says about `azure_dns`, in Markdown."""

SUMMARY = """\
Writes to public zones of Azure DNS through the resource manager's REST API. Record sets are replaced under their etag:
if another program was faster they are read again, and values, strings and metadata of others are never lost.

Credentials, by `credentials_source`: an application's client secret (`client_secret`), its certificate
(`client_certificate`), a token of another issuer such as Kubernetes (`workload_identity`), the identity of the machine
(`managed_identity`: virtual machines, Arc, App Service, Container Apps), or whatever the package azure-identity finds
(`azure_identity`). `environment` chooses the cloud: `public`, `usgovernment` or `china`.
"""

RIGHTS = """\
A custom role, for `az role definition create --role-definition role.json`; assign it on the zone:

```json
{
  "Name": "scaivaultd dns-01",
  "Description": "Write TXT records of DNS zones",
  "Actions": [
    "Microsoft.Network/dnsZones/read",
    "Microsoft.Network/dnsZones/TXT/read",
    "Microsoft.Network/dnsZones/TXT/write",
    "Microsoft.Network/dnsZones/TXT/delete"
  ],
  "AssignableScopes": ["/subscriptions/SUBSCRIPTION"]
}
```

```sh
az role assignment create --role "scaivaultd dns-01" --assignee CLIENT_ID \\
  --scope /subscriptions/SUBSCRIPTION/resourceGroups/GROUP/providers/Microsoft.Network/dnsZones/ZONE
```

Assigned on one zone, set `resource_group` and `zone_name`; listing a resource group or a subscription shows only what
the role covers.

The least of all: `Reader` on the zone, and `DNS Zone Contributor` on one record set,
`.../dnsZones/ZONE/TXT/_acme-challenge.www`. Such an assignment dies with the record set: create the set first, and set
`keep_record_set` to true.
"""

LIMITS = """\
* Only public zones; private zones are another service.
* 20 values in a record set; more orders for one name at once than that fail.
* Where two resource groups have a zone of one name, the one whose name servers are delegated to is used; if DNS does
  not tell, set `resource_group`.
* One provider for each subscription.
* Requests are limited by subscription and principal; when Azure asks to slow down, the daemon does.
* Azure has no signal for a change that is visible; it usually is within a minute.
* acme.sh deletes TXT values from names it writes that are older than two hours.
"""

TROUBLESHOOTING = """\
* `AADSTS7000215`: the client secret is wrong; often the secret's id was stored instead of its value.
* `AADSTS7000222`: the client secret has expired.
* `AADSTS700016`: the tenant does not know the `client_id`. `AADSTS90002`: there is no such tenant.
* `AADSTS700027`: the certificate is not registered with the application.
* `AADSTS70021`, `AADSTS700213`: issuer, subject or audience of the federated token differ from the application's
  federated credential.
* `AuthorizationFailed`: no role covers the zone, or it was assigned a moment ago; assignments take some minutes to act.
* `SubscriptionNotFound`: `subscription_id` belongs to another tenant or cloud (`environment`).
* `ResourceGroupNotFound`, `ParentResourceNotFound`: the zone moved or was deleted.
* `ScopeLocked`: a lock forbids deleting; `keep_record_set` does without.
* The endpoint for managed identities is not ready: that lasts some seconds after boot. If it stays so, the machine has
  no identity. On Arc the daemon has to be in the group `himds`.
"""
