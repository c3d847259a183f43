# shellcheck shell=bash disable=SC2034
# What differs between clusters, in one place: edit this file once. Every script of this folder reads it, and so do
# those that scaling.py writes. Paths are relative to the folder in which sbatch is called, that of FedMPI.

# ---- Python with FedMPI: one of three ------------------------------------------------------------------------------
# The virtual environment of `make install`, or one made beside the cluster's modules:
#   module purge
#   module load python/3.12 openmpi/5.0
# shellcheck disable=SC1091
source .venv/bin/activate
# conda, whose own scripts read variables that are not set:
#   set +u; source "$(conda info --base)/etc/profile.d/conda.sh"; conda activate fedmpi; set -u

# ---- How ranks start -----------------------------------------------------------------------------------------------
#   pmi2     srun, for MPICH (what `make install` brings), Intel MPI, MVAPICH
#   pmix     srun, for Open MPI
#   mpirun   of the MPI that is on the PATH, MPICH's or Open MPI's
# `srun --mpi=list` says which your SLURM has. For one job: FEDMPI_LAUNCHER=pmix sbatch jobs/fedavg.sbatch
FEDMPI_LAUNCHER=${FEDMPI_LAUNCHER:-pmi2}

# ---- Nothing to edit below -----------------------------------------------------------------------------------------
# Since version 22.05 srun does not take the cores of a task from sbatch.
export SRUN_CPUS_PER_TASK="${SLURM_CPUS_PER_TASK:-1}"
# For NumPy and BLAS. PyTorch has the threads that the configuration says (--threads), since they show in the bits.
export OMP_NUM_THREADS="$SRUN_CPUS_PER_TASK"

# The start of a command on all ranks: "${LAUNCH[@]}" python -m fedmpi ...
if [[ "$FEDMPI_LAUNCHER" != mpirun ]]; then
  # --wait: a rank that dies before MPI has started would leave the others waiting until the time limit.
  LAUNCH=(srun --mpi="$FEDMPI_LAUNCHER" --cpu-bind=cores --wait=60)
elif [[ -z "${SLURM_JOB_ID:-}" ]]; then
  LAUNCH=(mpirun -n "$RANKS") # on one machine, with perhaps more ranks than cores
elif [[ "$(mpirun --version)" == *"Open MPI"* ]]; then
  LAUNCH=(mpirun -n "$SLURM_NTASKS" --map-by "slot:PE=$SRUN_CPUS_PER_TASK" --bind-to core)
else
  LAUNCH=(mpirun -n "$SLURM_NTASKS" -bind-to "core:$SRUN_CPUS_PER_TASK")
fi
