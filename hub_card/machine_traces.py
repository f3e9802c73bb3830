"""Tokens and paths of this machine: taken out of what is published, and searched for before anything is sent."""

import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from huggingface_hub import get_token

# Of the Hub, GitHub, GitLab, Slack, OpenAI and Anthropic, AWS, Google, Weights & Biases; JSON Web Tokens, private keys.
TOKEN = re.compile(
    rb"\b(?:hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,}"
    rb"|gl[a-z]{2,6}-[\w-]{20,}|xox[a-z]-[\w-]{10,}|xapp-[\w-]{10,}|sk-[\w-]{30,}|A(?:KIA|SIA)[A-Z0-9]{16}"
    rb"|AIza[\w-]{35}|ya29\.[\w-]{20,}|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]{8,})(?![\w-])"
    rb"|WANDB_API_KEY\W+[0-9a-f]{40}|-----BEGIN [A-Z ]*PRIVATE KEY-----(?:[\s\S]*?-----END [A-Z ]*PRIVATE KEY-----)?"
)
PASSWORD_IN_URL = re.compile(rb"(?<=://)[^\s/:@'\"]+:[^\s/@'\"]+@")
TOKEN_FLAG = re.compile(r"(--\w*(?:token|api_key|password|secret)[= ])\S+")
SECRET_KEY = re.compile(r"(?:.*_)?(?:token|auth)|.*secret.*|.*passw(?:or)?d.*|.*credential.*|.*api_?key", re.IGNORECASE)
# An absolute path, not the path of a URL and not a fraction: "/a/b", "~/a", "C:\a", "\\host\a". A person's folder may
# have spaces in its name.
PATH = re.compile(
    r"""(?<![\w:/.\\])(?:file://)?(?:/(?:home|Users)/[^\s/'"=:,;|<>]+(?: (?!-)[^\s/'"=:,;|<>]+)*/"""
    r"""(?:[^\s/'"=:,;|<>]+/)*[^\s/'"=:,;|<>]*|/(?:[^\s/'"=:,;|<>]+/)+[^\s/'"=:,;|<>]*|~/[^\s'"=:,;|<>]+"""
    r"""|[A-Za-z]:[\\/]Users[\\/][^\\/'"=:,;|<>]+[\\/](?:[^\s\\/'"=:,;|<>]+[\\/])*[^\s\\/'"=:,;|<>]*"""
    r"""|(?:[A-Za-z]:[\\/]|\\\\)(?:[^\s\\/'"=:,;|<>]+[\\/])*[^\s\\/'"=:,;|<>]*)"""
)
PEOPLES_FOLDERS = re.compile(
    rb"(?<![\w:/.])(?:/home/|/Users/|/root/|/mnt/|/scratch/|[A-Za-z]:(?:\\{1,2}|/)Users(?:\\{1,2}|/))[\w.-]+"
    rb"|(?<!\\)\\{4}[\w.-]+\\{2}[\w.$-]+"
)


def without_machine_traces(value):
    """A JSON value without tokens, and with every absolute path reduced to its last name, also inside longer strings.

    `python train/run.py --dataset_name emodb=/data/emodb` becomes `… emodb=emodb`: it says what was run, and runs
    where corpora lie beside it.
    """
    if isinstance(value, str):
        return PATH.sub(lambda found: _last_name(found.group()), without_tokens(value))
    if isinstance(value, Mapping):
        kept = {key: item for key, item in value.items() if not SECRET_KEY.fullmatch(str(key))}
        return {without_machine_traces(key): without_machine_traces(item) for key, item in kept.items()}
    if isinstance(value, (list, tuple)):
        return [without_machine_traces(item) for item in value]
    return value


def without_tokens(text: str) -> str:
    text = TOKEN.sub(b"TOKEN", PASSWORD_IN_URL.sub(b"", text.encode("utf-8", "surrogatepass")))
    return TOKEN_FLAG.sub(r"\1TOKEN", text.decode("utf-8", "replace"))


def _last_name(path: str) -> str:
    return re.split(r"[\\/]", path.rstrip("\\/"))[-1]


def machine_traces(content: bytes, folders: tuple[Path, ...] = ()) -> list[str]:
    """What in `content` looks like a token or names a place on this machine or in `folders`; tokens are not repeated.

    `folders` are those that the content comes from.
    """
    found = ["a token"] if TOKEN.search(content) or PASSWORD_IN_URL.search(content) or _secrets_in(content) else []
    found += sorted({match.group().decode() for match in PEOPLES_FOLDERS.finditer(content)})
    starts = {Path.home(), Path.cwd(), Path(tempfile.gettempdir()), Path(sys.prefix), *folders}
    for place in sorted({str(form) for start in starts for form in (start.absolute(), start.resolve())}):
        # A place as short as "/tmp" is no trace by itself: code may name it.
        if place.count("/") + place.count("\\") >= 2 and place.encode() in content:
            found.append(place)
    return found


def _secrets_in(content: bytes) -> bool:
    names = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY", "GITHUB_TOKEN")
    secrets = [get_token(), *(os.environ.get(name) for name in names)]
    return any(secret and len(secret) >= 8 and secret.encode() in content for secret in secrets)
