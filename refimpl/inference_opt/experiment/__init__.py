"""The ablation study: every combination of techniques on one's own prompts, beside plain cached decoding."""

from inference_opt.experiment.results import Results
from inference_opt.experiment.study import run_ablation_study

__all__ = ["Results", "run_ablation_study"]
