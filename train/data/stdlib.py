"""The data set that every machine already has: the source of Python's own standard library."""

import contextlib
import dataclasses
import hashlib
import platform
import sysconfig
import tokenize
from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from train.data.files import locked, make_folder, quiet
from train.run.files.disk import full_disk

# Tests repeat one another, idlelib is an application, and the rest is not part of the library or is machine made.
LEFT_OUT = frozenset({"test", "tests", "idle_test", "idlelib", "site-packages", "dist-packages", "__pycache__"})
LEFT_OUT_PREFIXES = ("config-", "_sysconfigdata")


@dataclasses.dataclass(eq=False, kw_only=True)
class StdlibConfig(tfds.core.BuilderConfig):
    """Which source tree is read; `name` holds the Python version and a fingerprint of the text."""

    folder: str


class PythonStdlib(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `python_stdlib`: one example per source file, with its text and its relative path."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "Split by the sha256 of the path: 85 train, 10 validation, 5 test of 100."}

    def _info(self) -> tfds.core.DatasetInfo:
        features = tfds.features.FeaturesDict({"text": tfds.features.Text(), "path": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features, description=str(__doc__))

    def _split_generators(self, dl_manager: object) -> dict[str, Iterator[tuple[str, dict[str, str]]]]:
        del dl_manager  # nothing is downloaded
        return {split: self._generate_examples(split) for split in ("train", "validation", "test")}

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict[str, str]]]:
        for path, text in source_files(Path(self.builder_config.folder)):
            if split_of(path) == split:
                yield path, {"text": text, "path": path}


def source_files(folder: Path) -> Iterator[tuple[str, str]]:
    """Yields (relative posix path, text) of the library's modules, in the order of the paths.

    A file is decoded as Python itself would (PEP 263), so line ends become `\\n`; one that Python could not decode is
    left out.
    """
    paths = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*.py")}
    for name in sorted(filter(_belongs, paths)):
        with contextlib.suppress(SyntaxError, UnicodeDecodeError), tokenize.open(paths[name]) as file:
            text = file.read()
            yield name, text


def _belongs(name: str) -> bool:
    parts = name.split("/")
    return LEFT_OUT.isdisjoint(parts) and not any(part.startswith(LEFT_OUT_PREFIXES) for part in parts)


def split_of(path: str) -> str:
    """Returns the split of a relative posix path: decided by its sha256, so by the path alone, on every machine."""
    if path.startswith("encodings/"):  # dozens of near-twins: on both sides they would make validation too easy
        return "train"
    share = int(hashlib.sha256(path.encode()).hexdigest()[:8], 16) / 2**32
    return "train" if share < 0.85 else "test" if share < 0.9 else "validation"


def fingerprint(folder: Path) -> str:
    """Returns the sha256 of every path and text that `source_files` yields."""
    digest = hashlib.sha256()
    for path, text in source_files(folder):
        for part in (path.encode(), text.encode()):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.hexdigest()


def stdlib_builder(data_folder: Path, folder: Path | None = None) -> tfds.core.DatasetBuilder:
    """Returns the prepared builder of `folder` (default: this Python's library), preparing it below `data_folder`.

    The config's name holds what was read, so two Pythons on one machine never share data.

    Raises:
        UserError: the disk is full.
    """
    folder = folder or Path(sysconfig.get_path("stdlib"))
    name = f"py{platform.python_version()}-{fingerprint(folder)[:16]}"
    lock = data_folder / "heed" / f"{name}.lock"
    make_folder(lock.parent)
    with full_disk(data_folder, "--config.data.dir"), locked(lock), quiet():
        config = StdlibConfig(name=name, folder=str(folder))
        builder = PythonStdlib(config=config, data_dir=str(data_folder), file_format="array_record")
        builder.download_and_prepare()  # nothing, if it was done before
    return builder
