"""The machine-checked proof is about our algorithm: Coq's definitions, evaluated, give the Python's laws, exactly.

That the theorem holds says that some program is exact. That this program is the one of `speculative/rules.py` is what
is tested here: on drawn cases Coq computes the law of its rules, of its steps and of whole texts, in rationals, and
each must be the one that `lab/exactness/exact.py` enumerates.
"""

import ast
import random
import re
import shutil
import subprocess
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np
import pytest

from inference_opt.lab.exactness import mutants
from inference_opt.lab.exactness.enumerate import every_path
from inference_opt.lab.exactness.exact import output_law, step_law
from inference_opt.lab.exactness.proposals import chain, from_start, target_along
from inference_opt.speculative import rules

PROOFS = Path(__file__).resolve().parent.parent / "docs" / "proofs"
SOURCES = re.findall(r"^\w+\.v$", (PROOFS / "_CoqProject").read_text(), flags=re.MULTILINE)

# What a case is written in: laws in states, which every token of the text moves on; a drafter whose law depends on
# where the step began and on a memory as well; a fixed draft for each text and memory, for the rule that takes any; the
# draft that ends behind an unsure token; and something to learn of a step, which is the memory and the length of the
# next draft. The same as below in Python.
PRELUDE = """
From Speculation Require Import Main Wrong Block PointMass Memory.
Definition state (n : nat) (t : text) : nat := fold_left (fun s x => Nat.modulo (2 * s + x + 1) n) t 0%nat.
Definition rows (laws : list (list Q)) : model := fun t x => nth x (nth (state (length laws) t) laws []) 0.
Definition seeing (laws : list (list Q)) (m : nat) : drafter := fun start t x => let n := length laws in
  nth x (nth (Nat.modulo (state n t + 2 * state n start + m) n) laws []) 0.
Definition found (drafts : list text) (m : nat) (t : text) : dist text :=
  ret (nth (state (length drafts) (t ++ [m])) drafts []).
Definition sure (q : drafter) (t : text) : policy := fun drafted =>
  match rev drafted with [] => true | x :: before => Qle_bool (1 # 3) (q t (t ++ rev before) x) end.
Definition learn (m : nat) (drafted emitted : text) : nat := ((m + 2 * length drafted + length emitted) mod 4)%nat.
Definition shown (d : dist text) := map (fun '(s, w) => (s, (Qnum w, Zpos (Qden w)))) d.
"""


def coqc(folder, source):
    done = subprocess.run(["coqc", "-Q", ".", "Speculation", source], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, f"{source}: {done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """A folder with the proofs compiled, and what Coq printed of the last, Main.v."""
    if shutil.which("coqc") is None:
        pytest.skip("coqc is not installed: apt-get install coq")
    folder = tmp_path_factory.mktemp("proofs")
    for source in SOURCES:
        shutil.copy(PROOFS / source, folder)
        printed = coqc(folder, source)
    return folder, printed


def state(n, text):
    return list(accumulate(text, lambda s, x: (2 * s + x + 1) % n, initial=0))[-1]


class Case:
    """Target, draft and found drafts, as functions of the text and as Coq reads them."""

    def __init__(self, seed):
        rng = random.Random(seed)
        self.vocab, self.gamma, self.length = rng.choice([2, 3]), rng.randrange(4), rng.randint(1, 3)
        self.laws = {name: self._laws(rng) for name in "pq"}
        if rng.random() < 0.2:
            self.laws["q"] = self.laws["p"]  # nothing is rejected, nothing is owed
        self.drafts = [[rng.randrange(self.vocab) for _ in range(self.gamma)] for _ in range(3)]
        self.text = [rng.randrange(self.vocab) for _ in range(rng.randrange(3))]

    def _laws(self, rng):
        weights = [[rng.choice([0, 1, 1, 2, 5]) for _ in range(self.vocab)] for _ in range(5)]
        point = [Fraction(x == 0) for x in range(self.vocab)]
        return [[Fraction(w, sum(row)) for w in row] if any(row) else point for row in weights]

    def model(self, name):
        return lambda text: self.laws[name][state(5, text)]

    def seeing(self, memory):
        """The draft's model by where the step began."""
        laws = self.laws["q"]
        return lambda start: lambda text: laws[(state(5, text) + 2 * state(5, start) + memory) % 5]

    def found(self, memory):
        def propose(target, draft, prefix, gamma, choose):
            tokens = self.drafts[state(3, (*prefix, memory))]
            return target_along(target, prefix, tokens), None, tokens

        return propose

    def learned(self, rule, propose):
        """The law of a step by what was learned for the next one and what was emitted. 2 was learned before."""
        law, p, q, text = {}, self.model("p"), self.seeing(2), tuple(self.text)

        def step(rng):
            laws, guesses, tokens = propose(p, q, text, 2, rng.choose)
            emitted = rule(laws, guesses, tokens, rng)
            return ((2 + 2 * len(list(tokens)) + len(emitted)) % 4, *emitted)

        for outcome, w in every_path(step):
            law[outcome] = law.get(outcome, 0) + w
        return law

    def judged(self, rule):
        """The law of a rule on its own: one draft, and the laws along it."""
        text, tokens = tuple(self.text), self.drafts[0]
        texts = [(*text, *tokens[:i]) for i in range(len(tokens) + 1)]
        behind = {name: [np.array(self.model(name)(t), dtype=object) for t in texts] for name in "pq"}
        if any(behind["q"][i][x] == 0 for i, x in enumerate(tokens)):
            return None  # no draft of q's
        law = {}
        for emitted, w in every_path(lambda rng: rule(behind["p"], behind["q"], tokens, rng)):
            law[tuple(emitted)] = law.get(tuple(emitted), 0) + w
        return law

    def questions(self):
        """(what Coq computes, what Python says) of each thing that can be compared."""
        v, g, n, text = self.vocab, self.gamma, self.length, self.text
        p, q, d, t, prefix = self.model("p"), self.model("q"), self.seeing(1), coq(text), tuple(text)
        token_wise, kept, dropped = rules.token_wise, from_start(mutants.stop_early(True)), mutants.stop_early(False)
        started, found = from_start(chain), self.found(1)
        step = f"step_law {v} (token_wise {v}) p d always (fun _ => {g})"
        stopping = f"step_law {v} (token_wise {v}) p d (sure d) (fun _ => {g})"
        biased = f"step_law {v} (no_residual {v}) p (fun _ => q) always (fun _ => {g})"
        block = f"step_law {v} (block {v}) p d always (fun _ => {g})"
        lookup, dropping = f"point_mass_step {v} p (found drafts 1)", f"step_dropping {v} p q (1 # 3)%Q {g}"
        searching = f"learning_search {v} nat p (found drafts) learn 2 {t}"
        draft = "(nth 0 drafts [])"
        laws = f"(verdicts p {t} {draft}) (verdicts q {t} {draft}) {draft}"
        yield f"output_law ({step}) {n}", output_law(p, d, g, token_wise, n, started)
        yield f"output_law ({stopping}) {n}", output_law(p, d, g, token_wise, n, kept)
        yield f"output_law ({lookup}) {n}", output_law(p, q, g, rules.point_mass, n, found)
        yield f"output_law ({biased}) {n}", output_law(p, q, g, mutants.no_residual, n)
        yield f"output_law ({dropping}) {n}", output_law(p, q, g, token_wise, n, dropped)
        yield f"{step} {t}", step_law(p, d, g, token_wise, prefix, started)
        yield f"{stopping} {t}", step_law(p, d, g, token_wise, prefix, kept)
        yield f"{lookup} {t}", step_law(p, q, g, rules.point_mass, prefix, found)
        for rule in (token_wise, rules.block):
            args = f"({rule.__name__} {v}) p (seeing qs) (fun _ => always) (fun m _ => m) learn 2 {t}"
            yield f"o <- learning_step {v} nat {args};; ret (snd o :: fst o)", self.learned(rule, started)
        yield f"o <- {searching};; ret (snd o :: fst o)", self.learned(rules.point_mass, self.found(2))
        yield f"output_law ({block}) {n}", output_law(p, d, g, rules.block, n, started)
        yield f"{block} {t}", step_law(p, d, g, rules.block, prefix, started)
        yield f"block {v} {laws}", self.judged(rules.block)
        yield f"token_wise {v} {laws}", self.judged(token_wise)
        yield f"point_mass {v} (verdicts p {t} {draft}) {draft}", self.judged(rules.point_mass)


def coq(value):
    if isinstance(value, list):
        return f"[{'; '.join(map(coq, value))}]"
    return f"({value.numerator} # {value.denominator})" if isinstance(value, Fraction) else str(value)


def test_what_is_proved_is_what_runs(compiled):
    cases = [Case(seed) for seed in range(20)]
    lines, wanted = [PRELUDE], []
    for number, case in enumerate(cases):
        lines.append(f"Module Case{number}.")
        lines += [f"Definition {name}s := {coq(case.laws[name])}." for name in "pq"]
        lines += ["Definition p := rows ps.", "Definition q := rows qs.", "Definition d := seeing qs 1."]
        lines.append(f"Definition drafts : list text := {coq(case.drafts)}%nat.")
        for program, law in case.questions():
            if law is not None:
                wanted.append((number, program, law))
                lines.append(f"Eval vm_compute in shown (gather (({program})%nat)).")
        lines.append(f"End Case{number}.")
    folder, _ = compiled
    (folder / "Cases.v").write_text("\n".join(lines))
    answers = re.findall(r"= (\[.*?\])\n\s+: list", coqc(folder, "Cases.v"), flags=re.DOTALL)
    assert len(answers) == len(wanted)
    for (number, program, law), answer in zip(wanted, answers):
        printed = ast.literal_eval(re.sub(r"%\w+", "", answer).replace(";", ","))
        computed = {tuple(text): Fraction(*weight) for text, weight in printed if weight[0]}
        assert len(printed) == len({tuple(text) for text, _ in printed})
        assert computed == law, f"case {number}: {program}"


def test_every_theorem_rests_on_no_axiom(compiled):
    _, printed = compiled
    code = {source: re.sub(r"\(\*.*?\*\)", "", (PROOFS / source).read_text(), flags=re.DOTALL) for source in SOURCES}
    theorems = re.findall(r"^Theorem (\w+)", "\n".join(code.values()), flags=re.MULTILINE)
    assert sorted(theorems) == sorted(re.findall(r"Print Assumptions (\w+)\.", code["Main.v"]))
    assert printed.count("Closed under the global context") == len(theorems)
    assert sorted(p.name for p in PROOFS.glob("*.v")) == sorted(SOURCES)
