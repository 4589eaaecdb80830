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

(* With acceptance g may go on, with rejection h: both are worth what the target's token is worth if g = h. *)
Lemma rejection : forall V p q (g : token -> Q), is_law V p -> is_law V q ->
  sum (vocabulary V) (fun x => q x * (Qmin (p x / q x) 1 * g x
    + (1 - Qmin (p x / q x) 1) * mean (choose V (residual V p q)) g)) == sum (vocabulary V) (fun x => p x * g x).
Proof.
  intros V p q g [Hp Sp] [Hq Sq]. set (owed := mean _ _). set (vs := vocabulary V) in *.
  assert (forall x, In x vs -> (x < V)%nat) as Lt by (intros; now apply in_vocabulary).
  assert (sum vs (excess p q) == sum vs (fun x => q x - Qmin (p x) (q x))) as Rejected.
  { (* both are 1 - sum min *)
    rewrite (sum_ext vs (excess p q) (fun x => p x + -1 * Qmin (p x) (q x)))
      by (intros x _; unfold excess; pose proof (split (p x) (q x)); lra).
    rewrite (sum_ext vs (fun x => q x - _) (fun x => q x + -1 * Qmin (p x) (q x))) by (intros; ring).
    rewrite !sum_plus, Sp, Sq. reflexivity. }
  transitivity (sum vs (fun x => Qmin (p x) (q x) * g x) + sum vs (excess p q) * owed).
  { rewrite Rejected, (Qmult_comm _ owed), <- sum_scale, <- sum_plus. apply sum_ext. intros x Hx.
    rewrite <- (accepted_mass (p x) (q x)) by auto. ring. }
  assert (sum vs (excess p q) * owed == sum vs (fun x => excess p q x * g x)) as ->.
  { unfold owed, residual. destruct (any V (excess p q)) eqn:Any.
    - rewrite mean_choose. fold vs. field. apply any_true; [| assumption]. intros. apply Q.le_max_r.
    - (* nothing is owed, and nothing rejected *)
      assert (forall x, In x vs -> excess p q x == 0) as Zero by (intros; apply any_false with V; auto).
      rewrite (sum_ext vs (excess p q) (fun _ => 0 * 0)), (sum_ext vs (fun x => _ * g x) (fun _ => 0 * 0)), sum_scale.
      + ring.
      + intros x Hx. rewrite Zero by assumption. ring.
      + intros x Hx. rewrite Zero by assumption. ring. }
  rewrite <- sum_plus. apply sum_ext. intros x _. unfold excess. rewrite <- (split (p x) (q x)) at 3. ring.
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
