"""`Cache`: the keys and values of a model of Transformers in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import transformers.cache_utils
from transformers.cache_utils import DynamicLayer

from ..common.public import public
from ..common.sizes import is_whole_number
from ..errors import ArgumentError, UnsupportedError
from .cache_layer import CacheLayer
from .layers import check_layers

__all__ = ["Cache"]

# What layers of attention are called in configurations; others keep other things than tokens.
_OF_TOKENS = ("full_attention", "sliding_attention", "chunked_attention")


class Cache(transformers.cache_utils.Cache):  # type: ignore[misc]
    """A cache for ``model.generate(..., cache=cache)``, and for calls of the model.

    Older versions of Transformers call the argument `past_key_values`.

    Each layer has a `cuattn.KVCache`, whose memory is taken by the first call and never grows. The
    model's attention has to be `register`'s: it attends the first tokens as they are, and later
    ones by `KVCache.attend`. Padding is not kept, so that tokens of a padded batch cost no more
    than others; a window is counted in tokens.

    It takes greedy search, sampling, beam search (`reorder_cache`) and assisted generation
    (`crop`). A layer with a window keeps all tokens too, and reads those that are seen.

    Parameters
    ----------
    config : PreTrainedConfig
        That of the model, ``model.config``.
    max_cache_len : int
        Most tokens of a sequence, those of padding included.
    bits : {8, 4}
        As for `cuattn.KVCache`.
    skip : iterable of int
        Layers whose tokens are kept as they are, in a layer of Transformers' `DynamicCache`.
    **options : object
        Others of `cuattn.KVCache`: k_bits, v_bits, group, v_zero, smooth_k.

    Attributes
    ----------
    layers : list
        Of those that are not left out `kv` is the `cuattn.KVCache`, None before the first tokens.

    Raises
    ------
    ArgumentError
        If an argument is wrong; what `cuattn.KVCache` does not take shows when it is first used.
    UnsupportedError
        If layers of the model keep something else than tokens, or share them.

    Notes
    -----
    A step can be captured into a CUDA graph, after one that was not: call the model with input_ids
    and position_ids that stay where they are, and without an attention_mask. Replays append tokens
    that only the GPU knows of; `learn_lengths` reads them. A cache cannot be compiled with the
    model by `torch.compile`, and `generate` does not try.
    """

    @public
    def __init__(
        self,
        config: Any,
        max_cache_len: int,
        *,
        bits: Literal[8, 4] = 8,
        skip: Iterable[int] = (),
        k_bits: Literal[8, 4] | None = None,
        v_bits: Literal[8, 4] | None = None,
        group: Literal[0, 32, 64] = 0,
        v_zero: bool = False,
        smooth_k: bool = True,
    ) -> None:
        if not hasattr(config, "get_text_config"):
            raise ArgumentError("config", config, "the configuration of a model, model.config")
        if not is_whole_number(max_cache_len) or max_cache_len < 1:
            raise ArgumentError("max_cache_len", max_cache_len, "a whole number from 1 on")
        text = config.get_text_config(decoder=True)
        count = getattr(text, "num_decoder_layers", None) or text.num_hidden_layers
        _check_kinds(text)
        left_out = check_layers(skip)
        if beyond := [i for i in left_out if i >= count]:
            raise ArgumentError("skip", beyond, f"layers from 0 to {count - 1}")
        options = {
            "bits": bits,
            "k_bits": k_bits,
            "v_bits": v_bits,
            "group": group,
            "v_zero": v_zero,
            "smooth_k": smooth_k,
        }
        super().__init__(
            layers=[
                DynamicLayer() if i in left_out else CacheLayer(max_cache_len, options)
                for i in range(count)
            ]
        )

    @property
    def nbytes(self) -> int:
        """Bytes of all layers' `cuattn.KVCache`; 0 before the first tokens."""
        return sum(layer.kv.nbytes for layer in self._quantized if layer.kv is not None)

    def reorder_cache(self, beam_idx: Any) -> None:
        """Give each sequence the tokens of another one; waits for the GPU once."""
        sequences = beam_idx.tolist()
        for layer in self.layers:
            if isinstance(layer, CacheLayer):
                layer.reorder(sequences)
            else:
                layer.reorder_cache(beam_idx)

    def learn_lengths(self) -> None:
        """Read how many tokens replays of a graph have appended; waits for the GPU."""
        for layer in self._quantized:
            layer.learn_lengths()

    @property
    def _quantized(self) -> list[CacheLayer]:
        return [layer for layer in self.layers if isinstance(layer, CacheLayer)]


def _check_kinds(config: Any) -> None:
    kinds = set(getattr(config, "layer_types", None) or ()) - set(_OF_TOKENS)
    if kinds:
        raise UnsupportedError(f"layers of the kinds {sorted(kinds)} have no cache in cuattn")
    for name in ("kv_sharing_modes", "num_kv_shared_layers"):
        if getattr(config, name, None):
            raise UnsupportedError(f"layers that share keys ({name}) have no cache in cuattn")
