(* Traversal verification (`traversal.traversal`; Weng et al. 2505.12398): a tree is judged from its leaves up. It is
   `block` where a node may have several candidates, and `try_all` with w p in place of p. *)

From Speculation Require Export Block Tree.

Section Traversal.
Variable V : nat.

(* [traversal] *)
(* The candidates at a node: the first, with the law it was drawn from, what was drafted below it, and those beside it. *)
Inductive forest :=
  | Bare
  | Candidate (x : token) (q : weights) (under beside : forest).

(* What passes at a node or below it, None if nothing does. p is what is left of the target at the node, and w is the
   probability with which something should pass. *)
Fixpoint climb (target : text -> weights) (drafted : forest) (path : text) (p : weights) (w : Q) : dist (option text) :=
  match drafted with
  | Candidate x q under beside =>
      found <- climb target under (path ++ [x]) (target (path ++ [x])) (Qmin (w * p x / q x) 1);;
      match found with
      | Some emitted => ret (Some emitted)
      | None =>
          let owed := excess (fun y => w * p y) q in
          let S := sum (vocabulary V) owed in
          climb target beside path (normalised V (if any V owed then owed else p)) (S / (S + 1 - w))
      end
  | Bare => passed <- below w;; if passed : bool then y <- choose V p;; ret (Some (path ++ [y])) else ret None
  end.

(* The root has w = 1 and passes: None has probability 0. *)
Definition traversal (target : text -> weights) (drafted : forest) : dist text :=
  found <- climb target drafted [] (target []) 1;;
  match found with
  | Some emitted => ret emitted
  | None => y <- choose V (target []);; ret [y]
  end.

(* How a tree is drafted, branch by branch: what is drafted below a candidate, and then beside it, may depend on all that
   was drafted before. *)
Inductive growth :=
  | Stop
  | Sprout (q : weights) (under : token -> growth) (beside : token -> forest -> growth).

Fixpoint sprout (how : growth) : dist forest :=
  match how with
  | Stop => ret Bare
  | Sprout q under beside =>
      x <- choose V q;; below <- sprout (under x);; others <- sprout (beside x below);;
      ret (Candidate x q below others)
  end.

Fixpoint is_growth (how : growth) : Prop :=
  match how with
  | Stop => True
  | Sprout q under beside => is_law V q /\ (forall x, is_growth (under x)) /\ forall x f, is_growth (beside x f)
  end.

Definition judge_traversal (p : model) (t : text) (drafted : forest) : dist text :=
  traversal (fun path => p (t ++ path)) drafted.

Definition traversal_step (p : model) (how : text -> growth) (t : text) : dist text :=
  drafted <- sprout (how t);;
  judge_traversal p t drafted.
(* [/traversal] *)

Lemma sprout_mass : forall how, is_growth how -> mean (sprout how) (fun _ => 1) == 1.
Proof.
  induction how as [| q under IHu beside IHb]; simpl; intros H; [ring |]. destruct H as (Hq & Under & Beside).
  rewrite mean_bind, <- (choose_mass V q Hq). apply mean_ext. intros x _.
  rewrite mean_bind, <- (IHu x) by auto. apply mean_ext. intros f _.
  rewrite mean_bind. setoid_rewrite mean_ret. auto.
Qed.

(* What a candidate that failed leaves, with its mass for a factor. *)
Lemma left_of : forall r q p g, is_law V p -> (forall x, (x < V)%nat -> 0 <= r x) ->
  let owed := excess r q in
  is_law V (normalised V (if any V owed then owed else p)) /\
  sum (vocabulary V) owed * mean (choose V (normalised V (if any V owed then owed else p))) g ==
  sum (vocabulary V) (fun x => owed x * g x).
Proof.
  intros r q p g Hp Hr owed. assert (forall x, (x < V)%nat -> 0 <= owed x) as Nonneg by (intros; apply Q.le_max_r).
  destruct (any V owed) eqn:Any.
  - assert (is_law V (normalised V owed)) as Law by now apply normalised_law. split; [assumption |].
    rewrite mean_choose_law, sum_normalised, mean_choose by assumption. field. now apply any_true.
  - split; [apply normalised_law; [apply Hp | now apply law_any] |].
    assert (forall h, sum (vocabulary V) (fun x => owed x * h x) == 0) as Zero.
    { intros h. rewrite (sum_ext _ _ (fun _ => 0 * 0)), sum_scale; [ring |].
      intros x Hx. rewrite (any_false V) by (assumption || now apply in_vocabulary). ring. }
    rewrite Zero. setoid_replace (sum (vocabulary V) owed) with 0; [ring |].
    rewrite <- (Zero (fun _ => 1)). apply sum_ext. intros. ring.
Qed.

Lemma climb_fair : forall p value t, is_model V p -> fair V p value -> forall how path left w c,
  is_growth how -> is_law V left -> 0 <= w -> w <= 1 ->
  mean (sprout how) (fun drafted => mean (climb (fun path => p (t ++ path)) drafted path left w) (worth value t c))
  == w * mean (choose V left) (fun y => value (t ++ path ++ [y])) + (1 - w) * c.
Proof.
  intros p value t Hp Fair. induction how as [| q under IHu beside IHb]; intros path left w c Grows Left H0 H1.
  - simpl sprout. rewrite mean_ret. simpl climb. rewrite mean_bind, mean_below, mean_bind, Q.min_l by assumption.
    setoid_rewrite mean_ret. reflexivity.
  - destruct Grows as (Hq & Under & Beside). simpl sprout. rewrite mean_bind, mean_choose_law by assumption.
    set (wp := fun y => w * left y). set (S := sum (vocabulary V) (excess wp q)).
    set (rest := normalised V (if any V (excess wp q) then excess wp q else left)).
    set (G := fun y => value (t ++ path ++ [y])). set (m := mean (choose V rest) G).
    assert (forall y, (y < V)%nat -> 0 <= wp y) as Nonneg
      by (intros; apply Qmult_le_0_compat; [assumption | now apply Left]).
    destruct (left_of wp q left G Left Nonneg) as [Rest Owed]. fold rest in Rest, Owed. fold m S in Owed.
    assert (0 <= S) as HS by (apply sum_nonneg; intros; apply Q.le_max_r).
    assert (S / (S + 1 - w) <= 1) as H1'.
    { destruct (Qeq_dec (S + 1 - w) 0) as [Zero | NonZero].
      - unfold Qdiv. rewrite Zero. assert (S == 0) as -> by lra. discriminate.
      - apply Qle_shift_div_r; lra. }
    assert (0 <= S / (S + 1 - w)) as H0' by (apply quotient_nonneg; lra).
    set (h := S / (S + 1 - w)) in *. set (c' := h * m + (1 - h) * c).
    transitivity (sum (vocabulary V) (fun x => q x * (Qmin (wp x / q x) 1 * G x + (1 - Qmin (wp x / q x) 1) * c'))).
    + apply sum_ext. intros x Hx. apply in_vocabulary in Hx. apply Qmult_comp; [reflexivity |].
      assert (0 <= Qmin (wp x / q x) 1) as W0 by (apply Q.min_glb; [apply quotient_nonneg; [auto | now apply Hq] | lra]).
      unfold G. transitivity (Qmin (wp x / q x) 1 * mean (choose V (p (t ++ path ++ [x])))
          (fun y => value (t ++ (path ++ [x]) ++ [y])) + (1 - Qmin (wp x / q x) 1) * c').
      * rewrite <- (IHu x (path ++ [x]) (p (t ++ path ++ [x])) (Qmin (wp x / q x) 1) c') by
          (auto using Q.le_min_r). rewrite mean_bind. apply mean_ext. intros f _. rewrite mean_bind.
        setoid_rewrite mean_ret. simpl climb. setoid_rewrite mean_bind. rewrite mean_swap. apply mean_ext.
        intros [e |] _.
        -- simpl. rewrite (mean_ext _ _ _ (fun _ => value (t ++ e))) by (intros; ring).
           rewrite mean_const, sprout_mass by auto. ring.
        -- etransitivity; [| apply (IHb x f path rest h c); auto]. reflexivity.
      * apply Qplus_comp; [| reflexivity]. apply Qmult_comp; [reflexivity |]. rewrite <- (Fair (t ++ path ++ [x])).
        apply mean_ext. intros y _. now rewrite !app_assoc.
    + rewrite judged by auto. fold S. assert (sum (vocabulary V) wp == w) as ->.
      { unfold wp. rewrite sum_scale, (proj2 Left). ring. }
      pose proof (passing S w m c HS H1) as Passing. simpl in Passing. fold h in Passing.
      rewrite (Q.min_l h 1) in Passing by assumption. unfold c'. rewrite Passing, Owed, Qplus_assoc, made_up.
      rewrite mean_choose_law by assumption. apply Qplus_comp; [| reflexivity].
      rewrite <- sum_scale. apply sum_ext. intros x _. unfold wp. ring.
Qed.

Theorem traversal_step_exact : forall p how, is_model V p -> (forall t, is_growth (how t)) ->
  exact V p (traversal_step p how).
Proof.
  intros p how Hp Grows. apply fair_exact; [assumption |]. intros value t Fair.
  transitivity (1 * mean (choose V (p (t ++ []))) (fun y => value (t ++ [] ++ [y])) + (1 - 1) * value t).
  - rewrite <- (climb_fair p value t Hp Fair (how t) [] (p (t ++ [])) 1 (value t)) by (auto; lra).
    unfold traversal_step, judge_traversal, traversal. rewrite mean_bind. apply mean_ext. intros f _. rewrite mean_bind.
    apply mean_ext. intros [e |] _; [apply mean_ret |]. rewrite mean_bind, app_nil_r. setoid_rewrite mean_ret. apply Fair.
  - rewrite app_nil_r. simpl. rewrite (Fair t). ring.
Qed.

Lemma climb_emits : forall target drafted path p w, ~ In (Some []) (map fst (climb target drafted path p w)).
Proof.
  intros target. induction drafted as [| x q under IHu beside IHb]; simpl; intros path p w H.
  - apply in_bind in H as ([|] & _ & H); [| now destruct H]. apply in_bind in H as (y & _ & [[= E] | []]).
    now apply app_eq_nil in E as [_ E].
  - apply in_bind in H as ([e |] & He & H); [| now apply IHb in H]. destruct H as [[= ->] | []]. now apply IHu in He.
Qed.

Lemma traversal_step_emits : forall p how, emits (traversal_step p how).
Proof.
  intros p how t H. apply in_bind in H as (f & _ & H). apply in_bind in H as ([e |] & He & H).
  - destruct H as [E | []]. simpl in E. subst. now apply climb_emits in He.
  - apply in_bind in H as (y & _ & [E | []]). discriminate.
Qed.

End Traversal.
