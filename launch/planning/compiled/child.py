"""A process of its own: compiles one step with the compiler for TPUs, which are not here, and prints what it found.

It reads a job as JSON from standard input (`facts.py`), and ends with a line of JSON. It is another process because its
variables are read before jax is imported, and because Ctrl-C cannot stop a compiler.
"""

import os
import sys
import tempfile


def prepare(folder: str, devices: int = 0) -> None:
    """Sets what jax and its compiler read once: there is no TPU to ask about itself, and programs are dumped; or this
    machine has so many devices, and compiles as it does for a run.
    """
    if devices:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
        os.environ.update(JAX_PLATFORMS="cpu", XLA_FLAGS=flags)
        return
    os.environ.update(
        JAX_PLATFORMS="cpu",
        TPU_SKIP_MDS_QUERY="1",
        TPU_WORKER_HOSTNAMES="localhost",
        TPU_ACCELERATOR_TYPE="v5litepod-16",
        ALLOW_MULTIPLE_LIBTPU_LOAD="1",  # several of us may compile at once
        XLA_FLAGS=f"--xla_dump_to={folder} --xla_dump_hlo_as_text --xla_dump_hlo_module_re=jit_step",
        TF_CPP_MIN_LOG_LEVEL="2",
        JAX_ENABLE_COMPILATION_CACHE="0",  # what comes from there is not dumped
    )


def main() -> None:
    """Prints the facts of the job, or `{"refused": sentence}`."""
    with tempfile.TemporaryDirectory() as folder:
        from train.run.files.json_files import dumps, loads

        job = loads(sys.stdin.read())
        name, _, devices = job["topology"].partition(":")
        prepare(folder, int(devices) if name == "cpu" else 0)
        from launch.planning.compiled.facts import facts
        from model.errors import UserError

        try:
            found = facts(job, folder)
        except UserError as error:
            found = {"refused": str(error)}
    print(dumps(found), flush=True)


if __name__ == "__main__":
    main()
