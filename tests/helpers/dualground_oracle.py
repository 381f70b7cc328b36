"""DualGround once more, slowly: what its tests hold the model to.

Float64 numpy, one sample at a time, as long as it is: without batches, padding or masks. It is
written from the paper's equations (P eq. 1 to 4) and, where these are silent, from the docstrings
of the components, which name the public code: each such place says (docstring). Nothing of the
model is called; its parameters are read by their names.

Arrays of one sample: clips [T, D], words [L, D], e the sentence token [D], phrases [N, D].
"""

from types import SimpleNamespace

import numpy as np
from scipy import optimize

from data_pipelines import tokens

# Elements --------------------------------------------------------------------------------------


def relu(x):
    return np.maximum(x, 0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    """Over the last axis, which may be empty."""
    e = np.exp(x - x.max(-1, keepdims=True, initial=-np.inf))
    return e / e.sum(-1, keepdims=True)


def linear(p, x):
    return x @ p['kernel'] + p['bias']


def layer_norm(p, x):
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return p['scale'] * centred / np.sqrt(variance + 1e-5) + p['bias']


def mlp(p, x):
    """Linear layers with ReLU between them."""
    for i in range(len(p)):
        x = linear(p[f'linear_{i}'], x if i == 0 else relu(x))
    return x


def feed_forward(p, x):
    """Linear, PReLU with one slope, linear."""
    x = linear(p['linear1'], x)
    return linear(p['linear2'], np.where(x > 0, x, p['activation']['negative_slope'] * x))


def sine(position, width):
    """Sine embedding of one number: even channels are sines, odd ones cosines."""
    angles = [position / 10000 ** (2 * (i // 2) / width) for i in range(width)]
    return np.array([np.cos(a) if i % 2 else np.sin(a) for i, a in enumerate(angles)])


def counted(length, width):
    """Positions 1, 2, ... of words, and of clips beside phrases: [length, D] (docstring)."""
    return np.array([sine(i + 1, width) for i in range(length)]).reshape(length, width)


def relative(length, width):
    """Positions of clips, of which the last is at 2 pi: [length, D] (docstring)."""
    return np.array([sine(2 * np.pi * (i + 1) / (length + 1e-6), width) for i in range(length)])


def convolution(p, x, padding):
    """y_t = sum_k x_(t + k - padding) W_k + b, zeros beyond the ends."""
    kernel, rows = p['kernel'], np.zeros((len(x) + 2 * padding, x.shape[1]))
    rows[padding : padding + len(x)] = x
    return np.array([
        sum(rows[t + k] @ kernel[k] for k in range(len(kernel))) + p['bias']
        for t in range(len(rows) - len(kernel) + 1)])


# Attention -------------------------------------------------------------------------------------


def by_head(x, heads):
    """Channel groups [heads, ..., D / heads]."""
    return np.stack(np.split(x, heads, -1))


def attention_weights(query, key, heads, normalize='inputs'):
    """softmax(q k / sqrt(D_h)) of each head: [heads, Q, K].

    Over the keys; or, as in Slot Attention (arXiv 2006.15055, algorithm 1), over the queries: they
    compete for each key, and each one's shares + 1e-8 are then divided by their sum.
    """
    found = []
    for q, k in zip(by_head(query, heads), by_head(key, heads)):
        logits = q @ k.T / np.sqrt(q.shape[-1])
        if normalize == 'inputs':
            found.append(softmax(logits))
        else:
            shares = softmax(logits.T).T + 1e-8
            found.append(shares / shares.sum(1, keepdims=True))
    return np.stack(found)


def weighted(weights, value):
    """Weights [heads, Q, K] of the channel groups of value [K, D]: [Q, D]."""
    return np.concatenate([w @ v for w, v in zip(weights, by_head(value, len(weights)))], -1)


def attention(p, query, key, value, heads, normalize='inputs'):
    """Attention with projections: (output [Q, D], weights [heads, Q, K])."""
    weights = attention_weights(
        linear(p['query'], query), linear(p['key'], key), heads, normalize)
    return linear(p['out'], weighted(weights, linear(p['value'], value))), weights


def projected_attention(p, x, memory, heads, normalize='inputs'):
    """LayerNorm(x + attention(W_q x, W_k m, W_v m)): ([Q, D], weights)."""
    update, weights = attention(
        p['attention'], linear(p['query'], x), linear(p['key'], memory),
        linear(p['value'], memory), heads, normalize)
    return layer_norm(p['norm'], x + update), weights


def residual_linear(p, x):
    """LayerNorm(x + ReLU(W x))."""
    return layer_norm(p['norm'], x + relu(linear(p['linear'], x)))


def self_attention_layer(p, x, heads):
    """Self-attention, then the residual linear layer."""
    return residual_linear(p['feed_forward'], projected_attention(p['attention'], x, x, heads)[0])


def encoder_layer(p, x, position, heads):
    """Post-norm transformer layer; positions are added to queries and keys."""
    update, _ = attention(p['attention'], x + position, x + position, x, heads)
    x = layer_norm(p['norm1'], x + update)
    return layer_norm(p['norm2'], x + feed_forward(p['feed_forward'], x))


# Inputs ----------------------------------------------------------------------------------------


def project(p, x, layers):
    """`layers` times [LayerNorm, linear], ReLU after all but the last."""
    for i in range(layers):
        x = linear(p[f'linear_{i}'], layer_norm(p[f'norm_{i}'], x))
        x = relu(x) if i < layers - 1 else x
    return x


def encode_query(p, o, sample):
    """The two roles of the text: e or None, words [L, D], and what guides the phrases.

    The type embedding of text goes to the words and to e as a guide, and not to e of the sentence
    path and the losses (docstring).
    """
    text_type = p['token_types'][0]
    words = sample.words if o.tokens != 'eos' else sample.words[:0]
    words = project(p['words_projection'], words, o.input_layers) + text_type if (
        o.paths != 'sentence') else words
    if sample.eos is None or o.tokens == 'words':
        return SimpleNamespace(eos=None, words=words, guide=np.zeros(o.width))
    eos = project(p['eos_projection'], sample.eos, o.input_layers)
    return SimpleNamespace(eos=eos, words=words, guide=eos + text_type)


# Sentence path: P eq. 1 ------------------------------------------------------------------------


def sentence_path(p, o, clips, position, eos):
    """Adaptive cross-attention to [dummies; e], then self-attention of the clips.

    Returns:
      (V_s [T, D], weights [layers, heads, T, dummies + 1]; without e its weight is 0).
    """
    own = p['dummy_encoder']
    rows = np.zeros((0, o.width)) if eos is None else eos[None]
    # Positions of the dummies are learned, and go along as keys (docstring).
    place = np.concatenate([own['positions'], 0 * rows])
    dummies = np.concatenate([own['tokens'], rows])
    for i in range(o.dummy_layers):
        dummies = encoder_layer(own['encoder'][f'layer_{i}'], dummies, place, o.heads)
    keys = np.concatenate([dummies[: o.dummies] + own['positions'], rows])

    all_weights = []
    for i in range(o.t2v_layers):
        layer = p['cross_attention'][f'layer_{i}']
        weights = attention_weights(clips + position, keys, o.heads)
        alpha = weights[:, :, o.dummies :]  # only e carries a value: clip t receives alpha_t e
        x = clips + linear(layer['out'], weighted(alpha, rows))
        update = feed_forward(layer['feed_forward'], layer_norm(layer['norm1'], x))
        clips = layer_norm(layer['norm2'], x + update)  # residual: the un-normalised sum
        all_weights.append(np.concatenate(
            [weights, np.zeros((o.heads, len(clips), 1 - len(rows)))], -1))
    for i in range(o.enc_layers):
        clips = encoder_layer(p['encoder'][f'layer_{i}'], clips, position, o.heads)
    return clips, np.array(all_weights)


# Phrase path: P eq. 2 to 4 ---------------------------------------------------------------------


def generate_phrases(p, o, guide, words):
    """P eq. 2. Returns (phrases [N, D], weights of the words [N, L])."""
    scored = words + counted(len(words), o.width) if o.rpg_positions else words
    phrase, phrases, weights = np.zeros(o.width), [], []
    for n in range(o.phrases):
        g = relu(linear(p['guide'], np.concatenate([linear(p[f'query_{n}'], guide), phrase])))
        logits = [linear(p['score'], np.tanh(linear(p['key'], g) + linear(p['word'], word)))[0]
                  for word in scored]
        a = softmax(np.array(logits))
        phrase = sum((a_l * word for a_l, word in zip(a, words)), np.zeros(o.width))
        phrases.append(phrase)
        weights.append(a)
    return np.array(phrases), np.array(weights)


def encode_phrases(p, o, guide, words):
    """Generator, then slot refinement."""
    phrases, generator_weights = generate_phrases(p['generator'], o, guide, words)
    placed, token, slot_attention = words + counted(len(words), o.width), p['phrase_eos'], []
    for i in range(o.phrase_layers):
        layer = p[f'slot_{i}']
        phrases, weights = projected_attention(
            layer['words_attention'], phrases, placed, o.heads, o.slot_normalize)
        # P_EOS sees all; phrases see phrases.
        own, both = layer['self_attention'], np.concatenate([token[None], phrases])
        among, _ = attention(own, phrases, phrases, phrases, o.heads)
        of_token, _ = attention(own, token[None], both, both, o.heads)
        both = layer_norm(layer['self_norm'], both + np.concatenate([of_token, among]))
        both = residual_linear(layer['feed_forward'], both)
        token, phrases = both[0], both[1:]
        slot_attention.append(weights)
    return dict(phrases=phrases, phrase_eos=token, phrase_attention=generator_weights,
                slot_attention=np.array(slot_attention))


def phrase_path(p, o, phrases, phrase_eos, clips):
    """P eq. 3 and 4. Returns V_p [T, D] and, before the temporal layers, the energies."""
    product = p['product']
    context, energy = [], []
    for phrase in phrases:
        c = relu(linear(product['phrase'], phrase)) * relu(linear(product['clip'], clips))
        c = linear(product['context'], layer_norm(product['norm1'], c))
        context.append(relu(layer_norm(product['norm2'], c)))
        energy.append(np.sqrt((context[-1] ** 2).sum(-1)))
    logits = [linear(p['query'], phrase_eos) @ linear(p['key'], phrase) / np.sqrt(o.width)
              for phrase in phrases]
    weights = softmax(np.array(logits))
    summary = sum(w * c for w, c in zip(weights, context))

    context = [c + counted(len(clips), o.width) for c in context]
    for i in range(o.context_layers):
        layer = p[f'layer_{i}']
        context = [self_attention_layer(layer['time'], c, o.heads) for c in context]
        if o.across_phrases:
            of_clips = [self_attention_layer(layer['phrases'], np.array(c), o.heads)
                        for c in zip(*context)]
            context = [np.array(c) for c in zip(*of_clips)]
    return sum(w * c for w, c in zip(weights, context)), dict(
        phrase_weights=weights, phrase_energy=np.array(energy),
        summary_energy=np.sqrt((summary**2).sum(-1)))


# Fusion and heads ------------------------------------------------------------------------------


def fuse(p, o, s, v):
    """F of V_s and V_p."""
    if o.fusion == 'sum':
        return s + v
    if o.fusion == 'hadamard':
        return s * v
    both = np.concatenate([s, v], -1)
    if o.fusion == 'gate':
        gate = sigmoid(linear(p['fusion']['gate'], both))
        return gate * s + (1 - gate) * v
    return mlp(p['fusion']['mlp'], both)


def pyramid_head(p, o, clips):
    """Scores and boundaries of the points, level after level (F).

    Returns:
      logits [P]; offsets [P, 2] in strides; with bins offset_logits [P, 2, bins].
    """
    levels = []
    for i, stride in enumerate(o.strides):
        # Each level starts from the rectified clips and halves them, step by step (docstring).
        x = relu(clips)
        for k in range(int(np.log2(stride))):
            own, norm = (p['pyramid'][f'level_{i}_{what}_{k}'] for what in ('conv', 'norm'))
            x = [np.concatenate([x[2 * t], x[2 * t + 1]]) @ own['kernel'].reshape(-1, o.width)
                 + own['bias'] for t in range(len(x) // 2)]
            x = relu(layer_norm(norm, np.array(x).reshape(-1, o.width)))
        levels.append(x)
    scale = p['level_scale'] if not o.bins else None
    levels = [(i, x) for i, x in enumerate(levels) if len(x)]

    def score(own, x):
        for i in range(o.conv_layers):
            x = relu(convolution(own[f'conv_{i}'], x, o.kernel // 2))
        return mlp(own['mlp'], x)[:, 0]

    # Adaptive score refinement: by level, and over the levels laid end to end.
    by_level = np.concatenate([score(p['class_head'], x) for _, x in levels])
    across = score(p['score_head'], np.concatenate([x for _, x in levels]))
    out = dict(logits=p['mix'] * by_level + (1 - p['mix']) * across)
    own, raw = p['boundary_head'], []
    for i, x in levels:
        x = convolution(own['conv_1'], relu(convolution(own['conv_0'], x, 1)), 1)
        raw.append(x if o.bins else np.exp(x) * scale[i])
    out['offsets'] = np.concatenate(raw)
    if o.bins:
        # Expected distance of a distribution over bins from 0 to 1.5 strides (docstring).
        out['offset_logits'] = out['offsets'].reshape(-1, 2, o.bins)
        centres = np.array([1.5 * c / (o.bins - 1) for c in range(o.bins)])
        out['offsets'] = softmax(out['offset_logits']) @ centres
    return out


def inverse_sigmoid(x):
    """Logit, x and 1 - x not below 1e-3 (docstring)."""
    return np.log(np.maximum(x, 1e-3) / np.maximum(1 - x, 1e-3))


def decoder(p, o, memory, position, kept):
    """Moment queries with reference spans, as in CG-DETR (docstring).

    Args:
      kept: refined references, which are constants for gradients: the first call notes them by
        their layer, later ones read them.

    Returns:
      pred_logits and pred_spans [layers, N, 2], decoder_attention [layers, heads, N, T].
    """
    reference, x = sigmoid(p['anchors']), np.zeros((o.queries, o.width))
    logits, spans, all_weights = [], [], []
    for i in range(o.dec_layers):
        own = p[f'layer_{i}']
        current = kept.setdefault(i, reference) if i else reference
        embedded = np.array([
            np.concatenate([sine(2 * np.pi * number, o.width // 2) for number in span])
            for span in current])
        query_position = mlp(p['position_mlp'], embedded)
        modulated = embedded * sigmoid(mlp(p['width_mlp'], x)) / current[:, 1:]
        if i:
            modulated = modulated * mlp(p['scale_mlp'], x)

        query, key = (
            linear(own[f'self_{role}_content'], x)
            + linear(own[f'self_{role}_position'], query_position) for role in ('query', 'key'))
        weights = attention_weights(query, key, o.heads)
        update = weighted(weights, linear(own['self_value'], x))
        x = layer_norm(own['norm1'], x + linear(own['self_out'], update))

        query, key = linear(own['cross_query_content'], x), linear(own['cross_key_content'], memory)
        key_position = linear(own['cross_key_position'], position)
        if i == 0:
            query = query + linear(own['cross_query_position'], query_position)
            key = key + key_position
        query_sine = linear(own['cross_query_sine'], modulated)
        # A head compares content and position, side by side.
        weights = np.stack([
            softmax((q @ k.T + qp @ kp.T) / np.sqrt(2 * q.shape[-1])) for q, qp, k, kp in zip(
                *(by_head(a, o.heads) for a in (query, query_sine, key, key_position)))])
        update = weighted(weights, linear(own['cross_value'], memory))
        x = layer_norm(own['norm2'], x + linear(own['cross_out'], update))
        x = layer_norm(own['norm3'], x + feed_forward(own['feed_forward'], x))

        hidden = layer_norm(p['norm'], x)
        logits.append(linear(p['class'], hidden))
        spans.append(sigmoid(mlp(p['span_head'], hidden) + inverse_sigmoid(reference)))
        all_weights.append(weights)
        reference = sigmoid(mlp(p['refine_mlp'], x) + inverse_sigmoid(current)) if (
            i < o.dec_layers - 1) else None
    return dict(pred_logits=np.array(logits), pred_spans=np.array(spans),
                decoder_attention=np.array(all_weights))


# The whole -------------------------------------------------------------------------------------


def relate(p, o, sample, query, encoded):
    """Clips with one query: what depends on both, up to the fused clips F and their saliency."""
    clips = project(p['video_projection'], sample.video, o.input_layers) + p['token_types'][1]
    position, found, out = relative(len(clips), o.width), [], {}
    if o.paths != 'phrase':
        v_s, weights = sentence_path(p['sentence_path'], o, clips, position, query.eos)
        out.update(sentence_attention=weights, text_weight=weights[..., -1].mean((0, 1)))
        found.append(v_s)
    if o.paths != 'sentence':
        v_p, energies = phrase_path(
            p['phrase_path'], o, encoded['phrases'], encoded['phrase_eos'], clips)
        out.update(energies)
        found.append(v_p)
    fused = fuse(p, o, *found) if len(found) == 2 else found[0]
    fused = self_attention_layer(p['temporal_attention'], fused + position, o.heads)
    head, mean = p['saliency_head'], sum(fused) / len(fused)
    saliency = [linear(head['clip'], f) @ linear(head['video'], mean) / np.sqrt(o.width)
                for f in fused]
    return out | dict(clips=found[0], saliency=np.array(saliency)), fused, position


def attention_map(o, out, sample):
    """What clips take from each key (docstring of `attention_map`).

    The keys are dummies, [EOS], phrases, P_EOS and words. A word's series is the phrases' energies
    times its share in them and theirs in the sum.

    Returns:
      (series [layers, heads, T, K], roles [K]).
    """
    parts, roles, like = [], [], (1, 1)
    if o.paths != 'phrase':
        parts.append(out['sentence_attention'])
        roles += [tokens.DUMMY] * o.dummies
        roles += [sample.sentence_role if out['eos_mask'] else tokens.PADDING]
        like = parts[0].shape[:2]
    if o.paths != 'sentence':
        shares = out['slot_attention'][-1].mean(0)
        words = [sum(energy * weight * share[i] for energy, weight, share in zip(
            out['phrase_energy'], out['phrase_weights'], shares)) for i in range(shares.shape[1])]
        series = np.stack([*out['phrase_energy'], out['summary_energy'], *words], -1)
        parts.append(np.broadcast_to(series * out['has_words'], (*like, *series.shape)))
        of_phrases = [*[tokens.PHRASE] * o.phrases, tokens.P_EOS]
        roles += of_phrases if out['has_words'] else [tokens.PADDING] * len(of_phrases)
        roles += list(sample.word_roles[: len(words)])
    return np.concatenate(parts, -1), np.array(roles)


def forward(p, o, samples, kept=None):
    """Outputs of each sample, in training: with the next sample's query as its negative pair.

    Args:
      p: parameters.
      o: what has the model's options as attributes.
      samples: each has video [T, d_v], words [L, d_t] with word_roles [L], eos [d_t] or None with
        sentence_role, and source, which is equal for samples of one source video.
      kept: a dict for each sample, see `decoder`.

    Returns:
      A dict for each sample, by the names of the model's `out`.
    """
    queries = [encode_query(p, o, sample) for sample in samples]
    encoded = [encode_phrases(p['phrase_encoder'], o, query.guide, query.words)
               if o.paths != 'sentence' else {} for query in queries]
    outs = []
    for b, sample in enumerate(samples):
        other = (b + 1) % len(samples)
        out, fused, position = relate(p, o, sample, queries[b], encoded[b])
        negative, _, _ = relate(p, o, sample, queries[other], encoded[other])
        out |= {f'{name}_neg': negative[name]
                for name in ('saliency', 'text_weight') if name in negative}
        has_eos, has_words = queries[b].eos is not None, len(queries[b].words) > 0
        out |= encoded[b] | dict(
            eos=queries[b].eos if has_eos else np.zeros(o.width), eos_mask=has_eos,
            has_words=has_words, real_neg=sample.source != samples[other].source)
        if o.head == 'pyramid':
            out |= pyramid_head(p['pyramid_head'], o, fused)
        else:
            out |= decoder(p['decoder'], o, fused, position, {} if kept is None else kept[b])
        out['attn'], out['attn_roles'] = attention_map(o, out, sample)
        outs.append(out)
    return outs


# Losses ----------------------------------------------------------------------------------------


def mean(values):
    """Of a list of numbers; 0 if there are none."""
    return sum(values) / len(values) if len(values) else 0.0


def focal(logit, label, gamma=2):
    p_t = sigmoid(logit) if label else sigmoid(-logit)
    return -((1 - p_t) ** gamma) * np.log(p_t)


def binary_cross_entropy(logit, target):
    return -(target * np.log(sigmoid(logit)) + (1 - target) * np.log(sigmoid(-logit)))


def rank_contrastive(scores, labels, temperature=0.5):
    """One row: for each rank 1..11 the entries of at least this label against all (docstring)."""
    logits = scores / temperature
    logits = logits - logits.max()
    log_prob = logits - np.log(np.exp(logits).sum() + 1e-6)
    total = 0.0
    for rank in range(1, 12):
        positives = [value for value, label in zip(log_prob, labels) if label >= rank]
        total -= sum(positives) / (len(positives) + 1e-6)
    return total / 12


def ranking(scores, negatives, outs, samples, config):
    """Margin ranking of the pairs, and ranks against the clips of negative pairs."""
    pairs = [max(0.0, config.margin + own[low] - own[high])
             for own, sample in zip(scores, samples) if sample.has_pairs
             for high, low in zip(sample.pos_clips, sample.neg_clips)]
    rows = {True: [], False: []}
    for own, other, out, sample in zip(scores, negatives, outs, samples):
        labels = sample.saliency
        if out['real_neg']:
            own, labels = np.concatenate([own, other]), np.concatenate([labels, 0 * labels])
        rows[out['real_neg']].append(rank_contrastive(own, labels))
    return config.margin_weight * mean(pairs) + mean(rows[True]) + mean(rows[False])


def saliency_loss(outs, samples, config):
    """On the scores and, times `attn`, on alpha."""
    def of(name):
        return [out[name] for out in outs]

    def absence(cost, name):
        return mean([sum(cost(out[name])) for out in outs if out['real_neg']])

    total = ranking(of('saliency'), of('saliency_neg'), outs, samples, config)
    total += config.absence_weight * absence(lambda x: -np.log(sigmoid(-x)), 'saliency_neg')
    if 'text_weight' in outs[0]:
        entropies = []
        for out, sample in zip(outs, samples):
            labels = np.clip(sample.saliency, 0, 1) if sample.graded else ()
            for alpha, label in zip(out['text_weight'], labels):
                # Logarithms stay finite at 0 and 1 (docstring).
                entropies.append(-label * np.log(max(alpha, 1e-12))
                                 - (1 - label) * np.log(1 - min(alpha, 1 - 1e-6)))
        total += config.attn * (
            ranking(of('text_weight'), of('text_weight_neg'), outs, samples, config)
            + mean(entropies) + config.absence_weight
            * absence(lambda x: -np.log(1 - np.minimum(x, 1 - 1e-6)), 'text_weight_neg'))
    return total


def cosine(a, b):
    lengths = np.sqrt((a @ a) * (b @ b))
    return a @ b / lengths if lengths else 0.0


def sampled_nce(outs, samples, over_batch):
    """InfoNCE at temperature 0.07 of each sample's positive clip with its [EOS].

    Against the clips of the sample and against the clips of the same index in the batch, in either
    case those that are labelled no higher than their own sample's positive clip (docstring).
    """
    kept = []
    for out, sample in zip(outs, samples):
        if sample.has_pairs and out['eos_mask']:
            positive = sample.pos_clips[0]
            logits = {t: cosine(clip, out['eos']) / 0.07 for t, clip in enumerate(out['clips'])
                      if sample.saliency[t] <= sample.saliency[positive]}
            kept.append((positive, logits))
    losses = []
    for positive, logits in kept:
        own = logits[positive]
        loss = np.log(sum(np.exp(x) for x in logits.values())) - own
        if over_batch:
            rivals = [others[positive] for _, others in kept if positive in others]
            loss += np.log(sum(np.exp(x) for x in rivals)) - own
        losses.append(loss)
    return mean(losses)


def diversity(outs, r):
    """L_DQA = mean ||A A' - r I||_F^2, of the generator's and of the last slot layer's weights."""
    costs = []
    for out in outs:
        if out['has_words']:
            for a in (out['phrase_attention'], out['slot_attention'][-1].mean(0)):
                costs.append(((a @ a.T - r * np.eye(len(a))) ** 2).sum())
    return 2 * mean(costs)


def reconstruction(outs, form):
    """L_EOS between P_EOS and e: InfoNCE over the batch at 0.1, or relu(0.7 - cosine)."""
    both = [out for out in outs if out['has_words'] and out['eos_mask']]
    losses = []
    for out in both:
        if form == 'margin':
            losses.append(max(0.0, 0.7 - cosine(out['phrase_eos'], out['eos'])))
        else:
            logits = np.array([cosine(out['phrase_eos'], other['eos']) / 0.1 for other in both])
            own = cosine(out['phrase_eos'], out['eos']) / 0.1
            losses.append(np.log(np.exp(logits).sum()) - own)
    return mean(losses)


def iou(a, b):
    """Of two windows, with the length of their hull: (IoU, union, hull)."""
    inter = max(0.0, min(a[1], b[1]) - max(a[0], b[0]))
    union = a[1] - a[0] + b[1] - b[0] - inter
    return inter / union, union, max(a[1], b[1]) - min(a[0], b[0])


def assign(strides, num_clips, windows, radius):
    """What each point has to predict: its distances to start and end in strides, or None (F).

    Windows are in clips. A point takes the shortest window in which it lies, within `radius`
    strides of its centre, and whose farther end is in reach of its level: between its own stride
    (0 at the first level) and the next one's (no bound at the last).
    """
    targets = []
    for level, stride in enumerate(strides):
        low = 0 if level == 0 else stride
        high = strides[level + 1] if level + 1 < len(strides) else np.inf
        for time in range(0, num_clips // stride * stride, stride):
            fitting = [
                (end - start, i) for i, (start, end) in enumerate(windows)
                if start <= time <= end and abs(time - (start + end) / 2) <= radius * stride
                and low <= max(time - start, end - time) <= high]
            start, end = windows[min(fitting)[1]] if fitting else (None, None)
            targets.append(((time - start) / stride, (end - time) / stride) if fitting else None)
    return targets


def pyramid_losses(outs, samples, o, config):
    """cls, reg and label."""
    classes, boundaries, pairs = [], [], []
    for out, sample in zip(outs, samples):
        targets = assign(
            o.strides, len(sample.video), sample.windows / sample.clip_length, config.radius)
        for i, (logit, target) in enumerate(zip(out['logits'], targets)):
            left, right = out['offsets'][i]
            if config.classification == 'focal':
                classes.append(focal(logit, target is not None))
            elif config.classification == 'quality':
                quality = iou((-left, right), (-target[0], target[1]))[0] if target else 0.0
                classes.append(binary_cross_entropy(logit, quality)
                               * abs(quality - sigmoid(logit)) ** 2)
            for side, distance in enumerate(target or ()):
                if config.regression == 'l1':
                    boundaries.append(abs(out['offsets'][i, side] - distance))
                else:  # cross entropy shared between the bins around the distance (docstring)
                    last = o.bins - 1
                    place = min(max(distance / config.radius * last, 0), last - 1e-3)
                    log = np.log(softmax(out['offset_logits'][i, side]))
                    below = int(place)
                    boundaries.append(-(below + 1 - place) * log[below]
                                      - (place - below) * log[below + 1])
        base = list(zip(out['logits'], sample.saliency)) if sample.graded else []
        pairs += base
        if config.classification == 'saliency':
            classes += [np.logaddexp(0, logit) - label * logit for logit, label in base]
    # Label alignment: both scaled to [0, 1] by the extremes of the batch (F).
    logits, labels = np.array(pairs).T
    scaled = [(x - x.min()) / (x.max() - x.min()) for x in (logits, labels)]
    return dict(cls=mean(classes), reg=mean(boundaries), label=((scaled[0] - scaled[1])**2).mean())


def match(cost):
    """Pairs (query, target) of least total cost [N, M]."""
    return list(zip(*optimize.linear_sum_assignment(cost)))


def window(span):
    """(centre, width) -> (start, end)."""
    return span[0] - span[1] / 2, span[0] + span[1] / 2


def generalized_iou(a, b):
    """IoU minus the share of the hull that neither covers, of two spans."""
    value, union, hull = iou(window(a), window(b))
    return value - (hull - union) / hull


def set_losses(outs, samples, o, config):
    """span, giou and query_label: Hungarian matching of each decoder layer, summed over layers."""
    total, weights = dict(span=0.0, giou=0.0, query_label=0.0), config.detr_cost
    for layer in range(o.dec_layers):
        errors, overlaps, labels = [], [], []
        for out, sample in zip(outs, samples):
            spans, logits = out['pred_spans'][layer], out['pred_logits'][layer]
            matched = match(np.array([[
                weights.span * np.abs(span - target).sum()
                - weights.giou * generalized_iou(span, target)
                - weights.label * softmax(logit)[0]
                for target in sample.spans] for span, logit in zip(spans, logits)]))
            for n, m in matched:
                errors += list(np.abs(spans[n] - sample.spans[m]))
                overlaps.append(1 - generalized_iou(spans[n], sample.spans[m]))
            found = {n for n, _ in matched}
            for n, logit in enumerate(logits):
                if config.detr_label == 'cross_entropy':
                    cost = -np.log(softmax(logit)[0 if n in found else 1])
                    labels.append(cost if n in found else config.detr_background * cost)
                else:  # sigmoid focal loss of both classes, alpha 0.25 of what is to be 1
                    for k in (0, 1):
                        is_one = (k == 0) == (n in found)
                        labels.append((0.25 if is_one else 0.75) * focal(logit[k], is_one))
        total['span'] += mean(errors)
        total['giou'] += mean(overlaps)
        total['query_label'] += mean(labels)
    return total


def losses(outs, samples, o, config):
    """Every unweighted loss by name.

    Args:
      outs: of `forward`.
      samples: each has also saliency [T], graded (whether these are its labels), pos_clips and
        neg_clips (2 each), has_pairs, clip_length in seconds, windows [M, 2] in seconds and
        spans [M, 2].
      o: the model's options.
      config: the `loss` section.
    """
    parts = dict(saliency=saliency_loss(outs, samples, config),
                 sal=sampled_nce(outs, samples, config.nce_over_batch))
    if o.paths != 'sentence':
        parts.update(phrase=diversity(outs, config.dqa_r),
                     eos=reconstruction(outs, config.eos_form))
    on_head = pyramid_losses if o.head == 'pyramid' else set_losses
    return parts | on_head(outs, samples, o, config)


def decode(out, sample, o):
    """Windows of one sample, best first: rows of start and end in seconds and a score."""
    if o.head == 'pyramid':
        points = [(time, stride) for stride in o.strides
                  for time in range(0, len(sample.video) // stride * stride, stride)]
        rows = [[(time - left * stride) * sample.clip_length,
                 (time + right * stride) * sample.clip_length, sigmoid(logit)]
                for (time, stride), (left, right), logit in zip(
                    points, out['offsets'], out['logits'])]
    else:
        seconds = len(sample.video) * sample.clip_length
        rows = [[*(bound * seconds for bound in window(span)), softmax(logit)[0]]
                for span, logit in zip(out['pred_spans'][-1], out['pred_logits'][-1])]
    return np.array(sorted(rows, key=lambda row: -row[2]))
