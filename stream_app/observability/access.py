"""Who may see a page: those who present its token, compared in constant time."""

from __future__ import annotations

import base64
import binascii
import hmac

from stream_app.secret import Secret

LONGEST_HEADER = 8_192
"""Characters; aiohttp takes no longer ones either."""


class Access:
    """Judges ``Authorization`` headers."""

    def __init__(self, token: Secret) -> None:
        """Without a token everybody is let in."""
        self._token = token.reveal().encode()

    @property
    def open(self) -> bool:
        """Whether no token is asked for."""
        return not self._token

    def allows(self, authorization: str | None) -> bool:
        """Whether this header presents the token: as ``Bearer``, or as the password of ``Basic`` with any
        user name, which is what a browser can ask a person for."""
        if self.open:
            return True
        if authorization is None or len(authorization) > LONGEST_HEADER:
            return False
        scheme, _, given = authorization.partition(" ")
        presented = _password(given) if scheme.lower() == "basic" else given.strip()
        if scheme.lower() not in ("basic", "bearer"):
            return False
        return hmac.compare_digest(presented.encode(errors="surrogateescape"), self._token)


def _password(encoded: str) -> str:
    """The password of Basic credentials; empty when they are none."""
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        return ""
    return decoded.partition(":")[2]
