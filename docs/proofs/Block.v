(* Block verification (`rules.block`; Sun et al. 2403.10444): the old line with w p in place of p. *)

From Speculation Require Export Decode.

Section Block.
Variable V : nat.

(* [block] *)
(* What the longest beginning that passes emits, from here on; None if none from here on passes. w is carried over from
   the tokens before. (The code looks at short beginnings first; as each has its own uniform number, it is the same.) *)
Fixpoint kept (target draft : list weights) (tokens : text) (w : Q) : dist (option text) :=
  match target, draft, tokens with
  | p :: target', q :: draft', x :: tokens' =>
      longer <- kept target' draft' tokens' (Qmin (w * p x / q x) 1);;
      match longer with
      | Some rest => ret (Some (x :: rest))
      | None =>
          let wp y := w * p y in
          let S := sum (vocabulary V) (excess wp q) in
          passed <- below (S / (S + 1 - w));;  (* 0 / 0 is 0 in Q, as it is made in the code *)
          if passed : bool then y <- choose V (residual V wp q);; ret (Some [y]) else ret None
      end
  | p :: _, _, _ =>
      passed <- below w;;
      if passed : bool then y <- choose V p;; ret (Some [y]) else ret None
  | [], _, _ => ret None
  end.

(* The empty beginning has w = 1 and passes: None has probability 0. *)
Definition block (target draft : list weights) (tokens : text) : dist text :=
  found <- kept target draft tokens 1;;
  match found, target with
  | Some emitted, _ => ret emitted
  | None, p :: _ => y <- choose V p;; ret [y]
  | None, [] => ret []
  end.
(* [/block] *)

Definition worth (value : text -> Q) (t : text) (c : Q) (o : option text) : Q :=
  match o with Some e => value (t ++ e) | None => c end.

Lemma quotient_nonneg : forall a b, 0 <= a -> 0 <= b -> 0 <= a / b.
Proof. intros. apply Qmult_le_0_compat; [assumption | now apply Qinv_le_0_compat]. Qed.

(* (S + 1 - w) h = S, and S + 1 - w is the probability that no longer beginning passes. *)
Lemma passing : forall S w m c, 0 <= S -> w <= 1 -> let h := Qmin (S / (S + 1 - w)) 1 in
  (S + 1 - w) * (h * m + (1 - h) * c) == S * m + (1 - w) * c.
Proof.
  intros S w m c HS Hw. simpl. destruct (Qeq_dec (S + 1 - w) 0) as [Zero | NonZero].
  - assert (S == 0) as -> by lra. assert (w == 1) as -> by lra. ring.
  - rewrite Q.min_l by (apply Qle_shift_div_r; lra). field. assumption.
Qed.

(* Behind t, with w carried over, a beginning from here on passes with probability w, and then the text is fair. *)
Lemma kept_fair : forall p q value, is_model V p -> is_model V q -> fair V p value -> forall gamma more t w c,
  0 <= w -> w <= 1 ->
  mean (guesses <- chain V q more gamma t;;
        kept (verdicts p t (map fst guesses)) (map snd guesses) (map fst guesses) w)
       (worth value t c) == w * value t + (1 - w) * c.
Proof.
  intros p q value Hp Hq Fair.
  assert (forall t w c, w <= 1 ->
    mean (passed <- below w;; if passed : bool then y <- choose V (p t);; ret (Some [y]) else ret None)
         (worth value t c) == w * value t + (1 - w) * c) as Last.
  { intros t w c Hw. rewrite mean_bind, mean_below, mean_bind, Q.min_l by assumption. setoid_rewrite mean_ret.
    simpl worth. rewrite (Fair t). reflexivity. }
  induction gamma as [| gamma IH]; simpl chain; intros more t w c H0 H1.
  { rewrite mean_bind, mean_ret. now apply Last. }
  destruct (more []); [| rewrite mean_bind, mean_ret; now apply Last].
  rewrite !mean_bind, mean_choose_law by apply Hq.
  set (wp := fun y => w * p t y). set (S := sum (vocabulary V) (excess wp (q t))).
  set (h := Qmin (S / (S + 1 - w)) 1). set (m := mean (choose V (residual V wp (q t))) (fun y => value (t ++ [y]))).
  assert (forall y, (y < V)%nat -> 0 <= wp y) as Nonneg
    by (intros; apply Qmult_le_0_compat; [assumption | now apply Hp]).
  transitivity (sum (vocabulary V) (fun x => q t x * (Qmin (wp x / q t x) 1 * value (t ++ [x])
                                            + (1 - Qmin (wp x / q t x) 1) * (h * m + (1 - h) * c)))).
  - apply sum_ext. intros x Hx. apply in_vocabulary in Hx. apply Qmult_comp; [reflexivity |].
    rewrite <- (IH (fun drafted => more (x :: drafted)) (t ++ [x]) (Qmin (wp x / q t x) 1) (h * m + (1 - h) * c)).
    + rewrite !mean_bind. setoid_rewrite mean_ret. apply mean_ext. intros guesses _. simpl kept.
      rewrite mean_bind. apply mean_ext. intros [rest |] _.
      * rewrite mean_ret. simpl. now rewrite <- app_assoc.
      * rewrite mean_bind, mean_below, mean_bind. setoid_rewrite mean_ret. reflexivity.
    + apply Q.min_glb; [apply quotient_nonneg; [auto | now apply Hq] | lra].
    + apply Q.le_min_r.
  - rewrite judged by auto. fold S. assert (sum (vocabulary V) wp == w) as ->.
    { unfold wp. rewrite sum_scale, (proj2 (Hp t)). ring. }
    unfold h. rewrite passing; [| apply sum_nonneg; intros; apply Q.le_max_r | assumption].
    unfold S, m. rewrite owed, Qplus_assoc, made_up. unfold wp.
    rewrite <- (Fair t), (mean_choose_law V (p t)), <- sum_scale by apply Hp.
    apply Qplus_comp; [| reflexivity]. apply sum_ext. intros. ring.
Qed.

Theorem block_step_exact : forall p q more gamma, is_model V p -> is_drafter V q ->
  exact V p (step_law V block p q more gamma).
Proof.
  intros p q more gamma Hp Hq. apply fair_exact; [assumption |]. intros value t Fair.
  transitivity (1 * value t + (1 - 1) * value t); [| ring].
  rewrite <- (kept_fair p (q t) value Hp (Hq t) Fair (gamma t) (more t) t 1 (value t)) by lra.
  unfold step_law. rewrite !mean_bind. apply mean_ext. intros guesses _. unfold block.
  rewrite mean_bind. apply mean_ext. intros [e |] _; [apply mean_ret |].
  destruct (map fst guesses); simpl verdicts; cbv iota; rewrite mean_bind; setoid_rewrite mean_ret; apply Fair.
Qed.

Lemma block_step_emits : forall p q more gamma, emits (step_law V block p q more gamma).
Proof.
  assert (forall tokens target draft w, ~ In (Some []) (map fst (kept target draft tokens w))) as Some_emits.
  { intros tokens target draft w H. destruct target as [| p target]; [now destruct H |].
    destruct draft, tokens; simpl in H; apply in_bind in H as ([] & _ & H); try (now destruct H);
      try (apply in_bind in H as ([] & _ & H)); try (apply in_bind in H as (? & _ & [H | []])); try discriminate;
      now destruct H. }
  intros p q more gamma t H. apply in_bind in H as (guesses & _ & H). apply in_bind in H as ([e |] & He & H).
  - destruct H as [E | []]. simpl in E. subst. now apply Some_emits in He.
  - destruct (map fst guesses); apply in_bind in H as (? & _ & [H | []]); discriminate.
Qed.

End Block.
