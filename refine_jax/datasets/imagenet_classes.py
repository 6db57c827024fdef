"""The classes of ILSVRC2012 by WordNet id, and the order in which ImageNet-50 draws classes and images."""

import functools
import hashlib
import logging
import pathlib
import re
from collections.abc import Sequence

from refine_jax.errors import DataError, SettingError, did_you_mean

logger = logging.getLogger(__name__)

SEED = 0
PUBLISHED = 50
WORDNET_ID = re.compile(r"n\d{8}")
FIELD = "dataset.classes"
# A number: so many, the first by `rank`; ids: these, in their order; None: the published 50.
Classes = int | tuple[str, ...] | None

_ALLOWED = (
    "a number, such as 10; WordNet ids, each once, such as ('n01440764', 'n02102040'); or left open, for the 50 "
    "published classes"
)


@functools.cache
def names() -> dict[str, str]:
    """Returns the WordNet ids of the thousand classes, sorted, and what they are called.

    References:
        Russakovsky et al., ImageNet large scale visual recognition challenge (2015). A name is the first word of the
        class's synset, another of its words where two classes would be called the same.
    """
    lines = pathlib.Path(__file__).with_suffix(".txt").read_text().splitlines()
    return dict(line.split(" ", 1) for line in lines)


def describe(wordnet_id: str) -> str:
    """Returns the id with its name in brackets, where it has one."""
    return f"{wordnet_id} ({names()[wordnet_id]})" if wordnet_id in names() else wordnet_id


def rank(text: str) -> bytes:
    """Returns what classes and images are ordered by where some are drawn: the SHA-256 of "SEED/text"."""
    return hashlib.sha256(f"{SEED}/{text}".encode()).digest()


@functools.cache
def published() -> tuple[str, ...]:
    """Returns the 50 classes: the first of the thousand by `rank`, sorted by id."""
    return tuple(sorted(sorted(names(), key=rank)[:PUBLISHED]))


def read(classes: object) -> Classes:
    """Returns which classes are asked for, as told by a caller or on a command line.

    Args:
        classes: None, a number, or WordNet ids; a number in a tuple by itself and ids with commas between them in
            one string are taken too.

    Raises:
        SettingError: It is something else.
    """
    values = [classes] if isinstance(classes, int | str) else classes
    if values is None:
        return None
    if isinstance(values, Sequence) and not any(isinstance(value, bool) for value in values):
        if len(values) == 1 and isinstance(values[0], int) and values[0] >= 2:
            return values[0]
        if all(isinstance(value, str) for value in values):
            ids = tuple(part.strip() for value in values for part in value.split(",") if part.strip())
            if len(ids) >= 2 and len(set(ids)) == len(ids) and all(map(WORDNET_ID.fullmatch, ids)):
                return ids
    raise SettingError(FIELD, classes, _ALLOWED)


def choose(classes: Classes, there: Sequence[str], place: str | pathlib.Path) -> tuple[str, ...]:
    """Returns the ids of the classes that are asked for, in the order of their labels.

    A number means the first so many, by `rank`, of those that are there, so of the published ones as long as there
    are; they are then sorted by id, as torchvision's ImageFolder would label them.

    Args:
        classes: From `read`.
        there: Ids of the classes that a source has.
        place: Where that is, for errors.

    Raises:
        DataError: A class is not there, or not so many are; which, and what there is.
    """
    if isinstance(classes, int):
        if len(there) < classes:
            raise DataError(f"{place} has {len(there)} classes; {FIELD} asks for {classes}")
        chosen = tuple(sorted(sorted(there, key=lambda name: (name not in names(), rank(name)))[:classes]))
        others = set(chosen) - set(published())
        if others and classes <= PUBLISHED:
            logger.info(
                "%s has too few of the %d published classes: %d of the %d that are taken are not among them",
                *(place, PUBLISHED, len(others), classes),
            )
        return chosen
    chosen = published() if classes is None else classes
    missing = [name for name in chosen if name not in there]
    if missing:
        nearest = did_you_mean(missing[0], there) if classes is not None else ""
        instead = (
            f"; to take the first {len(there)} that it has: --config.{FIELD}={len(there)}"
            if classes is None and 2 <= len(there) < PUBLISHED
            else ""
        )
        raise DataError(
            f"{place} lacks {len(missing)} of the {len(chosen)} classes that are asked for: "
            f"{', '.join(map(describe, missing))}{nearest}{instead}"
        )
    return chosen
