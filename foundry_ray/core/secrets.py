"""Encryption of secrets at rest: AES-GCM, one key, its id beside each ciphertext."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from pydantic import SecretStr

from foundry_ray.core.errors import Internal


class Sealer:
    """Seals and opens secrets with one key.

    Args:
        key: At least 32 bytes of secret material, of any alphabet.
    """

    def __init__(self, key: bytes) -> None:
        derived = hashlib.sha256(b"foundry/seal/1" + key).digest()
        self._mac = hashlib.sha256(b"foundry/mac/1" + key).digest()
        self._cipher = AESGCM(derived)
        self.key_id = hashlib.sha256(derived).hexdigest()[:8]

    def seal(self, secret: SecretStr | str, purpose: str) -> str:
        """Encrypt *secret*; only a call with the same *purpose* opens it again."""
        text = secret.get_secret_value() if isinstance(secret, SecretStr) else secret
        nonce = os.urandom(12)
        sealed = self._cipher.encrypt(nonce, text.encode(), purpose.encode())
        return f"{self.key_id}.{base64.urlsafe_b64encode(nonce + sealed).decode()}"

    def open(self, sealed: str, purpose: str) -> SecretStr:
        """Decrypt what :meth:`seal` made for the same purpose.

        Raises:
            Internal: The key or the purpose is another one, or the text was changed.
        """
        key_id, _, text = sealed.partition(".")
        raw = base64.urlsafe_b64decode(text)
        try:
            opened = self._cipher.decrypt(raw[:12], raw[12:], purpose.encode())
        except InvalidTag as trouble:
            raise Internal(
                "A stored secret cannot be opened with the present key.",
                hint="Restore the secret key that this data directory was made with.",
                key_id=key_id,
            ) from trouble
        return SecretStr(opened.decode())

    def derive(self, purpose: str, text: str) -> str:
        """Return a secret that only this key can make from *text* (URL-safe, 43 characters)."""
        mac = hmac.digest(self._mac, f"{purpose}\0{text}".encode(), "sha256")
        return base64.urlsafe_b64encode(mac).decode().rstrip("=")


def fingerprint(secret: str) -> str:
    """Return the hash under which a random token is stored and looked up."""
    return hashlib.sha256(secret.encode()).hexdigest()


def random_token(prefix: str = "") -> str:
    """Return a new random token of 256 bits, safe in a URL and in a cookie."""
    return prefix + base64.urlsafe_b64encode(os.urandom(32)).decode().rstrip("=")
