"""Makes the files of this folder; needs PyTorch: `python make_files.py`.

Modules with the names and shapes of OpenAI's CLIP, in half precision as its file. They compute
nothing.
"""

import collections
import pathlib

import torch
from torch import nn

WIDTH, PROJECTED, SIDE, PATCH, CONTEXT, VOCABULARY = 8, 6, 2, 4, 5, 11


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * WIDTH, WIDTH))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * WIDTH))
        self.out_proj = nn.Linear(WIDTH, WIDTH)


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attention()
        self.ln_1 = nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(collections.OrderedDict(
            c_fc=nn.Linear(WIDTH, 3 * WIDTH), gelu=nn.Identity(),
            c_proj=nn.Linear(3 * WIDTH, WIDTH)))
        self.ln_2 = nn.LayerNorm(WIDTH)

    def forward(self, x):
        return x


class Transformer(nn.Module):
    def __init__(self, layers: int):
        super().__init__()
        self.resblocks = nn.Sequential(*(Block() for _ in range(layers)))

    def forward(self, x):
        return self.resblocks(x)


class Visual(nn.Module):
    def __init__(self):
        super().__init__()
        self.input_resolution = SIDE * PATCH
        self.class_embedding = nn.Parameter(torch.empty(WIDTH))
        self.positional_embedding = nn.Parameter(torch.empty(SIDE**2 + 1, WIDTH))
        self.proj = nn.Parameter(torch.empty(WIDTH, PROJECTED))
        self.conv1 = nn.Conv2d(3, WIDTH, PATCH, PATCH, bias=False)
        self.ln_pre, self.ln_post = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.transformer = Transformer(2)

    def forward(self, x):
        return self.transformer(x)


class Clip(nn.Module):
    def __init__(self):
        super().__init__()
        self.positional_embedding = nn.Parameter(torch.empty(CONTEXT, WIDTH))
        self.text_projection = nn.Parameter(torch.empty(WIDTH, PROJECTED))
        self.logit_scale = nn.Parameter(torch.empty(()))
        self.visual = Visual()
        self.transformer = Transformer(1)
        self.token_embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.ln_final = nn.LayerNorm(WIDTH)
        for name, value in dict(input_resolution=8, context_length=CONTEXT, vocab_size=11).items():
            self.register_buffer(name, torch.tensor(value))

    def forward(self, x):
        return self.transformer(self.visual(x))


if __name__ == '__main__':
    torch.manual_seed(0)
    model = Clip()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    model = model.half().eval()
    folder = pathlib.Path(__file__).parent
    torch.save(model.state_dict(), folder / 'state.pt')
    torch.jit.save(torch.jit.script(model), folder / 'archive.pt')
