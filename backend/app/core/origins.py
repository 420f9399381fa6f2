"""The origins in CORS_ORIGINS."""

import re
from contextlib import suppress
from typing import Final

from pydantic_core import Url

_LIST: Final = re.compile(r"""\A[\s"']*\[(.*)\][\s"']*\Z""", re.DOTALL)
_WEB_ORIGIN: Final = re.compile(r"https?://([a-z0-9._-]+|\[[0-9a-f:]+\])(:[1-9][0-9]*)?")
# Pages of applications and extensions, such as tauri://localhost. By https://url.spec.whatwg.org/#origin their origin
# is opaque, but the engines register these schemes and send the origin in this form.
_APP_ORIGIN: Final = re.compile(
    r"(?!(?:https?|wss?|ftp|file|blob|data):)[a-z][a-z0-9+.-]*://[A-Za-z0-9._-]+(:[1-9][0-9]{0,4})?"
)
# What is wrong with an origin, the first that applies.
_MISTAKES: Final = (
    (r"\Anull\Z", "is null, which browsers send for every sandboxed page and local file"),
    (r"\*", "has a *; list each origin"),
    (r"[\s;]", "has white space or a semicolon in it; separate origins with commas"),
    (r"[<$]", "has a placeholder in it; put the real value there"),
    (r"\A(?!.*://)", "has no scheme; put http:// or https:// in front"),
    (r"\A[^/]*//[^/]+/+\Z", "has a slash at the end; remove it"),
    (r"//[^/?#]*[/?#]", "has a path; browsers send only scheme, host and port"),
    (r"[A-Z]", "has capital letters; browsers send small ones"),
    (r"\Ahttp:.*:80\Z|\Ahttps:.*:443\Z", "has the default port; remove it, as browsers do"),
    ("", "is not what browsers send, such as https://app.example.com; names have their normal form (xn--…)"),
)


def split_origins(text: object) -> object:
    """Returns the items of a text with commas, which may have the brackets and the quotes of JSON."""
    if not isinstance(text, str):
        return text
    parts = (part.strip(" \t\r\n\"'") for part in _LIST.sub(r"\1", text).split(","))
    return tuple(filter(None, parts))


def check_origin(text: str) -> str:
    """Returns `text` if browsers write the origin in this way (https://url.spec.whatwg.org): `Url` does the same."""
    with suppress(ValueError):
        if _WEB_ORIGIN.fullmatch(text) and str(Url(text)) == f"{text}/":
            return text
    if _APP_ORIGIN.fullmatch(text):
        return text
    raise ValueError(next(sentence for pattern, sentence in _MISTAKES if re.search(pattern, text)))
