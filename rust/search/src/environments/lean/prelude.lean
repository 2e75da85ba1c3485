prelude
-- What Lean's elaborator, tactics and compiler look up by name, and the syntax of the core tactics. Names,
-- and the order of arguments and fields, are those that Lean 4 is compiled against. Files of proofs import
-- this in place of Lean's library.
--
-- Traps:
-- * Without `sorryAx` Lean is silent about terms of a wrong type and tactics that fail, and exits with 0. It
--   still reports unknown names, so a test with those alone notices nothing. See `check.rs`.
-- * `sorryAx` is the only axiom beside the compiler's unsafe ones, which theorems cannot use. A proof that
--   rests on it is refused.
-- * A definition is replaced by Lean's native function of the same name, if there is one. So helpers are in
--   `Ebm`, where Lean has nothing.
-- * Lean reads values of `Name`, `Syntax`, `ParserDescr` and `EStateM.Result` by their layout. A field more,
--   or in another place, crashes it when a notation is expanded or printed.
set_option linter.all false
-- The number of a value's constructor, for each type: nothing here uses it, and it needs more of arithmetic.
set_option genCtorIdx false
set_option autoImplicit false
universe u v w

/-! What the compiler puts in the place of types and proofs. -/

unsafe axiom lcErased : Type
unsafe axiom lcAny : Type
unsafe axiom lcVoid : Type
unsafe axiom lcProof {α : Prop} : α
unsafe axiom lcUnreachable {α : Sort u} : α
unsafe axiom lcCast {α : Sort u} {β : Sort v} (a : α) : β

/-! Logic. -/

@[inline] def id {α : Sort u} (a : α) : α := a

@[inline] def Function.const {α : Sort u} (β : Sort v) (a : α) : β → α := fun _ => a

set_option bootstrap.inductiveCheckResultingUniverse false in
inductive PUnit : Sort u where
  | unit

abbrev Unit : Type := PUnit
@[match_pattern] abbrev Unit.unit : Unit := PUnit.unit

inductive True : Prop where
  | intro

inductive False : Prop

def False.elim {C : Sort u} (h : False) : C := h.rec

@[reducible] def Not (a : Prop) : Prop := a → False

def absurd {a : Prop} {b : Sort v} (h : a) (no : Not a) : b := (no h).rec

structure And (a b : Prop) : Prop where
  intro ::
  left : a
  right : b

inductive Or (a b : Prop) : Prop where
  | inl (h : a)
  | inr (h : b)

structure Iff (a b : Prop) : Prop where
  intro ::
  mp : a → b
  mpr : b → a

inductive Exists {α : Sort u} (p : α → Prop) : Prop where
  | intro (w : α) (h : p w)

inductive Eq {α : Sort u} : α → α → Prop where
  | refl (a : α) : Eq a a

@[match_pattern] def rfl {α : Sort u} {a : α} : Eq a a := Eq.refl a

@[reducible] def Ne {α : Sort u} (a b : α) : Prop := Not (Eq a b)

abbrev Eq.ndrec.{i, j} {α : Sort j} {a : α} {motive : α → Sort i} (m : motive a) {b : α} (h : Eq a b) :
    motive b := h.rec m

theorem Eq.subst {α : Sort u} {motive : α → Prop} {a b : α} (h : Eq a b) (m : motive a) : motive b :=
  h.rec m

theorem Eq.symm {α : Sort u} {a b : α} (h : Eq a b) : Eq b a := h.rec (Eq.refl a)

theorem Eq.trans {α : Sort u} {a b c : α} (h : Eq a b) (k : Eq b c) : Eq a c := k.rec h

def Eq.mp {α β : Sort u} (h : Eq α β) (a : α) : β := h.rec a

def Eq.mpr {α β : Sort u} (h : Eq α β) (b : β) : α := h.symm.rec b

@[macro_inline] def cast {α β : Sort u} (h : Eq α β) (a : α) : β := h.rec a

theorem congrArg {α : Sort u} {β : Sort v} {a b : α} (f : α → β) (h : Eq a b) : Eq (f a) (f b) :=
  h.rec (Eq.refl (f a))

theorem congrFun {α : Sort u} {β : α → Sort v} {f g : (x : α) → β x} (h : Eq f g) (a : α) :
    Eq (f a) (g a) := h.rec (Eq.refl (f a))

theorem congr {α : Sort u} {β : Sort v} {f g : α → β} {a b : α} (h : Eq f g) (k : Eq a b) :
    Eq (f a) (g b) := (congrArg f k).trans (congrFun h b)

inductive HEq : {α : Sort u} → α → {β : Sort u} → β → Prop where
  | refl {α : Sort u} (a : α) : HEq a a

theorem heq_of_eq {α : Sort u} {a b : α} (h : Eq a b) : HEq a b := h.rec (HEq.refl a)

theorem eq_of_heq {α : Sort u} {a b : α} (h : HEq a b) : Eq a b :=
  have along : (γ δ : Sort u) → (c : γ) → (d : δ) → HEq c d → (k : Eq γ δ) → Eq (cast k c) d :=
    fun _ _ _ _ k => k.rec (fun _ => rfl)
  along α α a b h rfl

/-! Data. -/

inductive Bool : Type where
  | false
  | true
export Bool (false true)

@[extern "lean_sorry", never_extract] axiom sorryAx (α : Sort u) (synthetic : Bool) : α

class inductive Decidable (p : Prop) where
  | isFalse (h : Not p)
  | isTrue (h : p)

structure PProd (α : Sort u) (β : Sort v) where
  fst : α
  snd : β

structure Prod (α : Type u) (β : Type v) where
  fst : α
  snd : β

@[macro_inline] def cond {α : Sort u} (c : Bool) (x y : α) : α :=
  match c with
  | .true => x
  | .false => y

inductive Nat where
  | zero
  | succ (n : Nat)

class OfNat (α : Type u) (_ : Nat) where
  ofNat : α

instance instOfNatNat (n : Nat) : OfNat Nat n := ⟨n⟩

-- The kernel computes these on numbers, so they must be what it believes they are.
@[extern "lean_nat_add"] protected def Nat.add (n m : Nat) : Nat :=
  Nat.rec n (fun _ ih => Nat.succ ih) m
@[extern "lean_nat_mul"] protected def Nat.mul (n m : Nat) : Nat :=
  Nat.rec Nat.zero (fun _ ih => Nat.add ih n) m

@[extern "lean_nat_dec_eq"] def Nat.beq (n m : Nat) : Bool :=
  Nat.rec (motive := fun _ => Nat → Bool) (fun m => Nat.rec true (fun _ _ => false) m)
    (fun _ same m => Nat.rec false (fun k _ => same k) m) n m

-- How `contradiction` and `cases` refute an equation of two constructors.
noncomputable def Nat.ctorIdx (n : Nat) : Nat := Nat.rec .zero (fun _ _ => .succ .zero) n
theorem noConfusion_of_Nat {α : Sort u} (f : α → Nat) {a b : α} (h : Eq a b) :
    Bool.rec (motive := fun _ => Prop) False True (Nat.beq (f a) (f b)) :=
  have same : (n : Nat) → Bool.rec (motive := fun _ => Prop) False True (Nat.beq n n) := fun n =>
    Nat.rec (motive := fun n => Bool.rec (motive := fun _ => Prop) False True (Nat.beq n n))
      True.intro (fun _ ih => ih) n
  h.rec (motive := fun b _ => Bool.rec (motive := fun _ => Prop) False True (Nat.beq (f a) (f b))) (same (f a))

-- Into these the compiler turns a match on a number.
@[extern "lean_nat_pred"] protected def Nat.pred (n : Nat) : Nat := Nat.rec .zero (fun k _ => k) n
@[extern "lean_nat_sub"] protected def Nat.sub (n m : Nat) : Nat :=
  Nat.rec n (fun _ ih => Nat.pred ih) m
@[extern "lean_nat_dec_eq"] def Nat.decEq (n m : Nat) : Decidable (Eq n m) :=
  Nat.rec (motive := fun n => (m : Nat) → Decidable (Eq n m))
    (fun m => m.casesOn (.isTrue rfl) (fun _ => .isFalse (fun h => Nat.noConfusion h)))
    (fun _ decide m => m.casesOn (.isFalse (fun h => Nat.noConfusion h)) (fun k => (decide k).casesOn
      (fun no => .isFalse (fun h => Nat.noConfusion h no)) (fun yes => .isTrue (congrArg Nat.succ yes))))
    n m

-- Unification writes the successor of a number that it does not know as a sum of this form.
@[reducible] def outParam (α : Sort u) : Sort u := α

class HAdd (α : Type u) (β : Type v) (γ : outParam (Type w)) where
  hAdd : α → β → γ

class Add (α : Type u) where
  add : α → α → α

instance instHAdd (α : Type u) [Add α] : HAdd α α α := ⟨Add.add⟩
instance instAddNat : Add Nat := ⟨Nat.add⟩

/-! Syntax, as far as notations need it. -/

class Inhabited (α : Sort u) where
  default : α

inductive List (α : Type u) where
  | nil
  | cons (head : α) (tail : List α)

structure Array (α : Type u) where
  mk ::
  toList : List α

structure Char where
  val : Nat

structure String where
  ofList ::
  data : List Char

inductive EStateM.Result (ε σ α : Type) where
  | ok (a : α) (s : σ)
  | error (e : ε) (s : σ)

namespace Lean

inductive Name where
  | anonymous
  | str (pre : Name) (str : String)
  | num (pre : Name) (i : Nat)

abbrev SyntaxNodeKind := Name

def Name.mkStr (p : Name) (s : String) : Name := .str p s
def Name.mkSimple (s : String) : Name := .str .anonymous s
def Name.mkStr1 (a : String) : Name := .str .anonymous a
def Name.mkStr2 (a b : String) : Name := .str (.mkStr1 a) b
def Name.mkStr3 (a b c : String) : Name := .str (.mkStr2 a b) c
def Name.mkStr4 (a b c d : String) : Name := .str (.mkStr3 a b c) d

inductive ParserDescr where
  | const (name : Name)
  | unary (name : Name) (p : ParserDescr)
  | binary (name : Name) (p₁ p₂ : ParserDescr)
  | node (kind : SyntaxNodeKind) (prec : Nat) (p : ParserDescr)
  | trailingNode (kind : SyntaxNodeKind) (prec lhsPrec : Nat) (p : ParserDescr)
  | symbol (val : String)
  | nonReservedSymbol (val : String) (includeIdent : Bool)
  | cat (catName : Name) (rbp : Nat)
  | parser (declName : Name)
  | nodeWithAntiquot (name : String) (kind : SyntaxNodeKind) (p : ParserDescr)
  | sepBy (p : ParserDescr) (sep : String) (psep : ParserDescr) (allowTrailingSep : Bool)
  | sepBy1 (p : ParserDescr) (sep : String) (psep : ParserDescr) (allowTrailingSep : Bool)
  | unicodeSymbol (val asciiVal : String) (preserveForPP : Bool)

abbrev TrailingParserDescr := ParserDescr

end Lean

namespace Ebm

structure Substring where
  str : String
  startPos : Nat
  stopPos : Nat

end Ebm

namespace Lean

inductive SourceInfo where
  | original (leading : Ebm.Substring) (pos : Nat) (trailing : Ebm.Substring) (endPos : Nat)
  | synthetic (pos endPos : Nat) (canonical : Bool)
  | none

inductive Syntax where
  | missing
  | node (info : SourceInfo) (kind : SyntaxNodeKind) (args : Array Syntax)
  | atom (info : SourceInfo) (val : String)
  | ident (info : SourceInfo) (rawVal : Ebm.Substring) (val : Name) (preresolved : List Unit)

-- The context, the state and the exceptions of macros are Lean's own; here nothing looks into them, and any
-- type of objects stands for theirs.
def Macro : Type := Syntax → Name → Name → EStateM.Result Name Name Syntax

def PrettyPrinter.Unexpander : Type := Syntax → Syntax → Unit → EStateM.Result Unit Unit Syntax

end Lean

instance : Inhabited Bool := ⟨.false⟩
instance : Inhabited Nat := ⟨.zero⟩
instance : Inhabited Lean.Syntax := ⟨.missing⟩
instance {α : Type u} : Inhabited (Array α) := ⟨⟨.nil⟩⟩

-- Native functions of Lean, which it finds by these names. Nothing is proved of them, so they need no definition.
@[extern "lean_name_eq"] opaque Lean.Name.beq (a b : @& Name) : Bool
@[extern "lean_mk_empty_array_with_capacity"] opaque Array.emptyWithCapacity {α : Type u} (c : @& Nat) : Array α
@[extern "lean_array_push"] opaque Array.push {α : Type u} (a : Array α) (v : α) : Array α
@[extern "lean_array_get_size"] opaque Array.size {α : Type u} (a : @& Array α) : Nat
@[extern "lean_array_get"] opaque Array.get!Internal {α : Type u} [Inhabited α] (a : @& Array α) (i : @& Nat) : α
@[extern "lean_array_get_borrowed"]
opaque Array.get!InternalBorrowed {α : Type u} [Inhabited α] (a : @& Array α) (i : @& Nat) : α

namespace Ebm
open Lean

def empty : Array Syntax := .emptyWithCapacity 0

def child (s : Syntax) (i : Nat) : Syntax :=
  match s with
  | .node _ _ args => args.get!Internal i
  | _ => .missing

def children (s : Syntax) : Array Syntax :=
  match s with
  | .node _ _ args => args
  | _ => empty

def isKind (s : Syntax) (kind : Name) : Bool :=
  match s with
  | .node _ k _ => k.beq kind
  | _ => .false

def list1 (a : Syntax) : Array Syntax := empty.push a
def list2 (a b : Syntax) : Array Syntax := (list1 a).push b
def list3 (a b c : Syntax) : Array Syntax := (list2 a b).push c
def list4 (a b c d : Syntax) : Array Syntax := (list3 a b c).push d

def node (kind : Name) (args : Array Syntax) : Syntax := .node .none kind args
def group (args : Array Syntax) : Syntax := node `null args
def atom (text : String) : Syntax := .atom .none text

-- The constant that a notation stands for has the notation's name, at the root instead of in `Notation`: a
-- hypothesis may have the same name. Names are made by Lean's functions, because Lean keeps a hash in them.
def constant (kind : Name) : Syntax :=
  let name : Name :=
    match kind with
    | .str (.str (.str _ _) a) b => .mkStr3 "_root_" a b
    | .str _ a => .mkStr2 "_root_" a
    | other => other
  .ident .none ⟨"", 0, 0⟩ name .nil

def kindOf (s : Syntax) : Name :=
  match s with
  | .node _ kind _ => kind
  | _ => .anonymous

def apply (f : Syntax) (args : Array Syntax) : Syntax := node `Lean.Parser.Term.app (list2 f (group args))

def expandInfix : Macro := fun s _ state =>
  .ok (apply (constant (kindOf s)) (list2 (child s 0) (child s 2))) state

def expandPrefix : Macro := fun s _ state => .ok (apply (constant (kindOf s)) (list1 (child s 1))) state

-- `f a b` and `f a`, where nothing but the arguments of `f` is left.
def printInfix (kind : Name) (symbol : String) : PrettyPrinter.Unexpander := fun s _ state =>
  let args := child s 1
  match Nat.decEq ((children args).size) 2 with
  | .isTrue _ => .ok (node kind (list3 (child args 0) (atom symbol) (child args 1))) state
  | _ => .error .unit state

def printPrefix (kind : Name) (symbol : String) : PrettyPrinter.Unexpander := fun s _ state =>
  let args := child s 1
  match Nat.decEq ((children args).size) 1 with
  | .isTrue _ => .ok (node kind (list2 (atom symbol) (child args 0))) state
  | _ => .error .unit state

end Ebm

namespace Notation
syntax:50 (name := Eq) term:51 " = " term:51 : term
syntax:50 (name := Ne) term:51 " ≠ " term:51 : term
syntax:35 (name := And) term:36 " ∧ " term:35 : term
syntax:30 (name := Or) term:31 " ∨ " term:30 : term
syntax:20 (name := Iff) term:21 " ↔ " term:21 : term
syntax:65 (name := Nat.add) term:65 " + " term:66 : term
syntax:70 (name := Nat.mul) term:70 " * " term:71 : term
syntax:1024 (name := Not) "¬" term:40 : term
end Notation

attribute [macro Notation.Eq, macro Notation.Ne, macro Notation.And, macro Notation.Or, macro Notation.Iff,
  macro Notation.Nat.add, macro Notation.Nat.mul] Ebm.expandInfix
attribute [macro Notation.Not] Ebm.expandPrefix

namespace Ebm
open Lean PrettyPrinter
@[app_unexpander Eq] def printEq : Unexpander := printInfix `Notation.Eq "="
@[app_unexpander Ne] def printNe : Unexpander := printInfix `Notation.Ne "≠"
@[app_unexpander And] def printAnd : Unexpander := printInfix `Notation.And "∧"
@[app_unexpander Or] def printOr : Unexpander := printInfix `Notation.Or "∨"
@[app_unexpander Iff] def printIff : Unexpander := printInfix `Notation.Iff "↔"
@[app_unexpander Nat.add] def printAdd : Unexpander := printInfix `Notation.Nat.add "+"
@[app_unexpander Nat.mul] def printMul : Unexpander := printInfix `Notation.Nat.mul "*"
@[app_unexpander Not] def printNot : Unexpander := printPrefix `Notation.Not "¬"
end Ebm

-- `∃ x y, p` and `∃ x y : T, p` nest, and nested ones are printed as one.
namespace Ebm
syntax binders := many1(ppSpace colGt term:1024) optional(" : " term)
end Ebm
namespace Notation
syntax:1023 (name := Exists) "∃" Ebm.binders ", " term : term
end Notation
namespace Ebm
open Lean

-- The items from the one numbered `first` on, `count` of them.
def slice (items : Array Syntax) (first : Array Syntax) (skip : Nat) (count : Nat) : Array Syntax :=
  match count with
  | .zero => first
  | .succ n => (slice items first skip n).push (items.get!Internal (Nat.add skip n))

def isEmpty (items : Array Syntax) : Bool :=
  match items.size with
  | .zero => true
  | .succ _ => false

-- `∃ binders, body`, with `: T` in `type` or nothing.
def existsOf (binders : Array Syntax) (type body : Syntax) : Syntax :=
  node `Notation.Exists
    (list4 (atom "∃") (node `Ebm.binders (list2 (group binders) type)) (atom ",") body)

def funOf (binder type body : Syntax) : Syntax :=
  let typed : Syntax :=
    match isEmpty (children type) with
    | true => type
    | false => group (list1 (node `Lean.Parser.Term.typeSpec (children type)))
  node `Lean.Parser.Term.fun
    (list2 (atom "fun")
      (node `Lean.Parser.Term.basicFun (list4 (group (list1 binder)) typed (atom "=>") body)))

-- One step: the first binder becomes a function, or `(x y : T)`, which is parsed as a typed application,
-- becomes `∃ x y : T`. Lean expands what is left.
def expandExists : Macro := fun s _ state =>
  let binders := children (child (child s 1) 0)
  let type := child (child s 1) 1
  let first := binders.get!Internal 0
  let rest := slice binders empty 1 (Nat.pred binders.size)
  let inner : Syntax :=
    match isEmpty rest with
    | true => child s 3
    | false => existsOf rest type (child s 3)
  let names : Syntax :=
    match isKind first `Lean.Parser.Term.typeAscription with
    | true => child first 1
    | false => .missing
  match isKind names `Lean.Parser.Term.app with
  | true =>
    let others := children (child names 1)
    let all := slice others (list1 (child names 0)) 0 others.size
    .ok (existsOf all (group (list2 (child first 2) (child (child first 3) 0))) inner) state
  | false => .ok (apply (constant `Notation.Exists) (list1 (funOf first type inner))) state
attribute [macro Notation.Exists] expandExists

def printExists : PrettyPrinter.Unexpander := fun s _ state =>
  match isKind s `Lean.Parser.Term.app with
  | false => .error .unit state
  | true =>
    let f := child (child s 1) 0
    match isKind f `Lean.Parser.Term.fun with
    | false => .error .unit state
    | true =>
      let basic := child f 1
      match isKind basic `Lean.Parser.Term.basicFun with
      | false => .error .unit state
      | true =>
        let binders := children (child basic 0)
        let body := child basic 3
        match isKind body `Notation.Exists with
        | true =>
          let others := children (child (child body 1) 0)
          .ok (existsOf (slice others binders 0 others.size) (group empty) (child body 3)) state
        | false => .ok (existsOf binders (group empty) body) state
attribute [app_unexpander Exists] printExists
end Ebm

/-! The core tactics. Lean has them built in under these names; their syntax is all it lacks. -/

namespace Lean.Parser.Tactic
syntax (name := skip) "skip" : tactic
syntax (name := intro) "intro" many(ppSpace colGt term:1024) : tactic
syntax (name := revert) "revert" many1(ppSpace colGt term:1024) : tactic
syntax (name := clear) "clear" many1(ppSpace colGt term:1024) : tactic
syntax (name := exact) "exact " term : tactic
syntax (name := apply) "apply " term : tactic
syntax (name := refine) "refine " term : tactic
syntax (name := assumption) "assumption" : tactic
syntax (name := constructor) "constructor" : tactic
syntax (name := left) "left" : tactic
syntax (name := right) "right" : tactic
syntax (name := contradiction) "contradiction" : tactic
syntax (name := eqRefl) "eq_refl" : tactic
syntax (name := subst) "subst" many1(ppSpace colGt term:1024) : tactic
syntax (name := injection) "injection " term optional(" with" many1(ppSpace colGt orelse(ident, hole))) : tactic

syntax elimTarget := atomic(optional(group(orelse(ident, hole) " : "))) term
syntax inductionAltLHS :=
  withPosition("| " orelse(group(optional("@") ident), hole) many(colGt orelse(ident, hole)))
syntax inductionAlt :=
  ppDedent(ppLine) many1(inductionAltLHS) optional(" => " orelse(hole, orelse(syntheticHole, tacticSeq)))
syntax inductionAlts := " with" optional(ppSpace colGt tactic) withPosition(many(colGe inductionAlt))
syntax (name := induction) "induction " sepBy1(elimTarget, ", ") optional(" using " term)
  optional(" generalizing" many1(ppSpace colGt term:1024)) optional(inductionAlts) : tactic
syntax (name := cases)
  "cases " sepBy1(elimTarget, ", ") optional(" using " term) optional(inductionAlts) : tactic

syntax locationHyp := many1(ppSpace colGt term:1024) optional(" ⊢")
syntax location := " at" locationHyp
syntax rwRule := optional(orelse("← ", "<- ")) term
syntax rwRuleSeq := " [" sepBy(rwRule, ", ") "]"
syntax posConfigItem := " +" noWs ident
syntax configItem := posConfigItem
syntax optConfig := many(colGt configItem)
syntax (name := rewriteSeq) "rewrite" optConfig rwRuleSeq optional(location) : tactic
end Lean.Parser.Tactic

namespace Lean
syntax cdotTk := orelse("· ", ". ")
syntax (name := cdot) cdotTk tacticSeq : tactic
end Lean
