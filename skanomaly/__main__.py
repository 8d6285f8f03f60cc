"""Entry point of the command `skanomaly`, also as ``python -m skanomaly``."""

import sys

__all__ = ["main"]


def main():
    try:
        from ._cli import app
    except ImportError as error:
        sys.exit(f'error: the command needs more packages: pip install "skanomaly[cli]" ({error})')
    except KeyboardInterrupt:
        sys.exit(130)
    app()


if __name__ == "__main__":
    main()
