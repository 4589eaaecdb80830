"""inference-opt: how fast language-model inference works, exactly.

model, tokenizer = load_model("smollm2-135m")
naive.generate(model, tokenizer.chat("Why is the sky blue?"), SamplingParams(max_new_tokens=32))
"""

from inference_opt.api import TransformerWithOptimizations
from inference_opt.engine.engine import Engine
from inference_opt.loading.load import load_model
from inference_opt.sampling import SamplingParams

__all__ = ["Engine", "SamplingParams", "TransformerWithOptimizations", "load_model"]
