(* Coupled decoding (`rules.coupled`; Daliri, Musco and Suresh 2408.07978): the text is the one that plain decoding draws
   from the same noise. A statement about texts and not about laws: whatever the noise was, the two are equal. *)

From Speculation Require Export Decode.

Section Coupled.
Variable p : model.

(* [coupled] *)
(* `Randomness.choose` with the noise as it fell: the token that the noise of a place chooses under some weights. A race,
   a cumulative sum, the likeliest token, or any other function. *)
Definition choice := nat -> weights -> token.

Fixpoint coupled (pick : choice) (place : nat) (target : list weights) (tokens : text) : text :=
  match target, tokens with
  | law :: target', x :: tokens' =>
      let y := pick place law in
      y :: (if Nat.eqb y x then coupled pick (S place) target' tokens' else [])
  | law :: _, [] => [pick place law]
  | [], _ => []
  end.

(* `decode` with the noise as it fell. The drafts of a step are any function of the text and of how many steps are left. *)
Fixpoint coupled_decode (pick : choice) (propose : nat -> text -> text) (steps length : nat) (t : text) : text :=
  match steps with
  | S fewer =>
      if (length <=? List.length t)%nat then t
      else let tokens := propose fewer t in
        let emitted := coupled pick (List.length t) (verdicts p t tokens) tokens in
        coupled_decode pick propose fewer length (firstn length (t ++ emitted))
  | O => t
  end.

(* `sample` with the noise as it fell. *)
Fixpoint plain (pick : choice) (n : nat) (t : text) : text :=
  match n with
  | S fewer => plain pick fewer (t ++ [pick (List.length t) (p t)])
  | O => t
  end.
(* [/coupled] *)

Lemma plain_longer : forall pick n t, exists s, plain pick n t = t ++ s /\ List.length s = n.
Proof.
  induction n as [| n IH]; simpl; intros t; [exists []; now rewrite app_nil_r |].
  destruct (IH (t ++ [pick (List.length t) (p t)])) as (s & -> & <-). rewrite <- app_assoc. simpl. eauto.
Qed.

Lemma plain_plain : forall pick n m t, plain pick (n + m) t = plain pick m (plain pick n t).
Proof. induction n as [| n IH]; simpl; intros; [reflexivity | apply IH]. Qed.

Lemma plain_cut : forall pick n m t, firstn (List.length t + n) (plain pick (n + m) t) = plain pick n t.
Proof.
  intros. destruct (plain_longer pick n t) as (s & E & <-). rewrite plain_plain.
  destruct (plain_longer pick m (plain pick (List.length s) t)) as (r & -> & _).
  rewrite E, <- app_length, firstn_app, Nat.sub_diag, app_nil_r. apply firstn_all.
Qed.

(* What a step emits is what plain decoding emits, one token or more. *)
Lemma coupled_plain : forall pick tokens t,
  exists k, t ++ coupled pick (List.length t) (verdicts p t tokens) tokens = plain pick (S k) t.
Proof.
  intros pick. induction tokens as [| x tokens IH]; intros t; [now exists 0%nat |]. simpl.
  destruct (Nat.eqb_spec (pick (List.length t) (p t)) x) as [Same | _]; [| now exists 0%nat].
  destruct (IH (t ++ [x])) as (k & E). rewrite <- app_assoc, app_length, Nat.add_1_r in E. simpl in E.
  exists (S k). now rewrite <- Same in *.
Qed.

Lemma coupled_decode_plain : forall pick propose steps length t,
  (List.length t <= length <= steps + List.length t)%nat ->
  coupled_decode pick propose steps length t = plain pick (length - List.length t) t.
Proof.
  intros pick propose. induction steps as [| steps IH]; intros length t Bound; simpl in *.
  - now replace (length - List.length t)%nat with 0%nat by lia.
  - destruct (Nat.leb_spec length (List.length t)) as [Done | Short].
    + now replace (length - List.length t)%nat with 0%nat by lia.
    + destruct (coupled_plain pick (propose steps t) t) as (k & ->).
      pose (most := Nat.min (S k) (length - List.length t)).
      assert (firstn length (plain pick (S k) t) = plain pick most t) as ->.
      { replace (S k) with (most + (S k - most))%nat by lia. rewrite <- (plain_cut pick most (S k - most)).
        destruct (plain_longer pick (most + (S k - most)) t) as (s & -> & Long).
        destruct (Nat.le_gt_cases (S k) (length - List.length t)).
        - rewrite !firstn_all2; [reflexivity | |]; rewrite app_length; lia.
        - f_equal. lia. }
      destruct (plain_longer pick most t) as (s & E & Long).
      rewrite IH by (rewrite E, app_length; lia). rewrite <- plain_plain.
      f_equal. rewrite E, app_length. lia.
Qed.

(* [coupled_plain] *)
(* Whatever the noise, and whatever the drafter made of it: the same text. *)
Theorem coupled_is_plain : forall pick propose L, coupled_decode pick propose L L [] = plain pick L [].
(* [/coupled_plain] *)
Proof. intros. rewrite coupled_decode_plain by (simpl; lia). simpl. now rewrite Nat.sub_0_r. Qed.

(* ---- The law of the text, where the noise is drawn ---- *)

Variables (V : nat) (noise : Type).

(* [coupled_law] *)
(* n values of noise for the places from `place` on, each independent of the others. *)
Fixpoint draws (at_place : nat -> dist noise) (n place : nat) : dist (list noise) :=
  match n with
  | S fewer => z <- at_place place;; zs <- draws at_place fewer (S place);; ret (z :: zs)
  | O => ret []
  end.

Definition by_noise (pick : noise -> weights -> token) (zs : list noise) : choice := fun place w =>
  match nth_error zs place with Some z => pick z w | None => 0%nat end.
(* [/coupled_law] *)

Lemma plain_law : forall at_place pick,
  (forall t, same_law (z <- at_place (List.length t);; ret (pick z (p t))) (choose V (p t))) -> forall n t before f,
  List.length before = List.length t ->
  mean (draws at_place n (List.length t)) (fun zs => f (plain (by_noise pick (before ++ zs)) n t))
  == mean (sample V p n t) f.
Proof.
  intros at_place pick Draws. induction n as [| n IH]; intros t before f Long; simpl; [ring |].
  rewrite !mean_bind. etransitivity; [| apply (Draws t)]. rewrite mean_bind.
  apply mean_ext. intros z _. rewrite mean_ret, mean_bind.
  rewrite <- (IH (t ++ [pick z (p t)]) (before ++ [z])) by (rewrite !app_length; simpl; lia).
  rewrite app_length, Nat.add_1_r. apply mean_ext. intros zs _. rewrite mean_ret, <- app_assoc. simpl.
  unfold by_noise at 2. rewrite nth_error_app2, Long, Nat.sub_diag by lia. reflexivity.
Qed.

(* The noise of a place must draw the target's law there. Then the text has the target's law, even if the drafter has
   seen all the noise, that of later places included. *)
Theorem coupled_exact : forall at_place pick (propose : list noise -> nat -> text -> text) L, is_model V p ->
  (forall t, same_law (z <- at_place (List.length t);; ret (pick z (p t))) (choose V (p t))) -> forall s,
  prob (zs <- draws at_place L 0;; ret (coupled_decode (by_noise pick zs) (propose zs) L L [])) s == target_law V p L s.
Proof.
  intros at_place pick propose L Hp Draws s. etransitivity; [| now apply joint_law_is_the_product].
  unfold prob. rewrite mean_bind. setoid_rewrite mean_ret.
  etransitivity; [| now apply (plain_law at_place pick Draws L [] [])].
  apply mean_ext. intros zs _. now rewrite coupled_is_plain.
Qed.

End Coupled.
