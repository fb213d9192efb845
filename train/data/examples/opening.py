"""One call from a config to the examples of a task: `open_corpus(kind, config.data)`."""

from collections.abc import Callable, Sequence
from typing import Any

from ml_collections import ConfigDict

from model.errors import UserError
from train.data.examples.embedded import EMBEDDED, embedded
from train.data.examples.own import own_examples
from train.data.examples.public import public_examples
from train.data.examples.types import FORMS, KINDS, Corpus, Example
from train.data.files import make_folder
from train.data.opening import data_folder
from train.run.files.disk import remove_empty


def open_corpus(
    kind: type[Example],
    config: ConfigDict,
    *,
    form: str = "one",
    names: Sequence[str] = (),
    allow_overlap: bool = False,
    while_waiting: Callable[[], object] = lambda: None,
    **options: Any,
) -> Corpus[Example]:
    """Returns the examples that `config.data` names: its `path`, or by `name` an embedded corpus or a TFDS set.

    Args:
        kind: of the examples that the task takes.
        config: `config.data`; its `feature` may be several, 'en,de', in the order of the kind's fields.
        form: of labels, as `own_examples` takes it.
        names: of labels or tags that are known, as those of a checkpoint; () for those of the data.
        while_waiting: is called often while examples are made or looked at, and may raise.
        allow_overlap: whether 'validation' may hold much of what 'train' holds.
        options: of an embedded corpus, as the function that makes it takes them.

    Raises:
        UserError: the examples cannot be had, are of another kind, or their splits overlap and may not.
    """
    folder = data_folder(config.dir)
    cache = folder / "heed"
    made = make_folder(folder)
    made = make_folder(cache) + made
    try:
        corpus = _corpus(kind, config, form, names, while_waiting, options)
        corpus.overlap().check(allow_overlap)
    except UserError:
        remove_empty(made)
        raise
    return corpus


def _corpus(
    kind: type[Example],
    config: ConfigDict,
    form: str,
    names: Sequence[str],
    while_waiting: Callable[[], object],
    options: dict[str, Any],
) -> Corpus:
    folder = data_folder(config.dir)
    if config.path:
        return own_examples(kind, config.path, form, names, folder / "heed")
    if config.name not in EMBEDDED:
        splits = {"train": config.train_split, "validation": config.validation_split}
        features = [one.strip() for one in config.feature.split(",")] if "," in config.feature else []
        return public_examples(kind, config.name, folder, splits, features, names, while_waiting, form)
    if EMBEDDED[config.name].kind is not kind or form != "one":
        known = {name for name, one in EMBEDDED.items() if one.kind is kind and form == "one"}
        wanted = FORMS[form] if form != "one" else KINDS[kind]
        raise UserError(
            f"--config.data.name={config.name!r} has no {wanted}, which the task takes: give "
            f"{''.join(f'{name}, ' for name in sorted(known))}a TFDS set of such, or your own with --config.data.path."
        )
    return embedded(config.name, folder / "heed", None, while_waiting, **options)
