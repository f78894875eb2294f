"""polyvol: the command line's entry. An interrupt during the imports ends it as one later does."""

import sys


def main() -> None:
    """The console script."""
    try:
        from polyvol.daemon.client.cli.commands import cli
        from polyvol.daemon.host.streams import open_standard_streams

        open_standard_streams()
        cli(prog_name="polyvol")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
