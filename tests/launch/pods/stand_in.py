"""A gcloud that keeps its resources in a folder and runs what is sent to hosts in a real bash; it knows no network.

Started as `gcloud WORDS...` with STAND_IN=folder, which holds state.json, faults.json ({fault: value}), calls.jsonl (a
call's words a line) and hosts/NODE-WORKER, the home of each host. Its flags, messages and the way of a command to a
host (split at spaces and joined again) are those of the Google Cloud SDK 528.
"""

import json
import os
import sys
import time
from pathlib import Path

HERE = Path(os.environ["STAND_IN"])
STATE = HERE / "state.json"
FAULTS = json.loads((HERE / "faults.json").read_text())
WAY = ["CREATING", "WAITING_FOR_RESOURCES", "ACTIVE"]
TAKES = {
    "queued-resources create": "node-id node-count node-prefix accelerator-type runtime-version spot reserved labels "
    "metadata metadata-from-file scopes service-account valid-until-duration provisioning-model max-run-duration async",
    "queued-resources delete": "force async",
    "queued-resources describe": "format",
    "queued-resources list": "format",
    "tpu-vm create": "accelerator-type version spot reserved labels metadata metadata-from-file scopes service-account",
    "tpu-vm delete": "async",
    "tpu-vm describe": "format",
    "tpu-vm list": "format",
    "tpu-vm ssh": "worker batch-size command",
    "tpu-vm scp": "worker batch-size recurse",
}


def save(state):
    """Writes the state, whole: a test may look at any time."""
    new = STATE.with_suffix(".new")
    new.write_text(json.dumps(state))
    new.replace(STATE)


def fail(text, status=1):
    print(f"ERROR: (gcloud) {text}", file=sys.stderr)
    sys.exit(status)


def pairs(text):
    return dict(one.split("=", 1) for one in text.split(",")) if text else {}


def hosts(kind):
    name, _, count = kind.rpartition("-")
    return max(1, int(count) // (8 if name in ("v4", "v5p") else 4))


def node(name, flags, **more):
    metadata = pairs(flags.get("metadata"))
    for key, file in pairs(flags.get("metadata-from-file")).items():
        metadata[key] = Path(file).read_text()
    return {
        "name": f"projects/p/locations/{flags['zone']}/nodes/{name}",
        "acceleratorType": flags["accelerator-type"],
        "runtimeVersion": flags.get("runtime-version") or flags["version"],
        "labels": pairs(flags.get("labels")),
        "metadata": metadata,
        **more,
    }


def created():
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(FAULTS.get("created", time.time()))) + ".123456789Z"


def ready(told, name):
    points = [{"ipAddress": f"10.0.0.{i}"} for i in range(hosts(told["acceleratorType"]))]
    full = told["name"].rpartition("/")[0] + f"/{name}"
    return {**told, "name": full, "state": "READY", "createTime": created(), "networkEndpoints": points}


def names(queued):
    spec = queued["tpu"]["nodeSpec"][0]
    several = spec.get("multisliceParams")
    return [f"{several['nodeIdPrefix']}-{i}" for i in range(several["nodeCount"])] if several else [spec["nodeId"]]


def step(state, name):
    """One look brings a resource one step on."""
    queued = state["queued"][name]
    now, told = queued["state"]["state"], queued["tpu"]["nodeSpec"][0]["node"]
    if now == "DELETING":
        queued["left"] -= 1
        if not queued["left"]:
            del state["queued"][name]
            for one in names(queued):
                if "leaves-nodes" not in FAULTS:
                    state["nodes"].pop(one, None)
    elif now in WAY[:-1]:
        queued["state"]["state"] = now = WAY[WAY.index(now) + 1]
        if now == "WAITING_FOR_RESOURCES" and "no-capacity" in FAULTS:
            error = {"code": 8, "message": "There is no more capacity in the zone."}
            queued["state"] = {"state": "FAILED", "failedData": {"error": error}}
        if now == "ACTIVE":
            state["nodes"].update({one: ready(told, one) for one in names(queued)})
            if "preempted-creating" in FAULTS:
                state["nodes"][names(queued)[0]]["state"] = "PREEMPTED"


def tpus(kind, verb, rest, flags, state):
    table = state["queued" if kind == "queued-resources" else "nodes"]
    name = rest[0] if rest else ""
    if unknown := flags.keys() - {*TAKES[f"{kind} {verb}"].split(), "zone", "project", "quiet", "format"}:
        fail(f"unrecognized arguments: {unknown}", 2)
    if verb in ("describe", "delete") and name not in table:
        fail(f"NOT_FOUND: Resource 'projects/p/locations/z/{kind}/{name}' was not found")
    if verb == "describe" and table[name].get("late"):
        table[name]["late"] -= 1
        save(state)
        fail(f"NOT_FOUND: Resource '{name}' was not found")
    if verb == "describe":
        if kind == "queued-resources":
            step(state, name)
        elif table[name]["state"] == "DELETING":
            del table[name]
        save(state)
        return table.get(name) or fail(f"NOT_FOUND: Resource '{name}' was not found")
    if verb == "list":
        return [one for one in table.values() if flags["zone"] in ("-", one["name"].split("/")[-3])]
    if verb == "delete":
        if kind == "queued-resources":
            table[name].update(state={"state": "DELETING"}, left=2)
        else:
            table[name]["state"] = "DELETING"
    elif verb == "create":
        if "quota" in FAULTS:
            fail(
                "Quota limit 'TPUV6EPreemptiblePerProjectPerRegionForTPUAPI' has been exceeded. Limit: 0 in region us."
            )
        if name in table:
            fail(f"ALREADY_EXISTS: Resource '{name}' already exists")
        if "taken-meanwhile" in FAULTS:  # by a colleague, before our request comes
            del FAULTS["taken-meanwhile"]
            tpus(kind, verb, rest, flags | {"metadata": "heed-request=theirs"}, state)
            save(state)
            fail(FAULTS["create-says"])
        if kind == "tpu-vm":
            if "no-capacity" in FAULTS:
                fail('{"code": 8, "message": "There is no more capacity in the zone"}')
            table[name] = ready(node(name, flags), name)
        else:
            spec = {"node": node(name, flags)}
            if "node-id" in flags:
                spec["nodeId"] = flags["node-id"]
            else:
                several = {"nodeCount": int(flags["node-count"]), "nodeIdPrefix": flags["node-prefix"]}
                spec["multisliceParams"] = several
            full = f"projects/p/locations/{flags['zone']}/queuedResources/{name}"
            table[name] = {"name": full, "state": {"state": "CREATING"}, "tpu": {"nodeSpec": [spec]}}
            table[name] |= {"createTime": created(), "late": FAULTS.get("late", 0)}
        if "create-says" in FAULTS and flags["metadata"] != "heed-request=theirs":
            save(state)
            fail(FAULTS["create-says"])
    return {}


def on_hosts(verb, rest, flags, state):
    import concurrent.futures  # here, for most calls need none of them, and start in half of the time
    import shutil
    import subprocess

    name = next(word.partition(":")[0] for word in rest if word.partition(":")[0] in state["nodes"])
    count = len(state["nodes"][name]["networkEndpoints"])
    workers = range(count) if flags["worker"] == "all" else [int(flags["worker"])]
    if len(workers) > int(flags.get("batch-size", 64)):
        fail(f"the first {flags.get('batch-size', 64)} hosts wait for the others for ever")

    def home(worker):
        place = HERE / "hosts" / f"{name}-{worker}"
        place.mkdir(parents=True, exist_ok=True)
        return place

    def one(worker):
        status = 255 if worker >= count - FAULTS.get("unreachable", 0) else work(worker)
        if status:
            said = f"##### Command execution on worker {worker} failed with exit status {status}. Continuing."
            print(said, file=sys.stderr)
        return status

    def work(worker):
        if verb == "scp":
            source, target = (home(worker) / x.partition(":")[2] if ":" in x else Path(x) for x in rest)
            if source.is_dir():
                shutil.copytree(source, target / source.name)
            else:
                shutil.copy(source, target)
            return 0
        line = " ".join(flags["command"].split(" "))
        own = {"HOME": str(home(worker)), "PATH": f"{HERE}/host-bin:/usr/bin:/bin"}
        return subprocess.run(["bash", "-c", line], env=own, cwd=home(worker)).returncode

    with concurrent.futures.ThreadPoolExecutor(80) as pool:
        sys.exit(max(pool.map(one, workers)))


def main(words):
    with open(HERE / "calls.jsonl", "a") as calls:
        calls.write(json.dumps(words) + "\n")
    flags = {word[2:].partition("=")[0]: word.partition("=")[2] for word in words if word.startswith("--")}
    plain = [word for word in words if not word.startswith("--") and word != "alpha"]
    if plain == ["config", "list"]:
        account = {} if "logged-out" in FAULTS else {"account": "me@example.com"}
        return {"core": {**account, "project": "p"}}
    if plain[0] == "projects":
        role = "roles/tpu.viewer" if "no-role" in FAULTS else "roles/editor"
        members = ["serviceAccount:7-compute@developer.gserviceaccount.com"]
        binding = {"role": role, "members": members, **FAULTS.get("binding", {})}
        return {"projectNumber": "7"} if plain[1] == "describe" else {"bindings": [binding]}
    if "logged-out-later" in FAULTS:
        fail("Your current active account [me@example.com] does not have any valid credentials")
    kind, verb, *rest = plain[2:]
    state = json.loads(STATE.read_text())
    if verb in ("ssh", "scp"):
        on_hosts(verb, rest, flags, state)
    answer = tpus(kind, verb, rest, flags, state)
    save(state)
    return answer


print(json.dumps(main(sys.argv[1:])))
