"""Which process of how many this is, told by flags or by the environment: a table, without any network."""

import ctypes
import functools
import socket
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from jax._src.clusters import cloud_tpu_cluster

from launch import cli, hosts
from launch.hosts.detect import find_place
from launch.hosts.relay import Relay
from model.errors import UserError

SLURM = {
    "SLURM_JOB_ID": "4097",
    "SLURM_STEP_NODELIST": "node[03-04],other",
    "SLURM_NTASKS": "3",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NUM_NODES": "3",
}
OPEN_MPI = {
    "OMPI_MCA_orte_hnp_uri": "1531576320.0;tcp://10.96.0.1,10.148.0.1:34911",
    "OMPI_COMM_WORLD_SIZE": "5",
    "OMPI_COMM_WORLD_RANK": "2",
    "OMPI_COMM_WORLD_LOCAL_RANK": "1",
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
OPEN_MPI_5 = {name: value for name, value in OPEN_MPI.items() if name != "OMPI_MCA_orte_hnp_uri"}
GKE = {"chips": "4", "TPU_WORKER_HOSTNAMES": "localhost,second", "TPU_WORKER_ID": "1"}
SLICES = {"MEGASCALE_NUM_SLICES": "3", "MEGASCALE_SLICE_ID": "2", "MEGASCALE_COORDINATOR_ADDRESS": "localhost:1"}
TPU_VM = {
    "chips": "4",
    "agent-worker-number": "1",
    "worker-network-endpoints": "a:1:127.0.0.1,b:2:10.0.0.2",
    "tpu-env": "ZONE: 'x'",
}
FLAGS = {"coordinator": "10.0.0.1:8476", "process_id": 1, "num_processes": 2}

PLACES: dict[str, tuple[Mapping[str, str], Mapping[str, Any], tuple[Any, ...] | None]] = {
    "alone": ({}, {}, None),
    "flags": ({}, FLAGS, (1, 2, "10.0.0.1:8476", None)),
    "an address in the environment": (
        {"JAX_COORDINATOR_ADDRESS": "host:9"},
        {"process_id": 0, "num_processes": 2},
        (0, 2, "host:9", None),
    ),
    "SLURM": (SLURM, {}, (1, 3, "node03:61441", None)),
    "SLURM, a process for each GPU": (SLURM | {"SLURM_STEP_NUM_NODES": "1"}, {}, (1, 3, "node03:61441", (0,))),
    "SLURM, another port": (SLURM | {"JAX_COORDINATOR_PORT": "77"}, {}, (1, 3, "node03:77", None)),
    "SLURM, one task": (SLURM | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, {}, None),
    "SLURM without a step": ({k: v for k, v in SLURM.items() if k != "SLURM_STEP_NODELIST"}, {}, None),
    "SLURM, but alone": (SLURM, {"num_processes": 1}, None),
    "SLURM, flags first": (SLURM, {"coordinator": "h:5"}, (1, 3, "h:5", None)),
    "SLURM, all flags": (SLURM, FLAGS, (1, 2, "10.0.0.1:8476", None)),
    "Open MPI": (OPEN_MPI, {}, (2, 5, f"10.96.0.1:{61440 + 1531576320 // 4096 % 4096}", (1,))),
    "Open MPI in SLURM": (SLURM | OPEN_MPI, {}, (2, 5, f"10.96.0.1:{61440 + 1531576320 // 4096 % 4096}", (1,))),
    "Open MPI 5 with an address": (OPEN_MPI_5, {"coordinator": "h:5"}, (2, 5, "h:5", (1,))),
    "Open MPI, one process": (OPEN_MPI | {"OMPI_COMM_WORLD_SIZE": "1"}, {}, None),
    "GKE": (GKE, {}, (1, 2, "localhost:8482", None)),
    "GKE, one host": (GKE | {"TPU_WORKER_HOSTNAMES": "localhost"}, {}, None),
    "GKE, slices": (GKE | SLICES, {}, (5, 6, "localhost:8482", None)),
    "no chips, though a variable says GKE": ({k: v for k, v in GKE.items() if k != "chips"}, {}, None),
    "TPU VM": (TPU_VM, {}, (1, 2, "127.0.0.1:8482", None)),
    "TPU VM, one host": (TPU_VM | {"worker-network-endpoints": "a:1:127.0.0.1"}, {}, None),
    "TPU VM, new names": (TPU_VM | {"worker-network-endpoints": "localhost,b"}, {}, (1, 2, "localhost:8482", None)),
    "TPU VM, but alone": ({"chips": "4", "dead": ""}, {"num_processes": 1}, None),
    "TPU VM, all flags": ({"chips": "4", "dead": ""}, FLAGS, (1, 2, "10.0.0.1:8476", None)),
}
REFUSED: dict[str, tuple[Mapping[str, str], Mapping[str, Any], tuple[str, ...]]] = {
    "no address": ({}, {"num_processes": 2}, ("--num-processes=2", "--coordinator", "--process-id")),
    "a leaked address": ({"JAX_COORDINATOR_ADDRESS": "host:9"}, {}, ("host:9", "--num-processes=1")),
    "no port": ({}, FLAGS | {"coordinator": "host"}, ("--coordinator=host", "HOST:PORT")),
    "rank too high": ({}, FLAGS | {"process_id": 2}, ("--process-id=2", "--num-processes")),
    "rank too high for SLURM": (SLURM, {"process_id": 3}, ("--process-id=3", "--num-processes=3")),
    "no processes": ({}, {"num_processes": 0}, ("--num-processes=0", "at least 1")),
    "Open MPI 5": (OPEN_MPI_5, {}, ("Open MPI", "--num-processes=5", "give --coordinator")),
    "a rank that is no number": (SLURM | {"SLURM_PROCID": "x"}, {}, ("SLURM_PROCID='x'", "--process-id")),
    "GKE without a rank": ({k: v for k, v in GKE.items() if k != "TPU_WORKER_ID"}, {}, ("TPU_WORKER_ID=''",)),
    "a dead metadata server": ({"chips": "4", "dead": ""}, {}, ("metadata server", "--num-processes=1")),
}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sets the variables and the metadata of a machine; whoever asks for metadata that is not set fails the test."""

    def set_all(values: Mapping[str, str]) -> None:
        monkeypatch.delenv("TPU_SKIP_MDS_QUERY", raising=False)  # jax sets it where it finds no chips
        monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", "chips" in values)
        for name, value in values.items():
            if name.isupper() or name.startswith("OMPI"):
                monkeypatch.setenv(name, value)

        def metadata(key: str) -> tuple[str, int]:
            if "dead" in values:
                raise ConnectionError
            return values[key], 200

        monkeypatch.setattr(cloud_tpu_cluster, "get_metadata", metadata)

    return set_all


@pytest.mark.parametrize("name", PLACES)
def test_a_place_is_told_by_flags_or_by_the_environment(name: str, environment: Any) -> None:
    variables, flags, expected = PLACES[name]
    environment(variables)
    place = find_place(**{"coordinator": None, "process_id": None, "num_processes": None, **flags})
    assert expected == (place and (place.rank, place.count, place.coordinator, place.local_devices))


@pytest.mark.parametrize("name", REFUSED)
def test_too_little_is_refused(name: str, environment: Any) -> None:
    variables, flags, parts = REFUSED[name]
    environment(variables)
    with pytest.raises(UserError) as refusal:
        find_place(**{"coordinator": None, "process_id": None, "num_processes": None, **flags})
    assert all(part in str(refusal.value) for part in parts), refusal.value


def test_hyphens_and_underscores_are_the_same_in_flags() -> None:
    parser = cli.make_parser("train", "")
    hosts.add_flags(parser)
    parser.add_argument("--profile_steps", default="")
    for words in (["--profile-steps=a_b-c", "--process_id", "3"], ["--profile_steps=a_b-c", "--process-id", "3"]):
        argv = ["--config=c", "--workdir=my-run_1", *words, "--config.train.log-every=-5"]
        flags, overrides = cli.parse(parser, argv)
        assert (flags.profile_steps, flags.process_id, flags.workdir) == ("a_b-c", 3, "my-run_1")
        assert overrides == {"train.log_every": "-5"}


def test_a_relay_hands_on_and_keeps_silent_when_the_other_side_dies() -> None:
    server = socket.create_server(("127.0.0.1", 0))
    port = server.getsockname()[1]
    relay = Relay(f"127.0.0.1:{port}", seconds=5)
    server.accept()[0].close()  # the relay's own question whether anybody listens
    host, _, own = relay.address.rpartition(":")
    near = socket.create_connection((host, int(own)))
    far = server.accept()[0]
    near.sendall(b"ask")
    assert far.recv(3) == b"ask"
    far.sendall(b"answer")
    assert near.recv(6) == b"answer"
    server.close()
    far.close()
    assert relay.lost.wait(10)
    near.settimeout(0.2)
    with pytest.raises(TimeoutError):  # no end of file, of which the runtime would die
        near.recv(1)
    near.close()
    relay.close()
    with pytest.raises(TimeoutError):
        Relay(f"127.0.0.1:{port}", seconds=0.1)


# Each is one process: listens, prints its port, and answers; or asks at a port, and prints how long it waited.
ANSWERS = """
import ctypes
import functools
import socket
import subprocess
import sys
with socket.create_server(("127.0.0.1", 0)) as server:
    print(server.getsockname()[1], flush=True)
    server.accept()[0].close()  # the relay's own question
    far = server.accept()[0]
    far.sendall(far.recv(3))
"""
ASKS = """
import socket, sys, time
near = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
input()
began = time.monotonic()
near.sendall(b"ask")
print(near.recv(3), time.monotonic() - began)
"""


def test_a_relay_does_not_wait_for_pythons_lock() -> None:
    """A call into the runtime may hold it until an answer comes: through a thread, it never would."""
    python = functools.partial(
        subprocess.Popen, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )  # fmt: skip
    with python([sys.executable, "-c", ANSWERS]) as answers:
        assert answers.stdout is not None
        relay = Relay(f"127.0.0.1:{answers.stdout.readline().strip()}", seconds=5)
        with python([sys.executable, "-c", ASKS, relay.address.rpartition(":")[2]]) as asks:
            assert asks.stdin is not None
            assert asks.stdout is not None
            asks.stdin.write("\n")
            ctypes.PyDLL(None).usleep(2_000_000)  # unlike `CDLL`, it keeps the lock
            heard, seconds = asks.stdout.readline().rsplit(maxsplit=1)
        relay.close()
    assert heard == "b'ask'"
    assert float(seconds) < 1
