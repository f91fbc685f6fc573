"""``python -m foundry_ray.testing.forge``: run a local forge in the foreground."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from pathlib import Path

from foundry_ray.core.errors import FoundryError
from foundry_ray.testing.forge.server import serve


def main(arguments: list[str] | None = None) -> int:
    """Run the forge and return the status to exit with."""
    parser = argparse.ArgumentParser(
        prog="python -m foundry_ray.testing.forge",
        description="A GitHub-shaped server on real git, for Foundry's demo and tests.",
    )
    parser.add_argument("--data-dir", type=Path, required=True, help="keeps its state in forge/")
    parser.add_argument("--port", type=int, help="else the one of last time, else a free one")
    parser.add_argument("--seed", choices=["demo"], help="make the sample organization once")
    parser.add_argument("--webhook-url", help="where the App's webhooks go")
    parser.add_argument(
        "--settings-file", type=Path, help="gets the App's settings (DATA_DIR/foundry.toml)"
    )
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    data_dir = chosen.data_dir.resolve()
    try:
        asyncio.run(
            serve(
                data_dir,
                port=chosen.port,
                seeding=chosen.seed is not None,
                webhook_url=chosen.webhook_url,
                settings_file=chosen.settings_file or data_dir / "foundry.toml",
            )
        )
    except FoundryError as trouble:
        print(f"{trouble.message} {trouble.hint}".strip(), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
