"""A rule of a recipe: which layers, which group, which penalty and criterion, how much."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, ValidationInfo, field_validator, model_validator

from sparsify_schemas.base import AtKey, Flag, Positive, Spec, Text
from sparsify_schemas.criterion import BnScale, Criterion, Fpgm, Magnitude, Reconstruction, TorchPruning
from sparsify_schemas.group import (
    Group,
    facts_of,
    in_one_tensor,
    is_unstructured,
    kind_of,
    removes_branches,
    within,
)
from sparsify_schemas.penalty import (
    L0,
    L1,
    Agp,
    Dns,
    GroupLasso,
    GrowingL2,
    Gsm,
    Penalty,
    Sensitivity,
    VariationalDropout,
)
from sparsify_schemas.penalty import BnScale as BnScalePenalty
from sparsify_schemas.schedule import Auto
from sparsify_schemas.selector import Layers
from sparsify_schemas.units import Share


def _refuse_file_name(value: Any) -> Any:
    if isinstance(value, str):  # `load` has put what the file holds in place of its name
        raise ValueError(
            "expected a mapping of layers to shares, or the name of a file that holds "
            f"one; {value[:60]!r} was not read"
        )
    return value


Limits = Annotated[
    dict[Text, Share], BeforeValidator(_refuse_file_name, json_schema_input_type=dict[Text, Share] | Text)
]


class Keep(Spec):
    """Lower bounds on the width that a rule may leave."""

    at_least: Positive | None = None
    """groups that stay in every layer. Left out: half of what the layer would keep if all layers kept the
    same share for the same budget; a tenth of the groups that are not zero where that is more, or a penalty
    decides what goes; less where a budget or a sparsity cannot be met otherwise. Of group depth: blocks that
    stay over the whole rule, none when left out"""
    multiple_of: Positive | Literal["auto"] | None = None
    """kept widths are multiples of this, rounded up; a layer that loses nothing keeps its width. `auto`: the
    width step of the recipe's targets (16 with AVX-512, 8 with AVX2, never below 4 on a processor). Left out:
    auto where the budget names a latency, else 1"""
    uniform: Flag | None = None
    """every layer of the rule keeps as many groups as the others, as one number in a transformer's config
    must say it. Left out: layers at the same place of a transformer's blocks do, unless a penalty decides
    what goes; no others"""
    limits: Limits = {}
    """layer -> largest share of its groups that is removed; or the file in which `sparsify sensitivity
    --limits` wrote that,
    relative to this recipe"""


class Rule(Spec):
    """What happens to some layers: which group, which penalty, which criterion, how much."""

    layers: Layers
    """glob on module names, re:<regular expression>, or a layer class or a parent of one; one or a list"""
    group: Group | None = None
    """filter, channel, neuron, head, hidden, expert, depth, shape, tap or weight; a block such as 4x1;
    a pattern such as 2:4"""
    penalty: Penalty | None = None
    """what drives the groups to zero while training"""
    criterion: Criterion = Magnitude(kind="magnitude")
    """which groups go first. Left out: where `apply` repairs right behind the recipe's only cut, and the rule
    has no penalty, reconstruction with 8 batches and `required: false`, for groups filter, channel, neuron,
    head, expert and depth; else magnitude"""
    keep: Keep = Keep()
    """what always stays"""
    sparsity: Share | None = None
    """share of this rule's groups that is removed, whatever the budget says"""
    protect: Flag = False
    """the matched layers keep their width; such a rule takes no group, penalty, criterion, keep or
    sparsity"""
    override: Flag = False
    """take over groups that an earlier rule reaches as well"""

    @field_validator("penalty")
    @classmethod
    def _inside_the_tensor(cls, penalty: Penalty | None, info: ValidationInfo) -> Penalty | None:
        """Where groups lie inside one tensor, a lasso has no other scope."""
        group = info.data.get("group")
        if not isinstance(penalty, GroupLasso) or group is None or not within(group):
            return penalty
        if penalty.weight == "latency":
            raise ValueError(
                "weight 'latency' is known of groups that can leave, not of those inside "
                f"a tensor; group '{kind_of(group)}' takes 'weight: macs'"
            )
        return (
            penalty if "scope" in penalty.model_fields_set else penalty.model_copy(update={"scope": "layer"})
        )

    @model_validator(mode="after")
    def _consistent(self) -> "Rule":
        if self.protect:
            extra = sorted(self.model_fields_set & {"group", "penalty", "criterion", "keep", "sparsity"})
            if extra:
                raise AtKey(
                    extra[0],
                    f"a rule with 'protect: true' takes no '{extra[0]}'; protected layers keep their width",
                )
        elif self.group is None:
            raise ValueError(
                "a rule needs a 'group' (filter, channel, neuron, head, hidden, expert, depth, "
                "shape, tap, weight, 4x1 or 2:4), or 'protect: true'"
            )
        facts = None if self.group is None else facts_of(self.group)
        alone = isinstance(self.penalty, GroupLasso) and self.penalty.scope == "layer"
        if alone and facts is not None and not facts.own_slice:
            raise ValueError(
                f"scope 'layer' cannot act on group '{self.group}', which spans several "
                "tensors; leave out 'scope'"
            )
        branches = removes_branches(self.group)
        if branches and self.keep.multiple_of not in (None, 1):
            raise AtKey(
                "keep",
                (
                    f"'multiple_of' cannot act on group '{self.group}', which has no widths; "
                    "leave it out, or say how many stay with 'at_least'"
                ),
            )
        if isinstance(self.penalty, Gsm) and self.sparsity is None:
            raise AtKey(
                "penalty", "gsm needs the rule's own 'sparsity': it says how many keep following the loss"
            )
        if isinstance(self.penalty, Agp) and self.sparsity is None:
            raise AtKey(
                "penalty", "agp needs the rule's own 'sparsity': it says how many are zero at the end"
            )
        if isinstance(self.penalty, Dns) and not is_unstructured(self.group):
            raise AtKey(
                "penalty", "dns masks single weights; write 'group: weight', or use agp for whole groups"
            )
        if isinstance(self.penalty, VariationalDropout) and not is_unstructured(self.group):
            raise AtKey(
                "penalty",
                "variational_dropout is of single weights; write 'group: weight', or use l0 for whole groups",
            )
        if isinstance(self.penalty, L0) and branches:
            raise AtKey(
                "penalty",
                (
                    "l0 gates what arrives at a unit's consumers, and a residual branch has "
                    "none of its own; use group_lasso on group 'depth'"
                ),
            )
        if (
            isinstance(self.penalty, L1)
            and isinstance(self.penalty.strength, Auto)
            and not is_unstructured(self.group)
        ):
            raise AtKey(
                "penalty",
                (
                    "l1 with strength 'auto' counts single weights; use group_lasso on group "
                    f"'{self.group}', or give l1 a number"
                ),
            )
        if branches and self.keep.limits:
            raise AtKey(
                "keep",
                (
                    f"'limits' cannot act on group '{self.group}', which has no widths; leave "
                    "it out, or say how many stay with 'at_least'"
                ),
            )
        if branches and self.keep.uniform:
            raise AtKey(
                "keep", f"'uniform' cannot act on group '{self.group}', which has no widths; leave it out"
            )
        if isinstance(self.criterion, Fpgm) and (
            branches or (in_one_tensor(self.group) and not within(self.group))
        ):
            raise AtKey(
                "criterion",
                (
                    f"criterion 'fpgm' cannot act on group '{self.group}': it compares the "
                    "filters of a layer; use magnitude"
                ),
            )
        if isinstance(self.criterion, Reconstruction) and in_one_tensor(self.group):
            raise AtKey(
                "criterion",
                f"criterion 'reconstruction' cannot act on group '{self.group}': it scores "
                "the units that other "
                "layers read; use magnitude",
            )
        if isinstance(self.criterion, TorchPruning) and (branches or in_one_tensor(self.group)):
            raise AtKey(
                "criterion",
                f"criterion 'torch_pruning' cannot act on group '{self.group}': an importance of "
                "torch-pruning scores whole channels; use magnitude",
            )
        if in_one_tensor(self.group):
            self._consistent_in_one_tensor()
        return self

    def _consistent_in_one_tensor(self) -> None:
        """What goes with groups that become zero inside a tensor."""
        assert self.group is not None
        facts = facts_of(self.group)
        if isinstance(self.penalty, GroupLasso) and not within(self.group):
            raise AtKey(
                "penalty",
                f"group_lasso cannot act on group '{self.group}': a lasso over single weights is 'kind: l1'",
            )
        if isinstance(self.penalty, GroupLasso) and self.penalty.scope == "coupled":
            raise ValueError(
                f"scope 'coupled' cannot act on group '{self.group}', which lies inside "
                "one tensor; leave out 'scope'"
            )
        if facts.amount == "group" and self.sparsity is not None:
            raise AtKey(
                "sparsity", f"group '{self.group}' says itself how much is removed; leave out 'sparsity'"
            )
        if isinstance(self.penalty, BnScalePenalty):
            raise AtKey(
                "penalty", f"bn_scale cannot act on group '{self.group}': a scale belongs to a whole channel"
            )
        if isinstance(self.criterion, BnScale):
            raise AtKey(
                "criterion",
                (
                    f"criterion 'bn_scale' cannot act on group '{self.group}': a scale belongs "
                    "to a whole channel"
                ),
            )
        if isinstance(self.penalty, GroupLasso) and isinstance(self.penalty.strength, Auto):
            raise AtKey(
                "penalty",
                (
                    "strength 'auto' counts groups that can leave, not those inside a tensor; "
                    f"give group '{self.group}' a number"
                ),
            )
        if isinstance(self.penalty, GrowingL2) and self.sparsity is None:
            raise AtKey(
                "penalty",
                (
                    f"growing_l2 on group '{self.group}' needs the rule's own 'sparsity': it "
                    "says what has been chosen to go"
                ),
            )
        chosen_in_training = isinstance(self.penalty, Dns | L0 | VariationalDropout) or (
            isinstance(self.penalty, Sensitivity) and self.penalty.threshold
        )
        if facts.amount == "sparsity" and self.sparsity is None and not chosen_in_training:
            raise ValueError(
                f"a rule with group '{self.group}' needs its own 'sparsity': zeroed "
                "weights stay in the file, so no budget can choose for it"
            )
        if facts.amount == "sparsity or penalty" and self.sparsity is None and self.penalty is None:
            raise ValueError(
                f"a rule with group '{self.group}' needs its own 'sparsity', or a "
                "'penalty' that brings groups to zero: no budget can choose for it"
            )
        if facts.keep == "nothing" and self.keep != Keep():
            raise AtKey(
                "keep",
                f"'keep' cannot act on group '{self.group}': it counts whole groups of a layer's width",
            )
        if self.keep.multiple_of not in (None, 1) or self.keep.uniform or self.keep.limits:
            raise AtKey(
                "keep", f"'keep' takes only 'at_least' for group '{self.group}', which no width follows from"
            )
