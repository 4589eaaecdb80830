"""Hand in a sampler of any engine: is what it emits distributed as the target says? If not, by how much, and like what?

from inference_opt.lab.exactness.kit import judge

def sampler(draft, target, tokens, uniforms):     # arrays [k, V] and [k + 1, V], k drafted tokens
    ...                                           # reads uniforms() as often as it likes
    return emitted                                # 1 to k + 1 tokens

print(judge(sampler))
"""

from inference_opt.lab.exactness.kit.integrate import integrate
from inference_opt.lab.exactness.kit.judge import Verdict, judge, judge_text
from inference_opt.lab.exactness.kit.pairs import Pair
from inference_opt.lab.exactness.kit.uniforms import Uniforms

__all__ = ["Pair", "Uniforms", "Verdict", "integrate", "judge", "judge_text"]
