"""CLIP in plain numpy and float64, from tensors by Hugging Face's names: slow, to compare with."""

import numpy as np

MEAN = [0.48145466, 0.4578275, 0.40821073]
STD = [0.26862954, 0.26130258, 0.27577711]


def norm(x, state, name):
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5)
    return x * state[f'{name}.weight'] + state[f'{name}.bias']


def linear(x, state, name):
    return x @ state[f'{name}.weight'].T + state[f'{name}.bias']


def attention(x, state, name, heads, causal):
    """Of one sample [T, D], head by head."""
    query, key, value = (linear(x, state, f'{name}.{part}_proj') for part in 'qkv')
    parts = []
    for q, k, v in zip(*(np.split(y, heads, axis=1) for y in (query, key, value))):
        logits = q @ k.T / np.sqrt(q.shape[1])
        if causal:
            logits[np.triu_indices(len(logits), 1)] = -np.inf
        weights = np.exp(logits - logits.max(1, keepdims=True))
        parts.append(weights / weights.sum(1, keepdims=True) @ v)
    return linear(np.concatenate(parts, 1), state, f'{name}.out_proj')


def run(x, state, tower, heads, causal=False):
    for i in range(len([name for name in state if name.startswith(tower) and 'fc1.bias' in name])):
        name = f'{tower}.encoder.layers.{i}'
        y = norm(x, state, f'{name}.layer_norm1')
        x = x + attention(y, state, f'{name}.self_attn', heads, causal)
        y = linear(norm(x, state, f'{name}.layer_norm2'), state, f'{name}.mlp.fc1')
        x = x + linear(y / (1 + np.exp(-1.702 * y)), state, f'{name}.mlp.fc2')
    return x


def picture(frame, state, heads):
    """Feature of uint8[S, S, 3]."""
    embeddings = 'vision_model.embeddings'
    kernel = state[f'{embeddings}.patch_embedding.weight']
    size = kernel.shape[-1]
    pixels = (frame / 255 - MEAN) / STD
    rows = [state[f'{embeddings}.class_embedding']]
    for top in range(0, len(frame), size):
        for left in range(0, len(frame), size):
            patch = pixels[top : top + size, left : left + size]
            rows.append(np.einsum('yxc,dcyx->d', patch, kernel))
    x = np.stack(rows) + state[f'{embeddings}.position_embedding.weight']
    x = run(norm(x, state, 'vision_model.pre_layrnorm'), state, 'vision_model', heads)
    return norm(x[0], state, 'vision_model.post_layernorm') @ state['visual_projection.weight'].T


def sentence(ids, state, heads):
    """(rows [L, D], feature) of ids that end with end-of-text."""
    embeddings = 'text_model.embeddings'
    x = state[f'{embeddings}.token_embedding.weight'][ids]
    x = x + state[f'{embeddings}.position_embedding.weight'][: len(ids)]
    rows = norm(run(x, state, 'text_model', heads, True), state, 'text_model.final_layer_norm')
    return rows, rows[-1] @ state['text_projection.weight'].T
