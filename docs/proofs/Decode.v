(* From one token to a text: a step is exact, whatever decides how long its draft gets, and steps add up.

   A step emits 1 to gamma + 1 tokens and has no law over texts of one length. So let value(t) be the mean of any f
   over texts of a length, where t is cut or continued by the target to it. It is *fair*: value(t) is the mean of
   value(t x) over the target's next token x. What has to be shown of a step is that it keeps every fair value. *)

From Speculation Require Export Token.

Definition fair (V : nat) (p : model) (value : text -> Q) : Prop :=
  forall t, mean (choose V (p t)) (fun x => value (t ++ [x])) == value t.

(* The target's probability of s among the texts of a length; 0 for what is none of them. *)
Definition target_law (V : nat) (p : model) (length : nat) (s : text) : Q :=
  if (List.length s =? length)%nat && forallb (fun x => x <? V)%nat s then probability p [] s else 0.

Section Decode.
Variable V : nat.
Variable p : model.
Hypothesis p_model : is_model V p.

Lemma choose_mass : forall w, is_law V w -> mean (choose V w) (fun _ => 1) == 1.
Proof.
  intros w Hw. rewrite mean_choose_law by assumption. rewrite <- (proj2 Hw).
  apply sum_ext. intros. ring.
Qed.

(* ---- The value of a text is fair ---- *)

Lemma continue_whole : forall length t, (List.length t <= length)%nat ->
  continue V p length t = sample V p (length - List.length t) t.
Proof. intros. unfold continue. now rewrite firstn_all2. Qed.

Lemma continue_cut : forall length t, continue V p length (firstn length t) = continue V p length t.
Proof.
  intros. unfold continue. rewrite firstn_firstn, Nat.min_id, firstn_length. f_equal. lia.
Qed.

Lemma value_fair : forall length f, fair V p (fun t => mean (continue V p length t) f).
Proof.
  intros length f t. destruct (le_lt_dec length (List.length t)) as [Long | Short].
  - assert (forall x, continue V p length (t ++ [x]) = continue V p length t) as Same.
    { intros. rewrite <- (continue_cut _ (t ++ [x])), firstn_app.
      replace (length - List.length t)%nat with 0%nat by lia. now rewrite app_nil_r, continue_cut. }
    rewrite (mean_ext _ _ _ (fun _ => mean (continue V p length t) f)) by (intros; now rewrite Same).
    rewrite mean_const, choose_mass by apply p_model. ring.
  - rewrite (continue_whole _ t) by lia.
    replace (length - List.length t)%nat with (S (length - S (List.length t))) by lia. simpl sample.
    rewrite mean_bind. apply mean_ext. intros x _. rewrite continue_whole; rewrite app_length; simpl; [| lia].
    now rewrite Nat.add_1_r.
Qed.

Lemma fair_exact : forall step,
  (forall value t, fair V p value -> mean (step t) (fun e => value (t ++ e)) == value t) -> exact V p step.
Proof.
  intros step Keeps t length f. rewrite mean_bind.
  apply (Keeps (fun u => mean (continue V p length u) f)), value_fair.
Qed.

(* ---- A token-wise step is exact ---- *)

Lemma chain_mass : forall q, is_model V q ->
  forall gamma more t, mean (chain V q more gamma t) (fun _ => 1) == 1.
Proof.
  intros q Hq. induction gamma as [| gamma IH]; simpl chain; intros; [apply mean_ret |].
  destruct (more []); [| apply mean_ret]. rewrite mean_bind, <- (choose_mass (q t)) by apply Hq.
  apply mean_ext. intros x _. rewrite mean_bind. setoid_rewrite mean_ret. apply IH.
Qed.

Lemma mean_affine : forall A (d : dist A) a b f, mean d (fun _ => 1) == 1 ->
  mean d (fun x => a * f x + b) == a * mean d f + b.
Proof.
  intros A d a b f One. transitivity (a * mean d f + mean d (fun _ => 1) * b); [| rewrite One; ring].
  clear One. induction d as [| [x w] d IH]; simpl; [ring |]. rewrite IH. ring.
Qed.

(* Induction on the most drafts there may be; the rest of the policy takes the policy's place. *)
Lemma token_wise_fair : forall q value, is_model V q -> fair V p value -> forall gamma more t,
  mean (guesses <- chain V q more gamma t;;
        token_wise V (verdicts p t (map fst guesses)) (map snd guesses) (map fst guesses))
       (fun e => value (t ++ e)) == value t.
Proof.
  intros q value Hq Fair.
  assert (forall t, mean (y <- choose V (p t);; ret [y]) (fun e => value (t ++ e)) == value t) as Bonus.
  { intros. rewrite mean_bind. setoid_rewrite mean_ret. apply Fair. }
  induction gamma as [| gamma IH]; simpl chain; intros; [rewrite mean_bind, mean_ret; apply Bonus |].
  destruct (more []); [| rewrite mean_bind, mean_ret; apply Bonus].
  rewrite !mean_bind, mean_choose_law by apply Hq.
  rewrite <- (Fair t), mean_choose_law by apply p_model.
  rewrite <- (rejection V (p t) (q t) (fun x => value (t ++ [x]))) by auto.
  apply sum_ext. intros x _. rewrite mean_bind. setoid_rewrite mean_ret. simpl token_wise.
  setoid_rewrite mean_bind. setoid_rewrite mean_below. setoid_rewrite mean_bind. setoid_rewrite mean_ret.
  rewrite mean_affine by (apply chain_mass; assumption).
  rewrite <- (IH (fun drafted => more (x :: drafted)) (t ++ [x])), mean_bind.
  assert (forall e, value ((t ++ [x]) ++ e) == value (t ++ x :: e)) as Same by (intros; now rewrite <- app_assoc).
  setoid_rewrite Same. reflexivity.
Qed.

(* [step_exact] *)
Theorem token_wise_step_exact : forall q more gamma, is_drafter V q ->
  exact V p (step_law V (token_wise V) p q more gamma).
(* [/step_exact] *)
Proof. intros. apply fair_exact. intros. now apply token_wise_fair. Qed.

Lemma token_wise_step_emits : forall q more gamma, emits (step_law V (token_wise V) p q more gamma).
Proof.
  intros q more gamma t H. unfold step_law in H. apply in_bind in H as (guesses & _ & H). revert t H.
  induction guesses as [| [x law] guesses IH]; simpl; intros t H.
  - apply in_bind in H as (? & _ & [H | []]). discriminate.
  - apply in_bind in H as ([|] & _ & H); apply in_bind in H as (? & _ & [H | []]); discriminate.
Qed.

(* ---- Steps add up ---- *)

Lemma decode_exact : forall step, exact V p step -> emits step -> forall steps length t,
  (List.length t <= length <= steps + List.length t)%nat ->
  same_law (decode step steps length t) (continue V p length t).
Proof.
  intros step Exact Emits. induction steps as [| steps IH]; intros length t Bound f.
  - rewrite continue_whole by lia. simpl in *. replace (length - List.length t)%nat with 0%nat by lia. reflexivity.
  - simpl. destruct (Nat.leb_spec length (List.length t)) as [Done | Short].
    + rewrite continue_whole by lia. replace (length - List.length t)%nat with 0%nat by lia. reflexivity.
    + etransitivity; [apply same_gather |]. rewrite mean_bind.
      etransitivity; [apply same_gather |]. etransitivity; [| apply Exact]. rewrite mean_bind.
      apply mean_ext. intros e In. rewrite <- continue_cut. apply IH.
      rewrite firstn_length, app_length. destruct e; [now apply Emits in In |]. simpl. lia.
Qed.

(* [steps_add_up] *)
Theorem steps_add_up : forall step, exact V p step -> emits step -> forall length,
  same_law (output_law step length) (joint_law V p length).
(* [/steps_add_up] *)
Proof.
  intros step Exact Emits length f. etransitivity; [apply decode_exact; simpl; auto; lia |].
  rewrite continue_whole by (simpl; lia). simpl. now rewrite Nat.sub_0_r.
Qed.

(* ---- Plain sampling has the product for its law ---- *)

Lemma sample_support : forall n t u, In u (map fst (sample V p n t)) ->
  exists s, u = t ++ s /\ List.length s = n /\ forallb (fun x => x <? V)%nat s = true.
Proof.
  induction n as [| n IH]; simpl; intros t u H.
  - exists []. destruct H as [<- | []]. now rewrite app_nil_r.
  - apply in_bind in H as (x & Hx & H). apply IH in H as (s & -> & Length & Known). exists (x :: s).
    rewrite <- app_assoc. simpl. apply in_choose, Nat.ltb_lt in Hx. rewrite Hx. auto.
Qed.

Lemma prob_outside : forall d s, ~ In s (map fst d) -> prob d s == 0.
Proof.
  intros d s Out. unfold prob. rewrite (mean_ext _ _ _ (fun _ => 0)); [rewrite mean_const; ring |].
  intros t In. destruct (same_text t s) eqn:Same; [| reflexivity]. apply same_text_eq in Same. now subst.
Qed.

Lemma sample_prob : forall s t, forallb (fun x => x <? V)%nat s = true ->
  prob (sample V p (List.length s) t) (t ++ s) == probability p t s.
Proof.
  induction s as [| x s IH]; simpl; intros t Known.
  - rewrite app_nil_r. unfold prob. simpl. now rewrite (proj2 (same_text_eq t t)).
  - apply andb_true_iff in Known as [Hx Known]. apply Nat.ltb_lt in Hx.
    unfold prob. rewrite mean_bind, mean_choose_law by apply p_model.
    rewrite <- (sum_pick V x (fun x => p t x * probability p (t ++ [x]) s)) by assumption.
    apply sum_ext. intros y _. fold (prob (sample V p (List.length s) (t ++ [y])) (t ++ x :: s)).
    destruct (Nat.eqb_spec y x) as [-> | Other].
    + rewrite <- IH by assumption. now rewrite <- app_assoc.
    + rewrite prob_outside; [ring |]. intros In. apply sample_support in In as (r & E & _).
      rewrite <- app_assoc in E. apply app_inv_head in E. simpl in E. congruence.
Qed.

Theorem joint_law_is_the_product : forall length s, prob (joint_law V p length) s == target_law V p length s.
Proof.
  unfold target_law. intros. destruct (_ && _) eqn:Possible.
  - apply andb_true_iff in Possible as [Length Known]. apply Nat.eqb_eq in Length. subst. now apply (sample_prob s []).
  - apply prob_outside. intros In. apply sample_support in In as (r & -> & Length & Known). simpl in Possible.
    rewrite Known, Length, Nat.eqb_refl in Possible. discriminate.
Qed.

End Decode.
