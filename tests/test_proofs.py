"""The machine-checked proof is about our algorithm: Coq's definitions, evaluated, give the Python's laws, exactly.

That the theorem holds says that some program is exact. That this program is the one of `speculative/rules.py` is what
is tested here: on drawn cases Coq computes the law of its rules, of its steps and of whole texts, in rationals, and
each must be the one that `lab/exactness/exact.py` enumerates.
"""

import ast
import os
import random
import re
import shutil
import subprocess
from collections import defaultdict
from fractions import Fraction
from itertools import accumulate, product
from pathlib import Path

import numpy as np
import pytest

from inference_opt.lab.exactness import mutants
from inference_opt.lab.exactness.enumerate import every_path
from inference_opt.lab.exactness.exact import output_law, step_law
from inference_opt.lab.exactness.proposals import branching, chain, from_start, siblings, target_along
from inference_opt.speculative import rules
from inference_opt.speculative.traversal import traversal

CASES = 200 if os.environ.get("HYPOTHESIS_PROFILE") == "long" else 20  # of each program
PROOFS = Path(__file__).resolve().parent.parent / "docs" / "proofs"
SOURCES = re.findall(r"^\w+\.v$", (PROOFS / "_CoqProject").read_text(), flags=re.MULTILINE)

# What a case is written in: laws in states, which every token of the text moves on; a drafter whose law depends on
# where the step began and on a memory as well; a fixed draft for each text and memory, for the rule that takes any; the
# draft that ends behind an unsure token; and something to learn of a step, which is the memory and the length of the
# next draft. The same as below in Python.
PRELUDE = """
From Speculation Require Import Main Wrong Block PointMass Memory Coupled MultiDraft Tree Traversal Noise.
Definition state (n : nat) (t : text) : nat := fold_left (fun s x => Nat.modulo (2 * s + x + 1) n) t 0%nat.
Definition rows (laws : list (list Q)) : model := fun t x => nth x (nth (state (length laws) t) laws []) 0.
Definition seeing (laws : list (list Q)) (m : nat) : drafter := fun start t x => let n := length laws in
  nth x (nth (Nat.modulo (state n t + 2 * state n start + m) n) laws []) 0.
Definition found (drafts : list text) (m : nat) (t : text) : dist text :=
  ret (nth (state (length drafts) (t ++ [m])) drafts []).
Definition sure (q : drafter) (t : text) : policy := fun drafted =>
  match rev drafted with [] => true | x :: before => Qle_bool (1 # 3) (q t (t ++ rev before) x) end.
Definition learn (m : nat) (drafted emitted : text) : nat := ((m + 2 * length drafted + length emitted) mod 4)%nat.
Definition candidates_learn (m : nat) (guesses : list (token * weights)) := learn m (map fst guesses).
Definition tree_learn (m : nat) (nodes : list (text * candidates)) (emitted : text) : nat :=
  ((m + List.length nodes + List.length emitted) mod 4)%nat.

(* A race: exponential numbers z, the least z / w wins. *)
Definition race (z : list Q) (w : weights) : token := fst (fold_left (fun '(best, rate) x =>
  let r := w x / nth x z 1 in if Qle_bool r rate then (best, rate) else (x, r)) (seq 0 (List.length z)) (0%nat, -(1))).

(* A tree whose next node, number of candidates and laws depend on all that was drafted, in whatever branch. *)
Fixpoint wild (laws : list (list Q)) (t : text) (most : nat) (waiting expanded : list text) (past : text) : plan :=
  match most, waiting with
  | S fewer, node :: others =>
      if existsb (same_text node) expanded then wild laws t fewer others expanded past
      else Expand node (fun earlier => rows laws (t ++ past ++ node ++ earlier))
        (fun earlier => state 5 (past ++ earlier) <? 4)%nat
        (state 3 (t ++ past)) (fun guesses =>
          let tokens := map fst guesses in
          let below := map (fun x => node ++ [x]) tokens in
          wild laws t fewer (if Nat.even (state 5 (past ++ tokens)) then others ++ below else below ++ others)
            (node :: expanded) (past ++ tokens))
  | _, _ => Done
  end.

(* The usual tree, branch by branch: `wide` candidates without replacement at each node above a depth. *)
Fixpoint branches (V : nat) (q : model) (t : text) (wide most depth more : nat) (path earlier : text) : growth :=
  match most, depth, more with
  | S fewer, S lower, S others =>
      if left_over V (q (t ++ path)) earlier then
        Sprout (without_replacement V (q (t ++ path)) earlier)
          (fun x => branches V q t wide fewer lower wide (path ++ [x]) [])
          (fun x _ => branches V q t wide fewer depth others path (earlier ++ [x]))
      else Stop
  | _, _, _ => Stop
  end.
Definition grown_learn (m : nat) (drafted : forest) (emitted : text) : nat :=
  (m + match drafted with Bare => 0 | Candidate x _ _ _ => 1 + x end + List.length emitted)%nat.
Definition width (depth : nat) (node : text) : nat := if (List.length node <? depth)%nat then 2%nat else 0%nat.
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


class Fixed:
    """Noise as it fell: `choose` is a function of the place's noise and the weights."""

    def __init__(self, pick, noise, start=0):
        self.pick, self.noise, self.start = pick, noise, start

    def choose(self, weights, i):
        place = self.start + i
        return self.pick(self.noise[place], weights) if place < len(self.noise) else 0  # beyond, the text is cut

    def uniform(self, i):
        raise AssertionError("the coupled rule compares nothing")


def by_sum(z, weights):
    sums = list(accumulate(weights))
    return next((x for x, upto in enumerate(sums) if z * sums[-1] < upto), 0)


def by_race(z, weights):
    return max(range(len(weights)), key=lambda x: Fraction(weights[x]) / z[x])


def wild(laws, most):
    """The tree of the same name above."""

    def propose(target, draft, prefix, gamma, choose):
        waiting, past, tokens, probs = [()], (), defaultdict(list), defaultdict(list)
        for _ in range(most):
            if not waiting:
                break
            node = waiting.pop(0)
            if node in tokens:
                continue
            before = past
            for _ in range(state(3, prefix + before)):
                if state(5, (*before, *tokens[node])) >= 4:
                    break
                q = np.array(laws[state(5, (*prefix, *before, *node, *tokens[node]))], dtype=object)
                probs[node].append(q)
                tokens[node].append(choose(q, 0))
            past = (*before, *tokens[node])
            below = [(*node, x) for x in tokens[node]]
            waiting = waiting + below if state(5, past) % 2 == 0 else below + waiting
        propose.nodes = len(tokens)
        return on_demand(lambda path: np.array(target(prefix + path), dtype=object)), probs, tokens

    return propose


def on_demand(make):
    class Made(dict):
        def __missing__(self, path):
            return make(path)

    return Made()


def earlier_siblings(model, count):
    """Candidates whose law is any function of those before."""

    def propose(target, draft, prefix, gamma, choose):
        tokens, probs = [], []
        for i in range(count):
            probs.append(np.array(model(prefix)(tuple(tokens)), dtype=object))
            tokens.append(choose(probs[-1], i))
        behind = [prefix, *((*prefix, x) for x in tokens)]
        return [np.array(target(t), dtype=object) for t in behind], probs, tokens

    return propose


def marginals(target, draft, prefix, gamma, choose):
    """A chain, judged by the law of the i-th draft whatever those before it are."""
    _, _, tokens = chain(target, draft, prefix, gamma, choose)
    tokens = list(tokens)
    probs = [
        sum(w * np.array(draft(prefix + t), dtype=object) for t, w in behind(draft, prefix, i)) for i in range(gamma)
    ]
    return target_along(target, prefix, tokens), probs, tokens


def behind(model, prefix, n):
    """The texts of n tokens behind a prefix, with their probabilities."""
    texts = [((), Fraction(1))]
    for _ in range(n):
        texts = [((*t, x), w * v) for t, w in texts for x, v in enumerate(model(prefix + t))]
    return texts


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
        self.rng = rng

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

    def coupled(self, pick, noise):
        """A text of decoding by coupled steps, and of plain decoding, from the same noise."""
        text, plain, steps = (), (), self.length
        while len(text) < self.length:
            steps -= 1
            tokens = self.drafts[state(3, (*text, steps))]
            laws = [np.array(self.model("p")((*text, *tokens[:i])), dtype=object) for i in range(len(tokens) + 1)]
            text = (*text, *rules.coupled(laws, [], tokens, Fixed(pick, noise, len(text))))[: self.length]
        for z in noise[: self.length]:
            plain = (*plain, pick(z, np.array(self.model("p")(plain), dtype=object)))
        return text, plain

    def shared(self, p, q, which):
        """The first token where the draft, the verdict and the replacement use numbers of a grid of three or four."""
        law, n = defaultdict(Fraction), 3

        class Numbers:
            def __init__(self, numbers):
                self.numbers, self.choose = numbers, lambda weights, i: by_sum(numbers[2], weights)

            def uniform(self, i):
                return self.numbers[1]

        for z in product([Fraction(k, n) for k in range(n)], repeat=len(set(which))):
            numbers = [z[i] for i in which]
            x = by_sum(numbers[0], q)
            law[tuple(rules.token_wise([p, p], [q], [x], Numbers(numbers))[:1])] += Fraction(1, n ** len(z))
        return dict(law)

    def candidates(self):
        """The same of the rules with several candidates, of the coupled rule, and of the wrong ones."""
        rng = self.rng
        v, n, text, depth = self.vocab, min(self.length, 2), coq(self.text), min(self.gamma, 2)
        p, q, prefix = self.model("p"), self.model("q"), tuple(self.text)
        t = f"{text}%nat"
        # coupled
        fixed = [Fraction(rng.randrange(8), 8) for _ in range(self.length)]
        raced = [[Fraction(rng.randint(1, 9), rng.randint(1, 9)) for _ in range(v)] for _ in range(self.length)]
        for name, pick, noise in [(f"(inverse {v})", by_sum, fixed), ("race", by_race, raced)]:
            found = "(fun k t => nth (state (length drafts) (t ++ [k])) drafts [])"
            zs = f"(by_noise _ {name} {coq(noise)}%Q)"
            judged, plain = self.coupled(pick, noise)
            yield f"ret (coupled_decode p {zs} {found} {self.length} {self.length} [])", {judged: 1}
            yield f"ret (plain p {zs} {self.length} [])", {plain: 1}
            tokens = self.drafts[0]
            laws = [np.array(p(tuple(tokens[:i])), dtype=object) for i in range(len(tokens) + 1)]
            emitted = rules.coupled(laws, [], tokens, Fixed(pick, noise))
            yield f"ret (coupled {zs} 0 (verdicts p [] (nth 0 drafts [])) (nth 0 drafts []))", {tuple(emitted): 1}
        law = defaultdict(Fraction)
        for zs in product([Fraction(k, 3) for k in range(3)], repeat=self.length):
            law[self.coupled(by_sum, zs)[0]] += Fraction(1, 3**self.length)
        yield (
            f"zs <- draws Q (fun _ => grid 3) {self.length} 0;; "
            f"ret (coupled_decode p (by_noise _ (inverse {v}) zs) {found} {self.length} {self.length} [])",
            dict(law),
        )
        # several candidates
        ways = [
            ("fun t => with_replacement (q t)", "always", siblings(replacement=True)),
            (f"fun t => without_replacement {v} (q t)", f"fun t => left_over {v} (q t)", siblings()),
            ("d", "always", earlier_siblings(self.seeing(1), depth)),
        ]
        for laws, more, propose in ways:
            step = f"siblings_step {v} p ({laws}) ({more}) (fun _ => {depth})"
            yield f"{step} {t}", step_law(p, q, depth, rules.multi_draft, prefix, propose)
            yield f"output_law ({step}) {n}", output_law(p, q, depth, rules.multi_draft, n, propose)
        drafting = f"(fun m t => chain {v} (seeing qs m t) (always t) {depth} [])"
        learning = f"learning nat {drafting} (judge_siblings {v} p) candidates_learn 2 {t}"
        law = defaultdict(Fraction)
        for emitted, w in step_law(p, q, 0, rules.multi_draft, prefix, earlier_siblings(self.seeing(2), depth)).items():
            law[((2 + 2 * depth + len(emitted)) % 4, *emitted)] += w
        yield f"o <- {learning};; ret (snd o :: fst o)", dict(law)
        # trees
        depth = depth if v == 2 else min(depth, 1)
        ways = [("with_replacement", "(fun _ => always [])"), (f"(without_replacement {v})", f"(left_over {v})")]
        for (draw, more), replacement in zip(ways, (True, False)):
            step = f"tree_step {v} p (fun t => branching {draw} {more} q (width {depth}) t 9 [[]] [])"
            yield f"{step} {t}", step_law(p, q, depth, rules.tree, prefix, branching(replacement=replacement))
            yield f"output_law ({step}) 1", output_law(p, q, depth, rules.tree, 1, branching(replacement=replacement))
        for wide in (1, 2):
            step = f"traversal_step {v} p (fun t => branches {v} q t {wide} 9 {depth} {wide} [] [])"
            propose = branching(wide)
            yield f"{step} {t}", step_law(p, q, depth, traversal, prefix, propose)
            yield f"output_law ({step}) {n}", output_law(p, q, depth, traversal, n, propose)
        drafting = f"(fun m t => sprout {v} (branches {v} q t 2 9 {depth} 2 [] []))"
        learning = f"learning nat {drafting} (judge_traversal {v} p) grown_learn 2 {t}"
        yield f"o <- {learning};; ret (snd o :: fst o)", self.learned_branches(depth)
        grown = wild(self.laws["q"], 4 - depth)
        step = f"tree_step {v} p (fun t => wild qs t {4 - depth} [[]] [] [])"
        yield f"{step} {t}", step_law(p, q, depth, rules.tree, prefix, grown)
        yield f"output_law ({step}) 1", output_law(p, q, depth, rules.tree, 1, grown)
        drafting = f"(fun m t => grow {v} (wild qs (t ++ [m]) {4 - depth} [[]] [] []))"
        learning = f"learning nat {drafting} (judge_tree {v} p) tree_learn 2 {t}"
        yield f"o <- {learning};; ret (snd o :: fst o)", self.learned_tree(4 - depth)
        # wrong rules
        yield (
            f"output_law (step_original_q {v} p q {depth}) {n}",
            output_law(p, q, depth, rules.multi_draft, n, mutants.original_q) if depth else None,
        )
        yield (
            f"output_law (step_marginals {v} p q {depth}) {n}",
            output_law(p, q, depth, rules.token_wise, n, marginals),
        )
        pair = [np.array(m(prefix), dtype=object) for m in (p, q)]
        for name, which in [("apart", (0, 1, 2)), ("in_the_verdict", (0, 0, 1)), ("in_the_replacement", (0, 1, 0))]:
            yield (
                f"numbers <- {name} (grid 3);; ret [by_three {v} (p {t}) (q {t}) numbers]",
                self.shared(*pair, which),
            )

    def learned_branches(self, depth):
        """The law of a step by `traversal`, by the first token drafted and what was emitted."""
        law, p, q, text = defaultdict(Fraction), self.model("p"), self.model("q"), tuple(self.text)

        def step(rng):
            laws, probs, tokens = branching()(p, q, text, depth, rng.choose)
            emitted = traversal(laws, probs, tokens, rng)
            return (2 + (1 + tokens[()][0] if tokens[()] else 0) + len(emitted), *emitted)

        for outcome, w in every_path(step):
            law[outcome] += w
        return dict(law)

    def learned_tree(self, most):
        """The law of a step by a wild tree, by what was learned for the next step and what was emitted."""
        law, p, text, propose = defaultdict(Fraction), self.model("p"), tuple(self.text), wild(self.laws["q"], most)

        def step(rng):
            _, probs, tokens = propose(p, None, (*text, 2), 0, rng.choose)
            laws = on_demand(lambda path: np.array(p(text + path), dtype=object))
            nodes = propose.nodes
            emitted = rules.tree(laws, probs, tokens, rng)
            return ((2 + nodes + len(emitted)) % 4, *emitted)

        for outcome, w in every_path(step):
            law[outcome] += w
        return dict(law)


def coq(value):
    if isinstance(value, list):
        return f"[{'; '.join(map(coq, value))}]"
    return f"({value.numerator} # {value.denominator})" if isinstance(value, Fraction) else str(value)


@pytest.mark.parametrize("questions", [Case.questions, Case.candidates])
def test_what_is_proved_is_what_runs(compiled, questions):
    cases = [Case(seed) for seed in range(CASES)]
    lines, wanted = [PRELUDE], []
    for number, case in enumerate(cases):
        lines.append(f"Module Case{number}.")
        lines += [f"Definition {name}s := {coq(case.laws[name])}." for name in "pq"]
        lines += ["Definition p := rows ps.", "Definition q := rows qs.", "Definition d := seeing qs 1."]
        lines.append(f"Definition drafts : list text := {coq(case.drafts)}%nat.")
        for program, law in questions(case):
            if law is not None:
                wanted.append((number, program, law))
                lines.append(f"Eval vm_compute in shown (gather (({program})%nat)).")
        lines.append(f"End Case{number}.")
    folder, _ = compiled
    (folder / f"{questions.__name__}.v").write_text("\n".join(lines))
    answers = re.findall(r"= (\[.*?\])\n\s+: list", coqc(folder, f"{questions.__name__}.v"), flags=re.DOTALL)
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
