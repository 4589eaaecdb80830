(* One token by the token-wise rule has the target's law: min(p, q) + (p - q)+ = p. *)

From Speculation Require Export Rules.

(* [one_token] *)
(* A draft drawn from q, kept or replaced. *)
Definition one_token (V : nat) (p q : weights) : dist token :=
  x <- choose V q;;
  accepted <- below (p x / q x);;
  if accepted : bool then ret x else choose V (residual V p q).
(* [/one_token] *)

Arguments Qmin : simpl never.
Arguments Qmax : simpl never.

(* What acceptance lets through of a token; q = 0 included, where p / q is 0. *)
Lemma accepted_mass : forall p q, 0 <= p -> 0 <= q -> q * Qmin (p / q) 1 == Qmin p q.
Proof.
  intros p q Hp Hq. destruct (Qeq_dec q 0) as [Zero | NonZero].
  - rewrite Zero, Qmult_0_l, Q.min_r by assumption. reflexivity.
  - assert (p == q * (p / q)) as E by (field; assumption). revert E. generalize (p / q) as r. intros r E.
    destruct (Q.min_spec r 1) as [[? M] | [? M]], (Q.min_spec p q) as [[? N] | [? N]]; rewrite M, N; nra.
Qed.

(* The line that all rests on. *)
Lemma split : forall p q, Qmin p q + Qmax (p - q) 0 == p.
Proof.
  intros. destruct (Q.min_spec p q) as [[? E] | [? E]], (Q.max_spec (p - q) 0) as [[? E'] | [? E']];
    rewrite E, E'; lra.
Qed.

Lemma any_false : forall V w x, any V w = false -> (x < V)%nat -> w x == 0.
Proof.
  unfold any. intros V w x None Lt. apply in_vocabulary in Lt.
  destruct (Qeq_bool (w x) 0) eqn:Zero; [apply Qeq_bool_iff, Zero |].
  rewrite <- not_true_iff_false, existsb_exists in None. exfalso. apply None. exists x. now rewrite Zero.
Qed.

Lemma any_true : forall V w, (forall x, (x < V)%nat -> 0 <= w x) -> any V w = true -> ~ sum (vocabulary V) w == 0.
Proof.
  unfold any. intros V w Nonneg Some Zero. apply existsb_exists in Some as (x & Hx & NonZero).
  apply negb_true_iff in NonZero. apply Qeq_bool_neq in NonZero. apply NonZero.
  apply sum_zero with (vocabulary V); auto. intros y Hy. apply Nonneg, in_vocabulary, Hy.
Qed.

(* q drafts, r is what may come out in all; g is worth what is accepted, c a rejection. *)
Lemma judged : forall V r q (g : token -> Q) c, (forall x, (x < V)%nat -> 0 <= r x) -> is_law V q ->
  sum (vocabulary V) (fun x => q x * (Qmin (r x / q x) 1 * g x + (1 - Qmin (r x / q x) 1) * c)) ==
  sum (vocabulary V) (fun x => Qmin (r x) (q x) * g x)
    + (sum (vocabulary V) (excess r q) + 1 - sum (vocabulary V) r) * c.
Proof.
  intros V r q g c Hr [Hq <-]. set (vs := vocabulary V).
  transitivity (sum vs (fun x => Qmin (r x) (q x) * g x + c * (excess r q x + q x + -1 * r x))).
  - apply sum_ext. intros x Hx. apply in_vocabulary in Hx. unfold excess.
    assert (Qmax (r x - q x) 0 == r x - Qmin (r x) (q x)) as -> by (pose proof (split (r x) (q x)); lra).
    rewrite <- (accepted_mass (r x) (q x)) by auto. ring.
  - rewrite sum_plus, sum_scale, !sum_plus, sum_scale. ring.
Qed.

(* Drawing from the residual, with its mass for a factor; without mass, nothing. *)
Lemma owed : forall V r q g,
  sum (vocabulary V) (excess r q) * mean (choose V (residual V r q)) g ==
  sum (vocabulary V) (fun x => excess r q x * g x).
Proof.
  intros. unfold residual. destruct (any V (excess r q)) eqn:Any.
  - rewrite mean_choose. field. apply any_true; [| assumption]. intros. apply Q.le_max_r.
  - assert (forall h, sum (vocabulary V) (fun x => excess r q x * h x) == 0) as Zero.
    { intros h. rewrite (sum_ext _ _ (fun _ => 0 * 0)), sum_scale; [ring |].
      intros x Hx. rewrite (any_false V) by (assumption || now apply in_vocabulary). ring. }
    rewrite Zero. setoid_replace (sum (vocabulary V) (excess r q)) with 0; [ring |].
    rewrite <- (Zero (fun _ => 1)). apply sum_ext. intros. ring.
Qed.

(* Accepted tokens and those drawn instead make up what there is to be. *)
Lemma made_up : forall V r q g,
  sum (vocabulary V) (fun x => Qmin (r x) (q x) * g x) + sum (vocabulary V) (fun x => excess r q x * g x) ==
  sum (vocabulary V) (fun x => r x * g x).
Proof.
  intros. rewrite <- sum_plus. apply sum_ext. intros x _. unfold excess. rewrite <- (split (r x) (q x)) at 3. ring.
Qed.

Lemma rejection : forall V p q (g : token -> Q), is_law V p -> is_law V q ->
  sum (vocabulary V) (fun x => q x * (Qmin (p x / q x) 1 * g x
    + (1 - Qmin (p x / q x) 1) * mean (choose V (residual V p q)) g)) == sum (vocabulary V) (fun x => p x * g x).
Proof.
  intros V p q g [Hp Sp] Hq. rewrite judged, Sp, <- (made_up V p q), <- owed by assumption. ring.
Qed.

Lemma one_token_mean : forall V p q, is_law V p -> is_law V q -> same_law (one_token V p q) (choose V p).
Proof.
  intros V p q Hp Hq g. unfold one_token. rewrite mean_bind, !mean_choose_law by assumption.
  rewrite <- (rejection V p q g Hp Hq). apply sum_ext. intros x _.
  rewrite mean_bind, mean_below, mean_ret. reflexivity.
Qed.

(* [token_exact] *)
Theorem token_wise_token_exact : forall V p q x, is_law V p -> is_law V q -> (x < V)%nat ->
  mean (one_token V p q) (fun y => if Nat.eqb y x then 1 else 0) == p x.
(* [/token_exact] *)
Proof.
  intros V p q x Hp Hq Lt. etransitivity; [apply one_token_mean; assumption |].
  rewrite mean_choose_law by assumption.
  rewrite <- (sum_pick V x p Lt). apply sum_ext. intros y _. destruct (Nat.eqb y x); ring.
Qed.
