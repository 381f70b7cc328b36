"""Train steps and predictions of the public PyTorch codes, imported from their checkouts.

They need PyTorch, torchvision, pandas and nncore. Nothing of them is in this project: what stands
here is how each is built and called. Without a GPU, `Tensor.cuda`, which they call in places
whatever the device, is made to do nothing.
"""

import contextlib
import importlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any
from unittest import mock

import numpy as np
import torch
from ml_collections import ConfigDict

BUILD = {'flash_vtg': 'build_model1', 'cg_detr': 'build_model', 'tr_detr': 'build_model'}


class Code:
    """A model of a public code, as its script for a recipe trains it."""

    def __init__(self, source: str, config: ConfigDict, folder: str):
        """Builds model and criterion as the training script does.

        Args:
            source: of the recipe: repository and path of the script.
            config: of the recipe; features must be as wide as in the script.
            folder: has a checkout of each repository, by its name.
        """
        repository, path = source.split(': ')
        checkout = pathlib.Path(folder, repository.split('/')[1])
        self.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
        if self.device.type == 'cpu':
            torch.set_num_threads(os.cpu_count())
            torch.Tensor.cuda = lambda tensor, *args, **kwargs: tensor
        self.name = config.model.name
        package = path.split('/')[0]
        with _importing(checkout):
            self.options = _options(package, checkout, path)
            build = getattr(importlib.import_module(f'{package}.model'), BUILD[self.name])
            self.model, self.criterion = build(self.options)
            if self.name == 'flash_vtg':
                # What its loaders and metrics need, which nothing here calls.
                names = 'torchtext', 'sklearn', 'sklearn.metrics'
                with mock.patch.dict(sys.modules, dict.fromkeys(names, mock.MagicMock())):
                    inference = importlib.import_module(f'{package}.inference')
                self.suppress = inference.post_processing_mr_nms
            if self.name == 'tr_detr':
                losses = f'{package}.loss_fun'
                self.ctc = importlib.import_module(f'{losses}.CTCLoss').CTC_Loss()
                self.vtc = importlib.import_module(f'{losses}.VTCLoss').VTCLoss()
        widths = self.options.v_feat_dim, self.options.t_feat_dim
        if widths != (expected := (sum(config.data.video_dims) + 2, config.data.text_dim)):
            raise ValueError(f'{source}: features of widths {widths}, expected {expected}')
        self.model.to(self.device)
        self.criterion.to(self.device).train()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=self.options.lr, weight_decay=self.options.wd)

    def batch(self, batch: dict[str, np.ndarray], vids: Sequence[str]) -> tuple[list, dict, dict]:
        """What the code's loader makes of `pipeline.collate`'s batch, without empty rows.

        Args:
            batch: padded to its longest video and text.
            vids: of the rows.

        Returns:
            (what the annotations say of each row, the model's inputs, targets).
        """
        rows = {name: torch.from_numpy(values[batch['index'] >= 0]).to(self.device)
                for name, values in batch.items()}
        windows = [own[mask].tolist() or None
                   for own, mask in zip(rows['windows'], rows['windows_mask'])]
        labels = [dict(relevant_windows=own) for own in windows]
        inputs = dict(src_txt=rows['text'], src_txt_mask=(rows['text_role'] > 0).float(),
                      src_vid=rows['video'], src_vid_mask=rows['video_mask'].float())
        if self.name != 'tr_detr':
            inputs.update(vid=list(vids), qid=rows['index'].tolist())
        targets = dict(
            # Where there are no windows, the loaders write one without length.
            span_labels=[dict(spans=own[mask] if mask.any() else own[:1])
                         for own, mask in zip(rows['spans'], rows['spans_mask'])],
            saliency_pos_labels=rows['pos_clips'].long(),
            saliency_neg_labels=rows['neg_clips'].long(),
            saliency_all_labels=rows['saliency'], relevant_clips=rows['saliency'],
            src_pos_mask=rows['relevant'].float(), label=labels,
            fps=torch.full((256,), 1 / self.options.clip_length, device=self.device))
        return labels, inputs, targets

    def train_step(self, labels: list, inputs: dict, targets: dict) -> float:
        """A step of `train_epoch`: forward, losses, backward, clip, AdamW; waits for the loss."""
        if not self.model.training:
            self.model.train()
        loss = self._loss(labels, inputs, targets)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.options.grad_clip)
        self.optimizer.step()
        return loss.item()

    @torch.no_grad()
    def predict(self, labels: list, inputs: dict, targets: dict) -> tuple[list, list]:
        """As the code's evaluation: the windows of a query, best first, and its clips' saliency.

        `labels` and `targets` are read by FlashVTG, which also suppresses overlaps.
        """
        if self.model.training:
            self.model.eval()
        if self.name == 'flash_vtg':
            out = self.model(**inputs, targets=dict(targets, label=labels))['_out']
            rows = [dict(pred_relevant_windows=out['boundary'].tolist())]
            self.suppress(rows, self.options.nms_thd, -1, -1, 'normal')
            return rows[0]['pred_relevant_windows'], out['saliency'].tolist()
        out = self.model(**inputs)
        center, width = out['pred_spans'][0].T
        bounds = torch.stack([center - width / 2, center + width / 2], -1)
        seconds = bounds.clamp(0, 1) * inputs['src_vid'].shape[1] * self.options.clip_length
        score = out['pred_logits'][0].softmax(-1)[:, :1]
        order = score[:, 0].argsort(descending=True)
        return torch.cat([seconds, score], -1)[order].tolist(), out['saliency_scores'][0].tolist()

    def _loss(self, labels: list, inputs: dict, targets: dict) -> torch.Tensor:
        if self.name == 'tr_detr':
            out = self.model(**inputs)
            loss = self._weighted(self.criterion(out, targets))
            align = self.ctc(out['src_vid_ed'], out['src_txt_ed'], targets['src_pos_mask'],
                             inputs['src_vid_mask'], inputs['src_txt_mask'])
            match = self.vtc(out['src_txt_cls_ed'], out['src_vid_cls_ed'])
            return loss + self.options.VTC_loss_coef * match + self.options.CTC_loss_coef * align
        out = self.model(**inputs, targets=targets)
        if self.name == 'cg_detr':
            return self._weighted(self.criterion(out, targets))
        self.criterion((labels,), out, targets)  # FlashVTG's writes its losses into `out`
        return self._weighted(out)

    def _weighted(self, parts: dict) -> torch.Tensor:
        weights = self.criterion.weight_dict
        return sum(parts[name] * weights[name] for name in parts if name in weights)


@contextlib.contextmanager
def _importing(checkout: pathlib.Path) -> Iterator[None]:
    """Imports from a checkout; `utils`, a package of each of them, is forgotten afterwards."""
    sys.path.insert(0, str(checkout))
    try:
        yield
    finally:
        sys.path.remove(str(checkout))
        for name in [name for name in sys.modules if name.split('.')[0] == 'utils']:
            del sys.modules[name]


def _options(package: str, checkout: pathlib.Path, script: str) -> Any:
    """What the code's option parser makes of the script's arguments, and `parse` adds to it."""
    parser = importlib.import_module(f'{package}.config').BaseOptions()
    parser.initialize()
    options = parser.parser.parse_args(_script_arguments(checkout / script))
    options.device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    options.v_feat_dim += 2  # temporal endpoints
    if 'config' in options:
        import nncore

        importlib.import_module('blocks')  # registers FlashVTG's layers
        options.cfg = nncore.Config.from_file(str(checkout / options.config))
    return options


def _script_arguments(script: pathlib.Path) -> list[str]:
    """The arguments of the first training that a script starts."""
    # A function stands in for the interpreter. TR-DETR's script for TVSum does not set its seed.
    shell = 'python() { printf "%s\\0" "${@:2}"; exit; }; . "$0"'
    done = subprocess.run(['bash', '-c', shell, str(script)], env=dict(os.environ, seed='0'),
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return done.stdout.decode().split('\0')[:-1]
