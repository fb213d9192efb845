"""Checkpoints: a state and its data position in one atomic step of Orbax, the newest and the best kept.

A step is a folder `<step>/` that appears by one rename. Before that rename, `files.json` in it lists size and checksum
of every file: a step that lost some of its bytes is told from a good one without reading its arrays. In a
bucket nothing is renamed: a step is there once Orbax's mark is.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as keep

from model.errors import UserError
from train.devices.together import agree, meet
from train.run.bucket.address import absolute, in_bucket
from train.run.files.disk import full_disk
from train.run.files.json_files import finite, free_name
from train.run.files.named_arrays import difference, plain, typed
from train.run.files.step_files import ITEM, SCORE, check_sizes, saved_steps, score_of, write_sizes

log = logging.getLogger("heed")
# What Orbax and TensorStore raise for files that are cut, missing or garbled. For one that is altered they may raise
# anything; that is what the checksums of `files.json` are for.
_BAD = (ValueError, OSError, KeyError)
DECAYED = "decayed"  # prefix of what a run did after its decay began, once it goes on from before
Restored = tuple[Any, dict[str, Any], int]  # a state, its extra and its step


class _WithoutOrbax(logging.Filter):
    """Orbax logs every error that it raises, with its traceback; the one that is raised is enough."""

    def filter(self, record: logging.LogRecord) -> bool:
        return f"{Path('/orbax/checkpoint')}" not in record.pathname + record.getMessage()


for _logger in ("absl", "asyncio"):  # asyncio speaks of the tasks that a failed save has left
    logging.getLogger(_logger).addFilter(_WithoutOrbax())


class Checkpoints:
    """The checkpoints of a run, in `folder`.

    A writer (`keep_last` given) makes the folder, deletes what an interrupted save left, keeps the `keep_last` newest
    steps and the `keep_best` of lowest metric (one of another name is none), and moves broken steps aside to
    `broken-<step>`; step `keep_step` is kept in any case. Every step keeps `copies` of the run's own files. A reader
    changes nothing, so it may look at a run that goes on.

    Raises:
        UserError: keep_last is below 1, or keep_best below 0.
    """

    def __init__(
        self,
        folder: str | Path,
        keep_last: int | None = None,
        keep_best: int = 0,
        metric: str = "metric",
        copies: Mapping[str, Any] = MappingProxyType({}),
        keep_step: int | None = None,
    ):
        if keep_last is not None and keep_last < 1:
            raise UserError(
                f"--config.train.keep_last={keep_last} is below 1: a run resumes from its newest checkpoint."
            )
        if keep_best < 0:
            raise UserError(f"--config.train.keep_best={keep_best} is negative; 0 keeps no best one.")
        self.folder = absolute(folder)
        self._writes, self._saving = keep_last is not None, 0
        if self._writes:
            self._set_aside_damaged()
        self._metric, self._copies = metric, finite(dict(copies))
        found = {step: score_of(self.folder / str(step)) for step in saved_steps(self.folder)}
        self._scores = {step: score[metric] for step, score in found.items() if metric in score}
        json = {name: ocp.JsonCheckpointHandler() for name in ("extra", ITEM)}
        with full_disk(self.folder):
            self._manager = ocp.CheckpointManager(
                self.folder,
                options=_options(keep_last, _Best(keep_best, self._scores), keep_step, self._write_sizes),
                item_handlers={"state": ocp.PyTreeCheckpointHandler()} | json,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What is being saved is finished also when the run is refused; then the first error is the one to tell.
        with contextlib.suppress(UserError) if kind else contextlib.nullcontext():
            self.close()

    def steps(self) -> list[int]:
        """The steps that are saved or being saved, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, extra: Mapping[str, Any], metric: float | None = None) -> None:
        """Copies a state to the host and returns; a thread writes it. A step that is already saved is left as it is.

        state: any pytree of arrays. extra: what else the run needs to go on, as JSON. metric: lower is better.

        Raises:
            UserError: the disk is full, in this save or in the one before.
        """
        if step in self.steps():
            return
        score = {} if metric is None else {self._metric: float(metric)}
        kept = {"extra": ocp.args.JsonSave(dict(extra)), ITEM: ocp.args.JsonSave(self._copies | {SCORE: score})}
        items = ocp.args.Composite(state=ocp.args.PyTreeSave(plain(state)), **kept)
        with full_disk(self.folder):
            self._manager.wait_until_finished()
            self._saving = step
            self._scores.pop(step, None)  # of a broken step of this number
            self._scores |= {} if metric is None else {step: metric}
            self._manager.save(step, args=items, force=True)

    def restore(
        self,
        abstract_state: Any,
        newest: int | None = None,
        check: Callable[[dict[str, Any]], None] = lambda extra: None,
    ) -> Restored | None:
        """Returns the newest good state, its extra and its step; None where there is no checkpoint.

        abstract_state: a pytree of jax.ShapeDtypeStruct with shardings: all of the saved state, or a dict of some of
        its fields, such as {'params': ...}. newest: steps after it are set aside, as `decayed-<step>`. check: raises
        ValueError or KeyError for an extra with which the run cannot go on. Broken steps are reported, one
        line each, and passed over.

        Raises:
            UserError: the checkpoint is of another model (the first leaf that differs), or every step is broken.
        """
        wanted = plain(abstract_state)
        steps = saved_steps(self.folder)
        agree(f"what is seen of {self.folder}", str(steps))
        if newest is not None:
            self._set_aside([step for step in steps if step > newest], DECAYED)
            steps = [step for step in steps if step <= newest]
        for at, step in reversed(list(enumerate(steps))):
            try:
                check_sizes(self.folder / str(step))
                arrays, extra = self._read(step, wanted)
                check(extra)
            except UserError:
                raise
            except _BAD as error:
                self._warn(step, error)
                continue
            self._set_aside(steps[at + 1 :])
            self._manager.reload()
            return typed(arrays, abstract_state), extra, step
        if steps:
            raise self._nothing_left()
        return None

    def check(self) -> None:
        """Raises the error of a save that has failed in the background; UserError if the disk is full."""
        if not self._manager.is_saving_in_progress():
            self.wait()

    def wait(self) -> None:
        """Blocks until what is being saved is on disk; raises as `check`."""
        with full_disk(self.folder):
            self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, and ends the threads; raises as `check`."""
        with full_disk(self.folder):
            self._manager.close()

    def _read(self, step: int, wanted: dict[str, jax.ShapeDtypeStruct]) -> tuple[dict[str, jax.Array], dict[str, Any]]:
        saved = self._manager.item_metadata(step)["state"]
        if saved is None:
            raise FileNotFoundError("the list of its arrays is missing")
        differs = difference(saved.tree, wanted)
        if differs:
            raise UserError(
                f"checkpoint {step} of {self.folder} is of another model: {differs}; "
                "give the --config it was trained with, or another --workdir."
            )
        arrays = ocp.args.PyTreeRestore(
            item=wanted, restore_args=ocp.checkpoint_utils.construct_restore_args(wanted), partial_restore=True
        )
        items = self._manager.restore(step, args=ocp.args.Composite(state=arrays, extra=ocp.args.JsonRestore()))
        return items["state"], items["extra"]

    def _set_aside_damaged(self) -> None:
        """Moves steps with files missing or cut out of the way of Orbax, which reads some of every step."""
        damaged = []
        for step in saved_steps(self.folder):
            try:
                check_sizes(self.folder / str(step))
            except ValueError as error:
                self._warn(step, error)
                damaged.append(step)
        all_damaged = damaged and damaged == saved_steps(self.folder)
        meet("all have looked at the checkpoints")  # before the first one moves any of them
        if all_damaged:
            raise self._nothing_left()
        self._set_aside(damaged)

    def _set_aside(self, broken: Sequence[int], prefix: str = "broken") -> None:
        """Renames broken steps, so that their numbers can be saved again; a reader leaves them."""
        if not (broken and self._writes):
            return
        if jax.process_index() == 0:
            for step in broken:
                (self.folder / str(step)).rename(free_name(self.folder / str(step), prefix))
        meet("broken checkpoints are set aside")

    def _warn(self, step: int, error: Exception) -> None:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0][:150]}"
        log.warning("checkpoint %d of %s is broken (%s): the one before is taken.", step, self.folder, reason)

    def _nothing_left(self) -> UserError:
        return UserError(f"{self.folder} holds no checkpoint that can be read: give another --workdir to begin anew.")

    def _write_sizes(self) -> None:
        """Lists the files of the step that is about to be renamed to its final name."""
        found = self.folder.glob(f"{self._saving}.*")
        for folder in [self.folder / str(self._saving)] if in_bucket(self.folder) else found:
            write_sizes(folder)


def _options(
    keep_last: int | None, best: "_Best", keep_step: int | None, before_rename: Callable[[], None]
) -> ocp.CheckpointManagerOptions:
    one = keep.CustomSteps([] if keep_step is None else [keep_step])
    return ocp.CheckpointManagerOptions(
        create=keep_last is not None,
        cleanup_tmp_directories=keep_last is not None,
        preservation_policy=keep.AnyPreservationPolicy([keep.LatestN(keep_last), best, one]),
        async_options=ocp.AsyncOptions(post_finalization_callback=before_rename),
        lightweight_initialize=keep_last is None,
    )


@dataclasses.dataclass
class _Best(keep.PreservationPolicy):
    """Keeps the `n` steps of lowest score; a step without one is kept only while it is among the newest.

    Orbax's own metrics are not used: a step whose file of them is damaged could no longer be read at all.
    """

    n: int
    scores: dict[int, float]

    def should_preserve(
        self, checkpoints: Sequence[keep.PolicyCheckpointInfo], *, context: keep.PreservationContext
    ) -> Sequence[bool]:
        """Whether each of the steps is kept."""
        scored = [info.step for info in checkpoints if info.step in self.scores]
        best = sorted(scored, key=self.scores.__getitem__)[: self.n]
        return [info.step in best for info in checkpoints]
