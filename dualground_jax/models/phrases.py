"""DualGround's phrase path: words -> phrases -> phrase-clip contexts (paper eq. 2 to 4).

(P) and (D) say which source is followed where they differ; see dualground.py.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from dualground_jax.models import dropout, execution, layers


class RecurrentPhrases(nn.Module):
    """Recurrent phrase generator: each phrase is a weighting of the words (P eq. 2, D: LGI.py).

    Each step is guided by the sentence and by the phrase before it. With `positions` the scored
    words carry a position embedding, so that neighbours group (P); the sum is over plain words.
    The loop is unrolled: its N steps, 3 or 4, have weights of their own.
    """

    phrases: int
    positions: bool = True
    dropout: float = 0.1
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, eos, words, words_mask, *, deterministic: bool):
        """Clusters words [B, L, D] under eos [B, D]: (phrases [B, N, D], weights [B, N, L])."""
        width = words.shape[-1]
        dense = layers.dense_of(width, self.dtype)
        guide, key, score = dense('guide'), dense('key'), layers.dense_of(1, self.dtype)('score')
        scored = words
        if self.positions:
            scored = words + layers.sine_position(words_mask, width, normalize=False)
        scored = dense('word')(scored.astype(words.dtype))

        phrase, phrases, attention = jnp.zeros_like(eos), [], []
        for n in range(self.phrases):
            query = dense(f'query_{n}')(eos)
            guided = nn.relu(guide(jnp.concatenate([query, phrase], -1)))
            logits = score(jnp.tanh(scored + key(guided)[:, None]))[..., 0]
            weights = layers.masked_softmax(logits, words_mask)
            dropped = dropout.Dropout(self.dropout)(weights, deterministic=deterministic)
            phrase = jnp.einsum('bl,bld->bd', dropped.astype(words.dtype), words)
            phrases.append(phrase)
            attention.append(weights)
        return jnp.stack(phrases, 1), jnp.stack(attention, 1)


class SlotLayer(layers.Block):
    """Refines the phrases by the words, and P_EOS by the phrases (P, D: LGI.py).

    P_EOS sees itself and all phrases; the phrases do not see P_EOS.
    """

    normalize: str = 'slots'

    @nn.compact
    def __call__(self, phrases, phrase_eos, words, words_mask, *, deterministic: bool):
        """Refines phrases [B, N, D] and phrase_eos [B, D] by words [B, L, D] with positions.

        Returns:
          (phrases, phrase_eos, weights float32[B, heads, N, L]).
        """
        phrases, weights = layers.ProjectedAttention(
            self.heads, self.dropout, self.dtype, normalize=self.normalize, name='words_attention'
        )(phrases, words, words_mask[:, None, None], deterministic=deterministic)

        sequence = jnp.concatenate([phrase_eos[:, None], phrases], 1)
        size = sequence.shape[1]
        visible = jnp.ones((size, size), bool).at[1:, 0].set(False)
        update, _ = layers.Attention(
            self.heads, self.dropout, self.dtype, name='self_attention'
        )(sequence, sequence, sequence, visible, deterministic=deterministic)
        update = dropout.Dropout(self.dropout)(update, deterministic=deterministic)
        sequence = layers.LayerNorm(self.dtype, name='self_norm')(sequence + update)
        sequence = layers.ResidualLinear(self.dropout, self.dtype, name='feed_forward')(
            sequence, deterministic=deterministic)
        return sequence[:, 1:], sequence[:, 0], weights


class PhraseEncoder(layers.Block, kw_only=True):
    """Words -> phrases and their summary P_EOS: recurrent generator, then slot refinement."""

    phrases: int
    phrase_layers: int
    slot_normalize: str = 'slots'
    rpg_positions: bool = True

    @nn.compact
    def __call__(self, eos, words, words_mask, *, deterministic: bool) -> dict[str, jax.Array]:
        """Clusters words [B, L, D] under eos [B, D].

        Returns:
          phrases [B, N, D]; phrase_eos [B, D]; phrase_attention float32[B, N, L], of the
          generator; slot_attention float32[B, phrase_layers, heads, N, L].
        """
        width = words.shape[-1]
        phrases, attention = RecurrentPhrases(
            self.phrases, self.rpg_positions, self.dropout, self.dtype, name='generator'
        )(eos, words, words_mask, deterministic=deterministic)
        positioned = words + layers.sine_position(words_mask, width, normalize=False)
        positioned = positioned.astype(words.dtype)
        token = self.param('phrase_eos', layers.embedding(), (width,))
        phrase_eos = jnp.broadcast_to(token, eos.shape).astype(words.dtype)
        slot_attention = []
        for i in range(self.phrase_layers):
            phrases, phrase_eos, weights = SlotLayer(
                **self.shared, normalize=self.slot_normalize, name=f'slot_{i}'
            )(phrases, phrase_eos, positioned, words_mask, deterministic=deterministic)
            slot_attention.append(weights)
        return dict(
            phrases=phrases,
            phrase_eos=phrase_eos,
            phrase_attention=attention,
            slot_attention=jnp.stack(slot_attention, 1),
        )


class PhraseClipProduct(nn.Module):
    """f_ctx(f_p(phrase) * f_v(clip)) for every pair of phrase and clip (P eq. 3, D)."""

    dtype: str = 'float32'

    @nn.compact
    def __call__(self, phrases: jax.Array, clips: jax.Array) -> jax.Array:
        """Combines phrases [B, N, D] and clips [B, T, D] to [B, N, T, D]."""
        dense = layers.dense_of(clips.shape[-1], self.dtype)
        product = (
            nn.relu(dense('phrase')(phrases))[:, :, None] * nn.relu(dense('clip')(clips))[:, None])
        product = layers.LayerNorm(self.dtype, name='norm1')(product)
        return nn.relu(layers.LayerNorm(self.dtype, name='norm2')(dense('context')(product)))


class PhraseContextLayer(layers.Block):
    """Self-attention over time for each phrase; optionally over the phrases of each clip (D)."""

    across_phrases: bool = False

    @nn.compact
    def __call__(self, context, clips_mask, *, deterministic: bool) -> jax.Array:
        """Maps context [B, N, T, D] with clips_mask bool[B, T] to [B, N, T, D]."""
        batch, phrases, clips, width = context.shape
        context = layers.SelfAttentionLayer(**self.shared, name='time')(
            context.reshape(batch * phrases, clips, width), jnp.repeat(clips_mask, phrases, 0),
            deterministic=deterministic).reshape(context.shape)
        if self.across_phrases:
            by_clip = context.swapaxes(1, 2)
            context = layers.SelfAttentionLayer(**self.shared, name='phrases')(
                by_clip.reshape(batch * clips, phrases, width), None, deterministic=deterministic
            ).reshape(by_clip.shape).swapaxes(1, 2)
        return context


class PhrasePath(layers.Block):
    """Phrase-clip contexts, and their sum weighted by how each phrase matches P_EOS (P eq. 3-4)."""

    context_layers: int = 2
    across_phrases: bool = False

    @nn.compact
    def __call__(self, phrases, phrase_eos, clips, clips_mask, *, deterministic: bool):
        """Maps phrases [B, N, D], phrase_eos [B, D] and clips [B, T, D] to V_p.

        Returns:
          (V_p [B, T, D], a dict: phrase_weights float32[B, N]; phrase_energy float32[B, N, T], norm
          of each phrase's context at each clip; summary_energy float32[B, T], of their weighted
          sum). Norms are taken before the temporal layers, which end in a normalisation.
        """
        width = clips.shape[-1]
        matched = PhraseClipProduct(self.dtype, name='product')(phrases, clips)
        position = layers.sine_position(clips_mask, width, normalize=False)

        def layer(name):
            return PhraseContextLayer(**self.shared, across_phrases=self.across_phrases, name=name)

        def step(layer, x):
            return layer(x, clips_mask, deterministic=deterministic), None

        context = matched + position[:, None].astype(matched.dtype)
        context, _ = execution.run_layers(self, layer, step, context, self.context_layers)
        dense = layers.dense_of(width, self.dtype)
        logits = jnp.einsum('bd,bnd->bn', dense('query')(phrase_eos), dense('key')(phrases))
        weights = layers.masked_softmax(logits * width**-0.5, None)

        def weighted(x):
            return jnp.einsum('bn,bntd->btd', weights.astype(x.dtype), x)

        def energy(x):
            return jnp.linalg.norm(x.astype(jnp.float32), axis=-1)

        return weighted(context), dict(
            phrase_weights=weights, phrase_energy=energy(matched),
            summary_energy=energy(weighted(matched)))
