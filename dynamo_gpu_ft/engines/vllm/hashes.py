"""The names vLLM gives to blocks of tokens, computed by vLLM's own functions: for finding a request's blocks without its engine.

Only for requests without adapters, images or cache salts: those go into the names, and are not known here. A wrong name finds nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from dynamo_gpu_ft.errors import PortableError


def block_hashes(algorithm: str, token_ids: Sequence[int], block_size: int) -> list[bytes]:
    """Names of the whole blocks of `token_ids`, as an engine with the same PYTHONHASHSEED names them.

    Raises `PortableError` when vLLM is not installed or names by chance (xxhash without a seed)."""
    try:
        from vllm.utils.hashing import get_hash_fn_by_name
        from vllm.v1.core import kv_cache_utils
    except ImportError as error:
        raise PortableError(
            "a request's blocks cannot be named",
            where="vLLM",
            value=str(error),
            rule="vLLM itself names them",
            remedy="pip install vllm, or choose blocks by --hash, --held or --all",
        ) from error
    function = get_hash_fn_by_name(algorithm)
    kv_cache_utils.init_none_hash(function)
    names: list[bytes] = []
    for first in range(0, len(token_ids) - block_size + 1, block_size):
        tokens = token_ids[first : first + block_size]
        names.append(
            bytes(kv_cache_utils.hash_block_tokens(function, names[-1] if names else None, tokens))
        )
    return names
