(* Wrong rules (the zoo: `lab/exactness/mutants.py`). Of these the theorem is false, which takes one pair of laws each. *)

From Speculation Require Export MultiDraft.

(* [no_residual] *)
(* A rejected token is replaced by a draw from p: what acceptance let through already comes twice. *)
Fixpoint no_residual (V : nat) (target draft : list weights) (tokens : text) : dist text :=
  match target, draft, tokens with
  | p :: target', q :: draft', x :: tokens' =>
      accepted <- below (p x / q x);;
      if accepted : bool then rest <- no_residual V target' draft' tokens';; ret (x :: rest)
      else y <- choose V p;; ret [y]  (* wrong *)
  | p :: _, _, _ => y <- choose V p;; ret [y]
  | [], _, _ => ret []
  end.
(* [/no_residual] *)

(* A draft ends at a token of low q, and that token is dropped: those that remain are drawn from q given that they are
   sure. A policy cannot say this, for it sees the tokens so far and not the one to come. *)
Fixpoint chain_dropping (V : nat) (q : model) (low : Q) (gamma : nat) (t : text) : dist (list (token * weights)) :=
  match gamma with
  | S fewer =>
      x <- choose V (q t);;
      if Qle_bool low (q t x) then
        guesses <- chain_dropping V q low fewer (t ++ [x]);; ret ((x, q t) :: guesses)
      else ret []  (* wrong *)
  | O => ret []
  end.

Definition step_dropping (V : nat) (p q : model) (low : Q) (gamma : nat) (t : text) : dist text :=
  guesses <- chain_dropping V q low gamma t;;
  token_wise V (verdicts p t (map fst guesses)) (map snd guesses) (map fst guesses).

(* The law (a, b) of two tokens, behind every text. *)
Definition pair (a b : Q) : model := fun _ x => nth x [a; b] 0.

Lemma pair_model : forall a b, 0 <= a -> 0 <= b -> a + b == 1 -> is_model 2 (pair a b).
Proof.
  intros a b Ha Hb One t. split; [| cbn; rewrite <- One; ring].
  intros [| [|]] Lt; simpl; [assumption | assumption | lia].
Qed.

(* [wrong] *)
(* p = (1/4, 3/4), q = (1/2, 1/2): token 0 comes with probability 5/16. *)
Theorem no_residual_is_biased : ~ forall V p q, is_model V p -> is_model V q -> forall s,
  prob (output_law (step_law V (no_residual V) p (fun _ => q) always (fun _ => 1%nat)) 1) s == target_law V p 1 s.
Proof.
  intros Claim. specialize (Claim 2%nat (pair (1 # 4) (3 # 4)) (pair (1 # 2) (1 # 2))).
  specialize (Claim ltac:(apply pair_model; lra) ltac:(apply pair_model; lra) [0%nat]).
  vm_compute in Claim. discriminate Claim.
Qed.
(* [/wrong] *)

(* p = (1/2, 1/2), q = (1/4, 3/4), unsure below 1/3: token 0 comes with probability 3/8. *)
Theorem dropping_is_biased : ~ forall V p q, is_model V p -> is_model V q -> forall s,
  prob (output_law (step_dropping V p q (1 # 3) 1) 1) s == target_law V p 1 s.
Proof.
  intros Claim. specialize (Claim 2%nat (pair (1 # 2) (1 # 2)) (pair (1 # 4) (3 # 4))).
  specialize (Claim ltac:(apply pair_model; lra) ltac:(apply pair_model; lra) [0%nat]).
  vm_compute in Claim. discriminate Claim.
Qed.

(* [original_q] *)
(* Candidates drawn without replacement, each judged by the law before any was taken away. *)
Definition step_original_q (V : nat) (p q : model) (gamma : nat) (t : text) : dist text :=
  guesses <- chain V (without_replacement V (q t)) (left_over V (q t)) gamma [];;
  judge_siblings V p t (map (fun guess => (fst guess, q t)) guesses).  (* wrong *)
(* [/original_q] *)

(* The law (a, b, c) of three tokens, behind every text. *)
Definition triple (a b c : Q) : model := fun _ x => nth x [a; b; c] 0.

Lemma triple_model : forall a b c, 0 <= a -> 0 <= b -> 0 <= c -> a + b + c == 1 -> is_model 3 (triple a b c).
Proof.
  intros a b c Ha Hb Hc One t. split; [| cbn; rewrite <- One; ring].
  intros [| [| [|]]] Lt; simpl; [assumption | assumption | assumption | lia].
Qed.

(* p = (0, 3/8, 5/8), q = (1/2, 1/4, 1/4), two candidates: token 1 comes with probability 1/2. *)
Theorem original_q_is_biased : ~ forall V p q, is_model V p -> is_model V q -> forall s,
  prob (output_law (step_original_q V p q 2) 1) s == target_law V p 1 s.
Proof.
  intros Claim. specialize (Claim 3%nat (triple 0 (3 # 8) (5 # 8)) (triple (1 # 2) (1 # 4) (1 # 4))).
  specialize (Claim ltac:(apply triple_model; lra) ltac:(apply triple_model; lra) [1%nat]).
  vm_compute in Claim. discriminate Claim.
Qed.

(* [marginals] *)
(* Drafts drawn each behind the one before, and judged by the law of the i-th draft whatever those before it are. (Drawn
   from that law, too, they would come from a drafter like any other, and the theorem would hold.) *)
Definition marginal (V : nat) (q : model) (t : text) (i : nat) : weights := fun x => mean (sample V q i t) (fun u => q u x).

Definition step_marginals (V : nat) (p q : model) (gamma : nat) (t : text) : dist text :=
  guesses <- chain V q (always t) gamma t;;
  let tokens := map fst guesses in
  token_wise V (verdicts p t tokens) (map (marginal V q t) (seq 0 (List.length tokens))) tokens.  (* wrong *)
(* [/marginals] *)

(* A drafter that says the last token again. *)
Definition again : model := fun t =>
  match rev t with [] => pair (1 # 2) (1 # 2) t | O :: _ => pair 1 0 t | _ => pair 0 1 t end.

(* p = (1/2, 1/2) behind every text, and marginally so is q: text 01 never comes. *)
Theorem marginals_are_biased : ~ forall V p q, is_model V p -> is_model V q -> forall s,
  prob (output_law (step_marginals V p q 2) 2) s == target_law V p 2 s.
Proof.
  intros Claim. specialize (Claim 2%nat (pair (1 # 2) (1 # 2)) again).
  specialize (Claim ltac:(apply pair_model; lra)).
  assert (is_model 2 again) as Again.
  { intros t. unfold again. destruct (rev t) as [| [|] ?]; apply pair_model; lra. }
  specialize (Claim Again [0%nat; 1%nat]). vm_compute in Claim. discriminate Claim.
Qed.
