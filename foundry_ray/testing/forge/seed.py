"""The sample world of the demo: three people, an organization, a repository and an App."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from foundry_ray.testing.forge import making, shapes
from foundry_ray.testing.forge.context import Forge
from foundry_ray.testing.forge.records import App, Installation
from foundry_ray.testing.forge.settings_file import write_settings

APP_SLUG = "foundry-demo"
PERMISSIONS = {
    "checks": "read",
    "contents": "write",
    "members": "read",
    "metadata": "read",
    "pull_requests": "write",
    "statuses": "read",
}
EVENTS = ["create", "delete", "member", "organization", "pull_request", "push", "repository"]

_README = """# Demo

A small program to try coding agents on. `python -m src.app NAME` greets somebody.
"""
_APP = '''"""Greets people."""

from __future__ import annotations

import sys


def greet(name: str) -> str:
    """Return a greeting for *name*."""
    return f"Hello, {name}!"


def main() -> None:
    """Greet everybody named on the command line."""
    for name in sys.argv[1:] or ["world"]:
        print(greet(name))


if __name__ == "__main__":
    main()
'''
_TEST = '''"""What a greeting looks like."""

from src.app import greet


def test_a_greeting_names_the_person() -> None:
    assert greet("Ada") == "Hello, Ada!"
'''


async def seed_demo(forge: Forge) -> None:
    """Make the sample world if it is not there yet."""
    if forge.store.setting("seeded") == "demo":
        return
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    _write_key(key_file(forge), key)
    store, directory = forge.store, forge.directory
    with store.transaction():
        if directory.account("acme") is None:
            ada = directory.add_account("ada", "User", "Ada Byron", "ada@acme.example")
            ben = directory.add_account("ben", "User", "Ben Okri", "ben@acme.example")
            directory.add_account("eve", "User", "Eve Moss", "eve@elsewhere.example")
            acme = directory.add_account("acme", "Organization", "Acme", "hello@acme.example")
            store.insert("members", org_id=acme.id, user_id=ada.id, role="admin")
            store.insert("members", org_id=acme.id, user_id=ben.id, role="member")
    people = {who.login: who for who in directory.people()}
    acme_account = directory.account("acme")
    assert acme_account is not None, "made above"
    if directory.repository("acme", "demo") is None:
        # An earlier start may have died after it made the git directory.
        shutil.rmtree(forge.repositories / "acme" / "demo.git", ignore_errors=True)
        readme = {"README.md": _README, ".gitignore": "__pycache__/\n"}
        code = readme | {"src/__init__.py": "", "src/app.py": _APP}
        await making.build(
            forge,
            acme_account,
            "demo",
            description="A small program to try coding agents on",
            private=True,
            history=[
                ("Say what this is\n", people["ada"], readme),
                ("Greet people\n", people["ada"], code),
                ("Test the greeting\n", people["ben"], code | {"tests/test_app.py": _TEST}),
            ],
        )
    with store.transaction():
        bot = directory.add_account(f"{APP_SLUG}[bot]", "Bot", None, None)
        bot_email = f"{bot.id}+{bot.login}@users.noreply.forge.invalid"
        store.update("accounts", bot.id, email=bot_email)
        app_id = _add_app(forge, acme_account.id, bot.id, key)
        installation_id = store.insert(
            "installations",
            app_id=app_id,
            account_id=acme_account.id,
            selection="all",
            permissions=json.dumps(PERMISSIONS),
            events=json.dumps(EVENTS),
            created_at=store.now(),
            updated_at=store.now(),
        )
        installation = store.one(
            Installation, "SELECT * FROM installations WHERE id = ?", installation_id
        )
        assert installation is not None, "just inserted"
        names = [
            shapes.repository_name(one, acme_account) for one in directory.covered(installation)
        ]
        forge.webhooks.emit_installation(
            "installation",
            "created",
            installation,
            {"repositories": names},
            people["ada"],
        )
        store.set_setting("seeded", "demo")


def _add_app(forge: Forge, owner_id: int, bot_id: int, key: rsa.RSAPrivateKey) -> int:
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return forge.store.insert(
        "apps",
        slug=APP_SLUG,
        name="Foundry demo",
        owner_id=owner_id,
        bot_id=bot_id,
        client_id="Iv23li" + secrets.token_hex(7),
        client_secret=secrets.token_hex(20),
        public_key=public.decode(),
        permissions=json.dumps(PERMISSIONS),
        events=json.dumps(EVENTS),
        hook_id=540_000_001,
        webhook_url=forge.store.setting("first_webhook_url") or "",
        webhook_secret=secrets.token_hex(32),
        created_at=forge.store.now(),
        updated_at=forge.store.now(),
    )


def key_file(forge: Forge) -> Path:
    """Return where the demo App's private key is: for Foundry, the forge never reads it."""
    return forge.root / f"{APP_SLUG}.private-key.pem"


def _write_key(path: Path, key: rsa.RSAPrivateKey) -> None:
    text = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.TraditionalOpenSSL,
        serialization.NoEncryption(),
    )
    path.unlink(missing_ok=True)  # of a start that died before the App was recorded
    with os.fdopen(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "wb") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def tell_foundry(forge: Forge, path: Path) -> None:
    """Write the demo App's settings where Foundry reads GitHub's."""
    app: App | None = forge.directory.app_by_slug(APP_SLUG)
    assert app is not None, "the demo is seeded"
    write_settings(
        path,
        {
            "github_url": forge.at.base,
            "github_api_url": forge.at.api,
            "github_app_id": app.id,
            "github_app_slug": app.slug,
            "github_app_key_file": str(key_file(forge)),
            "github_client_id": app.client_id,
            "github_client_secret": app.client_secret,
            "github_webhook_secret": app.webhook_secret,
        },
    )
