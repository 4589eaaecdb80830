"""The real prompts that come with the package, for the tour, the benchmarks and the tests."""

import json
from dataclasses import dataclass
from importlib import resources

from inference_opt.loading.tokenizer import Tokenizer


@dataclass(frozen=True)
class Prompt:
    """One user's message, with its source and licence."""

    name: str
    text: str
    source: str
    licence: str

    def ids(self, tokenizer: Tokenizer) -> list[int]:
        """The prompt's tokens, in the model's chat format if it has one."""
        return tokenizer.chat(self.text) if tokenizer.chat_template else tokenizer.encode(self.text)


def load_prompts(name: str = "prompts") -> list[Prompt]:
    """`prompts`: five everyday requests, then the first five functions of HumanEval to complete.

    `speculative`: editing, summarising, more of HumanEval and more everyday requests; names begin with the task.
    """
    lines = (resources.files("inference_opt") / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [Prompt(**json.loads(line)) for line in lines]
