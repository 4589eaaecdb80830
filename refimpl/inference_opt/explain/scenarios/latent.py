"""The scenario of latent attention: what is kept, what is expanded, what is absorbed."""

from inference_opt.engine.engine import Engine
from inference_opt.explain.record import record
from inference_opt.explain.scenarios.toys import arrivals, spell, toy
from inference_opt.model.config import LatentShape
from inference_opt.trace import Trace


def latent_attention(prompt: str = "keep little", new_tokens: int = 4, heads: int = 4, latent_dim: int = 8) -> Trace:
    """One small vector of each token is stored. Long prompts expand it; a single query is compared with it directly.

    Widths are to scale. The rows below are the very numbers in the cache: latent, then rotated key.
    """
    shape = LatentShape(latent_dim, qk_rope_head_dim=4, qk_nope_head_dim=6, v_head_dim=6)
    engine = Engine(toy(heads=heads, kv_heads=heads, latent=shape), page_size=4, num_pages=16)
    with record(label=spell, only="mla.") as trace:
        arrivals(engine, f"{prompt}: {new_tokens}")
        while engine.requests:
            engine.step()
    return trace
