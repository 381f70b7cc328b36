"""QVHighlights' metrics by loops over queries, thresholds and annotators, in plain Python.

A second evaluation, which the vectorised one must equal to the last digit.
"""

RANGES = {'short': (0, 10), 'middle': (10, 30), 'long': (30, 150), 'full': (-1, 1e9)}
LEVELS = {'HL-min-Fair': 2, 'HL-min-Good': 3, 'HL-min-VeryGood': 4}
AP_THRESHOLDS = [percent / 100 for percent in range(50, 100, 5)]
R1_THRESHOLDS = [percent / 100 for percent in range(30, 100, 5)]


def evaluate(predictions: list[dict], annotations: list[dict]) -> dict:
    """The official numbers but for `brief`; each query has a predicted window."""
    by_qid = {row['qid']: row for row in annotations}
    pairs = [(row, by_qid[row['qid']]) for row in predictions]
    found = {name: plain_moments(pairs, *bounds) for name, bounds in RANGES.items()}
    found |= {name: plain_highlights(pairs, minimum) for name, minimum in LEVELS.items()}
    return found


def plain_moments(pairs, low, high):
    aps, overlaps = [], []
    for prediction, annotation in pairs:
        targets = [t for t in annotation['relevant_windows'] if low < t[1] - t[0] <= high]
        if targets:
            windows = prediction['pred_relevant_windows'][:10]
            aps.append([window_ap(windows, targets, t) for t in AP_THRESHOLDS])
            overlaps.append(first_overlap(windows[0], targets))
    means = [mean([ap[i] for ap in aps]) for i in range(len(AP_THRESHOLDS))]
    mean_ap = {str(t): percent(m) for t, m in zip(AP_THRESHOLDS, means)}
    mean_ap['average'] = percent(mean(means))
    recall = {str(t): percent(mean([x >= t for x in overlaps])) for t in R1_THRESHOLDS}
    return {'MR-mIoU': percent(mean(overlaps)), 'MR-mAP': mean_ap, 'MR-R1': recall}


def window_ap(windows, targets, threshold):
    taken, hits = set(), []
    for window in sorted(windows, key=lambda w: -w[2]):
        best = None
        for i, target in enumerate(targets):
            value = iou(window, target)
            if value >= threshold and i not in taken and (best is None or value >= best[0]):
                best = (value, i)
        if best:
            taken.add(best[1])
        hits.append(best is not None)
    precision = [sum(hits[:k + 1]) / (k + 1) for k in range(len(hits))]
    return sum(max(precision[k:]) / len(targets) for k, hit in enumerate(hits) if hit)


def iou(a, b):
    inter = max(0, min(a[1], b[1]) - max(a[0], b[0]))
    union = (a[1] - a[0]) + (b[1] - b[0]) - inter
    return inter / union if union else float('inf')


def first_overlap(window, targets):
    target = max(targets, key=lambda t: iou(window, t))
    inter = min(window[1], target[1]) - max(window[0], target[0])
    return inter / (max(window[1], target[1]) - min(window[0], target[0])) if inter > 0 else 0.0


def plain_highlights(pairs, minimum):
    aps, hits = [], []
    for prediction, annotation in pairs:
        labels = [[0, 0, 0] for _ in range(int(annotation['duration'] / 2))]
        for clip, values in zip(annotation['relevant_clip_ids'], annotation['saliency_scores']):
            labels[clip] = values
        scores = prediction['pred_saliency_scores']
        top = scores.index(max(scores))
        hits.append(top < len(labels) and max(labels[top]) >= minimum)
        fitted = (scores + [0] * len(labels))[:len(labels)]
        aps += [clip_ap(fitted, [values[a] >= minimum for values in labels]) for a in range(3)]
    return {'HL-mAP': percent(mean(aps)), 'HL-Hit1': percent(mean(hits))}


def clip_ap(scores, positive):
    """Mean of the interpolated precision at the scores where recall grows."""
    ranked = sorted(zip(scores, positive), key=lambda pair: -pair[0])
    points, found = [], 0
    for rank, (score, hit) in enumerate(ranked, start=1):
        found += hit
        if rank == len(ranked) or ranked[rank][0] != score:
            points.append((found, found / rank))
    best, gains = 0.0, []
    for i in reversed(range(len(points))):
        best = max(best, points[i][1])
        if points[i][0] > (points[i - 1][0] if i else 0):
            gains.append(best)
    return mean(gains) if gains else 0.0


def mean(values):
    return sum(values) / len(values)


def percent(value):
    return float(f'{100 * value:.2f}')
