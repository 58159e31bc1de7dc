"""A value that must not be printed: passwords and tokens."""

from __future__ import annotations

from pathlib import Path

from stream_app.errors import ConfigurationError

REDACTED = "***"
LONGEST = 4096
"""Bytes of a file that holds a secret: more is another file, given by mistake."""


class Secret:
    """Text that shows as ``***`` wherever it is formatted; only ``reveal`` gives it away.

    No encoder knows the type, so that JSON of a structure that holds one is refused instead of leaking
    it; and it cannot be pickled. False when empty.
    """

    __slots__ = ("__text",)

    def __init__(self, text: str = "") -> None:
        self.__text = text

    def reveal(self) -> str:
        """The text itself: for the client that needs it, or a child's environment. Never for a message."""
        return self.__text

    def __repr__(self) -> str:
        return REDACTED if self.__text else "''"

    __str__ = __repr__

    def __bool__(self) -> bool:
        return bool(self.__text)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other.__text == self.__text

    def __hash__(self) -> int:
        return hash(self.__text)

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled")


def secret_of(setting: str, given: Secret, file: str) -> Secret:
    """The secret given by itself, or the one line of its file.

    ``setting`` is its name in messages. Raises ConfigurationError when the file cannot be read, or holds
    something else.
    """
    if not file:
        return given
    where = f"{setting}_file = {file!r}"
    try:
        with Path(file).open("rb") as opened:
            content = opened.read(LONGEST + 1)
        text = content.decode().rstrip("\r\n")
    except OSError as error:
        raise ConfigurationError(f"{where}: {error.strerror}; name a file that this user can read") from None
    except UnicodeDecodeError:
        text = ""
    if not text or len(content) > LONGEST or "\n" in text:
        raise ConfigurationError(f"{where}: must hold one line of UTF-8 text, the secret and nothing else")
    return Secret(text)
