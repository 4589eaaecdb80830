(* Steps that remember. What is drafted may depend on all that was there before, not on the text alone: how many drafts
   are tried goes by how many were accepted (`choice.Choice`), a trained drafter by what it has cached. A memory may be
   anything, and learn anything of a step that is over. *)

From Speculation Require Export Decode PointMass.

Section Memory.
Variables (V : nat) (memory : Type).

(* [memory] *)
(* A step drafts and judges, and afterwards learns what was drafted and what was emitted. All that drafts goes by the
   memory. *)
Definition learning {drafts} (draft : memory -> text -> dist drafts) (judge : text -> drafts -> dist text)
    (learn : memory -> drafts -> text -> memory) (m : memory) (t : text) : dist (text * memory) :=
  guesses <- draft m t;;
  emitted <- judge t guesses;;
  ret (emitted, learn m guesses emitted).

(* So does `step_law` by any rule. *)
Definition learning_step (r : rule) (p : model) (q : memory -> drafter) (more : memory -> text -> policy)
    (gamma : memory -> text -> nat) (learn : memory -> text -> text -> memory) :=
  learning (fun m t => chain V (q m t) (more m t) (gamma m t) t)
           (fun t guesses => r (verdicts p t (map fst guesses)) (map snd guesses) (map fst guesses))
           (fun m guesses => learn m (map fst guesses)).

(* The same for a draft that was found. *)
Definition learning_search (p : model) (propose : memory -> text -> dist text)
    (learn : memory -> text -> text -> memory) :=
  learning propose (fun t tokens => point_mass V (verdicts p t tokens) tokens) learn.

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
Lemma learning_exact : forall p drafts (draft : memory -> text -> dist drafts) judge learn m,
  exact V p (fun t => guesses <- draft m t;; judge t guesses) -> exact V p (emitted_by (learning draft judge learn) m).
Proof.
  intros p drafts draft judge learn m Exact t length f. rewrite <- (Exact t length f). unfold emitted_by, learning.
  rewrite !mean_bind. apply mean_ext. intros guesses _. rewrite !mean_bind. apply mean_ext. intros e _.
  now rewrite !mean_ret.
Qed.

Lemma learning_emits : forall drafts (draft : memory -> text -> dist drafts) judge learn m,
  emits (fun t => guesses <- draft m t;; judge t guesses) -> emits (emitted_by (learning draft judge learn) m).
Proof.
  intros drafts draft judge learn m Emits t H. apply (Emits t).
  apply in_bind in H as (o & H & [E | []]). apply in_bind in H as (guesses & Drafted & H).
  apply in_bind in H as (e & Emitted & [<- | []]). simpl in E. subst e. apply in_bind. eauto.
Qed.

End Memory.
