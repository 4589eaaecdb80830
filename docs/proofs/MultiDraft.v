(* Several candidates for one position (`rules.multi_draft`; SpecInfer 2305.09781; Chen et al. 2402.12374): what a rejected
   candidate leaves of the target is the target of the next one. *)

From Speculation Require Export Decode.

Section MultiDraft.
Variable V : nat.

(* [multi_draft] *)
Definition normalised (w : weights) : weights := let total := sum (vocabulary V) w in fun x => w x / total.

(* The first candidate that is accepted, or None and what is left of p. *)
Fixpoint try_all (p : weights) (draft : list weights) (candidates : text) : dist (option nat * weights) :=
  match draft, candidates with
  | q :: draft', x :: candidates' =>
      accepted <- below (p x / q x);;
      if accepted : bool then ret (Some 0%nat, p)
      else o <- try_all (normalised (residual V p q)) draft' candidates';; ret (option_map S (fst o), snd o)
  | _, _ => ret (None, p)
  end.

(* target_0 is the law at the position, target_(j + 1) the one behind candidate j. *)
Definition multi_draft (target draft : list weights) (tokens : text) : dist text :=
  o <- try_all (nth 0 target (fun _ => 0)) draft tokens;;
  match fst o with
  | Some j => y <- choose V (nth (S j) target (fun _ => 0));; ret [nth j tokens 0%nat; y]
  | None => y <- choose V (snd o);; ret [y]
  end.
(* [/multi_draft] *)

(* [siblings] *)
(* Candidates are a `chain`, where a token is drawn from a law that depends on the candidates before it: q behind a text
   is a model of those. How many there are may depend on them, too. *)
Definition judge_siblings (p : model) (t : text) (guesses : list (token * weights)) : dist text :=
  let tokens := map fst guesses in multi_draft (p t :: map (fun x => p (t ++ [x])) tokens) (map snd guesses) tokens.

Definition siblings_step (p : model) (q : text -> model) (more : text -> policy) (gamma : text -> nat) (t : text)
    : dist text :=
  guesses <- chain V (q t) (more t) (gamma t) [];;
  judge_siblings p t guesses.

(* Two ways to draw them: all from one law, or each from what those before it left of that law. *)
Definition with_replacement (q : weights) : model := fun _ => q.

Definition less (q : weights) (earlier : text) : weights := fun x => if existsb (Nat.eqb x) earlier then 0 else q x.
Definition left_over (q : weights) : policy := fun earlier => any V (less q earlier).
Definition without_replacement (q : weights) : model := fun earlier =>
  if left_over q earlier then normalised (less q earlier) else q.  (* nothing is drawn where nothing is left *)
(* [/siblings] *)

Lemma sum_normalised : forall w g, sum (vocabulary V) (fun x => normalised w x * g x) == mean (choose V w) g.
Proof.
  intros. rewrite mean_choose. unfold normalised, Qdiv. rewrite (Qmult_comm _ (/ _)), <- sum_scale.
  apply sum_ext. intros. ring.
Qed.

Lemma normalised_law : forall w, (forall x, (x < V)%nat -> 0 <= w x) -> any V w = true -> is_law V (normalised w).
Proof.
  intros w Nonneg Some. apply any_true in Some; [| assumption]. split.
  - intros x Lt. apply Qmult_le_0_compat; [auto |]. apply Qinv_le_0_compat, sum_nonneg.
    intros y Hy. apply Nonneg, in_vocabulary, Hy.
  - transitivity (sum (vocabulary V) (fun x => normalised w x * 1)); [apply sum_ext; intros; ring |].
    rewrite sum_normalised, mean_choose, (sum_ext _ _ w) by (intros; ring). field. assumption.
Qed.

Lemma law_any : forall p, is_law V p -> any V p = true.
Proof.
  intros p [_ One]. destruct (any V p) eqn:Any; [reflexivity |]. exfalso.
  rewrite (sum_ext _ _ (fun _ => 0 * 0)), sum_scale in One; [lra |].
  intros x Hx. apply in_vocabulary in Hx. rewrite (any_false V) by assumption. ring.
Qed.

Lemma residual_law : forall p q, is_law V p -> is_law V (normalised (residual V p q)).
Proof.
  intros p q Hp. unfold residual. destruct (any V (excess p q)) eqn:Any.
  - apply normalised_law; [| assumption]. intros. apply Q.le_max_r.
  - apply normalised_law; [apply Hp | now apply law_any].
Qed.

(* What follows of candidates that were tried, if g is what a token is worth. *)
Definition won (g : token -> Q) (tokens : text) (o : option nat * weights) : Q :=
  match fst o with Some j => g (nth j tokens 0%nat) | None => mean (choose V (snd o)) g end.

(* Tried against p, candidates are worth what a draw from p is, however they are drawn and however many they are. *)
Lemma try_all_fair : forall q g, is_model V q -> forall gamma more earlier p, is_law V p ->
  mean (chain V q more gamma earlier)
       (fun guesses => mean (try_all p (map snd guesses) (map fst guesses)) (won g (map fst guesses)))
  == mean (choose V p) g.
Proof.
  intros q g Hq. induction gamma as [| gamma IH]; simpl chain; intros more earlier p Hp.
  { rewrite mean_ret. simpl try_all. now rewrite mean_ret. }
  destruct (more []); [| rewrite mean_ret; simpl try_all; now rewrite mean_ret].
  rewrite mean_bind, mean_choose_law, mean_choose_law by auto. rewrite <- (rejection V p (q earlier) g) by auto.
  apply sum_ext. intros x _. rewrite mean_bind. setoid_rewrite mean_ret. simpl try_all.
  setoid_rewrite mean_bind. setoid_rewrite mean_below. setoid_rewrite mean_bind. setoid_rewrite mean_ret.
  set (rest := normalised (residual V p (q earlier))). set (a := Qmin (p x / q earlier x) 1).
  apply Qmult_comp; [reflexivity |].
  transitivity (mean (chain V q (fun drafted => more (x :: drafted)) gamma (earlier ++ [x])) (fun guesses =>
    (1 - a) * mean (try_all rest (map snd guesses) (map fst guesses)) (won g (map fst guesses)) + a * g x)).
  - apply mean_ext. intros guesses _. unfold won at 1. simpl. rewrite Qplus_comm. apply Qplus_comp; [| reflexivity].
    apply Qmult_comp; [reflexivity |]. apply mean_ext. intros [[j |] r] _; reflexivity.
  - rewrite mean_affine by now apply (chain_mass V).
    rewrite IH, mean_choose_law by now apply residual_law. unfold rest. rewrite sum_normalised. ring.
Qed.

Lemma try_all_winner : forall draft tokens p j rest,
  In (Some j, rest) (map fst (try_all p draft tokens)) -> (j < List.length tokens)%nat.
Proof.
  induction draft as [| q draft IH]; simpl; intros tokens p j rest H; [now destruct H |].
  destruct tokens as [| x tokens]; [now destruct H |].
  apply in_bind in H as ([|] & _ & H).
  - destruct H as [[= <- _] | []]. simpl. lia.
  - apply in_bind in H as ([[k |] r] & H & [E | []]); [| discriminate]. injection E as <- _.
    apply IH in H. simpl. lia.
Qed.

Theorem multi_draft_step_exact : forall p q more gamma, is_model V p -> is_drafter V q ->
  exact V p (siblings_step p q more gamma).
Proof.
  intros p q more gamma Hp Hq. apply fair_exact; [assumption |]. intros value t Fair. unfold siblings_step.
  rewrite <- (Fair t), <- (try_all_fair (q t) (fun x => value (t ++ [x])) (Hq t) (gamma t) (more t) []) by apply Hp.
  rewrite mean_bind. apply mean_ext. intros guesses _. unfold judge_siblings, multi_draft.
  rewrite mean_bind.
  apply mean_ext. intros [[j |] rest] Won; unfold won; simpl; rewrite mean_bind; setoid_rewrite mean_ret; [| reflexivity].
  apply try_all_winner in Won. rewrite <- (Fair (t ++ [_])).
  rewrite (nth_indep _ _ (p (t ++ [0%nat]))) by now rewrite map_length.
  rewrite map_nth with (f := fun x => p (t ++ [x])). apply mean_ext. intros y _. now rewrite <- app_assoc.
Qed.

Lemma multi_draft_step_emits : forall p q more gamma, emits (siblings_step p q more gamma).
Proof.
  intros p q more gamma t H. apply in_bind in H as (guesses & _ & H). apply in_bind in H as ([[j |] rest] & _ & H);
    apply in_bind in H as (y & _ & [E | []]); discriminate.
Qed.

Lemma with_replacement_model : forall q, is_law V q -> is_model V (with_replacement q).
Proof. now intros q Hq earlier. Qed.

Lemma without_replacement_model : forall q, is_law V q -> is_model V (without_replacement q).
Proof.
  intros q Hq earlier. unfold without_replacement. destruct (left_over q earlier) eqn:Any; [| assumption].
  apply normalised_law; [| assumption]. intros x Lt. unfold less. destruct (existsb _ _); [apply Qle_refl | now apply Hq].
Qed.

End MultiDraft.
