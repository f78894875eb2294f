"""polyvol: the entry point of the command line. An interrupt during the imports ends it as a later one
does."""

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
