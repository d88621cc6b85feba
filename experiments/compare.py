"""Compare algorithms under kinds of noise, at several levels, over seeds.

python experiments/compare.py --config=configs/study_quickstart.py --workdir=runs/study
python experiments/compare.py --config=configs/study_quickstart.py --workdir=runs/study --list
python experiments/compare.py --report --results=runs/study/results.jsonl

Cells run in worker processes, each on one core, or in one process on a GPU or TPU that JAX finds;
JAX_PLATFORMS=cpu keeps them on the CPU, and with several GPUs --workers=N gives each worker one.
Every finished cell appends a row to results.jsonl, and the same command goes on with those that are
left, also after a kill. A row counts while its settings are those of the configuration. At the end,
or with --report, the tables are printed, and compare.html and compare.md written to the workdir.

--only=algorithm=dfpo,noise=flip,level=0.3,seed=0 runs a part: a name that is repeated gives
alternatives. What chooses the settings, the cells without noise, is run with it. --check=N runs N
finished cells again and compares their rows, bit for bit. `experiments/_study/grid.py` documents
the configuration.

Exit codes: 0 done; 1 some cells failed, or differ with --check; 2 bad configuration or flags.
"""

from _study import program

from dfpo_jax.training import command_line


def main():
    """Run the study."""
    program.main("compare")


if __name__ == "__main__":
    command_line.run(main)
