(* Finite laws with rational weights, and what chance may do with them.

   A law is the list of all ways that chance can go, each with its weight: a program that draws is run once for each
   way, as `enumerate.every_path` does it. Two laws are the same if every function has the same mean under both; then every
   outcome, and every event, has the same probability. Division by zero is zero in Q. *)

From Coq Require Export QArith Qminmax List Arith Bool Lia Lqa Morphisms.
Export ListNotations.
Open Scope Q_scope.

(* [law] *)
Definition dist (A : Type) : Type := list (A * Q).

Definition ret {A} (a : A) : dist A := [(a, 1)].

Definition bind {A B} (d : dist A) (k : A -> dist B) : dist B :=
  flat_map (fun '(a, w) => map (fun '(b, v) => (b, w * v)) (k a)) d.

Notation "x <- d ;; k" := (bind d (fun x => k)) (at level 61, d at next level, right associativity).

(* The mean of f: the sum of w f(a) over all ways. *)
Fixpoint mean {A} (d : dist A) (f : A -> Q) : Q :=
  match d with
  | [] => 0
  | (a, w) :: others => w * f a + mean others f
  end.

Definition same_law {A} (d e : dist A) : Prop := forall f, mean d f == mean e f.
(* [/law] *)

(* [tokens] *)
Definition token := nat.
Definition text := list token.

Definition same_text (s t : text) : bool := if list_eq_dec Nat.eq_dec s t then true else false.
Definition prob (d : dist text) (s : text) : Q := mean d (fun t => if same_text t s then 1 else 0).

(* Equal texts gathered, their weights added: the dictionary of `exact.step_law`. *)
Fixpoint add (s : text) (w : Q) (d : dist text) : dist text :=
  match d with
  | [] => [(s, Qred w)]
  | (t, v) :: others => if same_text t s then (t, Qred (v + w)) :: others else (t, v) :: add s w others
  end.
Definition gather (d : dist text) : dist text := fold_right (fun '(s, w) => add s w) [] d.

Fixpoint sum (xs : list token) (f : token -> Q) : Q :=
  match xs with
  | [] => 0
  | x :: others => f x + sum others f
  end.

Definition weights := token -> Q.  (* an array over the vocabulary *)
Definition vocabulary (V : nat) : list token := seq 0 V.

Definition is_law (V : nat) (p : weights) : Prop :=
  (forall x, (x < V)%nat -> 0 <= p x) /\ sum (vocabulary V) p == 1.

(* A token, with probability in proportion to its weight. *)
Definition choose (V : nat) (w : weights) : dist token :=
  map (fun x => (x, w x / sum (vocabulary V) w)) (vocabulary V).

(* Whether a uniform number of [0, 1) lies below a threshold that is not negative. *)
Definition below (threshold : Q) : dist bool :=
  let t := Qmin threshold 1 in [(true, t); (false, 1 - t)].
(* [/tokens] *)

(* ---- Means ---- *)

Arguments Qred : simpl never.

Lemma mean_ext : forall A (d : dist A) f g, (forall a, In a (map fst d) -> f a == g a) -> mean d f == mean d g.
Proof.
  induction d as [| [a w] d IH]; simpl; intros f g H; [reflexivity |].
  rewrite (H a), (IH f g); auto; reflexivity.
Qed.

#[export] Instance mean_proper A (d : dist A) : Proper (pointwise_relation A Qeq ==> Qeq) (mean d).
Proof. intros f g H. apply mean_ext. intros. apply H. Qed.

Lemma mean_ret : forall A (a : A) f, mean (ret a) f == f a.
Proof. intros. simpl. ring. Qed.

Lemma mean_app : forall A (d e : dist A) f, mean (d ++ e) f == mean d f + mean e f.
Proof.
  induction d as [| [a w] d IH]; simpl; intros; [ring |]. rewrite IH. ring.
Qed.

Lemma mean_bind : forall A B (d : dist A) (k : A -> dist B) f, mean (bind d k) f == mean d (fun a => mean (k a) f).
Proof.
  induction d as [| [a w] d IH]; simpl; intros; [reflexivity |].
  rewrite mean_app. fold (bind d k). rewrite IH.
  assert (mean (map (fun '(b, v) => (b, w * v)) (k a)) f == w * mean (k a) f) as ->; [| reflexivity].
  induction (k a) as [| [b v] e IHe]; simpl; [ring | rewrite IHe; ring].
Qed.

Arguments bind : simpl never.

Lemma mean_below : forall t f, mean (below t) f == Qmin t 1 * f true + (1 - Qmin t 1) * f false.
Proof. intros. simpl. ring. Qed.

Lemma mean_const : forall A (d : dist A) c, mean d (fun _ => c) == mean d (fun _ => 1) * c.
Proof.
  induction d as [| [a w] d IH]; simpl; intros; [ring | rewrite IH; ring].
Qed.

Lemma same_text_eq : forall s t, same_text s t = true <-> s = t.
Proof. unfold same_text. intros. destruct (list_eq_dec Nat.eq_dec s t); split; congruence. Qed.

Lemma mean_add : forall s w d f, mean (add s w d) f == w * f s + mean d f.
Proof.
  induction d as [| [t v] d IH]; simpl; intros; [rewrite Qred_correct; ring |].
  destruct (same_text t s) eqn:Same; simpl.
  - apply same_text_eq in Same. subst. rewrite Qred_correct. ring.
  - rewrite IH. ring.
Qed.

Lemma same_gather : forall d, same_law (gather d) d.
Proof.
  unfold same_law. induction d as [| [s w] d IH]; simpl; intros; [reflexivity |].
  rewrite mean_add, IH. reflexivity.
Qed.

Lemma same_law_prob : forall d e, same_law d e -> forall s, prob d s == prob e s.
Proof. intros d e H s. apply H. Qed.

(* What may come out: gathering adds no text, and binding none that was not there. *)
Lemma in_gather : forall d s, In s (map fst (gather d)) -> In s (map fst d).
Proof.
  assert (forall s w d t, In t (map fst (add s w d)) -> t = s \/ In t (map fst d)) as Add.
  { induction d as [| [t v] d IH]; simpl; intros u H; [intuition |].
    destruct (same_text t s); simpl in H; intuition. destruct (IH u); auto. }
  induction d as [| [s w] d IH]; simpl; intros t H; [easy |].
  destruct (Add _ _ _ _ H) as [-> | ?]; auto.
Qed.

Lemma in_bind : forall A B (d : dist A) (k : A -> dist B) b,
  In b (map fst (bind d k)) <-> exists a, In a (map fst d) /\ In b (map fst (k a)).
Proof.
  intros. unfold bind. rewrite in_map_iff. split.
  - intros ([b' u] & <- & H). apply in_flat_map in H as ([a w] & Ha & Hb).
    apply in_map_iff in Hb as ([b v] & [= <- <-] & Hb).
    exists a. split; [exact (in_map fst _ _ Ha) | exact (in_map fst _ _ Hb)].
  - intros (a & Ha & Hb). apply in_map_iff in Ha as ([a' w] & [= <-] & Ha), Hb as ([b' v] & [= <-] & Hb).
    exists (b', w * v). split; [reflexivity |]. apply in_flat_map. exists (a', w). split; [assumption |].
    apply in_map_iff. exists (b', v). auto.
Qed.

(* ---- Sums ---- *)

Lemma in_vocabulary : forall V x, In x (vocabulary V) <-> (x < V)%nat.
Proof. intros. unfold vocabulary. rewrite in_seq. lia. Qed.

Lemma sum_ext : forall xs f g, (forall x, In x xs -> f x == g x) -> sum xs f == sum xs g.
Proof.
  induction xs as [| x xs IH]; simpl; intros f g H; [reflexivity |]. rewrite (H x), (IH f g); auto; reflexivity.
Qed.

#[export] Instance sum_proper xs : Proper (pointwise_relation token Qeq ==> Qeq) (sum xs).
Proof. intros f g H. apply sum_ext. intros. apply H. Qed.

Lemma sum_plus : forall xs f g, sum xs (fun x => f x + g x) == sum xs f + sum xs g.
Proof. induction xs; simpl; intros; [ring |]. rewrite IHxs. ring. Qed.

Lemma sum_scale : forall xs c f, sum xs (fun x => c * f x) == c * sum xs f.
Proof. induction xs; simpl; intros; [ring |]. rewrite IHxs. ring. Qed.

Lemma sum_nonneg : forall xs f, (forall x, In x xs -> 0 <= f x) -> 0 <= sum xs f.
Proof.
  induction xs as [| x xs IH]; simpl; intros f H; [lra |].
  assert (0 <= f x) by auto. assert (0 <= sum xs f) by auto. lra.
Qed.

Lemma sum_le : forall xs f g, (forall x, In x xs -> f x <= g x) -> sum xs f <= sum xs g.
Proof.
  induction xs as [| x xs IH]; simpl; intros f g H; [apply Qle_refl |]. apply Qplus_le_compat; auto.
Qed.

Lemma sum_zero : forall xs f, (forall x, In x xs -> 0 <= f x) -> sum xs f == 0 -> forall x, In x xs -> f x == 0.
Proof.
  induction xs as [| y xs IH]; simpl; intros f H Zero x Hx; [easy |]. destruct Hx as [-> | Hx].
  - assert (0 <= f x) by auto. assert (0 <= sum xs f) by (apply sum_nonneg; auto). lra.
  - apply IH; auto. assert (0 <= f y) by auto. assert (0 <= sum xs f) by (apply sum_nonneg; auto). lra.
Qed.

Lemma mean_choose : forall V w f,
  mean (choose V w) f == sum (vocabulary V) (fun x => w x * f x) / sum (vocabulary V) w.
Proof.
  intros. unfold choose. generalize (sum (vocabulary V) w) as total. intros.
  induction (vocabulary V) as [| x xs IH]; simpl; [unfold Qdiv; ring |]. rewrite IH. unfold Qdiv. ring.
Qed.

Lemma mean_choose_law : forall V p f,
  is_law V p -> mean (choose V p) f == sum (vocabulary V) (fun x => p x * f x).
Proof. intros V p f [_ One]. rewrite mean_choose, One. field. Qed.

Lemma in_choose : forall V w x, In x (map fst (choose V w)) <-> (x < V)%nat.
Proof.
  intros. unfold choose. rewrite map_map. simpl. rewrite map_id. apply in_vocabulary.
Qed.

Lemma sum_pick : forall V x f, (x < V)%nat ->
  sum (vocabulary V) (fun y => if Nat.eqb y x then f y else 0) == f x.
Proof.
  intros V x f Lt. apply in_vocabulary in Lt. pose proof (seq_NoDup V 0) as Once.
  fold (vocabulary V) in Once. induction (vocabulary V) as [| y ys IH]; [easy |]. simpl.
  inversion_clear Once as [| ? ? New Once']. destruct Lt as [-> | Later].
  - rewrite Nat.eqb_refl, (sum_ext ys _ (fun _ => 0 * 0)), sum_scale; [ring |].
    intros z Hz. destruct (Nat.eqb_spec z x); [subst; contradiction | ring].
  - rewrite IH by assumption. destruct (Nat.eqb_spec y x); [subst; contradiction | ring].
Qed.
