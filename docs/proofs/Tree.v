(* A tree of drafts, several candidates at every node (`rules.tree`; SpecInfer 2305.09781): from the root down, as long as
   a candidate is accepted. The tree may have any shape, and it may depend on the text and on what was drafted before. *)

From Speculation Require Export MultiDraft.

Section Tree.
Variable V : nat.

(* [tree] *)
(* A node is named by the tokens from the root to it, [] is the root. `nodes` has the candidates at each node, every one
   with the law it was drawn from, in the order of drafting. *)
Definition candidates := list (token * weights).

Fixpoint at_node (nodes : list (text * candidates)) (path : text) : candidates :=
  match nodes with
  | (node, guesses) :: others => if same_text node path then guesses else at_node others path
  | [] => []  (* a leaf *)
  end.

(* target path is the law behind a node. No walk is longer than the number of nodes that have candidates: `most`. *)
Fixpoint walk (target : text -> weights) (nodes : list (text * candidates)) (most : nat) (path : text) : dist text :=
  match most with
  | S fewer =>
      let tokens := map fst (at_node nodes path) in
      o <- try_all V (target path) (map snd (at_node nodes path)) tokens;;
      match fst o with
      | Some j => walk target nodes fewer (path ++ [nth j tokens 0%nat])
      | None => x <- choose V (snd o);; ret (path ++ [x])
      end
  | O => x <- choose V (target path);; ret (path ++ [x])
  end.

Definition tree (target : text -> weights) (nodes : list (text * candidates)) : dist text :=
  walk target nodes (List.length nodes) [].
(* [/tree] *)

(* [plan] *)
(* How a tree is drafted: which node gets candidates next, and how many drawn from which laws, by all that was drafted
   before, in this branch or another; then how it goes on. *)
Inductive plan :=
  | Done
  | Expand (node : text) (q : model) (more : policy) (gamma : nat) (next : candidates -> plan).

Fixpoint grow (how : plan) : dist (list (text * candidates)) :=
  match how with
  | Done => ret []
  | Expand node q more gamma next =>
      guesses <- chain V q more gamma [];;
      others <- grow (next guesses);;
      ret ((node, guesses) :: others)
  end.

(* Tokens are drawn from laws; no node gets candidates twice, and none before the node above it. *)
Fixpoint is_plan (expanded : list text) (how : plan) : Prop :=
  match how with
  | Done => True
  | Expand node q _ _ next =>
      is_model V q /\ ~ In node expanded /\ (node = [] \/ In (removelast node) expanded) /\
      forall guesses, is_plan (node :: expanded) (next guesses)
  end.

Definition judge_tree (p : model) (t : text) (nodes : list (text * candidates)) : dist text :=
  tree (fun path => p (t ++ path)) nodes.

Definition tree_step (p : model) (how : text -> plan) (t : text) : dist text :=
  nodes <- grow (how t);;
  judge_tree p t nodes.
(* [/plan] *)

Lemma grow_mass : forall how expanded, is_plan expanded how -> mean (grow how) (fun _ => 1) == 1.
Proof.
  induction how as [| node q more gamma next IH]; simpl; intros expanded H; [ring |].
  destruct H as (Hq & _ & _ & Next). rewrite mean_bind, <- (chain_mass V q Hq gamma more []).
  apply mean_ext. intros guesses _. rewrite mean_bind. setoid_rewrite mean_ret. now apply (IH _ (node :: expanded)).
Qed.

Lemma mean_swap : forall A B (d : dist A) (e : dist B) f,
  mean d (fun a => mean e (fun b => f a b)) == mean e (fun b => mean d (fun a => f a b)).
Proof.
  induction d as [| [a w] d IH]; simpl; intros e f.
  - rewrite mean_const. ring.
  - rewrite IH. clear IH. induction e as [| [b v] e IH]; simpl; [ring |]. rewrite <- IH. ring.
Qed.

Lemma at_node_new : forall before nodes path, ~ In path (map fst before) ->
  at_node (before ++ nodes) path = at_node nodes path.
Proof.
  induction before as [| [node guesses] before IH]; simpl; intros nodes path New; [reflexivity |].
  destruct (same_text node path) eqn:Same; [apply same_text_eq in Same; tauto | apply IH; tauto].
Qed.

Lemma leaf : forall target nodes most path f, at_node nodes path = [] ->
  mean (walk target nodes most path) f == mean (choose V (target path)) (fun x => f (path ++ [x])).
Proof.
  intros target nodes [| most] path f Leaf; simpl; [| rewrite Leaf; simpl; rewrite mean_bind, mean_ret; simpl];
    rewrite mean_bind; setoid_rewrite mean_ret; reflexivity.
Qed.

(* `before` was drafted, `how` is still to be. A walk has come to a node that has no candidates so far, nor has any below
   it. Whatever is drafted there, the node is worth what it is worth to the target. *)
Lemma walk_fair : forall p value t, is_model V p -> fair V p value -> forall how expanded before path more,
  is_plan expanded how -> (forall node, In node (map fst before) -> In node expanded) ->
  (forall s, ~ In (path ++ s) expanded) ->
  mean (grow how) (fun nodes => mean (walk (fun path => p (t ++ path)) (before ++ nodes) (List.length nodes + more) path)
                                     (fun e => value (t ++ e))) == value (t ++ path).
Proof.
  intros p value t Hp Fair.
  induction how as [| node q policy gamma next IH]; intros expanded before path more Plan Before New;
    assert (~ In path (map fst before)) as New' by (intros In; apply Before in In; rewrite <- (app_nil_r path) in In;
      now apply New in In).
  - simpl grow. rewrite mean_ret, leaf by now rewrite at_node_new.
    rewrite <- (Fair (t ++ path)). apply mean_ext. intros. now rewrite app_assoc.
  - destruct Plan as (Hq & Once & Above & Next). simpl grow. rewrite mean_bind.
    assert (forall guesses, forall n, In n (map fst (before ++ [(node, guesses)])) -> In n (node :: expanded)) as Before'.
    { intros guesses n In. rewrite map_app in In. apply in_app_or in In as [In | [<- | []]]; simpl; auto. }
    assert (forall path' guesses more, (forall s, ~ In (path' ++ s) (node :: expanded)) ->
      mean (grow (next guesses)) (fun nodes =>
        mean (walk (fun path => p (t ++ path)) (before ++ (node, guesses) :: nodes) (List.length nodes + more) path')
             (fun e => value (t ++ e))) == value (t ++ path')) as Later.
    { intros path' guesses more' New''.
      etransitivity; [| apply (IH guesses (node :: expanded) (before ++ [(node, guesses)]) path' more');
        [apply Next | apply Before' | assumption]].
      apply mean_ext. intros nodes _. now rewrite <- app_assoc. }
    clear IH. destruct (list_eq_dec Nat.eq_dec node path) as [-> | Other].
    + rewrite <- (Fair (t ++ path)), <- (try_all_fair V q (fun x => value ((t ++ path) ++ [x])) Hq gamma policy [])
        by apply Hp.
      apply mean_ext. intros guesses _. rewrite mean_bind. setoid_rewrite mean_ret. simpl.
      transitivity (mean (grow (next guesses)) (fun nodes =>
        mean (try_all V (p (t ++ path)) (map snd guesses) (map fst guesses)) (fun o =>
          mean (match fst o with
                | Some j => walk (fun path => p (t ++ path)) (before ++ (path, guesses) :: nodes)
                              (List.length nodes + more) (path ++ [nth j (map fst guesses) 0%nat])
                | None => x <- choose V (snd o);; ret (path ++ [x])
                end) (fun e => value (t ++ e))))).
      { apply mean_ext. intros nodes _. rewrite mean_bind, at_node_new by assumption. simpl.
        rewrite (proj2 (same_text_eq path path) eq_refl). reflexivity. }
      rewrite mean_swap. apply mean_ext. intros [[j |] rest] _; unfold won; simpl.
      * rewrite Later; [now rewrite app_assoc |]. intros s [E | In].
        -- apply (f_equal (@List.length token)) in E. rewrite !app_length in E. simpl in E. lia.
        -- rewrite <- app_assoc in In. now apply New in In.
      * rewrite mean_const, (grow_mass _ (path :: expanded)) by apply Next. rewrite mean_bind, Qmult_1_l.
        apply mean_ext. intros x _. now rewrite mean_ret, app_assoc.
    + rewrite <- (Qmult_1_l (value _)), <- (chain_mass V q Hq gamma policy []), <- mean_const.
      apply mean_ext. intros guesses _. rewrite mean_bind. setoid_rewrite mean_ret.
      rewrite <- (Later path guesses (S more)).
      * apply mean_ext. intros nodes _. simpl. now rewrite Nat.add_succ_r.
      * intros s [E | In]; [| now apply New in In]. destruct Above as [-> | Above].
        -- symmetry in E. now apply app_eq_nil in E as [-> _].
        -- destruct s as [| x s] using rev_ind; [rewrite app_nil_r in E; auto |].
           rewrite E, app_assoc, removelast_last in Above. now apply New in Above.
Qed.

Theorem tree_step_exact : forall p how, is_model V p -> (forall t, is_plan [] (how t)) -> exact V p (tree_step p how).
Proof.
  intros p how Hp Plan. apply fair_exact; [assumption |]. intros value t Fair. unfold tree_step, judge_tree, tree.
  rewrite mean_bind. transitivity (value (t ++ [])); [| now rewrite app_nil_r].
  etransitivity; [| apply (walk_fair p value t Hp Fair (how t) [] [] [] 0); auto; apply Plan].
  apply mean_ext. intros nodes _. simpl. now rewrite Nat.add_0_r.
Qed.

Lemma walk_emits : forall target nodes most path, ~ In [] (map fst (walk target nodes most path)).
Proof.
  assert (forall w path, ~ In [] (map fst (x <- choose V w;; ret (path ++ [x])))) as Last.
  { intros w path H. apply in_bind in H as (x & _ & [E | []]). now apply app_eq_nil in E as [_ E]. }
  induction most as [| most IH]; simpl; intros path H; [now apply Last in H |].
  apply in_bind in H as ([[j |] rest] & _ & H); [now apply IH in H | now apply Last in H].
Qed.

Lemma tree_step_emits : forall p how, emits (tree_step p how).
Proof. intros p how t H. apply in_bind in H as (nodes & _ & H). now apply walk_emits in H. Qed.

(* [branching] *)
(* The usual tree, level by level: `width` says how many candidates a node may have, by the node. q gives the law behind a
   text, `draw` makes of it the laws of candidates (`with_replacement`, `without_replacement V`). *)
Fixpoint branching (draw : weights -> model) (more : weights -> policy) (q : model) (width : text -> nat) (t : text)
    (most : nat) (waiting expanded : list text) : plan :=
  match most, waiting with
  | S fewer, node :: others =>
      if existsb (same_text node) expanded then branching draw more q width t fewer others expanded
      else Expand node (draw (q (t ++ node))) (more (q (t ++ node))) (width node) (fun guesses =>
        branching draw more q width t fewer
          (others ++ map (fun x => node ++ [x]) (map fst guesses)) (node :: expanded))
  | _, _ => Done
  end.
(* [/branching] *)

Lemma branching_plan : forall draw more q width t, (forall w, is_law V w -> is_model V (draw w)) -> is_model V q ->
  forall most waiting expanded, (forall node, In node waiting -> node = [] \/ In (removelast node) expanded) ->
  is_plan expanded (branching draw more q width t most waiting expanded).
Proof.
  intros draw more q width t Draw Hq. induction most as [| most IH]; intros waiting expanded Above; simpl; [easy |].
  destruct waiting as [| node others]; simpl; [easy |].
  destruct (existsb (same_text node) expanded) eqn:Known.
  - apply IH. intros. apply Above. now right.
  - simpl. repeat split.
    + now apply Draw.
    + now apply Draw.
    + intros In. rewrite <- not_true_iff_false, existsb_exists in Known. apply Known. exists node.
      now rewrite same_text_eq.
    + apply Above. now left.
    + intros guesses. apply IH. intros n In. apply in_app_or in In as [In | In].
      * destruct (Above n) as [-> | In']; [now right | now left | right; now right].
      * apply in_map_iff in In as (x & <- & _). right. left. symmetry. apply removelast_last.
Qed.

End Tree.
