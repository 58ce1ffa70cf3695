"""Readers: their codes and password hashes."""

import hashlib
import hmac
import json
import re
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from vmddpm.errors import InputError
from vmddpm.files import LockedError, lock
from vmddpm.study.folder import Study, StudyError, write_secret

# Without characters that look alike on paper. Twelve of them have 59 bits, too many to guess over a network.
LETTERS = "abcdefghjkmnpqrstuvwxyz23456789"
LOCK_TIMEOUT = 10.0  # seconds


def reader_code(text: str) -> str:
    """The code in lower case, because some file systems ignore case. Raises StudyError if it is invalid."""
    code = text.strip().lower()
    if not re.fullmatch(r"[a-z0-9][a-z0-9_-]{0,31}", code):
        raise StudyError(
            f"{text!r:.60} is not a reader code: 1 to 32 letters, digits, - and _, a letter or digit first"
        )
    return code


def load_readers(study: Study) -> dict[str, dict[str, str]]:
    """{code: {"salt", "hash"}}; empty if no passwords are required."""
    path = study.path / "readers.json"
    try:
        readers = json.loads(path.read_text(encoding="utf-8"))
        if not (isinstance(readers, dict) and all(map(_is_account, readers.values()))):
            raise InputError("it is not a list of readers with salts and hashes")
        return readers
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(
            f"{path} cannot be read ({error}); restore it, or remove it and register the readers again"
        ) from error


def _is_account(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    salt, hashed = entry.get("salt"), entry.get("hash")
    return isinstance(salt, str) and salt.isascii() and bool(salt) and isinstance(hashed, str) and hashed.isascii()


def register(study: Study, codes: list[str]) -> dict[str, str]:
    """Make a new password for each code, and return the passwords by code.

    Raises:
        StudyError: if a code is invalid, readers.json is damaged, or another process holds its lock for too long.
    """
    passwords = {reader_code(code): "-".join("".join(secrets.choice(LETTERS) for _ in range(4)) for _ in range(3))
                 for code in codes}  # fmt: skip
    salts = {code: secrets.token_hex(16) for code in passwords}
    hashes = {code: {"salt": salts[code], "hash": _hash(password, salts[code])} for code, password in passwords.items()}
    with _readers_lock(study):  # an entry that another process adds between reading and writing would be lost
        write_secret(study.path / "readers.json", json.dumps(load_readers(study) | hashes, indent=1))
    return passwords


@contextmanager
def _readers_lock(study: Study) -> Iterator[None]:
    """Lock the list of readers for this process."""
    deadline = time.monotonic() + LOCK_TIMEOUT
    with ExitStack() as stack:
        while True:
            try:
                stack.enter_context(lock(study.path / "readers.lock"))
                break
            except LockedError as error:
                if time.monotonic() > deadline:
                    words = f"readers are being registered by {error.holder}; try again{error.advice}"
                    raise StudyError(words) from None
            time.sleep(0.05)
        yield


def is_password(study: Study, code: str, password: str) -> bool:
    """Whether the password is correct. Takes as long for unknown codes. `password` must be encodable as UTF-8."""
    entry = load_readers(study).get(code, {"salt": "", "hash": ""})
    return hmac.compare_digest(_hash(password.strip().lower(), entry["salt"]), entry["hash"])


def _hash(password: str, salt: str) -> str:
    return hashlib.scrypt(password.encode(), salt=salt.encode(), n=1 << 14, r=8, p=1).hex()
