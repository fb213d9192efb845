"""Queued resources and their machines: made, looked at, waited for and deleted, by exact name and by our label."""

import re
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from launch import cli
from launch.pods import timer
from launch.pods.gcloud import NotFound, Tpus, Unclear, meaning
from launch.pods.spec import LABEL, NODE, QUEUED, Found, Wanted, place
from model.errors import UserError

PAUSE_SECONDS = 15.0  # between two looks
_LOOKS = 20  # after which what was asked for should be there, and a failure of gcloud does not pass
_SOON = 3  # looks in which what has only just been asked for appears


def _described(tpus: Tpus, kind: str, name: str) -> dict[str, Any] | None:
    try:
        return dict(tpus.read(kind, "describe", name))
    except NotFound:
        return None


def _nodes_of(queued: Mapping[str, Any]) -> list[str]:
    """The names of a queued resource's nodes, which stand there one by one, or as a prefix and a count."""
    names = []
    for spec in queued["tpu"]["nodeSpec"]:
        several = spec.get("multisliceParams") or spec.get("multiNodeParams") or {}
        count, prefix = int(several.get("nodeCount", 0)), several.get("nodeIdPrefix", "")
        names += [spec["nodeId"]] if spec.get("nodeId") else [f"{prefix}-{i}" for i in range(count)]
    return names


def look(tpus: Tpus, name: str) -> Found | None:
    """The resource of this name, or the machines that were made without one, or outlived it; None where none is."""
    if queued := _described(tpus, QUEUED, name):
        return Found(name, queued, {node: _described(tpus, NODE, node) for node in _nodes_of(queued)})
    if node := _described(tpus, NODE, name):
        return Found(name, None, {name: node})
    left = {one: told for one, told in _nodes(tpus).items() if re.fullmatch(rf"{name}-\d+", one) and _run(told) == name}
    return Found(name, None, left) if left else None


def look_on(tpus: Tpus, name: str) -> Found | None:
    """As `look`, and again where gcloud fails, which may pass: a network comes back, somebody logs in.

    Raises:
        UserError: it goes on failing.
    """
    failed = 0
    while True:
        try:
            return look(tpus, name)
        except UserError as error:
            if failed == _LOOKS:
                raise
            if not failed:
                cli.say(f"{name}: not seen, which may pass: {error}")
            failed += 1
        time.sleep(PAUSE_SECONDS)


def _look_soon(tpus: Tpus, name: str, looks: int) -> Found | None:
    """As `look`, of what may only just have been asked for, and so appear a little later."""
    while (found := look(tpus, name)) is None and (looks := looks - 1):
        time.sleep(PAUSE_SECONDS)
    return found


def listed(tpus: Tpus) -> list[Found]:
    """All that carries our label, zone by zone: queued resources, and machines that no queued resource of ours has."""
    queued, nodes = ([*(tpus.read(kind, "list") or ())] for kind in (QUEUED, NODE))
    zones = sorted({place(one)[0] for one in (*queued, *nodes)})
    return [one for zone in zones for one in _ours(*([x for x in of if place(x)[0] == zone] for of in (queued, nodes)))]


def _ours(all_queued: list[dict[str, Any]], all_nodes: list[dict[str, Any]]) -> list[Found]:
    """Those of one zone, where no two of a kind have one name."""
    nodes = {place(one)[1]: one for one in all_nodes}
    found = [Found(place(one)[1], one, {node: nodes.get(node) for node in _nodes_of(one)}) for one in all_queued]
    found = [one for one in found if one.ours]
    held = {node for one in found for node in one.nodes}
    alone: dict[str, dict[str, Any]] = {}
    for name, told in nodes.items():
        if name not in held and (run := _run(told)):
            alone.setdefault(run, {})[name] = told
    return found + [Found(run, None, told) for run, told in alone.items()]


def _nodes(tpus: Tpus) -> dict[str, dict[str, Any]]:
    return {place(one)[1]: one for one in tpus.read(NODE, "list") or ()}


def _run(node: Mapping[str, Any]) -> str:
    return str(node.get("labels", {}).get(LABEL, ""))


def check_free(tpus: Tpus, name: str, nodes: list[str]) -> None:
    """Raises UserError where a resource or a node has one of these names already."""
    if taken := look(tpus, name):
        if "DELETING" in taken.states:
            raise UserError(f"--name={name} is still being deleted: wait some minutes, or give another --name.")
        raise UserError(f"--name={name} is taken ({'+'.join(taken.states)}): give another, or see launch.pod status.")
    for node in nodes:
        if node != name and _described(tpus, NODE, node):
            raise UserError(f"--name={name} would need a machine called {node}, which exists: give another --name.")


def make(tpus: Tpus, wanted: Wanted, on_interrupt: Callable[[str], None]) -> None:
    """Makes a resource and waits until it can be used; what fails or is interrupted is deleted again.

    Raises:
        UserError: it failed, and is gone; or it can no longer be seen, after `on_interrupt(its request)`.
        KeyboardInterrupt: after `on_interrupt(its request)`.
    """
    text = timer.script(tpus.zone, wanted.name, wanted.queued, wanted.max_hours)
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "startup.py")
        script.write_text(text)
        try:
            answer = tpus.change(wanted.words(tpus, script), apart=True)
            if tpus.dry:
                cli.say(f"where startup-script is:\n{text}")
                return
            refusal = meaning(answer.err) if answer.status else None
            reason = str(refusal).rstrip(".") if refusal else _wait(tpus, wanted.name)
            # What has failed still holds quota; and a create may fail after it has made what it was asked for.
            left = _look_soon(tpus, wanted.name, _SOON if isinstance(refusal, Unclear) else 1) if reason else None
            if mine := left is not None and left.metadata.get("heed-request") == wanted.request:
                delete(tpus, wanted.name)
        except (KeyboardInterrupt, UserError):
            on_interrupt(wanted.request)
            raise
    if refusal and not mine:
        raise refusal
    if reason:
        raise UserError(f"--name={wanted.name} was not made, and nothing is left of it: {reason}.")


def _wait(tpus: Tpus, name: str) -> str:
    """Waits until a resource can be used; why it never will, or nothing."""
    said, looks = "", 0
    while True:
        found, looks = look_on(tpus, name), looks + 1
        if found is None and (said or looks > _LOOKS):
            return "somebody deleted it" if said else "it never came to be"
        if found:
            if (state := "+".join(found.states)) != said:
                cli.say(f"{name}: {(said := state)}")
            if found.over or "DELETING" in found.states:
                return found.over or "it is being deleted"
            if found.ready and (not found.queued or found.states[0] == "ACTIVE"):
                return ""
        time.sleep(PAUSE_SECONDS)


def delete(tpus: Tpus, name: str, *, patient: bool = False, request: str = "") -> None:
    """Deletes a resource that carries our label, and waits until it and all its nodes are gone.

    `patient`: it may only just have been asked for, and so appear a little later. `request`: only what that one made.

    Raises:
        UserError: there is none, or it is not ours, or another request's.
    """
    found = _look_soon(tpus, name, _SOON if patient else 1)
    if found is None:
        raise UserError(f"--name={name}: there is nothing of that name in {tpus.zone}; launch.pod list shows all.")
    if request and found.metadata.get("heed-request") != request:
        raise UserError(f"--name={name} is of another request, made meanwhile under that name, and stays.")
    if not found.ours:
        raise UserError(f"--name={name} has no label {LABEL}={name}, so heed did not make it: delete it with gcloud.")
    if found.queued and "DELETING" not in found.states[:1]:
        tpus.must_change(tpus.words(QUEUED, "delete", name, "--force", "--async"), apart=True)
    if found.queued and not tpus.dry:
        _gone(tpus, QUEUED, name)
    # A queued resource may leave its nodes behind; those with another label, or none, are not touched.
    for node in found.nodes:
        now = _described(tpus, NODE, node)
        if now is None or tpus.dry and found.queued or _run(now) != name:
            continue
        if now["state"] != "DELETING":
            tpus.must_change(tpus.words(NODE, "delete", node, "--async"), apart=True)
        if not tpus.dry:
            _gone(tpus, NODE, node)
    if not tpus.dry:
        cli.say(f"{name}: gone, and all its machines")


def _gone(tpus: Tpus, kind: str, name: str) -> None:
    while _described(tpus, kind, name) is not None:
        time.sleep(PAUSE_SECONDS)
