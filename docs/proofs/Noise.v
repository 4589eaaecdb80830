(* Noise that is shared, wrongly: each draw is right on its own, and the token has another law (`noise_sharing.py`). *)

From Speculation Require Export Wrong.

Section Noise.
Variable V : nat.

(* [noise] *)
(* A draw by the cumulative sum of the weights: the first token at which it exceeds its share z. *)
Fixpoint first_above (xs : list token) (w : weights) (z : Q) : token :=
  match xs with
  | x :: others => if Qle_bool (w x) z then first_above others w (z - w x) else x
  | [] => 0%nat
  end.
Definition inverse (z : Q) (w : weights) : token := first_above (vocabulary V) w (z * sum (vocabulary V) w).

Definition smaller (z threshold : Q) : bool := negb (Qle_bool threshold z).

(* Numbers 0, 1/n, ..., 1 - 1/n. *)
Definition grid (n : nat) : dist Q :=
  map (fun k => (Z.of_nat k # Pos.of_nat n, 1 # Pos.of_nat n)) (seq 0 n).

(* One token by three numbers: with the first it is drafted, with the second judged, with the third replaced. *)
Definition by_three (p q : weights) (numbers : Q * Q * Q) : token :=
  let '(drafting, judging, replacing) := numbers in
  let x := inverse drafting q in
  if smaller judging (p x / q x) then x else inverse replacing (residual V p q).

Definition apart (noise : dist Q) := z <- noise;; u <- noise;; y <- noise;; ret (z, u, y).
Definition in_the_verdict (noise : dist Q) := z <- noise;; y <- noise;; ret (z, z, y).       (* wrong *)
Definition in_the_replacement (noise : dist Q) := z <- noise;; u <- noise;; ret (z, u, z).   (* wrong *)

(* The noise is fine enough for these laws: each of the three draws, on its own, is what it should be. *)
Definition fits (noise : dist Q) (p q : weights) : Prop :=
  same_law (z <- noise;; ret (inverse z q)) (choose V q) /\
  (forall x, (x < V)%nat -> same_law (z <- noise;; ret (smaller z (p x / q x))) (below (p x / q x))) /\
  same_law (z <- noise;; ret (inverse z (residual V p q))) (choose V (residual V p q)).
(* [/noise] *)

Theorem noise_apart_exact : forall noise p q, is_law V p -> is_law V q -> fits noise p q ->
  same_law (numbers <- apart noise;; ret (by_three p q numbers)) (choose V p).
Proof.
  intros noise p q Hp Hq (Drafts & Judges & Replaces) g.
  etransitivity; [| apply (one_token_mean V p q Hp Hq)].
  assert (mean noise (fun _ => 1) == 1) as Mass.
  { rewrite <- (choose_mass V q Hq). etransitivity; [| apply Drafts]. rewrite mean_bind.
    apply mean_ext. intros z _. now rewrite mean_ret. }
  pose (worth x := mean (accepted <- below (p x / q x);;
                         if accepted : bool then ret x else choose V (residual V p q)) g).
  transitivity (mean (choose V q) worth); [| symmetry; apply mean_bind].
  pose (worth' x := mean noise (fun u => mean noise (fun y =>
          g (if smaller u (p x / q x) then x else inverse y (residual V p q))))).
  transitivity (mean (choose V q) worth').
  - etransitivity; [| apply Drafts]. unfold apart. rewrite !mean_bind. apply mean_ext. intros z _.
    rewrite mean_bind, mean_ret. apply mean_ext. intros u _. rewrite mean_bind. apply mean_ext. intros y _.
    now rewrite !mean_ret.
  - apply mean_ext. intros x Lt. apply in_choose in Lt. unfold worth, worth'. rewrite mean_bind.
    etransitivity; [| apply (Judges x Lt)]. rewrite mean_bind. apply mean_ext. intros u _. rewrite mean_ret.
    destruct (smaller u (p x / q x)).
    + rewrite mean_const, Mass, mean_ret. ring.
    + etransitivity; [| apply Replaces]. rewrite mean_bind. apply mean_ext. intros y _. now rewrite mean_ret.
Qed.

End Noise.

Ltac computed := let f := fresh in intros f; match goal with
  |- mean ?d f == mean ?e f =>
      let d' := eval vm_compute in d in let e' := eval vm_compute in e in change (mean d' f == mean e' f)
  end; cbv [mean]; ring.

(* p = (1/4, 3/4), q = (1/2, 1/2) and four numbers: every draft passes. *)
Theorem noise_in_the_verdict_is_biased : ~ forall V noise p q, is_law V p -> is_law V q -> fits V noise p q ->
  same_law (numbers <- in_the_verdict noise;; ret (by_three V p q numbers)) (choose V p).
Proof.
  intros Claim. specialize (Claim 2%nat (grid 4) (pair (1 # 4) (3 # 4) []) (pair (1 # 2) (1 # 2) [])).
  assert (fits 2 (grid 4) (pair (1 # 4) (3 # 4) []) (pair (1 # 2) (1 # 2) [])) as Fits.
  { split; [| split]; [computed | | computed]. intros [| [|]] Lt; [computed | computed | lia]. }
  specialize (Claim ltac:(apply pair_model; lra) ltac:(apply pair_model; lra) Fits (fun x => if Nat.eqb x 0 then 1 else 0)).
  vm_compute in Claim. discriminate Claim.
Qed.

(* p = (0, 1/2, 1/2), q = (1/2, 1/4, 1/4): the numbers that drafted token 0 all replace it by token 1. *)
Theorem noise_in_the_replacement_is_biased : ~ forall V noise p q, is_law V p -> is_law V q -> fits V noise p q ->
  same_law (numbers <- in_the_replacement noise;; ret (by_three V p q numbers)) (choose V p).
Proof.
  intros Claim. specialize (Claim 3%nat (grid 4) (triple 0 (1 # 2) (1 # 2) []) (triple (1 # 2) (1 # 4) (1 # 4) [])).
  assert (fits 3 (grid 4) (triple 0 (1 # 2) (1 # 2) []) (triple (1 # 2) (1 # 4) (1 # 4) [])) as Fits.
  { split; [| split]; [computed | | computed]. intros [| [| [|]]] Lt; [computed | computed | computed | lia]. }
  specialize (Claim ltac:(apply triple_model; lra) ltac:(apply triple_model; lra) Fits
    (fun x => if Nat.eqb x 1 then 1 else 0)).
  vm_compute in Claim. discriminate Claim.
Qed.
