(* The point-mass rule: a draft that was found and not drawn, by prompt lookup for one, is exact whatever it is. *)

From Speculation Require Export Decode.

(* [one_found] *)
(* One token x, kept with probability p(x), or replaced by a draw from p without x. *)
Definition one_found (V : nat) (p : weights) (x : token) : dist token :=
  accepted <- below (p x);;
  if accepted : bool then ret x else choose V (rest_of V p x).
(* [/one_found] *)

(* The hypotheses on a drafter: it proposes something for certain, in the vocabulary. Its law need not be known. *)
Definition proposes (V : nat) (propose : text -> dist text) : Prop := forall t,
  mean (propose t) (fun _ => 1) == 1 /\
  forall tokens, In tokens (map fst (propose t)) -> Forall (fun x => x < V)%nat tokens.

Section PointMass.
Variable V : nat.

Lemma without_sum : forall p x g, (x < V)%nat ->
  sum (vocabulary V) (fun y => without p x y * g y) == sum (vocabulary V) (fun y => p y * g y) - p x * g x.
Proof.
  intros p x g Lt. rewrite <- (sum_pick V x (fun y => p y * g y) Lt).
  transitivity (sum (vocabulary V) (fun y => p y * g y + -1 * (if Nat.eqb y x then p y * g y else 0))).
  - apply sum_ext. intros y _. unfold without. destruct (Nat.eqb y x); ring.
  - rewrite sum_plus, sum_scale. ring.
Qed.

Lemma one_found_mean : forall p x g, is_law V p -> (x < V)%nat ->
  p x * g x + (1 - p x) * mean (choose V (rest_of V p x)) g == sum (vocabulary V) (fun y => p y * g y).
Proof.
  intros p x g [Nonneg One] Lt. assert (sum (vocabulary V) (without p x) == 1 - p x) as Rest.
  { rewrite <- One, <- (Qmult_1_r (p x)). pose proof (without_sum p x (fun _ => 1) Lt) as All.
    setoid_rewrite Qmult_1_r in All. now rewrite Qmult_1_r. }
  assert (forall y, (y < V)%nat -> 0 <= without p x y) as Nonneg'.
  { intros y Hy. unfold without. destruct (Nat.eqb y x); [apply Qle_refl | auto]. }
  unfold rest_of. destruct (any V (without p x)) eqn:Any.
  - rewrite mean_choose, without_sum by assumption. apply any_true in Any; [| assumption].
    rewrite Rest in *. field. assumption.
  - (* p is all on x, and x is never rejected *)
    assert (forall y, In y (vocabulary V) -> without p x y == 0) as Zero
      by (intros; now apply any_false with V; [| apply in_vocabulary]).
    assert (1 - p x == 0) as ->.
    { rewrite <- Rest, (sum_ext _ _ (fun _ => 0 * 0)), sum_scale by (intros; rewrite Zero; [ring | assumption]). ring. }
    pose proof (without_sum p x g Lt) as All.
    rewrite (sum_ext _ _ (fun _ => 0 * 0)), sum_scale in All by (intros; rewrite Zero; [ring | assumption]). lra.
Qed.

Lemma law_at_most_one : forall p x, is_law V p -> (x < V)%nat -> Qmin (p x) 1 == p x.
Proof.
  intros p x [Nonneg One] Lt. apply Q.min_l. rewrite <- One, <- (sum_pick V x p Lt).
  apply sum_le. intros y Hy. apply in_vocabulary in Hy. destruct (Nat.eqb y x); [apply Qle_refl | auto].
Qed.

(* [found_exact] *)
Theorem point_mass_token_exact : forall p x, is_law V p -> (x < V)%nat -> same_law (one_found V p x) (choose V p).
(* [/found_exact] *)
Proof.
  intros p x Hp Lt g. unfold one_found. rewrite mean_bind, mean_below, mean_ret, (mean_choose_law V p) by assumption.
  rewrite law_at_most_one by assumption. now apply one_found_mean.
Qed.

Lemma point_mass_fair : forall p value, is_model V p -> fair V p value -> forall tokens t,
  Forall (fun x => x < V)%nat tokens ->
  mean (point_mass V (verdicts p t tokens) tokens) (fun e => value (t ++ e)) == value t.
Proof.
  intros p value Hp Fair. induction tokens as [| x tokens IH]; intros t Known; simpl.
  - rewrite mean_bind. setoid_rewrite mean_ret. apply Fair.
  - inversion_clear Known as [| ? ? Lt Known']. rewrite mean_bind, mean_below, !mean_bind.
    setoid_rewrite mean_ret. rewrite law_at_most_one by auto.
    rewrite <- (Fair t), (mean_choose_law V (p t)), <- (one_found_mean (p t) x (fun y => value (t ++ [y]))) by auto.
    rewrite <- (IH (t ++ [x])) by assumption.
    assert (forall e, value ((t ++ [x]) ++ e) == value (t ++ x :: e)) as Same by (intros; now rewrite <- app_assoc).
    setoid_rewrite Same. reflexivity.
Qed.

Theorem point_mass_step_exact : forall p propose, is_model V p -> proposes V propose ->
  exact V p (point_mass_step V p propose).
Proof.
  intros p propose Hp Proposes. apply fair_exact; [assumption |]. intros value t Fair.
  unfold point_mass_step. rewrite mean_bind, (mean_ext _ _ _ (fun _ => value t)).
  - rewrite mean_const, (proj1 (Proposes t)). ring.
  - intros tokens In. apply point_mass_fair; auto. now apply (Proposes t).
Qed.

Lemma point_mass_step_emits : forall p propose, emits (point_mass_step V p propose).
Proof.
  intros p propose t H. unfold point_mass_step in H. apply in_bind in H as (tokens & _ & H).
  destruct tokens; simpl in H.
  - apply in_bind in H as (? & _ & [H | []]). discriminate.
  - apply in_bind in H as ([|] & _ & H); apply in_bind in H as (? & _ & [H | []]); discriminate.
Qed.

End PointMass.
