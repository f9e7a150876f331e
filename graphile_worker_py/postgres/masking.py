"""Show connection strings, and texts that may contain one, without their passwords."""

import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import unquote

import psycopg
from psycopg import conninfo

MASK: Final = "***"

_SECRETS: Final = (
    "password",
    "sslpassword",
    "oauth_client_secret",
    "scram_client_key",
    "scram_server_key",
)
_URI: Final = re.compile(r"(postgres(?:ql)?(?:\+\w+)?://)(.*)", re.DOTALL)
_DRIVER: Final = re.compile(r"(postgres(?:ql)?)\+\w+://")
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+]*://", re.IGNORECASE)
_PLAIN: Final = re.compile(r"[\w./-]*")
# As libpq reads it: a name, "=", a value in quotes or up to a space; a backslash escapes the next
# character.
_WORD: Final = re.compile(
    r"""\s*(?P<name>[^\s=]+)\s*=\s*(?P<value>'(?:\\.|[^'\\])*'|(?:\\.|[^\s\\])*)""",
    re.DOTALL | re.ASCII,
)
# Names of secrets in a text around a connection string, with common misspellings.
_TELLING: Final = r"(?:pas+(?:wo?r?d)?|pwd|secret|(?:client|server)_key)"
_USER_IN_TEXT: Final = re.compile(r"(\w://[^\s/?#@:]*:)\S*@")
_SECRET_IN_TEXT: Final = re.compile(
    rf"({_TELLING}\s*=\s*)('(?:\\.|[^'\\])*'|(?:\\.|[^\s&\\])+)", re.DOTALL | re.IGNORECASE
)


def masked(dsn: str) -> str:
    """A connection string with its passwords masked.

    All of a text that libpq can't parse is masked, or parses differently from what was meant: it is
    unknown where a password in it begins and ends. A plain word or the scheme of a URI is shown.
    """
    uri = _URI.fullmatch(dsn)
    try:
        words = conninfo.conninfo_to_dict(without_driver(dsn))
    except (psycopg.Error, UnicodeError):
        return _masked_wrong(dsn)
    # A database name may be another connection string, which libpq expands.
    if fault_of(words) is not None or not _PLAIN.fullmatch(str(words.get("dbname", ""))):
        return _masked_wrong(dsn)
    return _masked_words(dsn) if uri is None else uri[1] + _masked_uri(uri[2])


def without_driver(dsn: str) -> str:
    """A connection string without the driver that SQLAlchemy's have: `postgresql+psycopg://`."""
    return _DRIVER.sub(r"\1://", dsn, count=1) if _DRIVER.match(dsn) else dsn


def fault_of(words: Mapping[str, Any]) -> str | None:
    """The fault of a connection string that libpq split at the wrong places, if there is one."""
    if "@" in str(words.get("host", "")):
        return "host has an @"
    if re.search(r"[^\d,\s]", str(words.get("port", ""))):
        return "port is not a number"
    return None


def masked_text(text: str) -> str:
    """A text that may quote a connection string, such as an error message, without passwords.

    It may mask more than the secrets.
    """
    text = _USER_IN_TEXT.sub(rf"\1{MASK}@", text)
    return _SECRET_IN_TEXT.sub(rf"\1{MASK}", text)


def _masked_wrong(dsn: str) -> str:
    scheme = _SCHEME.match(dsn)
    start = "" if scheme is None else scheme[0]
    rest = dsn[len(start) :]
    return dsn if _PLAIN.fullmatch(rest) or rest == MASK else start + MASK


def _masked_uri(rest: str) -> str:
    # libpq looks for the end of user and password, and stops at a slash.
    found = re.match(r"[^@/]*@", rest)
    user = "" if found is None else found[0]
    place, question, query = rest[len(user) :].partition("?")
    if "@" in place:
        return MASK
    name, colon, _ = user.partition(":")
    if colon:
        user = f"{name}:{MASK}@"
    return user + place + question + "&".join(map(_masked_parameter, query.split("&")))


def _masked_parameter(parameter: str) -> str:
    name, equals, _ = parameter.partition("=")
    return f"{name}={MASK}" if equals and unquote(name) in _SECRETS else parameter


def _masked_words(dsn: str) -> str:
    return _WORD.sub(
        lambda found: (
            dsn[found.start() : found.start("value")] + MASK
            if found["name"] in _SECRETS
            else found[0]
        ),
        dsn,
    )
