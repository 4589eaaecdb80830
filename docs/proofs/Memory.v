(* Steps that remember. What is drafted may depend on all that was there before, not on the text alone: how many drafts
   are tried goes by how many were accepted (`adaptive.Adaptive`), a trained drafter by what it has cached. A memory may be
   anything, and learn anything of a step that is over. *)

From Speculation Require Export Decode PointMass.

Section Memory.
Variables (V : nat) (memory : Type).

(* [memory] *)
(* `step_law`, which afterwards learns what was drafted and what was emitted; all that drafts goes by the memory. *)
Definition learning_step (r : rule) (p : model) (q : memory -> drafter) (more : memory -> text -> policy)
    (gamma : memory -> text -> nat) (learn : memory -> text -> text -> memory) (m : memory) (t : text)
    : dist (text * memory) :=
  guesses <- chain V (q m t) (more m t) (gamma m t) t;;
  emitted <- r (verdicts p t (map fst guesses)) (map snd guesses) (map fst guesses);;
  ret (emitted, learn m (map fst guesses) emitted).

(* The same for a draft that was found. *)
Definition learning_search (p : model) (propose : memory -> text -> dist text)
    (learn : memory -> text -> text -> memory) (m : memory) (t : text) : dist (text * memory) :=
  tokens <- propose m t;;
  emitted <- point_mass V (verdicts p t tokens) tokens;;
  ret (emitted, learn m tokens emitted).

(* `decode`, by steps that hand on a memory. *)
Fixpoint decode_on (step : memory -> text -> dist (text * memory)) (steps length : nat) (m : memory) (t : text)
    : dist text :=
  match steps with
  | S fewer =>
      if (length <=? List.length t)%nat then ret t
      else o <- step m t;; decode_on step fewer length (snd o) (firstn length (t ++ fst o))
  | O => ret t
  end.

(* What a step emits, whatever it learns. *)
Definition emitted_by (step : memory -> text -> dist (text * memory)) (m : memory) (t : text) : dist text :=
  o <- step m t;; ret (fst o).
(* [/memory] *)

(* By induction, what follows has the same law behind a text whatever was learned; so the memory does not matter. *)
Theorem learning_steps_add_up : forall p step,
  (forall m, exact V p (emitted_by step m)) -> (forall m, emits (emitted_by step m)) -> forall steps length m t,
  (List.length t <= length <= steps + List.length t)%nat ->
  same_law (decode_on step steps length m t) (continue V p length t).
Proof.
  intros p step Exact Emits. induction steps as [| steps IH]; intros length m t Bound f.
  - rewrite continue_whole by lia. simpl in *. replace (length - List.length t)%nat with 0%nat by lia. reflexivity.
  - simpl. destruct (Nat.leb_spec length (List.length t)) as [Done | Short].
    + rewrite continue_whole by lia. replace (length - List.length t)%nat with 0%nat by lia. reflexivity.
    + rewrite <- (Exact m t length f). unfold emitted_by. rewrite !mean_bind.
      apply mean_ext. intros [e learned] In. rewrite mean_ret, <- continue_cut. apply IH. simpl.
      rewrite firstn_length, app_length. destruct e; [| simpl; lia]. exfalso. apply (Emits m t), in_bind.
      exists ([], learned). simpl. auto.
Qed.

(* A step that learns emits what the same step does that learns nothing. *)
Lemma learning_step_exact : forall r p q more gamma learn m,
  exact V p (step_law V r p (q m) (more m) (gamma m)) ->
  exact V p (emitted_by (learning_step r p q more gamma learn) m).
Proof.
  intros r p q more gamma learn m Exact t length f. rewrite <- (Exact t length f).
  unfold emitted_by, learning_step, step_law. rewrite !mean_bind. apply mean_ext. intros guesses _.
  rewrite !mean_bind. apply mean_ext. intros e _. now rewrite !mean_ret.
Qed.

Lemma learning_search_exact : forall p propose learn m,
  exact V p (point_mass_step V p (propose m)) -> exact V p (emitted_by (learning_search p propose learn) m).
Proof.
  intros p propose learn m Exact t length f. rewrite <- (Exact t length f).
  unfold emitted_by, learning_search, point_mass_step. rewrite !mean_bind. apply mean_ext. intros tokens _.
  rewrite !mean_bind. apply mean_ext. intros e _. now rewrite !mean_ret.
Qed.

Lemma learning_step_emits : forall r p q more gamma learn m,
  emits (step_law V r p (q m) (more m) (gamma m)) -> emits (emitted_by (learning_step r p q more gamma learn) m).
Proof.
  intros r p q more gamma learn m Emits t H. apply (Emits t).
  apply in_bind in H as (o & H & [E | []]). apply in_bind in H as (guesses & Drafted & H).
  apply in_bind in H as (e & Emitted & [<- | []]). simpl in E. subst e. apply in_bind. eauto.
Qed.

Lemma learning_search_emits : forall p propose learn m,
  emits (point_mass_step V p (propose m)) -> emits (emitted_by (learning_search p propose learn) m).
Proof.
  intros p propose learn m Emits t H. apply (Emits t).
  apply in_bind in H as (o & H & [E | []]). apply in_bind in H as (tokens & Found & H).
  apply in_bind in H as (e & Emitted & [<- | []]). simpl in E. subst e. apply in_bind. eauto.
Qed.

End Memory.
