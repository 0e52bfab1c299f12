"""Malformed recipes, each with its exact error text."""

from pathlib import Path

import pytest

from sparsify.errors import RecipeError
from sparsify.recipe import load

RECIPE = """\
version: 1
title: Sample
vars: {epochs: 3}
model: {build: sparsify.models.lenet5}
inputs: [{shape: [2, 1, 28, 28]}]
data: {source: digits}
targets: {here: {kind: cpu}}
budget: {macs: 40%}
rules:
  - layers: "conv*"
    group: filter
    penalty:
      kind: group_lasso
      strength: 1e-3
    criterion: {kind: magnitude}
  - layers: fc2
    protect: true
stages:
  - {kind: train, name: learn, epochs: "${epochs}", optimizer: {kind: sgd, lr: 0.1, momentum: 0.9}}
  - {kind: cut}
"""
RULES = RECIPE[RECIPE.index("rules:") : RECIPE.index("stages:")]
STAGES = RECIPE[RECIPE.index("stages:") :]

Edits = tuple[tuple[str, str], ...]
EDITED: dict[str, tuple[Edits, str]] = {
    "input without a shape": (
        (("{shape: [2, 1, 28, 28]}", "{dtype: int64}"),),
        (
            "recipe.yaml:5:10: inputs.0: an input needs a 'shape', 'values', or a plain 'value'; "
            "such as {shape: [2, 3, 32, 32]}"
        ),
    ),
    "input of values and a range": (
        (("{shape: [2, 1, 28, 28]}", "{values: [1, 2], dtype: int64, range: [0, 5]}"),),
        (
            "recipe.yaml:5:41: inputs.0.range: 'range' says how numbers are drawn, "
            "and 'values' are the numbers themselves; leave one of them out"
        ),
    ),
    "input of ragged values": (
        (("{shape: [2, 1, 28, 28]}", "{values: [[1, 2], [3]]}"),),
        (
            "recipe.yaml:5:11: inputs.0.values: lists at one depth differ in length; "
            "a tensor needs rows of one length"
        ),
    ),
    "input of values of another shape": (
        (("{shape: [2, 1, 28, 28]}", "{values: [[1, 2]], shape: [2]}"),),
        "recipe.yaml:5:29: inputs.0.shape: the values have shape [1, 2]; leave 'shape' out",
    ),
    "input of broken integers": (
        (("{shape: [2, 1, 28, 28]}", "{values: [1, 2.5], dtype: int64}"),),
        (
            "recipe.yaml:5:11: inputs.0.values: int64 holds whole numbers, and 2.5 is none; "
            "write another 'dtype'"
        ),
    ),
    "input of an empty range": (
        (("{shape: [2, 1, 28, 28]}", "{shape: [2, 1, 28, 28], range: [5, 5]}"),),
        (
            "recipe.yaml:5:34: inputs.0.range: the range from 5 up to 5 is empty; "
            "the first number must be the smaller"
        ),
    ),
    "input of a fractional range of integers": (
        (("{shape: [2, 1, 28, 28]}", "{shape: [2, 9], dtype: int64, range: [0, 1.5]}"),),
        "recipe.yaml:5:40: inputs.0.range: int64 takes whole numbers; write a range of these",
    ),
    "input of a range of truth": (
        (("{shape: [2, 1, 28, 28]}", "{shape: [2, 9], dtype: bool, range: [0, 1]}"),),
        "recipe.yaml:5:39: inputs.0.range: true and false have no range; leave it out, or write 'values'",
    ),
    "input that counts examples nowhere": (
        (("{shape: [2, 1, 28, 28]}", "{shape: [2, 9], batch: 2}"),),
        (
            "recipe.yaml:5:26: inputs.0.batch: there is no dimension 2, as the shape has 2; "
            "the first is 0, and 'none' says that nothing counts examples"
        ),
    ),
    "plain value with a shape": (
        (("{shape: [2, 1, 28, 28]}", "{shape: [2, 9], value: 3}"),),
        (
            "recipe.yaml:5:11: inputs.0.shape: a plain 'value' has no 'shape'; leave it out, "
            "or write 'values' for a tensor"
        ),
    ),
    "plain value of nothing": (
        (("{shape: [2, 1, 28, 28]}", "{value: null}"),),
        "recipe.yaml:5:11: inputs.0.value: None is written as null in place of the whole entry",
    ),
    "inputs and calls": (
        (
            (
                "inputs: [{shape: [2, 1, 28, 28]}]",
                "inputs: [{shape: [2, 1, 28, 28]}]\ncalls: [{method: encode, inputs: [{shape: [2, 9]}]}]",
            ),
        ),
        (
            "recipe.yaml:5:1: inputs: 'inputs' are those of one call of forward; "
            "write them as an entry of 'calls', or leave 'calls' out"
        ),
    ),
    "call of no method": (
        (("inputs: [{shape: [2, 1, 28, 28]}]", "calls: [{method: 'encode(', inputs: [{shape: [2, 9]}]}]"),),
        (
            "recipe.yaml:5:18: calls.0.method: expected a method of the model that is called; "
            "found the text 'encode('"
        ),
    ),
    "unknown key": (
        (("strength: 1e-3", "strenght: 1e-3"),),
        "recipe.yaml:14:7: rules.0.penalty.strenght: unknown key; did you mean 'strength'?",
    ),
    "unknown key at the top": (
        (("budget:", "bugdet:"),),
        "recipe.yaml:8:1: bugdet: unknown key; did you mean 'budget'?",
    ),
    "unknown key without a near one": (
        (("    criterion: {kind: magnitude}", "    colour: blue"),),
        (
            "recipe.yaml:15:5: rules.0.colour: unknown key; known: layers, group, penalty, criterion, "
            "keep, sparsity, protect, override"
        ),
    ),
    "unknown key of another kind": (
        (("momentum: 0.9", "momentum: 0.9, betas: [0.9, 0.99]"),),
        (
            "recipe.yaml:19:100: stages.0.optimizer.betas: unknown key; known: kind, lr, momentum, "
            "weight_decay, nesterov"
        ),
    ),
    "python name of a key": (
        (("strength: 1e-3", "strength: {kind: linear, from_: 0, to: 1}"),),
        "recipe.yaml:14:32: rules.0.penalty.strength.from_: unknown key; did you mean 'from'?",
    ),
    "several unknown keys": (
        (
            ("{macs: 40%}", "{mac: 40%, param: 3k}"),
            ("{kind: cpu}", "{kind: cpu, thread: 2}"),
        ),
        (
            "recipe.yaml:7:29: targets.here.thread: unknown key; did you mean 'threads'?\n"
            "recipe.yaml:8:10: budget.mac: unknown key; did you mean 'macs'?\n"
            "recipe.yaml:8:20: budget.param: unknown key; did you mean 'params'?"
        ),
    ),
    "missing title": (
        (("title: Sample\n", ""),),
        "recipe.yaml:1:1: missing key 'title'; what the recipe is for; names the run folder",
    ),
    "missing strength": (
        (("      strength: 1e-3\n", ""),),
        (
            "recipe.yaml:12:5: rules.0.penalty: missing key 'strength'; lambda: a number, a schedule, "
            "or auto, which finds it"
        ),
    ),
    "missing kind": (
        (("      kind: group_lasso\n", ""),),
        (
            "recipe.yaml:12:5: rules.0.penalty: missing key 'kind'; one of group_lasso, l1, l2, gsm, "
            "sensitivity, bn_scale, growing_l2, agp, dns, l0, variational_dropout"
        ),
    ),
    "missing optimizer": (
        ((", optimizer: {kind: sgd, lr: 0.1, momentum: 0.9}", ""),),
        "recipe.yaml:19:5: stages.0: missing key 'optimizer'; what takes the steps",
    ),
    "missing rules and version": (
        (
            ("version: 1\n", ""),
            (RULES, ""),
        ),
        (
            "recipe.yaml:1:1: missing key 'rules'; what happens to which layers\n"
            "recipe.yaml:1:1: missing key 'version'; version of the recipe language, 1"
        ),
    ),
    "empty rules": (
        ((RULES, "rules: []\n"),),
        "recipe.yaml:9:8: rules: expected at least one entry, found none",
    ),
    "empty stages": (
        (
            (STAGES, "stages:\n"),
            ("vars: {epochs: 3}\n", ""),
        ),
        "recipe.yaml:17:8: stages: expected a list, found nothing",
    ),
    "duplicate key": (
        (("title: Sample", "title: Sample\ntitle: Other"),),
        "recipe.yaml:3:1: title: duplicate key; it stands first in line 2; remove one of the two",
    ),
    "duplicate key inside": (
        (("      strength: 1e-3", "      strength: 1e-3\n      strength: 1e-4"),),
        (
            "recipe.yaml:15:7: rules.0.penalty.strength: duplicate key; it stands first in line 14; "
            "remove one of the two"
        ),
    ),
    "number as a key": (
        (("{here: {kind: cpu}}", "{1: {kind: cpu}}"),),
        'recipe.yaml:7:11: targets: a key must be text, found the number 1; quote it: "1"',
    ),
    "list as a key": (
        (("title: Sample", "? [a, b]\n: c\ntitle: Sample"),),
        "recipe.yaml:2:3: a key must be text, found a list; unquoted '{' and '[' start a mapping or a list",
    ),
    "merge key": (
        (("    penalty:\n", "    penalty:\n      <<: {scope: layer}\n"),),
        (
            "recipe.yaml:13:7: rules.0.penalty: '<<' (a YAML 1.1 merge key) is not read; use 'extends: "
            "other.yaml', or write the keys out"
        ),
    ),
    "misspelt kind of penalty": (
        (("group_lasso", "group_laso"),),
        "recipe.yaml:13:13: rules.0.penalty.kind: unknown kind 'group_laso'; did you mean 'group_lasso'?",
    ),
    "misspelt kind and a mistake beside it": (
        (("group_lasso", "group_laso"), ("strength: 1e-3", "strenght: 1e-3\n      every: none")),
        (
            "recipe.yaml:13:13: rules.0.penalty.kind: unknown kind 'group_laso'; "
            "did you mean 'group_lasso'?\n"
            "recipe.yaml:14:7: rules.0.penalty.strenght: unknown key; did you mean 'strength'?\n"
            "recipe.yaml:15:14: rules.0.penalty.every: expected a whole number, found the text 'none'"
        ),
    ),
    "a builder that sparsify has not": (
        (("lenet5}", "lenet6}"),),
        "recipe.yaml:4:16: model.build: module 'sparsify.models' has no 'lenet6'; did you mean 'lenet5'?",
    ),
    "a builder without its module": (
        (("sparsify.models.lenet5}", "sparsify:lenet5}"),),
        (
            "recipe.yaml:4:16: model.build: module 'sparsify' has no 'lenet5'; "
            "did you mean 'sparsify.models.lenet5'?"
        ),
    ),
    "a builder in a module that is none": (
        (("sparsify.models.lenet5}", "sparsify.modles.lenet5}"),),
        (
            "recipe.yaml:4:16: model.build: there is no module 'sparsify.modles'; "
            "did you mean 'sparsify.models.lenet5'?"
        ),
    ),
    "kind of penalty that is none": (
        (("group_lasso", "dropout"),),
        (
            "recipe.yaml:13:13: rules.0.penalty.kind: unknown kind 'dropout'; known: group_lasso, l1, "
            "l2, gsm, sensitivity, bn_scale, growing_l2, agp, dns, l0, variational_dropout"
        ),
    ),
    "penalty as a word": (
        (("    penalty:\n      kind: group_lasso\n      strength: 1e-3", "    penalty: group_lasso"),),
        (
            "recipe.yaml:12:14: rules.0.penalty: expected a mapping, found the text 'group_lasso'; "
            "write {kind: group_lasso}"
        ),
    ),
    "criterion as a word": (
        (("{kind: magnitude}", "magnitude"),),
        (
            "recipe.yaml:15:16: rules.0.criterion: expected a mapping, found the text 'magnitude'; "
            "write {kind: magnitude}"
        ),
    ),
    "unknown target kind": (
        (("{kind: cpu}", "{kind: gpu}"),),
        "recipe.yaml:7:24: targets.here.kind: unknown kind 'gpu'; did you mean 'cpu'?",
    ),
    "unknown schedule kind": (
        (("strength: 1e-3", "strength: {kind: cubik, to: 1e-3}"),),
        "recipe.yaml:14:24: rules.0.penalty.strength.kind: unknown kind 'cubik'; did you mean 'cubic'?",
    ),
    "unknown optimizer": (
        (("kind: sgd", "kind: rmsprop"),),
        "recipe.yaml:19:71: stages.0.optimizer.kind: unknown kind 'rmsprop'; known: sgd, adam, adamw, other",
    ),
    "unknown stage kind": (
        (("{kind: cut}", "{kind: prune}"),),
        "recipe.yaml:20:12: stages.1.kind: unknown kind 'prune'; known: train, cut, repair",
    ),
    "number as a kind": (
        (("kind: group_lasso", "kind: 3"),),
        (
            "recipe.yaml:13:13: rules.0.penalty.kind: expected one of group_lasso, l1, l2, gsm, "
            "sensitivity, bn_scale, growing_l2, agp, dns, l0, variational_dropout, found the number 3"
        ),
    ),
    "unknown group": (
        (("group: filter", "group: fliter"),),
        "recipe.yaml:11:12: rules.0.group: unknown group 'fliter'; did you mean 'filter'?",
    ),
    "group as a number": (
        (("group: filter", "group: 4"),),
        (
            "recipe.yaml:11:12: rules.0.group: expected one of filter, channel, neuron, head, hidden, "
            "expert, depth, shape, tap, weight, 4x1 (a block), 2:4 (n:m), found the number 4"
        ),
    ),
    "pattern that keeps everything": (
        (("group: filter", "group: 4:4"),),
        "recipe.yaml:11:12: rules.0.group: '4:4' keeps every weight; of n:m, n must lie between 0 and m",
    ),
    "pattern that keeps nothing": (
        (("group: filter", "group: 0:4"),),
        "recipe.yaml:11:12: rules.0.group: '0:4' keeps nothing; of n:m, n must lie between 0 and m",
    ),
    "block of one weight": (
        (("group: filter", "group: 1x1"),),
        "recipe.yaml:11:12: rules.0.group: a block of 1x1 is a single weight; write 'group: weight'",
    ),
    "text for a number": (
        (("lr: 0.1", "lr: auto"),),
        "recipe.yaml:19:80: stages.0.optimizer.lr: expected a number or a schedule, not 'auto'",
    ),
    "list for a schedule": (
        (("strength: 1e-3", "strength: [1e-3]"),),
        "recipe.yaml:14:17: rules.0.penalty.strength: expected a number or a schedule, found a list",
    ),
    "quoted number": (
        (
            ('"${epochs}"', "'3'"),
            ("vars: {epochs: 3}\n", ""),
        ),
        (
            "recipe.yaml:18:40: stages.0.epochs: expected a whole number, found the text '3'; "
            "write it without quotes"
        ),
    ),
    "fraction for a whole number": (
        (("{epochs: 3}", "{epochs: 2.5}"),),
        (
            "recipe.yaml:19:40: stages.0.epochs: expected a whole number, found the number 2.5; "
            "this is what '${epochs}' comes to"
        ),
    ),
    "number for text": (
        (("title: Sample", "title: 5"),),
        "recipe.yaml:2:8: title: expected text, found the number 5; quote it",
    ),
    "yes for true": (
        (("protect: true", "protect: yes"),),
        (
            "recipe.yaml:17:14: rules.1.protect: expected true or false, found the text 'yes'; "
            "YAML 1.2 has no yes, no, on and off"
        ),
    ),
    "number for a mapping": (
        (("{source: digits}", "digits"),),
        "recipe.yaml:6:7: data: expected a mapping, found the text 'digits'",
    ),
    "mapping for a list": (
        (("inputs: [{shape: [2, 1, 28, 28]}]", "inputs: 3"),),
        "recipe.yaml:5:9: inputs: expected a list, found the number 3",
    ),
    "bare number as a budget": (
        (("macs: 40%", "macs: 0.4"),),
        (
            "recipe.yaml:8:16: budget.macs: expected a share such as 40% or a count such as 300M, "
            "not the bare number 0.4; write '40%'"
        ),
    ),
    "wrong unit of a budget": (
        (("macs: 40%", "macs: 8MiB"),),
        "recipe.yaml:8:16: budget.macs: expected a share such as 40% or a count such as 300M, not '8MiB'",
    ),
    "nothing is to remain": (
        (("{macs: 40%}", "{macs: 0%, params: 0k, bytes: 0B, peak_memory: 0%, latency: {here: 0ms}}"),),
        (
            "recipe.yaml:8:16: budget.macs: no cut leaves as little as '0%'; "
            "say how much may remain: a share such as 40% or a count such as 300M\n"
            "recipe.yaml:8:28: budget.params: no cut leaves as little as '0k'; "
            "say how much may remain: a share such as 40% or a count such as 300M\n"
            "recipe.yaml:8:39: budget.bytes: no cut leaves as little as '0B'; "
            "say how much may remain: a share such as 40% or a size such as 8MiB or 500kB\n"
            "recipe.yaml:8:56: budget.peak_memory: no cut leaves as little as '0%'; "
            "say how much may remain: a share such as 40% or a size such as 8MiB or 500kB\n"
            "recipe.yaml:8:76: budget.latency.here: no cut leaves as little as '0ms'; "
            "say how much may remain: a share such as 40% or a time such as 2.5ms"
        ),
    ),
    "nothing is to remain of a cut between": (
        (("{kind: cut}", "{kind: cut, budget: {macs: 0%}}\n  - {kind: cut, name: again}"),),
        (
            "recipe.yaml:20:32: stages.1.budget.macs: no cut leaves as little as '0%'; "
            "say how much may remain: a share such as 40% or a count such as 300M"
        ),
    ),
    "a search that never comes near enough": (
        (("{macs: 40%}", "{accuracy_drop: {at_most: 1pp, within: 0%}}"),),
        (
            "recipe.yaml:8:48: budget.accuracy_drop.within: bisection comes ever nearer and never to "
            "'0%'; write a share above it, or leave 'within' out and let 'trials' end the search"
        ),
    ),
    "share above 100 %": (
        (("macs: 40%", "macs: 140%"),),
        "recipe.yaml:8:16: budget.macs: expected a share between 0% and 100%, not '140%'",
    ),
    "wrong unit of a duration": (
        (("strength: 1e-3", "strength: {kind: linear, from: 0, to: 1, end: 10epochs}"),),
        (
            "recipe.yaml:14:53: rules.0.penalty.strength.end: expected a duration such as 5ep "
            "(epochs), 200it (optimizer steps) or 0.5dur (half of the stage), not '10epochs'"
        ),
    ),
    "bare number as a duration": (
        (("strength: 1e-3", "strength: {kind: linear, from: 0, to: 1, end: 10}"),),
        (
            "recipe.yaml:14:53: rules.0.penalty.strength.end: expected a duration such as 5ep "
            "(epochs), 200it (optimizer steps) or 0.5dur (half of the stage), not the bare number 10"
        ),
    ),
    "unknown dtype": (
        (("28]}", "28], dtype: float31}"),),
        (
            "recipe.yaml:5:41: inputs.0.dtype: expected one of float32, float64, bfloat16, float16, "
            "int64, int32, bool, found the text 'float31'; did you mean 'float32'?"
        ),
    ),
    "no dotted path": (
        (("sparsify.models.lenet5", "lenet5"),),
        (
            "recipe.yaml:4:16: model.build: expected a dotted path of a callable, "
            "such as sparsify.models.lenet5 or mypackage.nets:resnet; found the text 'lenet5'"
        ),
    ),
    "bad version": (
        (("version: 1", "version: 2"),),
        (
            "recipe.yaml:1:10: version: expected 1, the version of the language that this sparsify "
            "reads, found the number 2; it was written for a newer sparsify; use that version"
        ),
    ),
    "a callable of data with a dot": (
        (("source: digits", "source: my_data.fashion"),),
        "recipe.yaml:6:16: data.source: unknown source 'my_data.fashion'; did you mean 'my_data:fashion'?",
    ),
    "unknown source": (
        (("source: digits", "source: digit"),),
        "recipe.yaml:6:16: data.source: unknown source 'digit'; did you mean 'digits'?",
    ),
    "huge number": (
        (
            (
                "strength: 1e-3",
                "strength: " + "9" * 400,
            ),
        ),
        "recipe.yaml:14:17: rules.0.penalty.strength: a number of 400 characters",
    ),
    "infinite number": (
        (("strength: 1e-3", "strength: .inf"),),
        "recipe.yaml:14:17: rules.0.penalty.strength: expected a finite number, found the number inf",
    ),
    "negative learning rate": (
        (("lr: 0.1", "lr: -0.1"),),
        "recipe.yaml:19:80: stages.0.optimizer.lr: expected at least 0, found the number -0.1",
    ),
    "no epochs": (
        (("{epochs: 3}", "{epochs: 0}"),),
        (
            "recipe.yaml:19:40: stages.0.epochs: expected at least 1, found the number 0; "
            "this is what '${epochs}' comes to"
        ),
    ),
    "momentum one": (
        (("momentum: 0.9", "momentum: 1"),),
        "recipe.yaml:19:95: stages.0.optimizer.momentum: expected less than 1, found the number 1",
    ),
    "negative strength": (
        (("1e-3", "-1e-3"),),
        "recipe.yaml:14:17: rules.0.penalty.strength: expected at least 0, found the number -0.001",
    ),
    "zero in a shape": (
        (("[2, 1, 28, 28]", "[2, 0, 28, 28]"),),
        "recipe.yaml:5:22: inputs.0.shape.1: expected at least 1, found the number 0",
    ),
    "one beta": (
        (("{kind: sgd, lr: 0.1, momentum: 0.9}", "{kind: adam, betas: [0.9]}"),),
        "recipe.yaml:19:84: stages.0.optimizer.betas: expected more than 1 entry",
    ),
    "nesterov without momentum": (
        (("momentum: 0.9", "nesterov: true"),),
        "recipe.yaml:19:64: stages.0.optimizer: nesterov needs a momentum above zero",
    ),
    "exponential from zero": (
        (("strength: 1e-3", "strength: {kind: exponential, from: 0, to: 1}"),),
        (
            "recipe.yaml:14:17: rules.0.penalty.strength: an exponential schedule needs 'from' and "
            "'to' above zero; use linear or cosine to start at 0"
        ),
    ),
    "empty window": (
        (("strength: 1e-3", "strength: {kind: linear, from: 0, to: 1, start: 9ep, end: 3ep}"),),
        (
            "recipe.yaml:14:17: rules.0.penalty.strength: the schedule starts at 9ep and ends at 3ep; "
            "'end' must come after 'start'"
        ),
    ),
    "protect with group": (
        (("protect: true", "protect: true\n    group: filter"),),
        (
            "recipe.yaml:18:5: rules.1.group: a rule with 'protect: true' takes no 'group'; "
            "protected layers keep their width"
        ),
    ),
    "rule without group": (
        (("    group: filter\n", ""),),
        (
            "recipe.yaml:10:5: rules.0: a rule needs a 'group' (filter, channel, neuron, head, hidden, "
            "expert, depth, shape, tap, weight, 4x1 or 2:4), or 'protect: true'"
        ),
    ),
    "weight without sparsity": (
        (
            ("group: filter", "group: weight"),
            ("group_lasso", "l1"),
        ),
        (
            "recipe.yaml:10:5: rules.0: a rule with group 'weight' needs its own 'sparsity': "
            "zeroed weights stay in the file, so no budget can choose for it"
        ),
    ),
    "group lasso on weights": (
        (("group: filter", "group: weight\n    sparsity: 50%"),),
        (
            "recipe.yaml:13:5: rules.0.penalty: group_lasso cannot act on group 'weight': "
            "a lasso over single weights is 'kind: l1'"
        ),
    ),
    "group lasso on a pattern": (
        (("group: filter", "group: 2:4"),),
        (
            "recipe.yaml:12:5: rules.0.penalty: group_lasso cannot act on group '2:4': "
            "a lasso over single weights is 'kind: l1'"
        ),
    ),
    "sparsity of a pattern": (
        (("group: filter", "group: 2:4\n    sparsity: 50%"), ("group_lasso", "l1")),
        (
            "recipe.yaml:12:5: rules.0.sparsity: group '2:4' says itself how much is removed; "
            "leave out 'sparsity'"
        ),
    ),
    "taps of coupled groups": (
        (("group: filter", "group: tap"), ("group_lasso", "group_lasso\n      scope: coupled")),
        (
            "recipe.yaml:10:5: rules.0: scope 'coupled' cannot act on group 'tap', "
            "which lies inside one tensor; leave out 'scope'"
        ),
    ),
    "shapes without an amount": (
        (("group: filter\n    penalty:\n      kind: group_lasso\n      strength: 1e-3", "group: shape"),),
        (
            "recipe.yaml:10:5: rules.0: a rule with group 'shape' needs its own 'sparsity', "
            "or a 'penalty' that brings groups to zero: no budget can choose for it"
        ),
    ),
    "shapes in multiples": (
        (("group: filter", "group: shape\n    keep: {multiple_of: 2}"),),
        (
            "recipe.yaml:12:5: rules.0.keep: 'keep' takes only 'at_least' for group 'shape', "
            "which no width follows from"
        ),
    ),
    "blocks with a floor": (
        (("group: filter", "group: 4x1\n    keep: {at_least: 2}"),),
        (
            "recipe.yaml:12:5: rules.0.keep: 'keep' cannot act on group '4x1': "
            "it counts whole groups of a layer's width"
        ),
    ),
    "gsm without sparsity": (
        (("kind: group_lasso\n      strength: 1e-3", "kind: gsm"),),
        (
            "recipe.yaml:12:5: rules.0.penalty: gsm needs the rule's own 'sparsity': "
            "it says how many keep following the loss"
        ),
    ),
    "classes of the loss": (
        (("kind: group_lasso", "kind: sensitivity\n      classes: 3"),),
        (
            "recipe.yaml:14:7: rules.0.penalty.classes: 'classes' is for 'of: outputs'; "
            "the loss has one derivative"
        ),
    ),
    "classes of specific sensitivity": (
        (
            (
                "kind: group_lasso",
                "kind: sensitivity\n      of: outputs\n      mode: specific\n      classes: 3",
            ),
        ),
        (
            "recipe.yaml:16:7: rules.0.penalty.classes: 'classes' is for 'mode: unspecific'; "
            "specific looks at one class per example"
        ),
    ),
    "threshold without validation data": (
        (
            ("kind: group_lasso", "kind: sensitivity\n      threshold: {patience: 3}"),
            ("{source: digits}", "{source: digits, validation: 0%}"),
        ),
        (
            "recipe.yaml:14:7: rules.0.penalty.threshold: the threshold needs validation data: "
            "it looks at the loss there; write data.validation above 0%"
        ),
    ),
    "two thresholds": (
        (
            ("kind: group_lasso", "kind: sensitivity\n      threshold: {patience: 3}"),
            (
                "layers: fc2\n    protect: true",
                (
                    "layers: fc*\n"
                    "    group: neuron\n"
                    "    penalty: {kind: sensitivity, strength: 1e-3, threshold: {}}"
                ),
            ),
        ),
        (
            "recipe.yaml:19:50: rules.1.penalty.threshold: rules.0 and rules.1 ask for different thresholds; "
            "weights become zero for all rules at once, write the same"
        ),
    ),
    "agp without sparsity": (
        (("kind: group_lasso\n      strength: 1e-3", "kind: agp"),),
        (
            "recipe.yaml:12:5: rules.0.penalty: agp needs the rule's own 'sparsity': "
            "it says how many are zero at the end"
        ),
    ),
    "agp that ends before it starts": (
        (
            (
                "kind: group_lasso\n      strength: 1e-3",
                "kind: agp\n      start: 0.5dur\n      end: 0.2dur\n    sparsity: 50%",
            ),
        ),
        (
            "recipe.yaml:12:5: rules.0.penalty: agp starts at 0.5dur and ends at 0.2dur; "
            "'end' must come after 'start'"
        ),
    ),
    "dns on filters": (
        (("kind: group_lasso\n      strength: 1e-3", "kind: dns"),),
        (
            "recipe.yaml:12:5: rules.0.penalty: dns masks single weights; write 'group: weight', "
            "or use agp for whole groups"
        ),
    ),
    "variational_dropout on filters": (
        (("kind: group_lasso", "kind: variational_dropout"),),
        (
            "recipe.yaml:12:5: rules.0.penalty: variational_dropout is of single weights; "
            "write 'group: weight', or use l0 for whole groups"
        ),
    ),
    "l0 on blocks": (
        (("group: filter", "group: depth"), ("kind: group_lasso", "kind: l0")),
        (
            "recipe.yaml:12:5: rules.0.penalty: l0 gates what arrives at a unit's consumers, "
            "and a residual branch has none of its own; use group_lasso on group 'depth'"
        ),
    ),
    "gates that cannot move": (
        (("kind: group_lasso", "kind: l0\n      closed: 0%"),),
        (
            "recipe.yaml:14:7: rules.0.penalty.closed: gates cannot start 0% closed: "
            "from 0 % and 100 % they never move"
        ),
    ),
    "bn_scale on weights": (
        (("group: filter", "group: weight\n    sparsity: 50%"), ("group_lasso", "bn_scale")),
        (
            "recipe.yaml:13:5: rules.0.penalty: bn_scale cannot act on group 'weight': "
            "a scale belongs to a whole channel"
        ),
    ),
    "criterion bn_scale on weights": (
        (
            ("group: filter", "group: weight\n    sparsity: 50%"),
            ("group_lasso", "l1"),
            ("{kind: magnitude}", "{kind: bn_scale}"),
        ),
        (
            "recipe.yaml:16:5: rules.0.criterion: criterion 'bn_scale' cannot act on group 'weight': "
            "a scale belongs to a whole channel"
        ),
    ),
    "criterion fpgm on weights": (
        (
            ("group: filter", "group: weight\n    sparsity: 50%"),
            ("group_lasso", "l1"),
            ("{kind: magnitude}", "{kind: fpgm}"),
        ),
        (
            "recipe.yaml:16:5: rules.0.criterion: criterion 'fpgm' cannot act on group 'weight': "
            "it compares the filters of a layer; use magnitude"
        ),
    ),
    "strength auto without exact zeros": (
        (("strength: 1e-3", "strength: auto\n      solver: subgradient"),),
        (
            "recipe.yaml:14:7: rules.0.penalty.strength: strength 'auto' also says how far each group "
            "may shrink, which only solver 'proximal' heeds"
        ),
    ),
    "every of a solver that acts on each step": (
        (("strength: 1e-3", "strength: 1e-3\n      solver: half_space\n      every: 4"),),
        (
            "recipe.yaml:16:7: rules.0.penalty.every: 'every' is for 'solver: proximal'; "
            "the other solvers act on each step"
        ),
    ),
    "a lasso's epsilon without half-space": (
        (("strength: 1e-3", "strength: 1e-3\n      epsilon: 0.1"),),
        "recipe.yaml:15:7: rules.0.penalty.epsilon: 'epsilon' is for 'solver: half_space'",
    ),
    "a lasso's epsilon that leaves nothing": (
        (("strength: 1e-3", "strength: 1e-3\n      solver: half_space\n      epsilon: 1"),),
        (
            "recipe.yaml:16:7: rules.0.penalty.epsilon: 'epsilon' must be below 1; "
            "at 1 every group that shrinks would become zero"
        ),
    ),
    "a lasso's threshold with a solver that needs none": (
        (("strength: 1e-3", "strength: 1e-3\n      zero_below: 1e-4"),),
        (
            "recipe.yaml:15:7: rules.0.penalty.zero_below: 'zero_below' is for 'solver: subgradient'; "
            "the other solvers reach zero by themselves"
        ),
    ),
    "a lasso's target without a latency": (
        (("strength: 1e-3", "strength: 1e-3\n      weight: macs\n      target: laptop"),),
        "recipe.yaml:16:7: rules.0.penalty.target: 'target' is for 'weight: latency'",
    ),
    "latency of slices": (
        (("strength: 1e-3", "strength: 1e-3\n      weight: latency\n      scope: layer"),),
        (
            "recipe.yaml:15:7: rules.0.penalty.weight: weight 'latency' is known of groups that can "
            "leave, which are of scope 'coupled'; write 'weight: macs'"
        ),
    ),
    "latency of groups inside a tensor": (
        (("group: filter", "group: shape"), ("strength: 1e-3", "strength: 1e-3\n      weight: latency")),
        (
            "recipe.yaml:12:5: rules.0.penalty: weight 'latency' is known of groups that can leave, "
            "not of those inside a tensor; group 'shape' takes 'weight: macs'"
        ),
    ),
    "a lasso by the latency of nothing": (
        (("targets: {here: {kind: cpu}}\n", ""), ("strength: 1e-3", "strength: 1e-3\n      weight: latency")),
        (
            "recipe.yaml:14:7: rules.0.penalty.weight: 'latency' is of one of the recipe's "
            "targets, and it has none; write 'target' and targets"
        ),
    ),
    "a lasso by the latency of one of two": (
        (
            ("here: {kind: cpu}", "here: {kind: cpu}, there: {kind: cpu, threads: 2}"),
            ("strength: 1e-3", "strength: 1e-3\n      weight: latency"),
        ),
        (
            "recipe.yaml:15:7: rules.0.penalty.weight: 'latency' is of one of the recipe's "
            "targets, and it has 2; write 'target'"
        ),
    ),
    "a lasso by the latency of a stranger": (
        (("strength: 1e-3", "strength: 1e-3\n      weight: latency\n      target: phone"),),
        "recipe.yaml:16:7: rules.0.penalty.target: 'phone' is no target of the recipe; known: here",
    ),
    "strength auto on slices": (
        (("strength: 1e-3", "strength: auto\n      scope: layer"),),
        (
            "recipe.yaml:14:7: rules.0.penalty.strength: strength 'auto' counts groups that can leave, "
            "which are of scope 'coupled'"
        ),
    ),
    "strength auto of l1 on filters": (
        (("group_lasso", "l1"), ("strength: 1e-3", "strength: auto")),
        (
            "recipe.yaml:12:5: rules.0.penalty: l1 with strength 'auto' counts single weights; "
            "use group_lasso on group 'filter', or give l1 a number"
        ),
    ),
    "strength auto without a goal": (
        (("strength: 1e-3", "strength: auto"), ("budget: {macs: 40%}\n", "")),
        (
            "recipe.yaml:13:7: rules.0.penalty.strength: 'auto' needs a goal; give the recipe a budget, "
            "or the rule its own 'sparsity'"
        ),
    ),
    "strength auto towards a time": (
        (
            ("strength: 1e-3", "strength: auto"),
            ("budget: {macs: 40%}", "budget: {latency: {onnxruntime: 60%}}"),
        ),
        (
            "recipe.yaml:14:7: rules.0.penalty.strength: 'auto' needs a goal; give the budget macs, "
            "params, bytes or peak_memory as well (latency and accuracy_drop are held by the cut, "
            "not in training), the penalty a number, or the rule its own 'sparsity'"
        ),
    ),
    "strength auto beside another rule": (
        (
            ("strength: 1e-3", "strength: auto"),
            ("layers: fc2\n    protect: true", "layers: fc1\n    group: neuron"),
        ),
        (
            "recipe.yaml:16:5: rules.1: the rule leaves its amount to the budget, "
            "which strength 'auto' of another rule aims at alone; give it strength auto as well, "
            "or its own 'sparsity'"
        ),
    ),
    "strength as another word": (
        (("strength: 1e-3", "strength: automatic"),),
        "recipe.yaml:14:17: rules.0.penalty.strength: expected a number, a schedule or auto, not 'automatic'",
    ),
    "bad regular expression": (
        (('"conv*"', "re:(conv"),),
        (
            "recipe.yaml:10:13: rules.0.layers: 're:(conv' is no regular expression: missing ), "
            "unterminated subpattern at position 0"
        ),
    ),
    "two rules on the same layers": (
        (("layers: fc2\n    protect: true", 'layers: ["conv*"]\n    group: out_channel'),),
        (
            "recipe.yaml:16:5: rules.1: claims the same layers and group 'filter' as rules.0; "
            "remove one of the two, or write 'override: true' in the later one"
        ),
    ),
    "layers protected twice": (
        (
            (
                "  - layers: fc2\n    protect: true",
                "  - {layers: fc2, protect: true}\n  - {layers: [fc2], protect: true}",
            ),
        ),
        (
            "recipe.yaml:17:5: rules.2: protects the same layers as rules.1; remove one of the two, "
            "or write 'override: true' in the later one"
        ),
    ),
    "two cuts": (
        (("{kind: cut}", "{kind: cut}\n  - {kind: cut, name: again}"),),
        (
            "recipe.yaml:20:5: stages.1.way: 'again' cuts 100% of the way, "
            "and 'cut' before it has gone 100%; give 'cut' a shorter 'way'"
        ),
    ),
    "no cut": (
        (("  - {kind: cut}\n", ""),),
        "recipe.yaml:18:1: stages: a recipe needs a 'cut' stage, or a 'train' stage with 'cuts'",
    ),
    "the last cut goes half the way": (
        (("{kind: cut}", "{kind: cut, way: 50%}"),),
        (
            "recipe.yaml:20:17: stages.1.way: 'cut' is the last cut and must meet the recipe's budget; "
            "leave out its 'way' and 'budget', or add a 'cut' stage"
        ),
    ),
    "cuts between steps": (
        (("name: learn,", "name: learn, cuts: {every: 100it},"),),
        (
            "recipe.yaml:19:38: stages.0.cuts: 'every: 100it' is no number of whole epochs, "
            "and cuts come between epochs; write 1ep"
        ),
    ),
    "cuts that end at a step": (
        (("name: learn,", "name: learn, cuts: {end: 100it},"),),
        (
            "recipe.yaml:19:38: stages.0.cuts: 'end: 100it' counts steps, "
            "and cuts come between epochs; write it in ep or dur"
        ),
    ),
    "cuts beyond the stage": (
        (("name: learn,", "name: learn, cuts: {end: 4ep},"),),
        (
            "recipe.yaml:19:5: stages.0: the cuts start at 0ep and end at 4ep; "
            "'end' must come after 'start' and within 3ep"
        ),
    ),
    "more parts than examples": (
        (("name: learn,", "name: learn, batch: 8, accumulate: 9,"),),
        "recipe.yaml:19:42: stages.0.accumulate: a batch of 8 cannot pass in 9 parts; choose at most 8",
    ),
    "two stages of one name": (
        (("{kind: cut}", "{kind: cut, name: learn}"),),
        "recipe.yaml:20:17: stages.1.name: two stages are called 'learn'; give one of them another 'name'",
    ),
    "the last of the cuts between epochs goes half the way": (
        (("name: learn,", "name: learn, cuts: {way: 50%},"), ("  - {kind: cut}\n", "")),
        (
            "recipe.yaml:19:39: stages.0.cuts.way: 'learn' is the last cut and must meet the recipe's "
            "budget; leave out its 'way' and 'budget', or add a 'cut' stage"
        ),
    ),
    "the budget of a stage names a latency": (
        (("{kind: cut}", "{kind: cut, budget: {latency: {here: 60%}}}\n  - {kind: cut, name: last}"),),
        (
            "recipe.yaml:20:26: stages.1.budget.latency: only the recipe's own budget names a latency; 'way' "
            "goes part of it"
        ),
    ),
    "averages of zeros": (
        (("name: learn,", "name: learn, ema: 0.9,"),),
        (
            "recipe.yaml:19:32: stages.0.ema: 'learn' averages weights while penalties act, and an average "
            "of weights that become zero is not zero; write 'penalties: false', or leave 'ema' out"
        ),
    ),
    "distillation without a cut before": (
        (("name: learn,", "name: learn, distill: {},"),),
        (
            "recipe.yaml:19:32: stages.0.distill: 'learn' distils from the dense model, and no stage before "
            "it cuts; move 'distill' to a stage after a cut, or name a file as its 'teacher'"
        ),
    ),
    "the best of no validation data": (
        (("digits}", "digits, validation: 0%}"), ("name: learn,", "name: learn, ends_with: best,")),
        (
            "recipe.yaml:19:32: stages.0.ends_with: 'ends_with' of 'learn' goes by the validation set; write "
            "data.validation above 0%"
        ),
    ),
    "train without data": (
        (("data: {source: digits}\n", ""),),
        "recipe.yaml:1:1: a recipe with a 'train' stage needs 'data'",
    ),
    "size without a folder": (
        (("{source: digits}", "{source: digits, size: 8}"),),
        "recipe.yaml:6:24: data.size: 'size' acts on source 'folder' only; leave it out",
    ),
    "a folder for digits": (
        (("digits}", "digits, root: here}"),),
        "recipe.yaml:6:24: data.root: source 'digits' reads no folder; leave 'root' out",
    ),
    "a folder for a callable": (
        (("digits}", '"my:data", root: here}'),),
        "recipe.yaml:6:27: data.root: source 'my:data' reads no folder; leave 'root' out",
    ),
    "images without a folder": (
        (("digits}", "folder}"),),
        (
            "recipe.yaml:6:7: data.root: source 'folder' needs 'root': the folder that holds train/<class>/ "
            "and test/<class>/"
        ),
    ),
    "a name of targets without one": (
        (("digits}", "digits, target: label}"),),
        "recipe.yaml:6:24: data.target: the targets of 'digits' have no name; leave 'target' out",
    ),
    "a name of the targets of arrays": (
        (("digits}", "some.npz, target: y_train}"),),
        "recipe.yaml:6:26: data.target: the targets of 'some.npz' have no name; leave 'target' out",
    ),
    "a column of targets of a language model": (
        (("digits}", "a.jsonl, test: 20%, target: y}\ntask: language_model"),),
        ("recipe.yaml:6:36: data.target: the targets of a language model are its tokens; leave 'target' out"),
    ),
    "a column of plain text": (
        (("digits}", "a.txt, test: 20%, text: {column: body}}\ntask: language_model"),),
        "recipe.yaml:6:41: data.text.column: a .txt has no columns; leave 'column' out",
    ),
    "the target among the inputs": (
        (("digits}", "a.csv, test: 20%, target: y, features: [a, y]}"),),
        "recipe.yaml:6:59: data.features.1: 'y' is the target; leave it out",
    ),
    "a number as a test set": (
        (("digits}", "a.csv, test: 0.2}"),),
        (
            "recipe.yaml:6:29: data.test: expected a share such as 20% or a path, found the number 0.2; "
            "write 20%"
        ),
    ),
    "a list as a test set": (
        (("digits}", "a.csv, test: [a]}"),),
        "recipe.yaml:6:29: data.test: expected a share such as 20% or a path, found a list",
    ),
    "a number as a target": (
        (("digits}", "a.csv, test: 20%, target: 3}"),),
        "recipe.yaml:6:42: data.target: expected a name or a list of names, found the number 3; quote it",
    ),
    "an input twice": (
        (("digits}", "a.csv, test: 20%, features: [a, b, a]}"),),
        "recipe.yaml:6:51: data.features.2: 'a' stands there twice; leave one out",
    ),
    "a target twice": (
        (("digits}", "a.csv, test: 20%, target: [a, a]}"),),
        "recipe.yaml:6:46: data.target.1: 'a' stands there twice; leave one out",
    ),
    "names that are no input": (
        (("digits}", "a.csv, test: 20%, features: [a], categories: [b]}"),),
        ("recipe.yaml:6:62: data.categories.0: 'b' is no input; add it to 'features', or leave it out here"),
    ),
    "nothing to train on": (
        (("digits}", "digits, validation: 100%}"),),
        ("recipe.yaml:6:24: data.validation: 100% leaves no example to train on; write a smaller share"),
    ),
    "targets that classes cannot ignore": (
        (("digits}", "digits}\ntask: {ignore: 255}"),),
        ("recipe.yaml:7:8: task.ignore: a task of classification counts every target; leave 'ignore' out"),
    ),
    "targets that an own loss ignores": (
        (("digits}", 'digits}\ntask: {loss: "my:loss", ignore: 255}'),),
        (
            "recipe.yaml:7:25: task.ignore: a task of own counts every target; leave 'ignore' out, and let "
            "the loss do it"
        ),
    ),
    "undefined variable": (
        (("${epochs}", "${epoch}"),),
        (
            "recipe.yaml:3:8: vars.epochs: unused variable 'epochs'; "
            "write ${epochs} where it belongs, or remove it\n"
            "recipe.yaml:19:40: stages.0.epochs: undefined variable 'epoch'; did you mean 'epochs'?"
        ),
    ),
    "undefined variable without any": (
        (("vars: {epochs: 3}\n", ""),),
        "recipe.yaml:18:40: stages.0.epochs: undefined variable 'epochs'; declare it under 'vars:'",
    ),
    "unused variable": (
        (("{epochs: 3}", "{epochs: 3, lr: 0.1}"),),
        "recipe.yaml:3:19: vars.lr: unused variable 'lr'; write ${lr} where it belongs, or remove it",
    ),
    "variables in a circle": (
        (("{epochs: 3}", '{epochs: "${half * 2}", half: "${epochs / 2}"}'),),
        "recipe.yaml:3:37: vars.half: variables refer to each other in a circle: epochs -> half -> epochs",
    ),
    "code in an expression": (
        (("${epochs}", "${__import__('os').system('id')}"),),
        (
            "recipe.yaml:3:8: vars.epochs: unused variable 'epochs'; "
            "write ${epochs} where it belongs, or remove it\n"
            "recipe.yaml:19:40: stages.0.epochs: \"__import__('os').system('id')\" is not allowed "
            "in an expression; only numbers, variables, + - * / // % **, parentheses, min, max, "
            "round and int"
        ),
    ),
    "attribute in an expression": (
        (("${epochs}", "${epochs.real}"),),
        (
            "recipe.yaml:19:40: stages.0.epochs: 'epochs.real' is not allowed in an expression; "
            "only numbers, variables, + - * / // % **, parentheses, min, max, round and int"
        ),
    ),
    "unknown function": (
        (("${epochs}", "${abs(epochs)}"),),
        "recipe.yaml:19:40: stages.0.epochs: 'abs' cannot be called; known: int, max, min, round",
    ),
    "huge power": (
        (("${epochs}", "${epochs ** 9 ** 9 ** 9}"),),
        "recipe.yaml:19:40: stages.0.epochs: the result is too large; whole numbers stay below 1e+18",
    ),
    "division by zero": (
        (("${epochs}", "${epochs / (3 - epochs)}"),),
        "recipe.yaml:19:40: stages.0.epochs: division by zero",
    ),
    "text in arithmetic": (
        (
            ("{epochs: 3}", "{epochs: three}"),
            ("${epochs}", "${epochs * 2}"),
        ),
        "recipe.yaml:19:40: stages.0.epochs: arithmetic needs numbers, and 'epochs' is the text 'three'",
    ),
    "expression that is none": (
        (("${epochs}", "${epochs +}"),),
        (
            "recipe.yaml:19:40: stages.0.epochs: 'epochs +' is not an expression; only numbers, variables, "
            "+ - * / // % **, parentheses, min, max, round and int"
        ),
    ),
    "expression never closed": (
        (("${epochs}", "${epochs"),),
        (
            "recipe.yaml:3:8: vars.epochs: unused variable 'epochs'; "
            "write ${epochs} where it belongs, or remove it\n"
            "recipe.yaml:19:40: stages.0.epochs: '${' without its '}'; close it, "
            "or write $${ for the characters themselves"
        ),
    ),
    "list as a variable": (
        (("{epochs: 3}", "{epochs: [3]}"),),
        "recipe.yaml:3:16: vars.epochs: a variable is a number, text, true or false, found a list",
    ),
    "variables that are no mapping": (
        (
            ("{epochs: 3}", "3"),
            ("${epochs}", "3"),
        ),
        (
            "recipe.yaml:3:7: vars: expected a mapping of names to numbers or text, found the number 3\n"
            "recipe.yaml:19:40: stages.0.epochs: expected a whole number, found the text '3'; "
            "write it without quotes"
        ),
    ),
    "wrong type out of an expression": (
        (("${epochs}", "${epochs / 2}"),),
        (
            "recipe.yaml:19:40: stages.0.epochs: expected a whole number, found the number 1.5; "
            "this is what '${epochs / 2}' comes to"
        ),
    ),
    "unquoted expression in braces": (
        (('"${epochs}"', "${epochs}"),),
        "recipe.yaml:19:41: an unquoted '${' inside '{' or '['; quote the expression: \"${name}\"",
    ),
    "tab indentation": (
        (("    group: filter", "\tgroup: filter"),),
        "recipe.yaml:11:1: a tab in the indentation; YAML indents with spaces only",
    ),
    "unquoted glob": (
        (('"conv*"', "*.conv1"),),
        "recipe.yaml:10:13: unquoted '*.conv1'; YAML reads a leading '*' as an alias; quote it: \"*.conv1\"",
    ),
    "unquoted star": (
        (('"conv*"', "*"),),
        "recipe.yaml:10:13: unquoted '*'; YAML reads a leading '*' as an alias; quote it: \"*\"",
    ),
    "unquoted alias in a list": (
        (('"conv*"', "[*conv, fc1]"),),
        (
            "recipe.yaml:10:14: rules.0.layers.0: unquoted '*conv'; YAML reads it as an alias; "
            'quote it: "*conv"'
        ),
    ),
    "unclosed quote": (
        (("title: Sample", 'title: "Sample'),),
        "recipe.yaml:2:8: a quote that is not closed in its line; close it, or leave both quotes out",
    ),
    "unclosed bracket": (
        (("[2, 1, 28, 28]", "[2, 1, 28, 28"),),
        "recipe.yaml:5:31: expected ',' or ']', but got '}'; check brackets, commas and quotes",
    ),
    "backslash in double quotes": (
        (('"conv*"', '"re:conv\\d"'),),
        (
            "recipe.yaml:10:22: '\\d' is not an escape in a double-quoted text; use single quotes, "
            "which keep '\\' as it is"
        ),
    ),
    "colon in a text": (
        (("title: Sample", "title: Sample: the first"),),
        (
            "recipe.yaml:2:14: a ':' is not expected here; quote a text that holds ': ', "
            "and indent keys of one mapping alike"
        ),
    ),
    "wrong indentation": (
        (("    group: filter", "   group: filter"),),
        (
            "recipe.yaml:11:4: not in line with what it belongs to; indent the keys of one mapping, "
            "or the '-' of one list, alike"
        ),
    ),
    "key without a colon": (
        (("    group: filter", "    group filter"),),
        "recipe.yaml:11:5: a key without a ':' after it; write 'key: value'",
    ),
    "list on the line of its key": (
        (('layers: "conv*"', "layers: - conv"),),
        "recipe.yaml:10:13: a list item '-' is not expected here; begin it on a line of its own",
    ),
    "percent first": (
        (("macs: 40%", "macs: %40"),),
        "recipe.yaml:8:16: a text cannot start with '%'; quote it",
    ),
    "custom tag": (
        (("title: Sample", "title: !!python/object:os.system Sample"),),
        (
            "recipe.yaml:2:8: title: the tag 'tag:yaml.org,2002:python/object:os.system' is not read; "
            "write the value without it"
        ),
    ),
    "control character": (
        (("title: Sample", "title: Sam\x07ple"),),
        "recipe.yaml:2:11: the character U+0007 is not allowed in YAML",
    ),
    "half a character": (
        (("title: Sample", 'title: "\\ud800"'),),
        "recipe.yaml:2:8: title: half a character (a lone surrogate); write the whole character",
    ),
    "escape beyond Unicode": (
        (("title: Sample", 'title: "\\UFFFFFFFF"'),),
        "recipe.yaml:2:11: an escape or number that YAML does not know",
    ),
    "alias inside itself": (
        (("{shape: [2, 1, 28, 28]}", "{shape: &a [2, *a]}"),),
        "recipe.yaml:5:25: inputs.0.shape.1: '*a' stands inside the value that it repeats",
    ),
}
"""name -> (what is changed in the recipe above, what is then said of it)"""

BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [" + ", ".join([f"*{before}"] * 10) + "]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
WHOLE: dict[str, tuple[str, str]] = {
    "two documents": (
        RECIPE + "---\n" + RECIPE,
        "recipe.yaml:21:1: a second document; a recipe is one YAML document; remove this '---'",
    ),
    "empty file": ("", "recipe.yaml: an empty recipe; `sparsify init` writes one to start from"),
    "comments only": (
        "# a recipe, one day\n\n",
        "recipe.yaml: an empty recipe; `sparsify init` writes one to start from",
    ),
    "a list": (
        "- version: 1\n- title: x\n",
        "recipe.yaml:1:1: expected a mapping at the top, found a list; a recipe begins with 'version: 1'",
    ),
    "a word": (
        "LeNet-5\n",
        (
            "recipe.yaml:1:1: expected a mapping at the top, found the text 'LeNet-5'; "
            "a recipe begins with 'version: 1'"
        ),
    ),
    "nested too deep": (
        "a: " + "[" * 100 + "]" * 100,
        "recipe.yaml:1:68: a.0.0.0: nested more than 64 levels deep",
    ),
    "alias bomb": (BOMB, "recipe.yaml:6:8: f.0: more than 200000 values, aliases expanded"),
}
"""name -> (a whole file, what is said of it)"""


def complaint(text: str, *overrides: str) -> str:
    Path("recipe.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(RecipeError) as caught:
        load("recipe.yaml", overrides)
    return str(caught.value)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_the_recipe_that_is_edited_is_valid() -> None:
    Path("recipe.yaml").write_text(RECIPE, encoding="utf-8")
    assert load("recipe.yaml").recipe.title == "Sample"


@pytest.mark.parametrize("name", EDITED)
def test_an_edited_recipe(name: str) -> None:
    edits, expected = EDITED[name]
    text = RECIPE
    for old, new in edits:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    assert complaint(text) == expected


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file(name: str) -> None:
    text, expected = WHOLE[name]
    assert complaint(text) == expected


def test_every_mistake_is_reported_at_once() -> None:
    text = (
        RECIPE.replace("1e-3", "fast")
        .replace("filter", "filtre")
        .replace("40%", "40")
        .replace("protect: true", "protect: 1")
        .replace("kind: cut", "kind: cutt")
    )
    assert complaint(text).splitlines() == [
        (
            "recipe.yaml:8:16: budget.macs: expected a share such as 40% or a count such as 300M, "
            "not the bare number 40"
        ),
        "recipe.yaml:11:12: rules.0.group: unknown group 'filtre'; did you mean 'filter'?",
        "recipe.yaml:14:17: rules.0.penalty.strength: expected a number, a schedule or auto, not 'fast'",
        "recipe.yaml:17:14: rules.1.protect: expected true or false, found the number 1",
        "recipe.yaml:20:12: stages.1.kind: unknown kind 'cutt'; did you mean 'cut'?",
    ]
