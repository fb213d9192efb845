"""Which of how many processes this one is: by flags, or by what the environment tells."""

import dataclasses
import os
from collections.abc import Callable

from jax._src.clusters import GceTpuCluster, GkeTpuCluster, OmpiCluster, SlurmCluster
from jax._src.clusters.cloud_tpu_cluster import coordinator_port

from model.errors import Unanswered, UserError

_FLAGS = "--coordinator=HOST:PORT, --process-id=RANK and --num-processes=N"


@dataclasses.dataclass(frozen=True)
class Place:
    """Process `rank` of `count`, which meet at rank 0's address `coordinator` ('host:port').

    local_devices: the numbers of this machine's GPUs that are for this process; None for all of its devices.
    """

    rank: int
    count: int
    coordinator: str
    local_devices: tuple[int, ...] | None
    found_by: str


@dataclasses.dataclass(frozen=True)
class _Told:
    """What an environment tells; the address is a call, since a TPU's may have to be waited for."""

    name: str
    rank: Callable[[], int]
    count: int
    address: Callable[[], str | None]
    local_devices: tuple[int, ...] | None = None


def find_place(
    coordinator: str | None, process_id: int | None, num_processes: int | None, seconds: int = 300
) -> Place | None:
    """This process's place among several, from flags first, else from the environment; None for a process alone.

    Asks a machine with TPU chips for its metadata, where neither flags nor variables tell, and no other machine
    anything. `seconds` is how long the name of the coordinator may take to be known.

    Raises:
        UserError: numbers that cannot be, or too little is known.
    """
    _check(coordinator, process_id, num_processes)
    if num_processes == 1:
        return None
    coordinator = coordinator or os.environ.get("JAX_COORDINATOR_ADDRESS") or None
    told = None
    if coordinator is None or process_id is None or num_processes is None:
        told = _told(seconds)
    if told is not None:
        if num_processes is None:
            num_processes = told.count
        if num_processes == 1:
            return None
        process_id = told.rank() if process_id is None else process_id
        coordinator = coordinator or told.address()
    if coordinator is None and process_id is None and num_processes is None:
        return None
    if coordinator is None or process_id is None or num_processes is None:
        raise UserError(_too_little(coordinator, process_id, num_processes, told))
    if process_id >= num_processes:
        raise UserError(f"--process-id={process_id} must be below --num-processes={num_processes}.")
    found_by = told.name if told else "flags"
    return Place(process_id, num_processes, coordinator, told.local_devices if told else None, found_by)


def _check(coordinator: str | None, process_id: int | None, num_processes: int | None) -> None:
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num-processes={num_processes} must be at least 1.")
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        raise UserError(f"--process-id={process_id} must be at least 0, and below --num-processes.")
    if coordinator is not None:
        host, _, port = coordinator.rpartition(":")
        if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
            raise UserError(f"--coordinator={coordinator} is not HOST:PORT, such as --coordinator=10.0.0.1:8476.")


def _too_little(coordinator: str | None, process_id: int | None, num_processes: int | None, told: _Told | None) -> str:
    known = {"--coordinator": coordinator, "--process-id": process_id, "--num-processes": num_processes}
    given = ", ".join(f"{flag}={value}" for flag, value in known.items() if value is not None)
    missing = " and ".join(flag for flag, value in known.items() if value is None)
    where = f"{told.name} does not tell the rest" if told else "no TPU pod, SLURM or Open MPI tells the rest"
    return f"{given}: {where}; give {missing} (all of {_FLAGS}), or --num-processes=1 for a process alone."


def _told(seconds: int) -> _Told | None:
    """What the first environment tells that is there, in the order of jax."""
    return _open_mpi() or _slurm() or _gke(seconds) or _tpu_vm(seconds)


def _open_mpi() -> _Told | None:
    if "OMPI_COMM_WORLD_SIZE" not in os.environ:
        return None

    def address() -> str | None:
        if "OMPI_MCA_orte_hnp_uri" not in os.environ:  # Open MPI 5 no longer tells where it was started
            return None
        return str(OmpiCluster.get_coordinator_address(None, os.environ.get("JAX_COORDINATOR_PORT")))

    count, beside = _number("OMPI_COMM_WORLD_SIZE"), int(os.environ.get("OMPI_COMM_WORLD_LOCAL_SIZE", 1))
    mine = (_number("OMPI_COMM_WORLD_LOCAL_RANK"),) if beside > 1 else None
    return _Told("Open MPI", lambda: _number("OMPI_COMM_WORLD_RANK"), count, address, mine)


def _slurm() -> _Told | None:
    if not SlurmCluster.is_env_present():
        return None

    def address() -> str:
        return str(SlurmCluster.get_coordinator_address(None, os.environ.get("JAX_COORDINATOR_PORT")))

    count, nodes = _number("SLURM_NTASKS"), int(os.environ.get("SLURM_STEP_NUM_NODES", 1))
    # One process per GPU where a node has several; a process that has its node alone takes all of them.
    mine = (_number("SLURM_LOCALID"),) if count > nodes else None
    return _Told("SLURM", lambda: _number("SLURM_PROCID"), count, address, mine)


def _gke(seconds: int) -> _Told | None:
    if not GkeTpuCluster.is_env_present():
        return None
    hosts, port = GkeTpuCluster._get_worker_list_in_slice(), os.environ.get("JAX_COORDINATOR_PORT")
    if len(hosts) > 1 or "MEGASCALE_NUM_SLICES" in os.environ:
        _number("TPU_WORKER_ID")
    if "MEGASCALE_NUM_SLICES" in os.environ:
        count = GkeTpuCluster.get_process_count()
        return _Told(
            "GKE", GkeTpuCluster.get_process_id, count, lambda: GkeTpuCluster.get_coordinator_address(seconds, port)
        )

    def address() -> str:  # of one slice jax would ask the network whether it is one
        first = hosts[0].partition(":")[0]
        GkeTpuCluster.wait_for_coordinator(first, seconds)
        return f"{first}:{port or coordinator_port}"

    return _Told("GKE", lambda: _number("TPU_WORKER_ID"), len(hosts), address)


def _tpu_vm(seconds: int) -> _Told | None:
    port = os.environ.get("JAX_COORDINATOR_PORT")
    try:
        if not GceTpuCluster.is_env_present():
            return None
        count = GceTpuCluster.get_process_count()
    except (OSError, RuntimeError) as error:
        raise Unanswered(
            f"the metadata server of this TPU machine does not answer ({type(error).__name__}): give {_FLAGS}, or"
            " --num-processes=1 for a process alone."
        ) from error
    return _Told(
        "TPU VM", GceTpuCluster.get_process_id, count, lambda: GceTpuCluster.get_coordinator_address(seconds, port)
    )


def _number(variable: str) -> int:
    text = os.environ.get(variable, "")
    if not text.isdecimal():
        raise UserError(f"the environment's {variable}={text!r} must be a number: give {_FLAGS}.")
    return int(text)
