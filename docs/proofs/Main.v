(* What is proved, in one place: the theorems on whole texts, then the statement of each and what it rests on. *)

From Speculation Require Import Decode Memory PointMass Block Coupled MultiDraft Tree Traversal Wrong Noise.

(* [stopping] *)
(* The same where `more` decides behind each draft token, from what was drafted so far, whether to draft another, and
   where the most drafts a step may have depends on the text. *)
Theorem any_stopping_time_exact : forall V p q more gamma L, is_model V p -> is_drafter V q -> forall s,
  prob (output_law (step_law V (token_wise V) p q more gamma) L) s == target_law V p L s.
(* [/stopping] *)
Proof.
  intros. etransitivity; [| now apply joint_law_is_the_product]. apply same_law_prob.
  apply steps_add_up; [now apply token_wise_step_exact | apply token_wise_step_emits].
Qed.

(* [main] *)
(* Decoding by speculative steps of gamma drafts has the target's joint law: every text s of every length L comes with
   probability p(s_1) p(s_2 | s_1) ..., whatever the draft's law q is, and for a vocabulary of any size V. The law q of a
   drafted token may depend on the tokens before it and on where the step began. *)
Theorem speculative_decoding_exact : forall V p q gamma L, is_model V p -> is_drafter V q -> forall s,
  prob (output_law (step_law V (token_wise V) p q always (fun _ => gamma)) L) s == target_law V p L s.
(* [/main] *)
Proof. intros. now apply any_stopping_time_exact. Qed.

(* [found] *)
(* The point-mass rule: the draft may be found by any search. *)
Theorem point_mass_exact : forall V p propose L, is_model V p -> proposes V propose -> forall s,
  prob (output_law (point_mass_step V p propose) L) s == target_law V p L s.
(* [/found] *)
Proof.
  intros. etransitivity; [| now apply joint_law_is_the_product]. apply same_law_prob.
  apply steps_add_up; [now apply point_mass_step_exact | apply point_mass_step_emits].
Qed.

(* [block] *)
(* Block verification, with any stopping time as well. *)
Theorem block_exact : forall V p q more gamma L, is_model V p -> is_drafter V q -> forall s,
  prob (output_law (step_law V (block V) p q more gamma) L) s == target_law V p L s.
(* [/block] *)
Proof.
  intros. etransitivity; [| now apply joint_law_is_the_product]. apply same_law_prob.
  apply steps_add_up; [now apply block_step_exact | apply block_step_emits].
Qed.

(* [siblings] *)
(* Several candidates for a position. The law of a candidate, and whether there is one more, may depend on those before
   it: then with replacement, and without. *)
Theorem multi_draft_exact : forall V p q more gamma L, is_model V p -> is_drafter V q -> forall s,
  prob (output_law (siblings_step V p q more gamma) L) s == target_law V p L s.
(* [/siblings] *)
Proof.
  intros. etransitivity; [| now apply joint_law_is_the_product]. apply same_law_prob.
  apply steps_add_up; [now apply multi_draft_step_exact | apply multi_draft_step_emits].
Qed.

(* [replacement] *)
Theorem with_replacement_exact : forall V p q gamma L, is_model V p -> is_model V q -> forall s,
  prob (output_law (siblings_step V p (fun t => with_replacement (q t)) always (fun _ => gamma)) L) s
  == target_law V p L s.
(* [/replacement] *)
Proof. intros. apply multi_draft_exact; [assumption |]. intros t. now apply with_replacement_model. Qed.

(* [without] *)
(* Where fewer than gamma tokens have a probability under q, there are as many candidates as such tokens. *)
Theorem without_replacement_exact : forall V p q gamma L, is_model V p -> is_model V q -> forall s,
  prob (output_law (siblings_step V p (fun t => without_replacement V (q t)) (fun t => left_over V (q t))
                      (fun _ => gamma)) L) s == target_law V p L s.
(* [/without] *)
Proof. intros. apply multi_draft_exact; [assumption |]. intros t. now apply without_replacement_model. Qed.

(* [tree] *)
(* A tree of any shape. What is drafted next, where, how much of it and from which laws may depend on the text and on all
   that was drafted before. *)
Theorem tree_exact : forall V p how L, is_model V p -> (forall t, is_plan V [] (how t)) -> forall s,
  prob (output_law (tree_step V p how) L) s == target_law V p L s.
(* [/tree] *)
Proof.
  intros. etransitivity; [| now apply joint_law_is_the_product]. apply same_law_prob.
  apply steps_add_up; [now apply tree_step_exact | apply tree_step_emits].
Qed.

(* The usual trees, candidates drawn with replacement or without. *)
Theorem branching_exact : forall V p q width most L, is_model V p -> is_model V q -> forall s,
  prob (output_law (tree_step V p (fun t =>
    branching with_replacement (fun _ => always t) q width t most [[]] [])) L) s == target_law V p L s /\
  prob (output_law (tree_step V p (fun t =>
    branching (without_replacement V) (left_over V) q width t most [[]] [])) L) s == target_law V p L s.
Proof.
  intros. split; (apply tree_exact; [assumption |]); intros t; (apply branching_plan; [| assumption |]);
    try (intros node [<- | []]; now left).
  - now apply with_replacement_model.
  - now apply without_replacement_model.
Qed.

(* [traversal] *)
(* A tree judged from its leaves up. It is drafted branch by branch, each part by all that was drafted before. *)
Theorem traversal_exact : forall V p how L, is_model V p -> (forall t, is_growth V (how t)) -> forall s,
  prob (output_law (traversal_step V p how) L) s == target_law V p L s.
(* [/traversal] *)
Proof.
  intros. etransitivity; [| now apply joint_law_is_the_product]. apply same_law_prob.
  apply steps_add_up; [now apply traversal_step_exact | apply traversal_step_emits].
Qed.

(* Steps that remember: m is the memory to begin with. *)
Lemma remembering : forall V p memory step (m : memory) L, is_model V p ->
  (forall m, exact V p (emitted_by memory step m)) -> (forall m, emits (emitted_by memory step m)) ->
  forall s, prob (decode_on memory step L L m []) s == target_law V p L s.
Proof.
  intros. etransitivity; [| now apply joint_law_is_the_product]. apply same_law_prob. intros f.
  etransitivity; [apply learning_steps_add_up with (V := V) (p := p); auto; simpl; lia |].
  unfold continue. simpl. now rewrite firstn_nil, Nat.sub_0_r.
Qed.

(* [adaptive] *)
(* The same where the drafter's laws, `more` and `gamma` depend on all that became of earlier drafts, too: m is the
   memory to begin with. *)
Theorem remembering_exact : forall V p memory (q : memory -> drafter) more gamma learn m L,
  is_model V p -> (forall m, is_drafter V (q m)) -> forall s,
  prob (decode_on memory (learning_step V memory (token_wise V) p q more gamma learn) L L m []) s
  == target_law V p L s.
(* [/adaptive] *)
Proof.
  intros. apply remembering; intros; auto.
  - apply learning_exact. now apply token_wise_step_exact.
  - apply learning_emits, token_wise_step_emits.
Qed.

(* The same for block verification, and for a search that remembers. *)
Theorem block_remembering_exact : forall V p memory (q : memory -> drafter) more gamma learn m L,
  is_model V p -> (forall m, is_drafter V (q m)) -> forall s,
  prob (decode_on memory (learning_step V memory (block V) p q more gamma learn) L L m []) s
  == target_law V p L s.
Proof.
  intros. apply remembering; intros; auto.
  - apply learning_exact. now apply block_step_exact.
  - apply learning_emits, block_step_emits.
Qed.

Theorem point_mass_remembering_exact : forall V p memory (propose : memory -> text -> dist text) learn m L,
  is_model V p -> (forall m, proposes V (propose m)) -> forall s,
  prob (decode_on memory (learning_search V memory p propose learn) L L m []) s == target_law V p L s.
Proof.
  intros. apply remembering; intros; auto.
  - apply learning_exact. now apply point_mass_step_exact.
  - apply learning_emits, point_mass_step_emits.
Qed.

Theorem multi_draft_remembering_exact : forall V p memory (q : memory -> drafter) more gamma learn m L,
  is_model V p -> (forall m, is_drafter V (q m)) -> forall s,
  prob (decode_on memory (learning memory (fun m t => chain V (q m t) (more m t) (gamma m t) [])
                                          (judge_siblings V p) learn) L L m []) s == target_law V p L s.
Proof.
  intros V p memory q more gamma learn m L Hp Hq. apply remembering; [assumption | |]; intros m'.
  - apply learning_exact, (multi_draft_step_exact V p (q m') (more m') (gamma m')); auto.
  - apply learning_emits, (multi_draft_step_emits V p (q m') (more m') (gamma m')).
Qed.

Theorem tree_remembering_exact : forall V p memory (how : memory -> text -> plan) learn m L,
  is_model V p -> (forall m t, is_plan V [] (how m t)) -> forall s,
  prob (decode_on memory (learning memory (fun m t => grow V (how m t)) (judge_tree V p) learn) L L m []) s
  == target_law V p L s.
Proof.
  intros V p memory how learn m L Hp Hq. apply remembering; [assumption | |]; intros m'.
  - apply learning_exact, (tree_step_exact V p (how m')); auto.
  - apply learning_emits, (tree_step_emits V p (how m')).
Qed.

Theorem traversal_remembering_exact : forall V p memory (how : memory -> text -> growth) learn m L,
  is_model V p -> (forall m t, is_growth V (how m t)) -> forall s,
  prob (decode_on memory (learning memory (fun m t => sprout V (how m t)) (judge_traversal V p) learn) L L m []) s
  == target_law V p L s.
Proof.
  intros V p memory how learn m L Hp Hq. apply remembering; [assumption | |]; intros m'.
  - apply learning_exact, (traversal_step_exact V p (how m')); auto.
  - apply learning_emits, (traversal_step_emits V p (how m')).
Qed.

Check token_wise_token_exact. Print Assumptions token_wise_token_exact.
Check token_wise_step_exact. Print Assumptions token_wise_step_exact.
Check steps_add_up. Print Assumptions steps_add_up.
Check joint_law_is_the_product. Print Assumptions joint_law_is_the_product.
Check point_mass_token_exact. Print Assumptions point_mass_token_exact.
Check point_mass_step_exact. Print Assumptions point_mass_step_exact.
Check learning_steps_add_up. Print Assumptions learning_steps_add_up.
Check block_step_exact. Print Assumptions block_step_exact.
Check coupled_is_plain. Print Assumptions coupled_is_plain.
Check coupled_exact. Print Assumptions coupled_exact.
Check multi_draft_step_exact. Print Assumptions multi_draft_step_exact.
Check tree_step_exact. Print Assumptions tree_step_exact.
Check no_residual_is_biased. Print Assumptions no_residual_is_biased.
Check dropping_is_biased. Print Assumptions dropping_is_biased.
Check original_q_is_biased. Print Assumptions original_q_is_biased.
Check marginals_are_biased. Print Assumptions marginals_are_biased.
Check any_stopping_time_exact. Print Assumptions any_stopping_time_exact.
Check speculative_decoding_exact. Print Assumptions speculative_decoding_exact.
Check point_mass_exact. Print Assumptions point_mass_exact.
Check block_exact. Print Assumptions block_exact.
Check multi_draft_exact. Print Assumptions multi_draft_exact.
Check with_replacement_exact. Print Assumptions with_replacement_exact.
Check without_replacement_exact. Print Assumptions without_replacement_exact.
Check tree_exact. Print Assumptions tree_exact.
Check branching_exact. Print Assumptions branching_exact.
Check remembering_exact. Print Assumptions remembering_exact.
Check block_remembering_exact. Print Assumptions block_remembering_exact.
Check point_mass_remembering_exact. Print Assumptions point_mass_remembering_exact.
Check multi_draft_remembering_exact. Print Assumptions multi_draft_remembering_exact.
Check tree_remembering_exact. Print Assumptions tree_remembering_exact.
Check noise_apart_exact. Print Assumptions noise_apart_exact.
Check noise_in_the_verdict_is_biased. Print Assumptions noise_in_the_verdict_is_biased.
Check noise_in_the_replacement_is_biased. Print Assumptions noise_in_the_replacement_is_biased.
Check traversal_step_exact. Print Assumptions traversal_step_exact.
Check traversal_exact. Print Assumptions traversal_exact.
Check traversal_remembering_exact. Print Assumptions traversal_remembering_exact.
