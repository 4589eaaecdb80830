(* Steps that remember: how long a draft may get may depend on what became of the drafts before, not on the text alone
   (`length.Adaptive`). A memory may be anything, and learn anything of a step that is over. *)

From Speculation Require Export Decode.

Section Memory.
Variables (V : nat) (memory : Type).

(* [memory] *)
(* `step_law`, which afterwards learns what was drafted and what was emitted. *)
Definition learning_step (r : rule) (p q : model) (more : memory -> text -> policy) (gamma : memory -> text -> nat)
    (learn : memory -> text -> text -> memory) (m : memory) (t : text) : dist (text * memory) :=
  guesses <- chain V q (more m t) (gamma m t) t;;
  emitted <- r (verdicts p t (map fst guesses)) (map snd guesses) (map fst guesses);;
  ret (emitted, learn m (map fst guesses) emitted).

(* `decode`, by steps that hand on a memory. *)
Fixpoint decode_on (step : memory -> text -> dist (text * memory)) (steps length : nat) (m : memory) (t : text)
    : dist text :=
  match steps with
  | S fewer =>
      if (length <=? List.length t)%nat then ret t
      else o <- step m t;; decode_on step fewer length (snd o) (firstn length (t ++ fst o))
  | O => ret t
  end.
(* [/memory] *)

(* By induction, what follows has the same law behind a text whatever was learned; so the memory does not matter. *)
Theorem learning_steps_add_up : forall r p q more gamma learn,
  (forall m, exact V p (step_law V r p q (more m) (gamma m))) ->
  (forall m, emits (step_law V r p q (more m) (gamma m))) -> forall steps length m t,
  (List.length t <= length <= steps + List.length t)%nat ->
  same_law (decode_on (learning_step r p q more gamma learn) steps length m t) (continue V p length t).
Proof.
  intros r p q more gamma learn Exact Emits. induction steps as [| steps IH]; intros length m t Bound f.
  - rewrite continue_whole by lia. simpl in *. replace (length - List.length t)%nat with 0%nat by lia. reflexivity.
  - simpl. destruct (Nat.leb_spec length (List.length t)) as [Done | Short].
    + rewrite continue_whole by lia. replace (length - List.length t)%nat with 0%nat by lia. reflexivity.
    + rewrite <- (Exact m t length f). unfold learning_step, step_law. rewrite !mean_bind.
      apply mean_ext. intros guesses Drafted. rewrite !mean_bind. apply mean_ext. intros e Emitted.
      rewrite mean_ret, <- continue_cut. simpl fst. apply IH. rewrite firstn_length, app_length.
      destruct e; [| simpl; lia]. exfalso. apply (Emits m t), in_bind. now exists guesses.
Qed.

End Memory.
