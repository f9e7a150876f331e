"""Show connection strings, and texts that may hold one, without their passwords."""

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
_URI: Final = re.compile(r"(postgres(?:ql)?://)(.*)", re.DOTALL)
_ANY_URI: Final = re.compile(r"([a-z][a-z0-9+]*://)(.*)", re.DOTALL | re.IGNORECASE)
# As libpq reads it: a name, "=", a value in quotes or up to a space; a backslash takes the next
# character as it is.
_WORD: Final = re.compile(
    r"""\s*(?P<name>[^\s=]+)\s*=\s*(?P<value>'(?:\\.|[^'\\])*'|(?:\\.|[^\s\\])*)""",
    re.DOTALL | re.ASCII,
)
# What looks like a secret where the text is not a connection string, or one gone wrong.
_TELLING: Final = r"(?:pass(?:word|wd)?|pwd|secret|(?:client|server)_key)"
_FROM_SECRET_ON: Final = re.compile(rf"({_TELLING}\w*\s*=).*", re.DOTALL | re.IGNORECASE)
_USER_IN_TEXT: Final = re.compile(r"(\w://[^\s/?#@:]*:)\S*@")
_SECRET_IN_TEXT: Final = re.compile(
    rf"({_TELLING}\s*=\s*)('(?:\\.|[^'\\])*'|(?:\\.|[^\s&\\])+)", re.DOTALL | re.IGNORECASE
)


def masked(dsn: str) -> str:
    """A connection string as it may be shown.

    Of one that libpq would not understand, or not as it was meant, nothing is shown that may be
    part of a password: nobody knows where that ends.
    """
    uri = _URI.fullmatch(dsn)
    try:
        words = conninfo.conninfo_to_dict(dsn)
    except (psycopg.Error, UnicodeError):
        return _masked_wrong(dsn)
    if fault_of(words) is not None:
        return _masked_wrong(dsn)
    return _masked_words(dsn) if uri is None else uri[1] + _masked_uri(uri[2])


def fault_of(words: Mapping[str, Any]) -> str | None:
    """What shows that a connection string was taken apart at the wrong places; None if nothing."""
    if "@" in str(words.get("host", "")):
        return "host has an @"
    if re.search(r"[^\d,\s]", str(words.get("port", ""))):
        return "port is not a number"
    return None


def masked_text(text: str) -> str:
    """A text that may quote a connection string, like an error message, as it may be shown.

    More may be masked than is secret.
    """
    text = _USER_IN_TEXT.sub(rf"\1{MASK}@", text)
    return _SECRET_IN_TEXT.sub(rf"\1{MASK}", text)


def _masked_wrong(dsn: str) -> str:
    uri = _ANY_URI.fullmatch(dsn)
    if uri is not None:
        return dsn if not set(":@?=") & set(uri[2]) else uri[1] + MASK
    return _FROM_SECRET_ON.sub(rf"\1{MASK}", dsn)


def _masked_uri(rest: str) -> str:
    # libpq looks for the end of user and password, and only a slash comes before it.
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
