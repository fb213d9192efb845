"""The same command elsewhere: as processes of this machine, as a JobSet of GKE, as a script of SLURM."""
