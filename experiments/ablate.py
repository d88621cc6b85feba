"""DFPO less each of its components, and each of its switches both ways, under noise.

python experiments/ablate.py --config=configs/study_quickstart.py --workdir=runs/study

The rows are the section `ablation` of the configuration; they run, resume and are reported as those
of `compare.py`, whose flags and exit codes these are. Rows go to ablation.jsonl, the report to
ablate.html and ablate.md.
"""

from _study import program

from dfpo_jax.training import command_line


def main():
    """Run the ablation."""
    program.main("ablate")


if __name__ == "__main__":
    command_line.run(main)
