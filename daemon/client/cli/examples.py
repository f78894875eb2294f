"""Examples of each command, which its --help shows. tests/style/test_examples.py has each one parsed."""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "polyvold": (
        "polyvold --state-dir /srv/polyvol",
        "polyvold --config /etc/polyvol/polyvold.toml --nbd-listen 192.0.2.7:10809",
    ),
    "polyvol": (
        "polyvol status",
        "polyvol volume create db --size 64G",
        "polyvol snapshot create db --name before-upgrade",
    ),
    "polyvol status": (
        "polyvol status",
        "polyvol --state-dir /srv/polyvol status --json",
    ),
    "polyvol device add": (
        "polyvol device add /dev/disk/by-id/nvme-eui.0025385b71b1a2c3 --name fast",
        "polyvol device add /srv/polyvol/d0.img --size 100G",
        "polyvol device add /srv/images/debian.raw --adopt --name debian",
    ),
    "polyvol device list": ("polyvol device list", "polyvol device ls --json"),
    "polyvol device show": ("polyvol device show fast",),
    "polyvol device retry": (
        "polyvol device retry fast",
        "polyvol device retry fast --path /dev/disk/by-id/nvme-eui.0025385b71b1a2c4",
        "polyvol device retry fast --accept",
    ),
    "polyvol device remove": ("polyvol device remove fast",),
    "polyvol client list": ("polyvol client list", "polyvol client list db@before-upgrade"),
    "polyvol client disconnect": (
        "polyvol client disconnect 17 18",
        "polyvol client disconnect --export db",
    ),
    "polyvol volume create": (
        "polyvol volume create db --size 64G",
        "polyvol volume create db --size 64G --device fast --log-device fast --dry-run",
        "polyvol volume create web --base debian",
    ),
    "polyvol volume clone": ("polyvol volume clone db@before-upgrade db-test",),
    "polyvol volume set": (
        "polyvol volume set db --when-full keep-snapshots",
        "polyvol volume set db --quiesce '/etc/polyvol/freeze db' --thaw '/etc/polyvol/thaw db'",
        "polyvol volume set db --no-hooks",
    ),
    "polyvol volume add-log": (
        "polyvol volume add-log db",
        "polyvol volume add-log db --device fast --size 20G",
    ),
    "polyvol volume grow": ("polyvol volume grow db --size 128G",),
    "polyvol volume list": ("polyvol volume list", "polyvol volume ls --all --json"),
    "polyvol volume show": ("polyvol volume show db", "polyvol volume show db --partitions"),
    "polyvol volume delete": ("polyvol volume delete db-test --yes",),
    "polyvol volume abandon-restore": ("polyvol volume abandon-restore db",),
    "polyvol snapshot create": (
        "polyvol snapshot create db --name before-upgrade",
        "polyvol snapshot create db web --prefix nightly",
        "polyvol snapshot create @shop --require-hooks",
    ),
    "polyvol snapshot list": ("polyvol snapshot list", "polyvol snapshot ls db", "polyvol snapshot ls @shop"),
    "polyvol snapshot show": ("polyvol snapshot show db@before-upgrade",),
    "polyvol snapshot rollback": (
        "polyvol snapshot rollback db@before-upgrade",
        "polyvol snapshot rollback @shop@before-upgrade --force",
    ),
    "polyvol snapshot hold": ("polyvol snapshot hold db@before-upgrade --tag audit",),
    "polyvol snapshot release": ("polyvol snapshot release db@before-upgrade --tag audit",),
    "polyvol snapshot delete": (
        "polyvol snapshot delete db@before-upgrade",
        "polyvol snapshot rm 'db@nightly-2025*' --no-wait",
    ),
    "polyvol snapshot diff": (
        "polyvol snapshot diff db@monday db@tuesday",
        "polyvol snapshot diff db@monday --summary",
    ),
    "polyvol group create": ("polyvol group create shop db web",),
    "polyvol group join": ("polyvol group join shop mail",),
    "polyvol group leave": ("polyvol group leave shop mail",),
    "polyvol group list": ("polyvol group list",),
    "polyvol group show": ("polyvol group show shop",),
    "polyvol group delete": ("polyvol group delete shop",),
    "polyvol schedule add": (
        "polyvol schedule add db --every 1h --keep hourly=24,daily=7",
        "polyvol schedule add @shop --cron '0 3 * * *' --keep last=14 --name nightly --dry-run",
    ),
    "polyvol schedule list": ("polyvol schedule list --local",),
    "polyvol schedule show": ("polyvol schedule show nightly",),
    "polyvol schedule pause": ("polyvol schedule pause nightly",),
    "polyvol schedule resume": ("polyvol schedule resume nightly",),
    "polyvol schedule remove": ("polyvol schedule remove nightly",),
    "polyvol attach": (
        "polyvol attach db",
        "polyvol attach db@before-upgrade --device /dev/nbd3",
        "polyvol attach db --uri nbd://storage.example:10809",
        "polyvol attach --list",
    ),
    "polyvol detach": ("polyvol detach db", "polyvol detach /dev/nbd3 --force"),
    "polyvol in-use": ("polyvol in-use",),
    "polyvol scrub": ("polyvol scrub db --rate 256M", "polyvol scrub db --stop", "polyvol scrub --weekly on"),
    "polyvol catalog backup": (
        "polyvol catalog backup /backup/polyvol-catalog-monday.db",
        "polyvol catalog backup /backup/polyvol-catalog.db --force",
    ),
    "polyvol check": ("polyvol check", "polyvol check --data --state-dir /srv/polyvol"),
    "polyvol support-bundle": (
        "polyvol support-bundle",
        "polyvol support-bundle /tmp/polyvol-support.tar.gz --timeout 30",
    ),
    "polyvol backup": (
        "polyvol backup db@monday -o /backup/db-monday.pv",
        "polyvol backup db@tuesday --since monday -o - | ssh other polyvol restore - db",
    ),
    "polyvol restore": (
        "polyvol restore /backup/db-monday.pv db-new",
        "polyvol restore /backup/db-tuesday.pv db-new --resume",
    ),
    "polyvol copy-changed": (
        "polyvol copy-changed db@tuesday --since monday /srv/copies/db.raw",
        "polyvol copy-changed db@tuesday --since monday nbd://other.example/db",
    ),
}
