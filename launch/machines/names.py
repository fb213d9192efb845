"""Names that Kubernetes and SLURM take, checked before anything is written."""

import re

from model.errors import UserError

# {kind: (the whole name, what it may hold, how long it may be)}
_KINDS = {
    "label": (r"[a-z]([-a-z0-9]*[a-z0-9])?", "small letters, digits and hyphens, a letter first, no hyphen last,", 63),
    "object": (r"[a-z0-9]([-.a-z0-9]*[a-z0-9])?", "small letters, digits, hyphens and dots", 253),
    "partition": (r"\w[-.\w]*", "letters, digits, hyphens, dots and _", 253),
    "image": (r"\w[-.\w/:@]*", "REPOSITORY:TAG or REPOSITORY@DIGEST", 1000),
    "bucket": (r"gs://[a-z0-9][-_.a-z0-9]+(/[-\w.]+)*", "gs://BUCKET or gs://BUCKET/FOLDER", 1000),
}


def fits(name: str, kind: str) -> bool:
    """Whether a name is one of its kind."""
    pattern, _, most = _KINDS[kind]
    return bool(re.fullmatch(pattern, name, re.ASCII)) and len(name) <= most


def check(flag: str, name: str, kind: str, longest: int | None = None) -> str:
    """The name.

    Raises:
        UserError: it is none of its kind, or longer than `longest`.
    """
    pattern, rule, most = _KINDS[kind]
    if not re.fullmatch(pattern, name, re.ASCII):
        raise UserError(f"{flag}={name!r}: a name of {rule} is needed.")
    if len(name) > (longest or most):
        raise UserError(f"{flag}={name} has {len(name)} characters, and may have {longest or most} here.")
    return name
