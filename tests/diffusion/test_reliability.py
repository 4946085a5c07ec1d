"""Runs that are killed, stopped, starved of disk or damaged, and go on as if not."""

PROGRAM = (
    "import sys, json;"
    "from configs.schema import ExperimentConfig, from_dict;"
    "from diffusion.command_line import exit_on_error;"
    "from diffusion.training import train;"
    "c = from_dict(ExperimentConfig, json.loads(sys.argv[1]));"
    "exit_on_error(lambda: train(c, sys.argv[2]))"
)
