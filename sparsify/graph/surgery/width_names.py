"""What the name of an integer says about it: which width it states, that it is no width, or nothing."""

import re
from enum import Enum, auto


class Meaning(Enum):
    """Which dimension an integer states the length of, according to its name."""

    INPUT = auto()
    """the module's inputs: in_channels"""
    OUTPUT = auto()
    """the module's outputs: out_channels"""
    INNER = auto()
    """something between the layers of its module: mlp_dim"""
    WIDTH = auto()
    """a width of its module, without saying which: dim, num_features"""
    AS_BELOW = auto()
    """no length of a tensor, but it is cut with the layers that have a number of the same name: groups,
    num_heads, num_experts"""
    UNKNOWN = auto()
    """the name says nothing"""
    NEVER = auto()
    """no width: kernel_size, num_classes"""


_NO_WIDTH = frozenset(
    "kernel kernels stride strides padding pad dilation image images img resolution grid window shift "
    "pool pooling seq sequence length len vocab vocabulary class classes label labels embeddings bias "
    "seed version epoch epochs step steps index idx id ids axis axes base per ratio reduction mult "
    "multiple multiplier factor scale divisor divisible chunk capacity batch rank world topk experts "
    "bits start end upsample downsample repeats iterations period max min limit bins cfg pretrained "
    "default time times prefix tile fan group groups".split()
)
"""words of names that state no width"""
_PARTS = frozenset(
    "patch patches position positions layer layers depth depths block blocks stage stages token "
    "tokens level levels branch branches memory relative".split()
)
"""words that count parts, or say which part a width is of: num_layers, layer_dims"""
_PLAIN = frozenset(
    "channel channels chan chans ch chs plane planes width widths dim dims dimension dimensions "
    "filter filters".split()
)
"""words for a width that nothing else is meant by"""
_WIDTH = _PLAIN | frozenset(
    "feature features inplanes outplanes unit units hidden neurons embd nf nx feats nfeat nhid".split()
)
_SIZED = frozenset(
    "hidden intermediate inner embed embedding emb input output in out mlp ffn ff feedforward latent state "
    "model".split()
)
"""words that make a width of `size`"""
_INNER = frozenset(
    "inner mid middle mlp ffn ff feedforward intermediate hidden bottleneck expanded expansion exp".split()
)
_OF_PROCESSES = frozenset("world local global node process".split())
"""words before `rank` where it is the number of a process: local_rank; time_step_rank is a width"""
_OF_A_HEAD = frozenset("head dim dims size features channels qk q k v key value".split())


def read_meaning(name: str) -> Meaning:
    """Read the meaning from the words of a name: `num_features` states a width, `kernel_size` does not."""
    words = _split_words(name)
    said = set(words)
    if name in ("d_model", "n_embd", "inplanes", "normalized_shape"):
        return Meaning.WIDTH
    if name in ("d_ff", "n_inner", "d_inner", "dim_feedforward"):
        return Meaning.INNER
    if (
        is_head_count(name)
        or is_expert_count(name)
        or words in (["groups"], ["num", "groups"])
        or ("head" in said and said <= _OF_A_HEAD)
    ):
        return Meaning.AS_BELOW
    if words[-1:] == ["rank"] and len(words) > 1 and not said & _OF_PROCESSES:
        return Meaning.INNER
    if said & _NO_WIDTH or (said & _PARTS and words[-1] not in _PLAIN):
        return Meaning.NEVER
    sized = words[-1:] == ["size"] and bool(_SIZED & said)
    if not (_WIDTH & said or sized):
        return Meaning.NEVER if words[-1:] == ["size"] else Meaning.UNKNOWN
    if said & {"in", "input"}:
        return Meaning.INPUT
    if said & {"out", "output"}:
        return Meaning.OUTPUT
    # hidden_size is what passes between the blocks of a transformer, head_hidden_size what its head reads
    return (
        Meaning.INNER
        if _INNER & said and words != ["hidden", "size"] and "head" not in said
        else Meaning.WIDTH
    )


def names_another_thing(name: str) -> bool:
    """Whether a word of the name says what it counts or measures, and that is no width: conv_kernel_size;
    split_size may be one."""
    return read_meaning(name) is Meaning.NEVER and bool((_NO_WIDTH | _PARTS) & set(_split_words(name)))


_STREAM = frozenset("hidden_size d_model n_embd n_embed embed_dim model_dim dim".split())


def names_stream(name: str) -> bool:
    """Whether it is the width of what passes between the blocks of a transformer. Attentions give such a name
    to the width of their heads as well."""
    return name in _STREAM


def is_head_count(name: str) -> bool:
    """Whether it counts attention heads: num_heads, n_head, num_key_value_heads."""
    words = _split_words(name)
    return ("heads" in words or words in (["n", "head"], ["nhead"])) and not {"dim", "size", "hidden"} & set(
        words
    )


def counts_heads_of_a_key(name: str) -> bool:
    """Whether it says how many query heads share a key and a value: num_key_value_groups, n_rep."""
    words = set(_split_words(name))
    of_a_key = "groups" in words and bool(words & {"key", "kv"})
    return of_a_key or bool(words & {"rep", "repeats"}) or words >= {"queries", "per"}


def is_expert_count(name: str) -> bool:
    """Whether it counts the experts that a router chooses among: num_experts, n_routed_experts."""
    words = _split_words(name)
    return bool(words) and words[-1] == "experts" and set(words) <= _OF_EXPERTS


_OF_EXPERTS = frozenset("n num number no of local routed moe total experts".split())


def _split_words(name: str) -> list[str]:
    """Lower-case words of a name in snake or camel case, without digits."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)
    return [word for word in re.split(r"[_\d]+", spaced.lower()) if word]
