(* Speculative decoding as a program over laws: `speculative/rules.py` and `lab/exactness/exact.py`, name by name.

   Definitions only. p is the target's law, q the draft's; a model gives the law behind a text. Where a rule looks at
   laws it takes lists of them, as in Python: target_0 p_1 ... behind each draft token, and draft_0 q_1 ... *)

From Speculation Require Export Law.

Definition model := text -> weights.
Definition is_model (V : nat) (m : model) : Prop := forall t, is_law V (m t).

Section Rules.
Variable V : nat.  (* the vocabulary is 0 ... V - 1 *)

(* [token_wise] *)
(* (p - q)+, not normalised; p where that has no mass: then p = q, and rejection has probability 0. *)
Definition excess (p q : weights) : weights := fun x => Qmax (p x - q x) 0.
Definition any (w : weights) : bool := existsb (fun x => negb (Qeq_bool (w x) 0)) (vocabulary V).
Definition residual (p q : weights) : weights := if any (excess p q) then excess p q else p.

Fixpoint token_wise (target draft : list weights) (tokens : text) : dist text :=
  match target, draft, tokens with
  | p :: target', q :: draft', x :: tokens' =>
      accepted <- below (p x / q x);;
      if accepted : bool then rest <- token_wise target' draft' tokens';; ret (x :: rest)
      else y <- choose V (residual p q);; ret [y]
  | p :: _, _, _ => y <- choose V p;; ret [y]
  | [], _, _ => ret []  (* does not occur: there is one target more than drafts *)
  end.
(* [/token_wise] *)

(* [point_mass] *)
Definition without (p : weights) (x : token) : weights := fun y => if Nat.eqb y x then 0 else p y.
Definition rest_of (p : weights) (x : token) : weights := if any (without p x) then without p x else p.

Fixpoint point_mass (target : list weights) (tokens : text) : dist text :=
  match target, tokens with
  | p :: target', x :: tokens' =>
      accepted <- below (p x);;
      if accepted : bool then rest <- point_mass target' tokens';; ret (x :: rest)
      else y <- choose V (rest_of p x);; ret [y]
  | p :: _, [] => y <- choose V p;; ret [y]
  | [], _ => ret []
  end.
(* [/point_mass] *)

(* [chain] *)
(* Whether to draft one token more, by the tokens drafted so far: any function, so any stopping time. *)
Definition policy := text -> bool.

(* At most gamma drafts, each with the law it was drawn from, behind the one before. *)
Fixpoint chain (q : model) (more : policy) (gamma : nat) (t : text) : dist (list (token * weights)) :=
  match gamma with
  | S fewer =>
      if more [] then
        x <- choose V (q t);;
        guesses <- chain q (fun drafted => more (x :: drafted)) fewer (t ++ [x]);;
        ret ((x, q t) :: guesses)
      else ret []
  | O => ret []
  end.

(* The target's laws behind a text and behind each token of a draft. *)
Fixpoint verdicts (p : model) (t tokens : text) : list weights :=
  p t :: match tokens with [] => [] | x :: tokens' => verdicts p (t ++ [x]) tokens' end.

Definition always : text -> policy := fun _ _ => true.

(* A drafter's model in a step that begins behind a text. Two steps that reach the same prefix from two beginnings may
   draw from two laws there. A drafter that sees the prefix alone is fun _ => q. *)
Definition drafter := text -> model.
Definition is_drafter (q : drafter) : Prop := forall t, is_model V (q t).

(* What one step emits behind a text, by a rule. How long the draft may get, too, is up to that text. *)
Definition rule := list weights -> list weights -> text -> dist text.
Definition step_law (r : rule) (p : model) (q : drafter) (more : text -> policy) (gamma : text -> nat) (t : text)
    : dist text :=
  guesses <- chain (q t) (more t) (gamma t) t;;
  r (verdicts p t (map fst guesses)) (map snd guesses) (map fst guesses).

(* A draft that was found, not drawn: by a search of the text, or at random by a law that nobody knows. *)
Definition point_mass_step (p : model) (propose : text -> dist text) (t : text) : dist text :=
  tokens <- propose t;;
  point_mass (verdicts p t tokens) tokens.
(* [/chain] *)

(* [output_law] *)
(* The first `length` tokens of a text decoded by steps; as each emits a token at least, `length` steps are enough. *)
Fixpoint decode (step : text -> dist text) (steps length : nat) (t : text) : dist text :=
  match steps with
  | S fewer =>
      if (length <=? List.length t)%nat then ret t
      else gather (emitted <- gather (step t);; decode step fewer length (firstn length (t ++ emitted)))
  | O => ret t
  end.

Definition output_law (step : text -> dist text) (length : nat) : dist text := decode step length length [].

(* Plain sampling of n tokens behind t. *)
Fixpoint sample (p : model) (n : nat) (t : text) : dist text :=
  match n with
  | S fewer => x <- choose V (p t);; sample p fewer (t ++ [x])
  | O => ret t
  end.

Definition joint_law (p : model) (length : nat) : dist text := sample p length [].
(* [/output_law] *)

(* [exact] *)
(* The target's probability of s behind t: the product of p(x | t and what is before x). *)
Fixpoint probability (p : model) (t s : text) : Q :=
  match s with
  | [] => 1
  | x :: s' => p t x * probability p (t ++ [x]) s'
  end.

(* A text cut at a length, or continued by the target to it. *)
Definition continue (p : model) (length : nat) (t : text) : dist text :=
  sample p (length - List.length t) (firstn length t).

(* A step is exact if, cut or continued by the target to any length, it leaves the target's law. *)
Definition exact (p : model) (step : text -> dist text) : Prop :=
  forall t length, same_law (emitted <- step t;; continue p length (t ++ emitted)) (continue p length t).

Definition emits (step : text -> dist text) : Prop := forall t, ~ In [] (map fst (step t)).
(* [/exact] *)

End Rules.
